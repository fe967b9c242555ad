"""Promotion and rollback, in order: what `dass promote` and `dass rollback` do."""

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.cancellation import cancel_when_interrupted
from flows.links import log_of
from flows.notices import tell_decision, tell_rollback, tells_failure
from flows.retries import AGAIN
from flows.served import served
from tasks.notify import check_notify
from tasks.promotion import decision
from tasks.promotion.champion import RolledBack
from tasks.promotion.proof import Proof
from tasks.registry import registration
from tasks.registry.rights import RELEASE, check_right
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Promote, load_settings

_PLAIN: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


@flow(name="promote", flow_run_name="promote {version}", persist_result=False, on_crashed=[cancel_when_interrupted])
@tells_failure
@served
def promote(
    workspace: str, version: str = registration.ALIAS, force: bool = False, reason: str | None = None
) -> decision.Decision:
    """Make a version champion if every rule of params.yaml holds.

    Args:
        workspace: the folder with params.yaml.
        version: number or alias.
        force: promote although a rule does not hold.
        reason: why; needed with `force`.
    """
    ws = Workspace.at(workspace)
    settings = load_settings(ws.params)
    model, rules = settings.register_.model, settings.promote
    check_notify(settings.notify)
    registration.check_reachable(ws)
    check_right(ws, model, RELEASE)
    number = decision.number_of(ws, model, version)  # once: an alias may be moved while the proof is made
    with log_of(model, number):
        proof = prove(ws, model, number, rules)
        decided = decide(ws, model, number, rules, proof, force, reason)
        tell_decision(settings.notify, decided)
        return decided


@task(name="prove", **_PLAIN, **AGAIN)
def prove(ws: Workspace, model: str, number: str, rules: Promote) -> Proof | None:
    return decision.prove(ws, model, number, rules)


@task(name="decide", **_PLAIN)
def decide(
    ws: Workspace, model: str, number: str, rules: Promote, proof: Proof | None, force: bool, reason: str | None
) -> decision.Decision:
    return decision.decide(ws, model, number, rules, proof, force=force, reason=reason)


@flow(name="rollback", flow_run_name="roll back", persist_result=False, on_crashed=[cancel_when_interrupted])
@tells_failure
def rollback(workspace: str, reason: str, to: str | None = None) -> RolledBack:
    """Make an earlier champion the champion again, after its proof was checked once more.

    Args:
        workspace: the folder with params.yaml.
        reason: why.
        to: an earlier champion; None is the one before the present one.
    """
    ws = Workspace.at(workspace)
    settings = load_settings(ws.params)
    check_notify(settings.notify)
    registration.check_reachable(ws)
    check_right(ws, settings.register_.model, RELEASE)
    done = go_back(ws, settings.register_.model, reason, to)
    tell_rollback(settings.notify, done)
    return done


@task(name="go back", **_PLAIN)
def go_back(ws: Workspace, model: str, reason: str, to: str | None) -> RolledBack:
    return decision.go_back(ws, model, reason, to)
