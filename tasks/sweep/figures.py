"""All numbers of a sweep as one tidy table: a row a point and figure."""

from pathlib import Path

from dass.files import complete_file
from tasks.sweep.pareto import Done, front
from tasks.sweep.space import shown


def write_figures(path: Path, name: str, done: Done, objectives: dict[str, str]) -> None:
    """Write a parquet file: sweep, point, best, fingerprint, masks, a column of text for each setting that varies,
    figure and value. Seconds are figures, too; a point that failed has no row.
    """
    import pyarrow
    from pyarrow import parquet

    best = front(done, objectives)
    keys = list(dict.fromkeys(key for point, _ in done for key in point.values))
    rows = [
        {
            "sweep": name,
            "point": point.number,
            "best": point.number in best,
            "fingerprint": record.fingerprint,
            "masks": record.masks,
            **{key: shown(point.values[key]) if key in point.values else None for key in keys},
            "figure": figure,
            "value": float(value),
        }
        for point, record in done
        for figure, value in {
            **(record.figures or {}),
            **{f"seconds.{what}": took for what, took in (record.seconds or {}).items()},
        }.items()
    ]
    columns = [("sweep", pyarrow.string()), ("point", pyarrow.int64()), ("best", pyarrow.bool_())]
    columns += [(key, pyarrow.string()) for key in ("fingerprint", "masks", *keys, "figure")]
    schema = pyarrow.schema([*columns, ("value", pyarrow.float64())])
    with complete_file(path) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), temporary)
