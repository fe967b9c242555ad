"""Every version proved again, in order: what a weekly deployment does."""

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from dass.errors import UnavailableError
from flows.cancellation import cancel_when_interrupted
from flows.notices import tells_failure
from flows.retries import AGAIN
from flows.served import served
from tasks.promotion import verification
from tasks.promotion.proof import Proof
from tasks.registry.registration import check_reachable
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import load_settings

_PLAIN: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


class UnprovedError(RuntimeError):
    """A version is not what the registry says."""


@flow(name="verify all", flow_run_name="verify all", persist_result=False, on_crashed=[cancel_when_interrupted])
@tells_failure
@served
def verify_all(workspace: str, replay: bool = False) -> list[Proof]:
    """Prove every version of the workspace's model, the newest first: files, signature, ledger, weights, pattern.

    Args:
        workspace: the folder with params.yaml, dvc.yaml and .dvc. A deployment takes none but its own.
        replay: also prune again from the data that DVC kept, and compare the masks. Takes as long as pruning did.
    """
    ws = Workspace.at(workspace)
    model = load_settings(ws.params).register_.model
    check_reachable(ws)
    proofs: list[Proof] = []
    missing: list[Exception] = []
    for number in verification.numbers_of(ws, model):
        try:
            proofs.append(verify.with_options(task_run_name=f"version {number}")(ws, model, number, replay))
        except (UnavailableError, OSError) as fault:  # the others are proved all the same
            missing.append(fault)
    show(proofs)
    if failed := [f"{proof.what}: {proof.failed}" for proof in proofs if proof.failed]:
        raise UnprovedError(f"not what the registry says: {'; '.join(failed)}")
    if missing:
        raise missing[0]
    return proofs


@task(name="verify", **_PLAIN, **AGAIN)
def verify(ws: Workspace, model: str, number: str, replay: bool) -> Proof:
    return verification.verify_version(ws, model, number, replay=replay)


@task(name="show", **_PLAIN)
def show(proofs: list[Proof]) -> None:
    """A table with a row for each step of each proof."""
    outcomes = {True: "passed", False: "FAILED", None: "not taken"}
    rows = [
        {"version": proof.what, "step": step.name, "outcome": outcomes[step.passed], "found": step.told}
        for proof in proofs
        for step in proof.steps
    ]
    create_table_artifact(rows, key="proofs", description="Every version, every step")
