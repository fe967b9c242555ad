"""`dass init`: a workspace anywhere, with settings that can be read and a pipeline that follows the installed code."""

import os
import re
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import complete_file, scratch_folder
from dass.outputs import check_written_into
from flows.overrides import parse_changes, rewrite
from tasks.versioning.follow_git import WITHOUT_GIT
from tasks.versioning.git import is_tracked_place
from tasks.workspace.devices import check_device
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import load_settings

# template -> where it goes. None is named dvc.yaml: DVC would take it for a pipeline of the repository's own.
_FILES = {
    "params.yaml": "params.yaml",
    "pipeline.yaml": "dvc.yaml",
    "dvcignore": ".dvcignore",
    "gitignore": ".gitignore",
    "dvc/config": ".dvc/config",
    "dvc/gitignore": ".dvc/.gitignore",
}
_ADDED_TO = (".gitignore", ".dvcignore")


def make_workspace(
    folder: Path,
    model: str | None = None,
    calibration: str | None = None,
    evaluation: str | None = None,
    changes: Sequence[str] = (),
) -> Workspace:
    """Make a workspace in `folder`, complete or not at all.

    Args:
        folder: a new or existing folder. Files of its own stay, except that they must not be a workspace already.
        model, calibration, evaluation: uris that replace the default sources, digests dropped.
        changes: `section.key=value` settings that differ from the defaults.

    Raises:
        InputError: there is a workspace already, a setting cannot be used, or a source is missing.
    """
    root = folder.resolve()
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file: name a folder to make the workspace in.")
    _check_free(root)
    sources = {"model": model, "calibration": calibration, "evaluation": evaluation}
    wanted: list[tuple[str, Any]] = [
        (f"sources.{name}", {"uri": _lasting(uri, root)}) for name, uri in sources.items() if uri is not None
    ]
    if model is not None:
        wanted.append(("register.model", registered_name(model)))
    nearest = next(parent for parent in (root, *root.parents) if parent.is_dir())
    with scratch_folder(nearest, "dass-init") as prepared:
        _write_files(prepared, [*wanted, *parse_changes(changes)], in_git=is_tracked_place(root, nearest))
        check_device(load_settings(prepared / "params.yaml").engine.device)
        from tasks.versioning.stages import pin_inputs

        pin_inputs(Workspace.at(prepared), root)
        shutil.rmtree(prepared / ".dvc" / "tmp", ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        for entry in prepared.iterdir():
            _move(entry, root)
    return Workspace.at(root)


def _check_free(root: Path) -> None:
    """Nothing that is there may be in the way of a workspace, or of what its stages will make and replace."""
    check_written_into(root)
    ws = Workspace(root)
    for path in (ws.params, root / "dvc.yaml", root / ".dvc", root / "dvc.lock", ws.lock_file, *ws.made):
        if os.path.lexists(path):
            raise InputError(
                f"{root} has a {path.relative_to(root)} already: nothing was changed. Name another folder."
            )
    for name in _ADDED_TO:
        path = root / name
        if os.path.lexists(path) and (path.is_symlink() or not _is_text(path)):
            raise InputError(f"{path} is no text file that rules can be added to: nothing was changed. Mend it first.")


def _is_text(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return True


def registered_name(model: str) -> str:
    """A registered model's name from a model's uri: "org/Name-1B@main" becomes "name-1b-dass"."""
    last = model.split("#")[0].rstrip("/").split("/")[-1].split("@")[0]
    words = re.sub(r"[^a-z0-9.]+", "-", last.lower().removesuffix(".gguf")).strip("-.")
    return f"{words or 'model'}-dass"


def template(name: str) -> str:
    """The text of one template."""
    return resources.files("flows").joinpath("templates", *name.split("/")).read_text(encoding="utf-8")


def _write_files(root: Path, wanted: list[tuple[str, Any]], in_git: bool) -> None:
    for name, target in _FILES.items():
        text = template(name)
        if name == "params.yaml" and wanted:
            text = rewrite(text, wanted, "dass init")[1]
        (root / target).parent.mkdir(exist_ok=True)
        (root / target).write_text(text, encoding="utf-8")
    if not in_git:
        (root / ".dvc" / "config.local").write_text(WITHOUT_GIT, encoding="utf-8")


def _lasting(uri: str, root: Path) -> str:
    """A path that exists here is meant from here. Inside the workspace it is kept relative: both move together."""
    if not Path(uri).exists():
        return uri
    from tasks.sources.locate import tell_which

    path = Path(uri).resolve()
    tell_which(uri, path)
    return f"./{path.relative_to(root).as_posix()}" if path.is_relative_to(root) and path != root else str(path)


def _move(entry: Path, root: Path) -> None:
    target = root / entry.name
    if entry.name in _ADDED_TO and target.exists():  # the folder's own rules stay; ours are added
        known = target.read_text(encoding="utf-8")
        missing = [line for line in entry.read_text(encoding="utf-8").splitlines() if line not in known.splitlines()]
        with complete_file(target) as temporary:
            temporary.write_text(known.rstrip("\n") + "\n" + "\n".join(missing) + "\n", encoding="utf-8")
        return
    os.replace(entry, target)
