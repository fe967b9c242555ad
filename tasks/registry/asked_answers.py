"""`dass answers`: what both models answered to each document of a version's tasks, or of the workspace's."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from tasks.evaluation.answers import ANSWERS, Answer, Row, read_answers
from tasks.registry.checked import checked_version
from tasks.registry.timeline import plain
from tasks.registry.tracking import tracking
from tasks.registry.version_folder import ANSWERS as IN_VERSION
from tasks.workspace.folder import Workspace
from tasks.workspace.tables import Fitted, table

if TYPE_CHECKING:
    from rich.table import Table


def answers(ws: Workspace, model: str, version: str | None, task: str | None, flipped: bool) -> list[Row]:
    """The answers, document by document.

    Args:
        ws: where.
        model: registered model.
        version: number or alias, held to the ledger and the signature; None is the workspace's own result.
        task: only this task's.
        flipped: only where one model is right and the other is not.

    Raises:
        InputError: there is no such version or task, or no task was asked.
        BrokenLedger, ForeignChampion, SignatureError: the version is not what the ledger says.
        TrackingError: MLflow failed.
    """
    if version is None:
        path = ws.answers / ANSWERS
        if not path.is_file():
            raise InputError(f"No {path}: there is no result yet. Run: dass run")
        rows, whose = list(read_answers(path)), "The workspace's result"
    else:
        with tracking(ws) as client:
            checked = checked_version(client, model, version, ws)
            whose, rows = checked.told, []
            if IN_VERSION in checked.signed:
                with checked.file(IN_VERSION) as path:
                    rows = list(read_answers(path))
    names = list(dict.fromkeys(row.task for row in rows))
    if not names:
        raise InputError(f"{whose} has no answers: no task was asked. Name some under evaluate.tasks, and: dass run")
    if task is not None and task not in names:
        raise InputError(f"{whose} has no answers to {task!r}: expected one of {', '.join(names)}.")
    return [row for row in rows if (task is None or row.task == task) and (not flipped or row.is_flipped)]


def as_json(row: Row) -> dict[str, Any]:
    """A row as a machine reads it."""
    dense, pruned = row.right
    return {
        "task": row.task,
        "doc": row.doc,
        "target": row.target,
        "choices": row.choices,
        "dense": {**_plain(row.dense), "right": dense},
        "pruned": {**_plain(row.pruned), "right": pruned},
    }


def _plain(answer: Answer) -> dict[str, Any]:
    return {
        "choice": answer.choice,
        "text": answer.text,
        "log_likelihoods": answer.log_likelihoods,
        "scores": answer.scores,
    }


def answers_table(rows: Iterable[Row]) -> Fitted:
    """A row a document, for a terminal."""
    found = list(rows)

    def build(width: int) -> "Table":
        from rich.markup import escape

        made = table(width, "task", "doc", "expected", "dense", "pruned", "", title="Answers", right=("doc",))
        for row in found:
            expected = row.choices[row.target] if row.target is not None else " | ".join(row.choices)
            told = "lost" if row.right == (True, False) else "gained" if row.right == (False, True) else ""
            answers = (expected, _given(row, row.dense), _given(row, row.pruned))
            made.add_row(row.task, str(row.doc), *(escape(plain(_short(text))) for text in answers), told)
        return made

    return Fitted(build)


def _given(row: Row, answer: Answer) -> str:
    if answer.text is not None:
        return answer.text
    if answer.choice is not None:
        return row.choices[answer.choice]
    return ", ".join(f"{each:.3f}" for each in answer.log_likelihoods)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
