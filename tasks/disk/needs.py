"""What registered versions need of a workspace's disk, read from their signed files and from nothing else.

Where a ledger does not verify, or a version's files are gone or are not what was signed, nobody can say what it needs,
and nothing is freed.
"""

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dass.errors import InputError, UnavailableError
from tasks.promotion.replay_data import data_of
from tasks.registry.anchor import PREFIX, git_store
from tasks.registry.chain import Chain
from tasks.registry.checked import CheckedVersion, check_names, check_registered_signature
from tasks.registry.embedded import EmbeddedClient, is_plain
from tasks.registry.ledger import HEAD, PENDING, Ledger
from tasks.registry.ledger_run import TAG
from tasks.registry.place import artifacts, database, embedded_uri
from tasks.registry.signing import SIGNATURE, SignatureError, signed_files
from tasks.registry.tracking import is_embedded, reading
from tasks.registry.version_folder import MANIFEST, VERSION
from tasks.registry.versions import all_versions, file_of
from tasks.versioning import git
from tasks.workspace.folder import Workspace
from tasks.workspace.progress import progress

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass
class Needs:
    """What every registered version of the stores that a workspace uses needs.

    Attributes:
        models: MLflow's ids of the logged models that versions are.
        runs: ids of the runs that made them.
        signatures: sha256 of every version's signature that a ledger has ever registered, of deleted versions too.
        fingerprints: of the prunings and recoveries that versions are the result of.
        data: DVC's digests of what a replay asks for.
        versions: how many there are.
    """

    models: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    signatures: set[str] = field(default_factory=set)
    fingerprints: set[str] = field(default_factory=set)
    data: set[str] = field(default_factory=set)
    versions: int = 0


@contextmanager
def stores_of(ws: Workspace) -> Iterator[list["MlflowClient"]]:
    """The MLflow that the workspace uses, and behind it its own mlflow.db where that holds versions of before; none
    where nothing was registered yet.

    Raises:
        InputError: mlflow.db is gone and its versions' files are there; or it is there, another store is used, and it
            cannot be read.
        TrackingError: MLflow cannot be reached.
    """
    with ExitStack() as opened:
        if is_embedded(ws) and not database(ws).is_file():
            if any(artifacts(ws).glob("models/*")):
                raise InputError(
                    f"{database(ws)} is gone, though {artifacts(ws)} holds versions: what they need is unknown. Put it "
                    "back, or move that folder away."
                )
            yield []
            return
        clients: list[Any] = [opened.enter_context(reading(ws))]
        path = database(ws)
        if not is_embedded(ws) and path.is_file():
            if not is_plain(path):
                raise InputError(
                    f"{path} may hold versions of before MLFLOW_TRACKING_URI was set, and cannot be read (locked, or "
                    "another MLflow's): what they need is unknown. Unset MLFLOW_TRACKING_URI and run: dass history"
                )
            clients.append(EmbeddedClient(path, embedded_uri(ws), _refuse))
        yield clients


def _refuse() -> "MlflowClient":
    raise InputError("The workspace's own mlflow.db gives no plain answer. Unset MLFLOW_TRACKING_URI, then try again.")


def check_stores(ws: Workspace, gone: Collection[str]) -> None:
    """Refuse where git remembers a ledger in a store that is not asked: what its versions need is unknown.

    Args:
        ws: where.
        gone: addresses of stores that are given up.

    Raises:
        InputError: there is one.
    """
    asked = {git_store(ws), *gone}
    for ref in git.refs(ws.root, PREFIX):
        for name in git.names_in(ws.root, ref):
            store = _store_of(git.blob(ws.root, f"{ref}:{name}"))
            if store is not None and store not in asked and not store.startswith("embedded in "):
                raise InputError(
                    f"{ref} in git remembers versions at {store}, which is not asked: what they need of DVC's cache is "
                    f"unknown. Set MLFLOW_TRACKING_URI to it; if that store was given up, add: --given-up {store}"
                )


def _store_of(text: str | None) -> str | None:
    try:
        return None if text is None else str(json.loads(text)["store"])
    except (ValueError, LookupError, TypeError):
        return None


def needs_of(ws: Workspace, clients: Iterable["MlflowClient"]) -> Needs:
    """Read what every version of every model of these stores needs.

    Raises:
        BrokenLedger: a ledger is not whole.
        SignatureError: a version is not what was registered.
        UnavailableError: a version's files are gone.
        TrackingError: MLflow failed.
    """
    needs = Needs()
    for client in clients:
        for name, has_ledger in _models(client):
            chain = None
            if has_ledger:
                ledger = Ledger.open(client, name, ws)
                chain = ledger.chain(beginning=True)
                ledger.check_heads(chain.entries)
                needs.signatures |= {
                    str(entry.details.get("signature")) for entry in chain.entries if entry.event == "registered"
                }
            made = all_versions(client, name)
            for version in progress(made, f"read versions of {name}") if chain is not None else made:
                needs.models.add(str(version.source).removeprefix("models:/"))
                needs.runs.add(str(version.run_id))
                if chain is not None and version.tags.get(HEAD) != PENDING:
                    needs.versions += 1
                    _add(needs, client, version, chain)
    return needs


def _models(client: "MlflowClient") -> Iterator[tuple[str, bool]]:
    """Every registered model, and whether it has a ledger: the others are not ours, and their versions stay."""
    token = None
    while True:
        page = client.search_registered_models(page_token=token) if token else client.search_registered_models()
        yield from ((str(each.name), TAG in each.tags) for each in page)
        token = page.token
        if not token:
            return


def _add(needs: Needs, client: "MlflowClient", made: "ModelVersion", chain: Chain) -> None:
    try:
        version = _read(client, made, chain)
        said, manifest, recovery = version.record(VERSION), version.record(MANIFEST), version.recovery
        needs.data |= set(data_of(said, recovery).values())
        needs.fingerprints |= {found for each in (manifest, recovery) if (found := each.get("fingerprint"))}
    except (SignatureError, UnavailableError) as error:
        raise type(error)(f"What {made.name} version {made.version} needs cannot be judged: {error}") from None
    except (LookupError, TypeError, AttributeError):
        raise SignatureError(
            f"What {made.name} version {made.version} needs cannot be judged: it was made by another release of dass. "
            "Free nothing with this one."
        ) from None


def _read(client: "MlflowClient", made: "ModelVersion", chain: Chain) -> CheckedVersion:
    """As `tasks.registry.checked.held_to`, whatever became of the key since: a distrusted version has needs, too."""
    number = str(made.version)
    entry = chain.registered(number)
    if entry is None:
        raise SignatureError("it is not in the ledger. Delete it in MLflow.")
    with file_of(client, made, SIGNATURE) as path:
        check_registered_signature(path, made.name, entry)
        signed = signed_files(path)
        check_registered_signature(path, made.name, entry)  # as it was read, too
    version = CheckedVersion(made, number, entry, chain.keyring.keys[entry.key], chain, signed, client)
    check_names(version.record(VERSION), version.signed[MANIFEST], entry)
    return version
