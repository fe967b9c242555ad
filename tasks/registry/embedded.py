"""The embedded store's database, asked without MLflow, whose import alone takes longer than most answers.

Finding a version and reading a ledger takes a few rows of MLflow's tables, in the one schema that is known here.
Whatever else is asked, and whatever is not plain (another schema, a locked file, an id that is not there), is MLflow's
to answer: it is loaded then.
"""

import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dass.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCHEMA = "dc11669786a5"
"""The revision of MLflow's tables that is known here."""

_BUSY_SECONDS = 1.0  # MLflow waits longer
_IS_NAMED = re.compile(r"name = '([^']*)'")
_IS_TAGGED = re.compile(r"tags\.`([^`]*)` = '([^']*)'")
_IS_SEEN_AS = re.compile(r"attributes\.status = '([A-Z]*)'")
# What MLflow treats in ways of its own: prompts, which it keeps among the models, and workspaces.
_STRANGE = """
select exists (select 1 from registered_model_tags where key = 'mlflow.prompt.is_prompt')
    or exists (select 1 from registered_models where workspace <> 'default')
"""
_VERSIONS = """
select name, version, run_id, source, description from model_versions where current_stage <> 'Deleted_Internal'
"""


class NotThere(InputError):
    """There is no such registered model, version or alias. MLflow's own error has the same code."""

    error_code = "RESOURCE_DOES_NOT_EXIST"


class _NotPlain(Exception):
    """MLflow is to answer."""


@dataclass(frozen=True)
class _Model:
    name: str
    creation_timestamp: int
    tags: dict[str, str]
    aliases: dict[str, int]


@dataclass(frozen=True)
class _Version:
    name: str
    version: int
    run_id: str
    source: str
    description: str | None
    tags: dict[str, str]
    aliases: list[str]


@dataclass(frozen=True)
class _RunInfo:
    run_id: str
    run_name: str
    experiment_id: str
    status: str
    lifecycle_stage: str
    start_time: int | None = None


@dataclass(frozen=True)
class _Experiment:
    experiment_id: str
    name: str
    lifecycle_stage: str


@dataclass(frozen=True)
class _RunData:
    params: dict[str, str]
    tags: dict[str, str]


@dataclass(frozen=True)
class _Run:
    info: _RunInfo
    data: _RunData


@dataclass(frozen=True)
class _LoggedModel:
    model_id: str
    artifact_location: str
    tags: dict[str, str]


def _version(row: tuple[Any, ...], tags: dict[str, str], aliases: list[str]) -> _Version:
    """Of a row of _VERSIONS."""
    name, number, run, source, description = row
    return _Version(name, number, run, source, description, tags, aliases)


class _Page(list[Any]):
    token = None


def is_plain(path: Path) -> bool:
    """Whether a database can be asked here: it is there, not locked, of the known schema, nothing strange in it."""
    if not path.is_file() or os.environ.get("MLFLOW_ENABLE_WORKSPACES"):
        return False
    try:
        with closing(_connected(path)) as connection:
            schema = connection.execute("select version_num from alembic_version").fetchall()
            return schema == [(SCHEMA,)] and connection.execute(_STRANGE).fetchone() == (0,)
    except sqlite3.Error:
        return False


def _connected(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_BUSY_SECONDS, isolation_level=None)


def _or_mlflow(ask: Callable[..., Any]) -> Callable[..., Any]:
    """A question that MLflow is asked when the database gives no plain answer."""

    @wraps(ask)
    def asked(self: "EmbeddedClient", *arguments: Any, **options: Any) -> Any:
        try:
            return ask(self, *arguments, **options)
        except (_NotPlain, sqlite3.Error):
            return getattr(self._mlflow, ask.__name__)(*arguments, **options)

    return asked


class EmbeddedClient:
    """MLflow's client for whoever mostly reads. The answers have the attributes that are read of MLflow's.

    Args:
        path: the database, which `is_plain`.
        tracking_uri: the same for MLflow.
        connect: gives MLflow's client.
    """

    def __init__(self, path: Path, tracking_uri: str, connect: Callable[[], "MlflowClient"]) -> None:
        self.tracking_uri = tracking_uri
        self._path = path
        self._connect = connect

    @cached_property
    def _mlflow(self) -> Any:
        return self._connect()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mlflow, name)

    def _ask(self, *questions: str, about: dict[str, Any]) -> list[list[Any]]:
        """The rows of each, all of the same moment."""
        with closing(_connected(self._path)) as connection:
            connection.execute("begin")
            return [connection.execute(question, about).fetchall() for question in questions]

    @_or_mlflow
    def get_registered_model(self, name: str) -> _Model:
        found, tags, aliases = self._ask(
            "select creation_time from registered_models where name = :name",
            "select key, value from registered_model_tags where name = :name",
            "select alias, version from registered_model_aliases where name = :name",
            about={"name": name},
        )
        if not found:
            raise NotThere(f"MLflow has no registered model {name!r}.")
        return _Model(name, found[0][0], dict(tags), dict(aliases))

    @_or_mlflow
    def get_model_version(self, name: str, version: str | int) -> _Version:
        if not str(version).isdecimal():
            raise _NotPlain
        found, tags, aliases = self._ask(
            f"{_VERSIONS} and name = :name and version = :version",
            "select key, value from model_version_tags where name = :name and version = :version",
            "select alias from registered_model_aliases where name = :name and version = :version",
            about={"name": name, "version": int(version)},
        )
        if not found:
            raise NotThere(f"MLflow has no version {version} of {name!r}.")
        return _version(found[0], dict(tags), [alias for (alias,) in aliases])

    @_or_mlflow
    def get_model_version_by_alias(self, name: str, alias: str) -> _Version:
        if alias.lower() == "latest":  # MLflow knows it without anybody having set it
            raise _NotPlain
        (found,) = self._ask(
            "select version from registered_model_aliases where name = :name and alias = :alias",
            about={"name": name, "alias": alias},
        )
        if not found:
            raise NotThere(f"MLflow has no version of {name!r} with the alias {alias!r}.")
        made: _Version = self.get_model_version(name, str(found[0][0]))
        return made

    @_or_mlflow
    def search_model_versions(self, filter_string: str | None = None, **page: Any) -> _Page:
        named = _IS_NAMED.fullmatch(filter_string or "")
        if filter_string and not named:
            raise _NotPlain
        name = named[1] if named else None
        found, tags = self._ask(
            f"{_VERSIONS} and (:name is null or name = :name)",
            "select name, version, key, value from model_version_tags where :name is null or name = :name",
            about={"name": name},
        )
        tags_of: dict[tuple[str, int], dict[str, str]] = {}
        for model, version, key, value in tags:
            tags_of.setdefault((model, version), {})[key] = value
        return _Page(_version(row, tags_of.get((row[0], row[1]), {}), []) for row in found)

    @_or_mlflow
    def search_registered_models(self, filter_string: str | None = None, **page: Any) -> _Page:
        if filter_string:
            raise _NotPlain
        found, tags, aliases = self._ask(
            "select name, creation_time from registered_models",
            "select name, key, value from registered_model_tags",
            "select name, alias, version from registered_model_aliases",
            about={},
        )
        made = {name: _Model(name, created, {}, {}) for name, created in found}
        for name, key, value in tags:
            made[name].tags[key] = value
        for name, alias, version in aliases:
            made[name].aliases[alias] = version
        return _Page(made.values())

    @_or_mlflow
    def get_experiment_by_name(self, name: str) -> _Experiment | None:
        (found,) = self._ask(
            "select experiment_id, name, lifecycle_stage from experiments where name = :name", about={"name": name}
        )
        return _Experiment(str(found[0][0]), *found[0][1:]) if found else None

    @_or_mlflow
    def search_runs(self, experiment_ids: list[str], filter_string: str = "", **page: Any) -> _Page:
        """Of one experiment, by one tag or by status; the newest first."""
        tagged, seen_as = _IS_TAGGED.fullmatch(filter_string), _IS_SEEN_AS.fullmatch(filter_string)
        if len(experiment_ids) != 1 or page or not (tagged or seen_as):
            raise _NotPlain
        wanted = (
            "run_uuid in (select run_uuid from tags where key = :key and value = :value)"
            if tagged
            else "status = :status"
        )
        chosen = f"from runs where experiment_id = :experiment and lifecycle_stage = 'active' and {wanted}"
        about = {"experiment": int(experiment_ids[0]), "key": "", "value": "", "status": ""}
        about |= dict(zip(("key", "value"), tagged.groups(), strict=True)) if tagged else {}
        about |= {"status": seen_as[1]} if seen_as else {}
        found, params, tags = self._ask(
            f"select run_uuid, name, experiment_id, status, lifecycle_stage, start_time {chosen} "
            "order by start_time desc, run_uuid",
            f"select run_uuid, key, value from params where run_uuid in (select run_uuid {chosen})",
            f"select run_uuid, key, value from tags where run_uuid in (select run_uuid {chosen})",
            about=about,
        )
        data = {row[0]: _RunData({}, {}) for row in found}
        for run, key, value in params:
            data[run].params[key] = value
        for run, key, value in tags:
            data[run].tags[key] = value
        return _Page(
            _Run(_RunInfo(run, name, str(experiment), status, stage, start), data[run])
            for run, name, experiment, status, stage, start in found
        )

    @_or_mlflow
    def get_run(self, run_id: str) -> _Run:
        found, params, tags = self._ask(
            "select run_uuid, name, experiment_id, status, lifecycle_stage from runs where run_uuid = :run",
            "select key, value from params where run_uuid = :run",
            "select key, value from tags where run_uuid = :run",
            about={"run": run_id},
        )
        if not found or not found[0][1]:  # MLflow looks for a name among the tags
            raise _NotPlain
        run, name, experiment, status, stage = found[0]
        return _Run(_RunInfo(run, name, str(experiment), status, stage), _RunData(dict(params), dict(tags)))

    @_or_mlflow
    def get_logged_model(self, model_id: str) -> _LoggedModel:
        found, tags = self._ask(
            "select model_id, artifact_location from logged_models "
            "where model_id = :model and lifecycle_stage <> 'deleted'",
            "select tag_key, tag_value from logged_model_tags where model_id = :model",
            about={"model": model_id},
        )
        if not found:
            raise _NotPlain
        model, location = found[0]
        return _LoggedModel(model, location, dict(tags))
