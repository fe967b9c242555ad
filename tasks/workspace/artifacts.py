"""Whose the files under artifacts/ are: DVC and the stages replace these folders whole, with all that lies in them."""

from collections.abc import Collection
from pathlib import Path

from dass.errors import InputError
from dass.files import files_in, read_json
from tasks.workspace.folder import Workspace

_CALIBRATION = {"tokens.safetensors", "calibration.json"}
_EVALUATION = {"tokens.safetensors", "losses.safetensors", "dense.json", "prompts.json"}
_MEASURES = {"losses.safetensors", "divergence.safetensors"}
_RECOVERED = {"recovery.json", "tokens.safetensors"}
_MASKS = {"manifest.json", "masks.safetensors", "statistics.safetensors"}


def refuse_strangers(ws: Workspace, folder: Path, recorded: Collection[str] = ()) -> None:
    """Refuse to replace a folder of artifacts that holds a file which no stage wrote.

    Args:
        ws: the workspace.
        folder: one of its artifacts; it need not exist.
        recorded: names that are known to be a stage's besides.

    Raises:
        InputError: it holds one. The message names it.
    """
    if not folder.is_dir():
        return
    known = {*_known(ws, folder), *recorded}
    strangers = sorted(name for name in files_in(folder) if name not in known and not _is_one_of_many(ws, folder, name))
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise InputError(
            f"{folder / strangers[0]}{more} was not made by a stage, and would be removed with what the stages make. "
            "Move it out of artifacts/."
        )


def _known(ws: Workspace, folder: Path) -> set[str]:
    if folder == ws.base:
        return {"source.json", *_named_in(folder / "source.json")}
    if folder == ws.pruned:
        return {"dass.json", *_named_in(folder / "dass.json")}
    return {
        ws.masks: _MASKS,
        ws.recovered: _RECOVERED,
        ws.calibration: _CALIBRATION,
        ws.evaluation: _EVALUATION,
        ws.measures: _MEASURES,
        ws.answers: {"answers.parquet"},
    }.get(folder, set())


def _named_in(record: Path) -> list[str]:
    try:
        return list(read_json(record)["files"])
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _is_one_of_many(ws: Workspace, folder: Path, name: str) -> bool:
    many = {ws.masks: "updates/", ws.recovered: "updates/", ws.evaluation: "hidden/"}.get(folder)
    return many is not None and name.startswith(many) and name.endswith(".safetensors")
