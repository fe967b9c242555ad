"""Where a result may be written. Asked before any work, so that nothing is lost and no work is in vain.

Places are compared as the file system sees them: links, "..", and spellings that differ only in case may lead to one.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dass.errors import InputError


def check_place(folder: Path, kept: Mapping[str, Path]) -> None:
    """Refuse a place for a folder that cannot be one, or where writing would touch what is kept.

    Args:
        folder: what will be made, or replaced.
        kept: what must stay as it is, by what it is called: "the input", "the workspace's artifacts".

    Raises:
        InputError: `folder` is one of those, holds one or lies inside one; is a file or a mount point; or cannot be
            written.
    """
    for what, other in kept.items():
        if lies_in(folder, other) and lies_in(other, folder):
            raise InputError(f"{folder} is {what} ({other}): nothing was changed. Name another folder.")
        if lies_in(other, folder):
            raise InputError(f"{folder} holds {what} ({other}): nothing was changed. Name a folder beside it.")
        if lies_in(folder, other):
            raise InputError(f"{folder} lies inside {what} ({other}): nothing was changed. Name a folder beside it.")
    if os.path.ismount(os.path.realpath(folder)):  # what is there is replaced by a rename, and a mount point cannot be
        raise InputError(f"{folder} is a mount point: name a folder in it.")
    _check_can_be_made(folder, Path(os.path.realpath(folder)).parent)


def check_written_into(folder: Path) -> None:
    """Refuse a folder that cannot be written into. What is in it stays.

    Raises:
        InputError: it is a file, or cannot be written.
    """
    _check_can_be_made(folder, Path(os.path.realpath(folder)))


def _check_can_be_made(folder: Path, written: Path) -> None:
    target = Path(os.path.realpath(folder))
    if os.path.lexists(target) and not target.is_dir():
        raise InputError(f"{folder} is no folder: expected one, or a name that is free.")
    nearest = next(parent for parent in (written, *written.parents) if os.path.lexists(parent))
    try:
        with tempfile.TemporaryDirectory(prefix=".dass-", dir=nearest):
            pass
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made: {nearest} cannot be written ({error.strerror}). Name another folder."
        ) from None


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        InputError: it does.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} exists and is not empty: expected a new folder. Choose another, or remove it.")


def lies_in(inner: Path, outer: Path) -> bool:
    """Whether a path is another one or somewhere below it. Neither needs to exist."""
    real, above = Path(os.path.realpath(inner)), Path(os.path.realpath(outer))
    return any(path == above or _same(path, above) for path in (real, *real.parents))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist
        return False
