"""The moment a result becomes a version: MLflow's record of it, the ledger's entry, the alias, in this order.

The entry is the commit. A version that MLflow has and the ledger has not is nothing yet: whoever comes upon one that an
attempt of ours left behind removes it.
"""

import json
from typing import TYPE_CHECKING, Any

from tasks.registry.anchor import anchor, check_anchor, git_store
from tasks.registry.attempts import TAG as ATTEMPT
from tasks.registry.attempts import Attempt
from tasks.registry.card import numbered
from tasks.registry.checked import held_to
from tasks.registry.ledger import HEAD, PENDING, Ledger
from tasks.registry.ledger_run import find_model
from tasks.registry.result import Result
from tasks.registry.tracking import TrackingError
from tasks.registry.versions import check_present, version_numbered
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import check_held

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "challenger"
"""The newest result; what was promoted has other aliases."""

_NOTE, _VERSIONS = "mlflow.note.content", "mlflow.modelVersions"
"""Tags, as mlflow.utils.mlflow_tags has them: a run with nothing to do would load MLflow for these two words."""

_FIGURES = ("dense.perplexity", "pruned.perplexity", "ratio", "sparsity.mlp", "sparsity.model", "context_length")


def registered_before(
    workspace: Workspace, client: "MlflowClient", model: str, registration: str
) -> "ModelVersion | None":
    """The newest version that is this very result, by the ledger, and with every file it was signed with.

    Raises:
        BrokenLedger: the ledger is not whole.
        UnavailableError: the version's files are gone.
        SignatureError: they are other ones.
    """
    if find_model(client, model) is None:
        return None
    ledger = Ledger.open(client, model, workspace)
    chain = ledger.chain(beginning=True)
    for entry in reversed(chain.entries):
        if entry.event != "registered" or entry.details.get("registration") != registration:
            continue
        made = version_numbered(client, model, entry.version)
        if made is None or chain.keyring.keys[entry.key].state == "revoked":
            continue  # deleted, or distrusted: the result is registered anew
        check_present(client, made, whole=True)
        held_to(client, made, chain)
        complete(workspace, client, made)
        return made
    return None


def check_may_register(workspace: Workspace, client: "MlflowClient", model: str) -> None:
    """Refuse early what could not be written at the end.

    Raises:
        NotAllowed: this user's key may not register versions of the model.
        BrokenLedger: its ledger is not whole.
    """
    if find_model(client, model) is not None:
        ledger = Ledger.open(client, model, workspace)
        ledger.check_allowed("registered", ledger.chain(beginning=True))


def entry_details(result: Result, provenance: dict[str, Any], signature: str) -> dict[str, Any]:
    """What the ledger's entry says of a registered version: everything that is told of it without opening it."""
    prune = result.manifest["settings"]["prune"]
    return {
        "signature": signature,
        "registration": result.digest,
        "masks": result.manifest["masks"]["digest"],
        "base": result.manifest["base"]["digest"],
        "artifact": result.artifact,
        "method": prune["method"],
        "pattern": prune["pattern"],
        "figures": {name: result.figures[name] for name in _FIGURES},
        "tasks_mean": result.figures.get("tasks.mean"),
        "git": {"commit": provenance["git_commit"], "dirty": provenance["git_dirty"]},
    }


def publish(
    workspace: Workspace,
    client: "MlflowClient",
    attempt: Attempt,
    run_id: str,
    model_id: str,
    tags: dict[str, str],
    manifest: str,
    details: dict[str, Any],
    description: str,
) -> "ModelVersion":
    """Make the version with all its tags, then the ledger's entry, then the alias and what only the pages show.

    On failure before the entry no version is left; behind it, `complete` finishes what is left.
    """
    model = attempt.model
    check_held(workspace)
    ledger, _ = Ledger.start(client, model, {ATTEMPT: attempt.id}, workspace)
    made = None
    try:
        tags = {**tags, HEAD: PENDING}
        made = client.create_model_version(
            model, f"models:/{model_id}", run_id, tags=tags, description=description, model_id=model_id
        )
        if made.status != "READY":
            raise TrackingError(f"MLflow did not make the version ready: {made.status} {made.status_message or ''}")
        check_held(workspace)
        ledger.record("registered", str(made.version), manifest, details, once=True)
    except BaseException:
        if made is not None and ledger.chain(beginning=True).registered(str(made.version)) is None:
            client.delete_model_version(model, made.version)
        raise
    _point_alias(client, made)
    _name_everywhere(client, made)
    return made


def complete(workspace: Workspace, client: "MlflowClient", made: "ModelVersion") -> bool:
    """Do what is left when a process was killed right behind the ledger's entry.

    Returns:
        Whether the ledger knows the version. If not, it is nothing yet, and nothing was done.
    """
    ledger = Ledger.open(client, made.name, workspace)
    if ledger.chain(beginning=True).registered(str(made.version)) is None:
        return False
    if client.get_run(made.run_id).info.status == "RUNNING":
        client.set_terminated(made.run_id, "FINISHED")
    ledger.tag_head(str(made.version))
    _point_alias(client, made)
    _name_everywhere(client, made)
    anchor_ledger(workspace, client, made.name)
    return True


def anchor_ledger(workspace: Workspace, client: "MlflowClient", model: str) -> None:
    """Compare the ledger with its head in the workspace's git repository, and put the newest one there."""
    ledger = Ledger.open(client, model, workspace)
    store = git_store(workspace)
    anchor(workspace, model, store, check_anchor(workspace, model, store, ledger.chain))


def _point_alias(client: "MlflowClient", made: "ModelVersion") -> None:
    aliases = client.get_registered_model(made.name).aliases
    if str(aliases.get(ALIAS)) != str(made.version):
        client.set_registered_model_alias(made.name, ALIAS, str(made.version))


def _name_everywhere(client: "MlflowClient", made: "ModelVersion") -> None:
    """Put the version's number, which nobody knew before, into its description and its run's, and into the run's name;
    and let the logged model point at the version. Nothing reads any of it but people."""
    number, run = str(made.version), client.get_run(made.run_id)
    if run.info.lifecycle_stage == "active":  # somebody may have deleted it
        name, note = str(run.info.run_name), run.data.tags.get(_NOTE, "")
        if not name.endswith(f"#{number}"):
            client.update_run(made.run_id, name=f"{name} #{number}")
        if (told := numbered(note, made.name, number)) != note:
            client.set_tag(made.run_id, _NOTE, told)
    description = made.description or ""
    if (told := numbered(description, made.name, number)) != description:
        client.update_model_version(made.name, number, told)
    logged = str(made.source).removeprefix("models:/")
    points = json.dumps([{"name": made.name, "version": number}])
    if client.get_logged_model(logged).tags.get(_VERSIONS) != points:
        client.set_logged_model_tags(logged, {_VERSIONS: points})
