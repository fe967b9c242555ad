"""The ledger of a registered model: what happened to its versions, as a chain of signed lines that only grows.

It lives in MLflow. One run in the experiment "dass ledger" holds it, and the registered model's tag "ledger" names that
run. Each entry is one param of the run: key "entry.000007", value one line (`tasks.registry.entry`), which holds the
sha256 of the line before it and a signature. The first entry lists the keys that may sign (`tasks.registry.keyring`).
A version's tag "ledger.head" names the last entry about that version, so that cutting the end off shows; what was seen
before is remembered outside the database, too (`tasks.registry.trust`).

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

import random
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from tasks.registry.chain import BrokenLedger, Chain, champion_of, checked_chain
from tasks.registry.entry import CROWNINGS, EVENTS, NOTHING, Entry, sealed
from tasks.registry.key_file import dsse_signer, fingerprint, key_name, public_key
from tasks.registry.keyring import MANAGE, ROLES, Key
from tasks.registry.ledger_run import TAG, adopt, find_model, make_run, write_twice
from tasks.registry.tracking import TrackingError, code_of, store_of
from tasks.registry.trust import KEYS, Trust
from tasks.registry.versions import all_versions
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "CROWNINGS",
    "EVENTS",
    "BrokenLedger",
    "Chain",
    "Entry",
    "Ledger",
    "NotAllowed",
    "Overtaken",
    "champion_of",
]

HEAD = "ledger.head"
"""On a version: "<n> <digest>" of the last entry about it."""
PENDING = "pending"
"""What `ledger.head` says of a version that is about to be registered."""

_KEY = "entry."
_DIGITS = 18  # of an entry's number, at most
_TRIES = 100  # of a race with other writers: each lost one is another writer's success


class Overtaken(Exception):
    """Another process has written this entry. Read the ledger again, and decide again."""


class NotAllowed(InputError):
    """This user's key may not write such an entry."""


class Ledger:
    """One registered model's ledger. Nothing is kept: every question reads it anew.

    Attributes:
        model: the registered model's name.
        run_id: the MLflow run that holds the entries.
        trust: what was seen of it before.
    """

    def __init__(self, client: "MlflowClient", model: str, run_id: str, ws: Workspace | None = None) -> None:
        self._client = client
        self._ws = ws
        self.model = model
        self.run_id = run_id
        self.trust = Trust(store_of(client), ws)

    @classmethod
    def open(cls, client: "MlflowClient", model: str, ws: Workspace | None = None) -> "Ledger":
        """The ledger of a registered model; it gets one when it has neither one nor versions yet.

        Args:
            client: MLflow.
            model: the registered model's name.
            ws: whose dass.keys says what a ledger begins with, if it has one.

        Raises:
            InputError: there is no such registered model.
            BrokenLedger: the model has lost its ledger.
        """
        registered = find_model(client, model)
        if registered is None:
            raise InputError(
                f"MLflow has no registered model {model!r}. Look at register.model in params.yaml, or run: dass run"
            )
        return cls(client, model, registered.tags.get(TAG) or adopt(client, registered), ws)

    @classmethod
    def start(
        cls, client: "MlflowClient", model: str, tags: dict[str, str] | None = None, ws: Workspace | None = None
    ) -> tuple["Ledger", bool]:
        """The model's ledger, and whether the registered model was made here: model and ledger are made at once.

        Args:
            client: MLflow.
            model: the registered model's name.
            tags: of the ledger's run, when it is made here.
            ws: as for `open`.
        """
        from mlflow.exceptions import MlflowException

        if find_model(client, model) is not None:
            return cls.open(client, model, ws), False
        run_id = make_run(client, model, tags)
        try:
            client.create_registered_model(model, tags={TAG: run_id})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                client.delete_run(run_id)
                raise
            ledger = cls.open(client, model, ws)
            if ledger.run_id == run_id:  # ours after all: the request was sent twice
                return ledger, True
            client.delete_run(run_id)
            return ledger, False
        return cls(client, model, run_id, ws), True

    def entries(self) -> list[Entry]:
        """All entries, oldest first.

        Raises:
            BrokenLedger: as `chain`.
        """
        return self.chain().entries

    def chain(self, *, beginning: bool = False) -> Chain:
        """The whole ledger, read and checked.

        Args:
            beginning: an entry is about to be written: there may be none yet, though there was a ledger once.

        Raises:
            BrokenLedger: a line is missing, edited, in another's place or not signed by a key that may, or the ledger
                is not the one that was seen before. That its end was cut off before anyone saw it shows in
                `check_heads`.
            InputError: what was seen before cannot be read.
        """
        seen = self.trust.seen(self.model)
        chain = checked_chain(self.model, self.lines())
        if chain.entries or not beginning:
            self.trust.check(self.model, chain, seen)
        return chain

    def lines(self) -> list[str]:
        """Its lines as MLflow has them.

        Raises:
            BrokenLedger: one is missing, or the run that holds them.
        """
        try:
            run = self._client.get_run(self.run_id)
        except Exception as error:
            if code_of(error) != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise self._broken(f"MLflow run {self.run_id}, which held it, is gone") from None
        if run.info.lifecycle_stage != "active":
            raise self._broken(
                f"MLflow run {self.run_id}, which holds it, was deleted. "
                f"Run: mlflow runs restore --run-id {self.run_id}"
            )
        found = {key: value for key, value in run.data.params.items() if key.startswith(_KEY)}
        for n in range(len(found)):
            if _key(n) not in found:
                raise self._broken(f"entry {n} is missing")
        return [found[_key(n)] for n in range(len(found))]

    def append(self, event: str, version: str, manifest: str, details: dict[str, Any], *, behind: Chain) -> Entry:
        """Write and sign the entry behind those that the caller has seen, and tag its version with it.

        Args:
            event: one of EVENTS.
            version: number of the version it is about; "" for keys.
            manifest: sha256 of that version's manifest; of a key, its fingerprint.
            details: JSON values.
            behind: the ledger as the caller has seen it. When it is empty, a list of keys is begun first.

        Raises:
            Overtaken: there are more entries by now. Nothing was written.
            NotAllowed: this user's key may not write it. Nothing was written.
            InputError: the entry is longer than MLflow takes, or not text; the key cannot be used.
        """
        if not behind.entries and event != "keys_started":
            behind = checked_chain(self.model, [self.begin(behind).line])
        self.check_allowed(event, behind)
        last = behind.entries[-1] if behind.entries else None
        if last is not None and last.version not in ("", version):
            self.tag_head(last.version)  # a process killed behind its entry has not: at most the last one lags
        n, before = (0, NOTHING) if last is None else (last.n + 1, last.digest)
        entry = sealed(dsse_signer(), n, before, event, self.model, version, manifest, details)
        _check_possible(behind, entry)
        self._write(entry)
        if version:
            self.tag_head(version)
        return entry

    def _write(self, entry: Entry) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_param(self.run_id, _key(entry.n), entry.line, synchronous=True)
        except MlflowException:
            found = self._client.get_run(self.run_id).data.params.get(_key(entry.n))
            if found is None:
                raise
            if found != entry.line:
                raise Overtaken(f"{self}: entry {entry.n} was written by another process") from None

    def begin(self, behind: Chain) -> Entry:
        """Begin the ledger with the list of keys: dass.keys, or this user's alone.

        Raises:
            NotAllowed: dass.keys has other key managers.
            Overtaken, InputError: as `append`.
        """
        keys, own = self.trust.first_keys(), fingerprint(public_key())
        if keys is None:
            keys = [Key(key_name(), own, public_key(), ROLES)]
        elif not any(key.fingerprint == own and MANAGE in key.roles for key in keys):
            able = ", ".join(key.told for key in keys if MANAGE in key.roles)
            raise NotAllowed(
                f"{self} has not begun, and your key {own[:16]} has not the role {MANAGE} in {KEYS}. "
                f"Have one of these begin it: {able}. They run: dass keys init"
            )
        details: dict[str, Any] = {"keys": [key.as_json() for key in keys]}
        seen = self.trust.seen(self.model)
        if seen is not None:
            details["follows"] = {"root": seen.root, "n": seen.n, "digest": seen.digest}
        return self.append("keys_started", "", own, details, behind=behind)

    def check_allowed(self, event: str, chain: Chain) -> None:
        """Refuse early what `append` would refuse: an entry that this user's key may not write.

        Raises:
            NotAllowed: it may not. The message names who can change that.
        """
        keyring, own = chain.keyring, fingerprint(public_key())
        if not keyring.keys or not (lacks := keyring.lacks(own, event)):
            return
        managers = ", ".join(key.told for key in keyring.with_role(MANAGE))
        if own not in keyring.keys:
            lacks = f"your key {key_name()} ({own[:16]}) is not in its list of keys"
        raise NotAllowed(
            f"{self} takes no entry {event!r} from you: {lacks}. Give your public key (dass keys list --public) to "
            f"{managers}, who can run: dass keys add"
        )

    def record(self, event: str, version: str, manifest: str, details: dict[str, Any], *, once: bool = False) -> Entry:
        """Write an entry that depends on no other one, behind whatever comes in between.

        Args:
            event, version, manifest, details: as for `append`.
            once: an entry of this event about this version is enough, and returned when it is there.

        Raises:
            BrokenLedger, NotAllowed, InputError: as `chain` and `append`.
            TrackingError: others kept writing.
        """
        for _ in patiently(f"{self} is written by others all the time"):
            chain = self.chain(beginning=True)
            entries = chain.entries
            self.check_heads(entries)  # a new line behind an edited last one would make the edit part of the chain
            known = [entry for entry in entries if (entry.event, entry.version) == (event, version)]
            if once and known:
                self.tag_head(version)
                return known[0]
            try:
                written = self.append(event, version, manifest, details, behind=chain)
            except Overtaken:
                continue
            return self.entries()[written.n]  # with its actor, and remembered
        raise AssertionError("patiently() raises")

    def check_heads(self, entries: list[Entry]) -> None:
        """Compare the versions' tags with the entries.

        Raises:
            BrokenLedger: a version names an entry that is not there (the end was cut off) or is another one, or none.
        """
        for made in all_versions(self._client, self.model):
            head = made.tags.get(HEAD)
            if head is None:
                raise self._broken(
                    f"version {made.version} has no tag {HEAD}: it was not registered by dass, or lost it. "
                    "Delete that version in MLflow"
                )
            if head == PENDING:
                continue  # being registered, or left by a killed process: it has no entry, and is no version yet
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
        for _ in patiently(f"{self} is written by others all the time"):
            about = [entry for entry in self.entries() if entry.version == version]
            try:
                tags = self._client.get_model_version(self.model, version).tags
            except Exception as error:
                if code_of(error) == "RESOURCE_DOES_NOT_EXIST":
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


def _check_possible(behind: Chain, entry: Entry) -> None:
    try:
        behind.keyring.after(entry)
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"The list of keys cannot be changed so: {error}. See: dass keys list") from None


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


def _key(n: int) -> str:
    return f"{_KEY}{n:06d}"
