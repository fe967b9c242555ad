"""Registered versions: finding one, and reading the files of its folder.

A version's folder is what was registered, byte for byte:

    MLmodel, requirements.txt, ...    MLflow's own
    README.md                         model card
    dass/manifest.json, ...           masks, records, and the signature over all of it
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from dass.files import read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def find_version(client: "MlflowClient", model: str, wanted: str) -> "ModelVersion":
    """A version by number or alias, with its tags and aliases.

    Raises:
        InputError: there is no such version. The message names those there are.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version_by_alias(model, wanted) if not wanted.isdecimal() else None
        return client.get_model_version(model, wanted if found is None else found.version)
    except MlflowException as error:
        if error.error_code not in _UNKNOWN:
            raise
    numbers = [str(made.version) for made in all_versions(client, model)]
    if not numbers:
        raise InputError(f"MLflow has no model {model!r} (register.model in params.yaml). Run: dass run")
    raise InputError(
        f"{model} has no version or alias {wanted!r}: expected one of {', '.join(numbers)}, or an alias. "
        "See: dass history"
    )


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
    """The version's folder on this machine: where it lies, or a copy for as long as the context is open."""
    with TemporaryDirectory(prefix="dass-version-") as scratch:
        yield Path(_repository(client, made).download_artifacts("", _destination(client, made, scratch)))


@contextmanager
def file_of(client: "MlflowClient", made: "ModelVersion", path: str) -> Generator[Path]:
    """One file of the version's folder, like `folder_of`.

    Raises:
        InputError: the version has no such file.
    """
    with TemporaryDirectory(prefix="dass-version-") as scratch:
        try:
            yield Path(_repository(client, made).download_artifacts(path, _destination(client, made, scratch)))
        except FileNotFoundError:
            raise InputError(f"{made.name} version {made.version} has no {path}: it was not made by dass.") from None


def record_of(client: "MlflowClient", made: "ModelVersion", path: str) -> Any:
    """A JSON file of the version's folder."""
    with file_of(client, made, path) as file:
        return read_json(file)


def _repository(client: "MlflowClient", made: "ModelVersion") -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(_location(client, made))


def _destination(client: "MlflowClient", made: "ModelVersion", scratch: str) -> str | None:
    return None if _location(client, made).startswith(("file:", "/")) else scratch


def _location(client: "MlflowClient", made: "ModelVersion") -> str:
    location: str = client.get_logged_model(made.source.removeprefix("models:/")).artifact_location
    return location
