"""Registered versions: finding one, and reading the files of its folder.

A version's folder is what was registered, byte for byte:

    MLmodel, requirements.txt, ...    MLflow's own
    README.md                         model card
    dass/manifest.json, ...           masks, records, and the signature over all of it
"""

import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from dass.errors import InputError, UnavailableError
from dass.files import read_json, scratch_folder
from tasks.registry.place import local_path
from tasks.registry.signing import missing_files
from tasks.registry.tracking import code_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger("dass")

_DIGITS = 18  # that a database's number has, at most
_UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class UnknownVersionError(InputError):
    """The registry has no version of that number or alias."""


def find_version(client: "MlflowClient", model: str, wanted: str) -> "ModelVersion":
    """A version by number or alias, with its tags and aliases. A number goes first, and then that is told.

    Raises:
        UnknownVersionError: there is no such version. The message names those there are.
    """
    is_number = wanted.isascii() and wanted.isdecimal() and len(wanted) <= _DIGITS
    numbered = _asked(lambda: client.get_model_version(model, wanted)) if is_number else None
    aliased = _asked(lambda: client.get_model_version_by_alias(model, wanted))
    if numbered is not None:
        if aliased is not None and str(aliased.version) != str(numbered.version):
            logger.warning(f"{wanted} is version {wanted} of {model}, not {aliased.version}, which has it as an alias")
        return numbered
    if aliased is not None:
        return client.get_model_version(model, aliased.version)
    numbers = [str(made.version) for made in all_versions(client, model)]
    if not numbers:
        raise UnknownVersionError(f"MLflow has no model {model!r} (register.model in params.yaml). Run: dass run")
    is_path = ", not a path" if is_a_path(wanted) else ""
    raise UnknownVersionError(
        f"{model} has no version or alias {wanted!r}: expected one of {', '.join(numbers)}, or an alias{is_path}. "
        "See: dass history"
    )


def version_numbered(client: "MlflowClient", model: str, number: str) -> "ModelVersion | None":
    """The version with a number, if there is one."""
    return _asked(lambda: client.get_model_version(model, number))


def is_a_path(what: str) -> bool:
    """Whether a name that may mean a version or a folder can only mean the folder."""
    return "/" in what or os.sep in what or what in (".", "..")


def _asked(ask: Callable[[], "ModelVersion"]) -> "ModelVersion | None":
    try:
        return ask()
    except Exception as error:
        if code_of(error) not in _UNKNOWN:
            raise
    return None


def all_versions(client: "MlflowClient", model: str) -> list["ModelVersion"]:
    """Every version of a model, newest first. Their aliases are not filled in."""
    found: list[ModelVersion] = []
    token = None
    while True:
        # The whole model, then compared here: a name with quotes would break the filter's syntax.
        page = client.search_model_versions(_named(model), max_results=1000, page_token=token)
        found += [made for made in page if made.name == model]
        token = page.token
        if not token:
            return sorted(found, key=lambda made: int(made.version), reverse=True)


def _named(model: str) -> str | None:
    return None if "'" in model else f"name = '{model}'"


@contextmanager
def folder_of(client: "MlflowClient", made: "ModelVersion") -> Generator[Path]:
    """The version's folder on this machine: where it lies, or a copy for as long as the context is open.

    Raises:
        UnavailableError: it is not where it was registered.
    """
    location = _location(client, made)
    check_present(client, made)
    with scratch_folder(Path(gettempdir()), "dass-version") as scratch:
        yield local_path(location) or Path(repository(client, location).download_artifacts("", str(scratch)))


@contextmanager
def file_of(client: "MlflowClient", made: "ModelVersion", path: str) -> Generator[Path]:
    """One file of the version's folder, like `folder_of`.

    Raises:
        InputError: the version has no such file.
        UnavailableError: its folder is not where it was registered.
    """
    location = _location(client, made)
    folder = local_path(location)
    with scratch_folder(Path(gettempdir()), "dass-version") as scratch:
        try:
            found = (
                folder / path if folder else Path(repository(client, location).download_artifacts(path, str(scratch)))
            )
            if not found.is_file():
                raise FileNotFoundError
        except FileNotFoundError:
            check_present(client, made)
            raise InputError(f"{made.name} version {made.version} has no {path}: it was not made by dass.") from None
        yield found


def record_of(client: "MlflowClient", made: "ModelVersion", path: str) -> Any:
    """A JSON file of the version's folder."""
    with file_of(client, made, path) as file:
        return read_json(file)


def check_present(client: "MlflowClient", made: "ModelVersion", *, whole: bool = False) -> None:
    """Look whether a version's files are where it was registered.

    Args:
        client: MLflow.
        made: the version.
        whole: look for each file that was signed, where they are on this machine; else for any.

    Raises:
        UnavailableError: they are not.
        SignatureError: `whole`, and nothing tells which files there were.
    """
    location = _location(client, made)
    folder = local_path(location)
    if folder is None:
        missing = [] if repository(client, location).list_artifacts() else [location]
    elif not folder.is_dir() or not any(folder.iterdir()):
        missing = [str(folder)]
    else:
        missing = [str(folder / name) for name in missing_files(folder)] if whole else []
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        delete = f"MlflowClient().delete_model_version({made.name!r}, {str(made.version)!r})"
        raise UnavailableError(
            f"{made.name} version {made.version} is registered, and its files are gone: no {missing[0]}{more}. Was the "
            "workspace moved, or its mlartifacts removed? Put them back there. If they are lost, delete the version in "
            f"MLflow ({delete}) and run: dass run"
        )


def repository(client: "MlflowClient", location: str) -> Any:
    """The files at a location, as this client's MLflow reaches them: another may be set for the whole process."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(location, client.tracking_uri, client._registry_uri)


def _location(client: "MlflowClient", made: "ModelVersion") -> str:
    location: str = client.get_logged_model(made.source.removeprefix("models:/")).artifact_location
    return location
