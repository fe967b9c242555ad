"""dass.json: what a pruned checkpoint folder says of itself, so that a later run knows whose files these are.

{"format": "dass-pruned-1", "settings": what was asked for, "base": the same of the folder it was made from, or null,
"files": {name: sha256}}
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import files_in, read_json, sha256_file, write_json

RECORD = "dass.json"
_FORMAT = "dass-pruned-1"


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a folder; None when there is none, or none that can be read."""
    try:
        record = read_json(folder / RECORD)
    except (OSError, ValueError):
        return None
    is_ours = isinstance(record, dict) and record.get("format") == _FORMAT and isinstance(record.get("files"), dict)
    return record if is_ours else None


def write_record(
    folder: Path, digests: Mapping[str, str], settings: Mapping[str, Any] | None, base: Mapping[str, Any] | None
) -> None:
    """Write the record of a folder.

    Args:
        folder: the pruned checkpoint.
        digests: its files, each with its sha256.
        settings: what was asked for, as JSON.
        base: what `history` gives for the folder it was made from.
    """
    files = dict(sorted(digests.items()))
    write_json(folder / RECORD, {"format": _FORMAT, "settings": settings, "base": base, "files": files})


def history(folder: Path) -> dict[str, Any] | None:
    """How a folder was pruned: its record without the files; None when it is no pruned checkpoint of ours."""
    record = read_record(folder)
    return None if record is None else {key: record.get(key) for key in ("settings", "base")}


def told(folder: Path, pruned: Mapping[str, Any] | None) -> str | None:
    """One line that says that an input was pruned before, if it was."""
    if pruned is None:
        return None
    how = pruned["settings"] or {}
    named = ", ".join(str(how[key]) for key in ("method", "pattern", "sparsity") if key in how)
    return f"{folder} was pruned before ({named or 'by dass'}): its zeros are part of the base now, and stay"


def check_replaceable(folder: Path, overwrite: bool) -> None:
    """Refuse to replace a folder that is not, file for file, an earlier output of ours.

    Args:
        folder: what would be replaced; it need not exist.
        overwrite: replace files of ours too that were changed since.

    Raises:
        InputError: it holds something that we did not make, or, without `overwrite`, something that was changed.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    record = read_record(folder)
    if record is None:
        raise InputError(f"{folder} exists, and dass did not make it: nothing was changed. Name a new folder.")
    ours = {RECORD, *record["files"]}
    present = {**files_in(folder), **{f"{path.relative_to(folder)}/": path for path in _empty_folders(folder)}}
    strangers = sorted(name for name in present if name not in ours)
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise InputError(
            f"{folder} holds {strangers[0]}{more}, which dass did not make: nothing was changed. "
            "Move that away, or name a new folder."
        )
    if overwrite:
        return
    for name, path in present.items():
        if name != RECORD and (not path.is_file() or sha256_file(path) != record["files"][name]):
            raise InputError(
                f"{folder / name} was changed since dass wrote it: nothing was changed now. "
                "Name a new folder, or say overwrite=True."
            )


def _empty_folders(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink() and not any(path.iterdir()))
