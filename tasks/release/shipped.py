"""What a published version consists of: a checkpoint that transformers loads, and the records that prove it."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from dass.files import sha256_file
from dass.masks.pruned_record import RECORD
from dass.model.checkpoint_folder import BASE_CARD, contents
from tasks.registry.checked import CheckedVersion
from tasks.registry.loading import checkpoint_of
from tasks.registry.signing import SIGNATURE, SignatureError, refuse_links_and_pickles
from tasks.registry.version_folder import ANSWERS, BOM, CARD, CHECKPOINT, RECORDS, VERSION
from tasks.workspace.folder import Workspace


@contextmanager
def shipped(ws: Workspace, version: CheckedVersion) -> Generator[dict[str, Path]]:
    """Name in the repository -> file, as long as the context is open; every file is as it was signed.

    The checkpoint lies at the top, base × masks where the version holds masks only; the records lie in dass/. Answers
    to tasks stay: they quote the tasks' documents.

    Raises:
        SignatureError: it is not what was signed, or its weights are not those that its records name.
        UnavailableError: its files, or its base, are not to be had.
    """
    with version.folder() as folder, checkpoint_of(folder, ws=ws) as checkpoint:
        refuse_links_and_pickles(checkpoint)
        found = contents(checkpoint)
        names = [*found.names, *(name for name in (RECORD, BASE_CARD) if (checkpoint / name).is_file())]
        records = [name for name in version.signed if name.startswith(f"{RECORDS}/") and name != ANSWERS]
        if not any(name.startswith(f"{CHECKPOINT}/") for name in version.signed):
            _check_made(version, checkpoint)
        yield {
            **{name: checkpoint / name for name in names},
            **{name: folder / name for name in (CARD, BOM, SIGNATURE, *records)},
        }


def _check_made(version: CheckedVersion, checkpoint: Path) -> None:
    """What masks make of the base now is what was measured when the version was registered."""
    for name, sha256 in version.record(VERSION)["weights"].items():
        if sha256_file(checkpoint / name) != sha256:
            raise SignatureError(f"{name}, made from the masks of {version.told}, is not the file that was registered.")
