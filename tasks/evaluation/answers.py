"""answers.parquet: what both models answered, a row for each document of each task."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dass.errors import InputError

if TYPE_CHECKING:
    import pyarrow

ANSWERS = "answers.parquet"


@dataclass(frozen=True)
class Answer:
    """What one model answered to one document.

    Attributes:
        log_likelihoods: of each choice, in nats; empty where the model writes its answer.
        choice: the likeliest one; None where the model writes.
        text: what it wrote; None where it chooses.
        scores: the task's metrics for this document alone, those that are numbers.
    """

    log_likelihoods: list[float]
    choice: int | None
    text: str | None
    scores: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One document of one task.

    Attributes:
        task: lm_eval's name.
        doc: the document's number, from 0.
        target: the right choice; None where there is no single one.
        choices: their texts; or the text that is expected, where the model writes.
        dense, pruned: what each model answered.
        metric: which score says whether an answer is right.
    """

    task: str
    doc: int
    target: int | None
    choices: list[str]
    dense: Answer
    pruned: Answer
    metric: str | None

    @property
    def right(self) -> tuple[bool | None, bool | None]:
        """Whether the dense and the pruned model are right; None where no score says so."""
        return _right(self.dense, self.metric), _right(self.pruned, self.metric)

    @property
    def is_flipped(self) -> bool:
        """Whether one of them is right and the other is not."""
        dense, pruned = self.right
        return dense is not pruned


def _right(answer: Answer, metric: str | None) -> bool | None:
    score = answer.scores.get(metric) if metric is not None else None
    return None if score is None else score == 1.0


def write_answers(path: Path, rows: Iterable[Row]) -> None:
    """Equal rows give equal bytes."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([_plain(row) for row in rows], schema=_schema())
    pyarrow.parquet.write_table(table, path, compression="zstd")


def read_answers(path: Path) -> Iterator[Row]:
    """The rows of a file that `write_answers` wrote.

    Raises:
        InputError: it is no such file.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if not file.schema_arrow.equals(_schema()):
            raise InputError(f"{path} has other columns than answers have. Run: dass run")
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                yield _row(row)
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read as parquet ({reason}). Run: dass run") from error


def _plain(row: Row) -> dict[str, Any]:
    values = asdict(row)
    for which in ("dense", "pruned"):
        values[which]["scores"] = list(values[which]["scores"].items())
    return values


def _row(row: dict[str, Any]) -> Row:
    dense, pruned = (Answer(**{**row[which], "scores": dict(row[which]["scores"])}) for which in ("dense", "pruned"))
    return Row(**{**row, "dense": dense, "pruned": pruned})


def _schema() -> "pyarrow.Schema":
    import pyarrow as pa

    answer = pa.struct(
        [
            ("log_likelihoods", pa.list_(pa.float64())),
            ("choice", pa.int32()),
            ("text", pa.string()),
            ("scores", pa.map_(pa.string(), pa.float64())),
        ]
    )
    return pa.schema(
        [
            ("task", pa.string()),
            ("doc", pa.int32()),
            ("target", pa.int32()),
            ("choices", pa.list_(pa.string())),
            ("dense", answer),
            ("pruned", answer),
            ("metric", pa.string()),
        ]
    )
