"""The ledger of a registered model: what happened to its versions, as a chain of lines that only grows.

It lives in MLflow. One run in the experiment "dass ledger" holds it, and the registered model's tag "ledger" names that
run. Each entry is one param of the run: key "entry.000007", value one line of canonical JSON, which holds the sha256 of
the line before it. So an entry that was edited, moved or taken out shows. A version's tag "ledger.head" names the last
entry about that version, so that cutting the end off shows too.

Writing entry n is a compare-and-set: of two writers one wins, and the other reads again. Of MLflow (3.17.2) this needs:

- The table `params` has the primary key (key, run_uuid), so SQLite and Postgres themselves refuse a second row.
  `SqlAlchemyStore.log_param` inserts and commits, and never updates: another value for a key is refused, the same value
  is success. So is a request that was sent twice because its answer was lost.
- `log_param`, not `log_batch`, which looks for the key before it inserts and tells a lost race as a bad request; and
  with synchronous=True, because MLFLOW_ENABLE_ASYNC_LOGGING makes the default return before anything is written.
- What a refusal says is not read: after any error the entry is. Each line holds a random id, which tells this writer's
  from another's.
- MLflow cuts params behind 6000 characters and only warns. A longer line is refused here.
- Creating a registered model or an experiment with tags is one transaction, and their names are unique.
"""

import getpass
import hashlib
import json
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from dass.files import canonical_json
from tasks.registry.tracking import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

EXPERIMENT = "dass ledger"
TAG = "ledger"
"""On a registered model: the run that holds its ledger."""
HEAD = "ledger.head"
"""On a version: "<n> <digest>" of the last entry about it."""
EVENTS = ("registered", "gate", "promoted", "refused", "rolled_back", "verified", "failed")
CROWNINGS = ("promoted", "rolled_back")
"""The events that make a version the champion."""

_KEY = "entry."
_LONGEST = 6000  # MLflow's longest param, in characters
_DIGITS = 18  # of an entry's number, at most
_NOTHING = "0" * 64  # what the first line names as the one before it
_TEXTS = ("id", "time", "actor", "event", "model", "version", "manifest", "before")
_TRIES = 100  # of a race with other writers: each lost one is another writer's success


class BrokenLedger(Exception):
    """The ledger is not what was written. The message is one line: which entry, and what is wrong with it."""


class Overtaken(Exception):
    """Another process has written this entry. Read the ledger again, and decide again."""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        n: its number, from 0.
        id: random hex.
        time: UTC, ISO 8601 with milliseconds.
        actor: user@host that wrote it.
        event: one of EVENTS.
        model: the registered model.
        version: number of the version it is about.
        manifest: sha256 of that version's manifest.
        details: what else there is to say about such an event.
        before: digest of the entry before it.
        line: the line itself.
    """

    n: int
    id: str
    time: str
    actor: str
    event: str
    model: str
    version: str
    manifest: str
    details: dict[str, Any]
    before: str
    line: str

    @classmethod
    def parse(cls, line: str) -> "Entry":
        """Raises ValueError: this is no line that a ledger holds."""
        if len(line) > _LONGEST:
            raise ValueError("longer than any")
        try:
            values = json.loads(line)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(values, dict) or values.keys() != {"n", "details", *_TEXTS}:
            raise ValueError("other keys")
        if type(values["n"]) is not int or not isinstance(values["details"], dict):
            raise ValueError("other types")
        if not all(isinstance(values[name], str) for name in _TEXTS) or values["event"] not in EVENTS:
            raise ValueError("other types")
        if canonical_json(values) != line:
            raise ValueError("another layout")
        return cls(**values, line=line)

    @property
    def digest(self) -> str:
        """sha256 (hex) of the line's bytes."""
        return hashlib.sha256(self.line.encode()).hexdigest()

    @property
    def head(self) -> str:
        """What the tag `ledger.head` says when this is the last entry about its version."""
        return f"{self.n} {self.digest}"


class Ledger:
    """One registered model's ledger. Nothing is kept: every question reads it anew.

    Attributes:
        model: the registered model's name.
        run_id: the MLflow run that holds the entries.
    """

    def __init__(self, client: "MlflowClient", model: str, run_id: str) -> None:
        self._client = client
        self.model = model
        self.run_id = run_id

    @classmethod
    def open(cls, client: "MlflowClient", model: str) -> "Ledger":
        """The ledger of a registered model; it gets one when it has none yet.

        Raises:
            InputError: there is no such registered model.
            BrokenLedger: the model has lost its ledger.
        """
        registered = _find(client, model)
        if registered is None:
            raise InputError(
                f"MLflow has no registered model {model!r}. Look at register.model in params.yaml, or run: dass run"
            )
        return cls(client, model, registered.tags.get(TAG) or _adopt(client, registered))

    @classmethod
    def start(cls, client: "MlflowClient", model: str, tags: dict[str, str] | None = None) -> tuple["Ledger", bool]:
        """The model's ledger, and whether the registered model was made here: model and ledger are made at once.

        Args:
            client: MLflow.
            model: the registered model's name.
            tags: of the ledger's run, when it is made here.
        """
        from mlflow.exceptions import MlflowException

        if _find(client, model) is not None:
            return cls.open(client, model), False
        run_id = _make_run(client, model, tags)
        try:
            client.create_registered_model(model, tags={TAG: run_id})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                client.delete_run(run_id)
                raise
            ledger = cls.open(client, model)
            if ledger.run_id == run_id:  # ours after all: the request was sent twice
                return ledger, True
            client.delete_run(run_id)
            return ledger, False
        return cls(client, model, run_id), True

    def entries(self) -> list[Entry]:
        """All entries, oldest first.

        Raises:
            BrokenLedger: a line is missing, edited or in another's place. The end being cut off shows in `check_heads`.
        """
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(self.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise self._broken(f"MLflow run {self.run_id}, which held it, is gone") from None
        if run.info.lifecycle_stage != "active":
            raise self._broken(
                f"MLflow run {self.run_id}, which holds it, was deleted. "
                f"Run: mlflow runs restore --run-id {self.run_id}"
            )
        return self._checked({key: value for key, value in run.data.params.items() if key.startswith(_KEY)})

    def append(self, event: str, version: str, manifest: str, details: dict[str, Any], *, after: Entry | None) -> Entry:
        """Write the entry behind `after` (None: the first one), and tag its version with it.

        Args:
            event: one of EVENTS.
            version: number of the version it is about.
            manifest: sha256 of that version's manifest.
            details: JSON values.
            after: the last entry that the caller has seen.

        Raises:
            Overtaken: there is an entry behind `after` already. Nothing was written.
            InputError: the entry is longer than MLflow takes, or not text.
        """
        from mlflow.exceptions import MlflowException

        if after is not None and after.version != version:
            self.tag_head(after.version)  # a process killed behind its entry has not: at most the last one lags
        entry = self._entry(event, version, manifest, details, after)
        try:
            self._client.log_param(self.run_id, _key(entry.n), entry.line, synchronous=True)
        except MlflowException:
            found = self._client.get_run(self.run_id).data.params.get(_key(entry.n))
            if found is None:
                raise
            if found != entry.line:
                raise Overtaken(f"{self}: entry {entry.n} was written by another process") from None
        self.tag_head(version)
        return entry

    def record(self, event: str, version: str, manifest: str, details: dict[str, Any], *, once: bool = False) -> Entry:
        """Write an entry that depends on no other one, behind whatever comes in between.

        Args:
            event, version, manifest, details: as for `append`.
            once: an entry of this event about this version is enough, and returned when it is there.

        Raises:
            BrokenLedger, InputError: as `entries` and `append`.
            TrackingError: others kept writing.
        """
        for _ in patiently(f"{self} is written by others all the time"):
            entries = self.entries()
            self.check_heads(entries)  # a new line behind an edited last one would make the edit part of the chain
            known = [entry for entry in entries if (entry.event, entry.version) == (event, version)]
            if once and known:
                self.tag_head(version)
                return known[0]
            try:
                return self.append(event, version, manifest, details, after=entries[-1] if entries else None)
            except Overtaken:
                continue
        raise AssertionError("patiently() raises")

    def versions(self) -> "list[ModelVersion]":
        """The registry's versions of this model that carry a ledger head, with their tags."""
        # The name is compared here and not in the filter, whose syntax a name with quotes would break.
        found, token = [], None
        while True:
            page = self._client.search_model_versions(f"tags.`{HEAD}` LIKE '%'", page_token=token)
            found += [made for made in page if made.name == self.model]
            token = page.token
            if not token:
                return found

    def check_heads(self, entries: list[Entry]) -> None:
        """Compare the versions' tags with the entries.

        Raises:
            BrokenLedger: a version names an entry that is not there (the end was cut off) or is another one.
        """
        for made in self.versions():
            head = made.tags[HEAD]
            number, _, digest = head.partition(" ")
            if not number.isdecimal() or len(number) > _DIGITS:
                raise self._broken(f"version {made.version} has the tag {HEAD} = {head!r}, which names no entry")
            if int(number) >= len(entries):
                entries = self.entries()  # it may have been written since
            if int(number) >= len(entries):
                raise self._broken(
                    f"its end was cut off: entry {number}, which version {made.version} names, is not there "
                    f"(it has {len(entries)})"
                )
            if entries[int(number)].digest != digest or entries[int(number)].version != str(made.version):
                raise self._broken(f"entry {number} was edited: version {made.version} names another digest")

    def tag_head(self, version: str) -> None:
        """Let the version's tag name the last entry about it. A version that was deleted is left alone.

        Two processes may do so at once, the older entry last: therefore each looks again after it has written.
        """
        from mlflow.exceptions import MlflowException

        for _ in patiently(f"{self} is written by others all the time"):
            about = [entry for entry in self.entries() if entry.version == version]
            try:
                tags = self._client.get_model_version(self.model, version).tags
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return
                raise
            if not about or tags.get(HEAD) == about[-1].head:
                return
            head = about[-1].head
            write_twice(lambda head=head: self._client.set_model_version_tag(self.model, version, HEAD, head))  # type: ignore[misc]

    def __str__(self) -> str:
        return f"The ledger of {self.model!r}"

    def _broken(self, what: str) -> BrokenLedger:
        return BrokenLedger(f"{self} is broken: {what}.")

    def _checked(self, lines: dict[str, str]) -> list[Entry]:
        for n in range(len(lines)):
            if _key(n) not in lines:
                raise self._broken(f"entry {n} is missing")
        entries = []
        for n in range(len(lines)):
            try:
                entry = Entry.parse(lines[_key(n)])
            except ValueError:
                raise self._broken(f"entry {n} was edited: it is no line of a ledger") from None
            if entry.n != n:
                raise self._broken(f"entry {n} holds the line of entry {entry.n}: lines were moved")
            if entry.model != self.model:
                raise self._broken(
                    f"entry {n} is about the model {entry.model!r}: a model with a ledger keeps its name"
                )
            entries.append(entry)
        # From the end: a line that is still what the one behind it says can be believed about the one before it.
        for entry, following in zip(reversed(entries[:-1]), reversed(entries[1:]), strict=True):
            if following.before != entry.digest:
                raise self._broken(f"entry {entry.n} was edited: entry {following.n} names another digest")
        if entries and entries[0].before != _NOTHING:
            raise self._broken("entry 0 was edited: it names an entry before it")
        return entries

    def _entry(self, event: str, version: str, manifest: str, details: dict[str, Any], after: Entry | None) -> Entry:
        values = {
            "n": 0 if after is None else after.n + 1,
            "id": secrets.token_hex(8),
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "actor": actor(),
            "event": event,
            "model": self.model,
            "version": version,
            "manifest": manifest,
            "details": details,
            "before": _NOTHING if after is None else after.digest,
        }
        line = canonical_json(values)
        if len(line) > _LONGEST:
            raise InputError(
                f"An entry {event!r} of {len(line)} characters does not fit into the ledger, which takes {_LONGEST}. "
                "Shorten the reason."
            )
        try:
            line.encode()
        except UnicodeEncodeError:
            raise InputError(f"An entry {event!r} holds what is no text. Write the reason in UTF-8.") from None
        return Entry.parse(line)


def champion_of(entries: list[Entry]) -> str | None:
    """The version that was promoted or rolled back to last; None before the first."""
    return next((entry.version for entry in reversed(entries) if entry.event in CROWNINGS), None)


def actor() -> str:
    """Who writes: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}".encode(errors="replace").decode()


def patiently(what: str) -> Iterator[None]:
    """Another try, and another, soon a moment apart.

    Raises:
        TrackingError: that was the last one; says `what`.
    """
    for number in range(_TRIES):
        if number > 1:
            time.sleep(random.uniform(0, 0.02 * min(number, 10)))
        yield
    raise TrackingError(f"{what}. Wait for them and try again.")


def write_twice(write: Callable[[], object]) -> None:
    """Set a tag or an alias. MLflow looks before it inserts one, and tells a lost race as a bad request."""
    from mlflow.exceptions import MlflowException

    try:
        write()
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise
        write()  # now it is there and is updated


def _key(n: int) -> str:
    return f"{_KEY}{n:06d}"


def _find(client: "MlflowClient", model: str) -> "RegisteredModel | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def forget_unused(client: "MlflowClient", model: str, tag: str, value: str) -> None:
    """Delete ledgers with this tag that hold one entry at most, and with them the registered model without a version.

    Whoever made such a ledger failed with the very first version: the entry is about that one, which is gone.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return
    for run in client.search_runs([experiment.experiment_id], f"tags.{tag} = '{value}'"):
        registered = _find(client, model)
        owner = registered if registered is not None and registered.tags.get(TAG) == run.info.run_id else None
        if len(run.data.params) > 1 or (owner is not None and owner.latest_versions):
            continue
        if owner is not None:
            client.delete_registered_model(model)
        client.delete_run(run.info.run_id)


def _make_run(client: "MlflowClient", model: str, tags: dict[str, str] | None = None) -> str:
    """An empty run that can hold a ledger. It is finished from the start: params may be added all the same."""
    experiment = _experiment(client, EXPERIMENT)
    run_id = client.create_run(experiment, tags=tags, run_name=model[:250]).info.run_id
    client.set_terminated(run_id, "FINISHED")
    return str(run_id)


def _experiment(client: "MlflowClient", name: str, tags: dict[str, str] | None = None) -> str:
    """The experiment of that name, made with these tags when there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        raise InputError(
            f"MLflow's experiment {name!r} was deleted. Run: mlflow experiments restore -x {found.experiment_id}"
        )
    return str(found.experiment_id)


def _adopt(client: "MlflowClient", registered: "RegisteredModel") -> str:
    """Give a ledger to a model that was registered without one.

    A tag can be overwritten, so two processes that do this at once agree by an experiment's name, which is unique.
    """
    named = Ledger(client, registered.name, "").versions()
    if named:
        raise BrokenLedger(
            f"The ledger of {registered.name!r} is lost: the model has no tag {TAG!r} any more, "
            f"though version {named[0].version} names entry {named[0].tags[HEAD].partition(' ')[0]}."
        )
    run_id = _make_run(client, registered.name)
    claim = _experiment(
        client, f"{EXPERIMENT} of {registered.name} since {registered.creation_timestamp}", {TAG: run_id}
    )
    agreed = str(client.get_experiment(claim).tags[TAG])
    if agreed != run_id:
        client.delete_run(run_id)
    write_twice(lambda: client.set_registered_model_tag(registered.name, TAG, agreed))
    return agreed
