"""What `dass run` does, once its arguments are read."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import psutil

from flows.cli.output import print_json, show_decision, show_table, shown, tell
from flows.exit_status import DONE, FAILED
from tasks.workspace.folder import Workspace
from tasks.workspace.progress import working
from tasks.workspace.recipes import in_words

if TYPE_CHECKING:
    from flows.stages import StageName
    from flows.summary import Stopped, Summary
    from tasks.promotion.decision import Decision


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        summary: its result, or what there is where it was to stop before.
        decision: of --promote; None: it was not asked for.
        once: the settings that were given for this run only.
    """

    summary: "Summary | Stopped"
    decision: "Decision | None"
    once: list[str]


def show_dry_run(ws: Workspace, changes: list[tuple[str, Any]], until: str | None, as_json: bool) -> int:
    """Say what a run would do, with these settings beside those of params.yaml."""
    from flows.dry_run import dry_run

    found = dry_run(ws, changes, until)
    if as_json:
        print_json(found.as_json())
        return DONE
    show_table(found.table())
    for line in found.lines():
        print(line)
    return DONE


def change(
    ws: Workspace, changes: list[str], recipe: str | None, begin_with: dict[str, Any] | None
) -> dict[str, tuple[Any, Any]]:
    """Write settings into params.yaml, and tell it.

    Args:
        ws: where.
        changes: of -S.
        recipe: the name behind --recipe.
        begin_with: the settings of the recipe, or of a sweep's point, which -S refines.

    Returns:
        What changed: key -> (value before, value now).
    """
    from flows.checks import check_start
    from flows.overrides import change_settings
    from tasks.workspace.settings import load_settings

    changed = change_settings(
        ws,
        changes,
        accept=lambda settings: check_start(ws, settings),
        recipe=begin_with,
    )
    if recipe is not None:
        tell(f"recipe {recipe}: {in_words(recipe)}")
    for key, (before, now) in changed.items():
        tell(f"{ws.params.name}: {key} {shown(before)} -> {shown(now)}")
    load_settings(ws.params)  # a wrong setting is told before the slow imports
    return changed


def work(ws: Workspace, once: list[str], until: str | None, then_promote: bool) -> Ended:
    """Do what there is to do, and start Prefect only when there is something."""
    from flows.run import aliases_of, finished
    from flows.summary import Summary

    if then_promote:
        from tasks.registry.rights import RELEASE, check_right
        from tasks.workspace.settings import load_settings

        check_right(ws, load_settings(ws.params).register_.model, RELEASE)
    summary = finished(str(ws.root), once, until)
    if summary is not None and not then_promote:
        return Ended(summary, None, once)
    from flows.prefect_api import prefect_server

    with ExitStack() as until_done:
        with working("Starting Prefect"):
            until_done.enter_context(prefect_server(ws, meanwhile=_import_flows))
        from flows.compress import compress
        from flows.promote import promote as promote_flow

        summary = summary or compress(str(ws.root), once, cast("StageName | None", until))
        if not then_promote:
            return Ended(summary, None, once)
        assert isinstance(summary, Summary), "a run that stops before registers nothing to promote"
        decision = promote_flow(str(ws.root), summary.version)
        return Ended(replace(summary, aliases=aliases_of(ws, summary.model, summary.version)), decision, once)


def _import_flows() -> None:
    import flows.compress  # noqa: F401  (it takes seconds)


def show_end(
    ws: Workspace, ended: Ended, changed: dict[str, tuple[Any, Any]], recipe: str | None, as_json: bool
) -> int:
    """Print what a run ended with.

    Returns:
        The exit status.
    """
    from flows.summary import Summary, opening_commands

    summary, decision = ended.summary, ended.decision
    commands = opening_commands(ws, summary.tracking_uri) if isinstance(summary, Summary) else {}
    took = round(time.time() - psutil.Process().create_time(), 1)
    if as_json:
        changes_made = {key: {"before": before, "now": now} for key, (before, now) in changed.items()}
        decided = {} if decision is None else {"decision": decision.as_json()}
        made_by = {"recipe": recipe, "changed": changes_made, "with": ended.once, "command_seconds": took}
        print_json({**summary.as_json(), **made_by, "open": commands, **decided})
    else:
        show_table(summary.table(took))
        if decision is not None:
            show_decision(decision)
        for what, command in commands.items():
            print(f"{what + ':':12} {command}")
    if ended.once:
        tell(
            f"With {', '.join(ended.once)} for this run only: artifacts/ and dvc.lock are its result. "
            f"{ws.params.name} is as it was; dass run without --with brings back what it asks for."
        )
    return DONE if decision is None or decision.promoted else FAILED
