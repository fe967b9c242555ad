"""A study's tables as parquet: one row a measurement, one column a name. Equal rows give equal bytes."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import complete_file, read_json, write_json

ABOUT = "study.json"
_FORMAT = "dass-study-1"

Rows = list[dict[str, Any]]


def write_study(folder: Path, kind: str, about: Mapping[str, Any], tables: Mapping[str, Rows]) -> None:
    """Write study.json and a parquet file for each table; study.json comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        with complete_file(folder / f"{name}.parquet") as temporary:
            _write(temporary, rows)
    write_json(folder / ABOUT, {"format": _FORMAT, "kind": kind, **about})


def read_study(folder: Path, kind: str, names: Iterable[str]) -> tuple[dict[str, Any], dict[str, Rows]]:
    """What `write_study` wrote.

    Raises:
        InputError: there is no such study, or it is damaged.
    """
    try:
        about = read_json(folder / ABOUT)
    except FileNotFoundError:
        raise InputError(f"{folder} holds no study. Run: dass study {kind}") from None
    if not isinstance(about, dict) or (about.get("format"), about.get("kind")) != (_FORMAT, kind):
        raise InputError(f"{folder / ABOUT} is no study of {kind}. Run: dass study {kind}")
    return about, {name: _read(folder / f"{name}.parquet", kind) for name in names}


def check_ours(folder: Path, kind: str) -> None:
    """Raise InputError for a folder that holds something else than a study of this kind."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    file = folder / ABOUT
    about = read_json(file) if file.is_file() else None
    if not isinstance(about, dict) or (about.get("format"), about.get("kind")) != (_FORMAT, kind):
        raise InputError(f"{folder} holds something else than a study of {kind}: name a new folder by --output.")


def _write(path: Path, rows: Rows) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression="zstd")


def _read(path: Path, kind: str) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: Rows = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read as parquet ({reason}). Run: dass study {kind}") from error
    return rows
