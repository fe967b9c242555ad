"""Commands that look at registered versions and decide about them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from dass.errors import InputError
from flows.cli.app import app
from flows.cli.completion import versions
from flows.cli.options import (
    REGISTRY_PANEL,
    JsonOption,
    VersionArgument,
    WorkspaceOption,
    model_of,
    open_workspace,
)
from flows.cli.output import print_json, show_decision, show_table, tell
from flows.environment import own_prefect_database
from flows.exit_status import DONE, FAILED
from tasks.workspace.folder import Workspace


@app.command(rich_help_panel=REGISTRY_PANEL)
def history(
    model: Annotated[str | None, typer.Option(help="Registered model; default: register.model.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the newest N versions and decisions.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="DATE", help="Only what was registered or decided from then on (UTC).")
    ] = None,
    wide: Annotated[
        bool, typer.Option("--wide", help="Also sparsity, zero-shot mean, who registered it, and the commit.")
    ] = False,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Show every version of the model and every decision, newest first: what it is, whether it was proved, and which
    rule or reason made it champion or refused it.

    With --json also every event of the ledger.

        dass history
        dass history --limit 10 --wide
        dass history --since 2026-11-01
        dass history --model smollm2-135m-dass --json
    """
    from tasks.promotion.history import history as read_history
    from tasks.promotion.history import history_tables, read_time

    begin = None if since is None else read_time(since)
    ws = open_workspace(workspace)
    record = read_history(ws, model or model_of(ws), limit, begin)
    if record["repaired"]:
        tell(record["repaired"])
    if as_json:
        print_json(record)
    else:
        show_table(history_tables(record, wide))


@app.command(rich_help_panel=REGISTRY_PANEL)
def diff(
    before: Annotated[str, typer.Argument(metavar="V1", autocompletion=versions, help="A version's number or alias.")],
    after: Annotated[str, typer.Argument(metavar="V2", autocompletion=versions, help="Another one.")],
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Show what lies between two versions: settings, calibration data, figures, and how many mask bits moved.

    dass diff champion challenger
    dass diff 1 2 --json
    """
    ws = open_workspace(workspace)
    from tasks.promotion.diff import diff as read_diff
    from tasks.promotion.diff import diff_tables

    record = read_diff(ws, model_of(ws), before, after)
    if as_json:
        print_json(record)
    else:
        show_table(diff_tables(record))


@app.command(rich_help_panel=REGISTRY_PANEL)
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            autocompletion=versions,
            help="Versions by number or alias, or ids of their MLflow runs.",
        ),
    ],
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Show versions side by side: the settings that differ, and what each of them costs.

    dass compare 1 2 3
    dass compare champion challenger --json
    """
    ws = open_workspace(workspace)
    from tasks.promotion.compare import compare as read_comparison
    from tasks.promotion.compare import compare_tables

    record = read_comparison(ws, model_of(ws), runs)
    if as_json:
        print_json(record)
    else:
        show_table(compare_tables(record))


@app.command(rich_help_panel=REGISTRY_PANEL)
def verify(
    version: Annotated[
        str | None,
        typer.Argument(
            metavar="VERSION|FOLDER",
            autocompletion=versions,
            help="A version's number, alias or downloaded folder.",
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every version of the model.")] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Also prune again from the data DVC kept, and compare the masks.")
    ] = False,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> int:
    """Prove a version: files and signature, ledger, weights = base times masks, pattern. Status 1 when a step fails.

    A name is a version's number or alias first; a folder is named with a slash, such as ./champion. Every byte is read:
    digests that a run remembers count for nothing here.

        dass verify champion
        dass verify ./downloaded
        dass verify --all
        dass verify 3 --replay
    """
    if (version is None) != every:
        raise InputError("verify takes a VERSION, a FOLDER, or --all. See: dass verify --help")
    ws = open_workspace(workspace)
    from tasks.promotion.proof import Proof, proof_table
    from tasks.promotion.verification import verify_all, verify_named
    from tasks.registry.registration import check_reachable

    check_reachable(ws)
    model = model_of(ws)
    found: Iterable[Proof]
    if version is None:
        found = verify_all(ws, model, replay=replay)
    else:
        found = [verify_named(ws, model, version, replay=replay)]
    proofs = []
    for proof in found:
        proofs.append(proof)
        if not as_json:
            show_table(proof_table(proof))  # at once: a version behind it may not be there to be verified
    if as_json:
        print_json([proof.as_json() for proof in proofs])
    return FAILED if any(proof.failed for proof in proofs) else DONE


def _works_alone(ws: Workspace) -> bool:
    """Whether nobody but the ledger is to hear of it: no server that Prefect's settings name, and no webhook."""
    from tasks.workspace.settings import load_settings

    return own_prefect_database() is not None and not load_settings(ws.params).notify.urls


def _import_flows() -> None:
    import flows.promote  # noqa: F401  (it takes seconds)


@app.command(rich_help_panel=REGISTRY_PANEL)
def promote(
    version: VersionArgument = "challenger",
    force: Annotated[
        bool, typer.Option("--force", help="Promote although a rule does not hold; recorded as such.")
    ] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; needed with --force.")] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> int:
    """Make a version champion if every rule under `promote` in params.yaml holds. Status 1 when it is refused.

    Where Prefect's settings name a server, the promotion is a flow run there. The ledger has it in any case.

    dass promote
    dass promote 3
    dass promote 3 --force --reason "demo on Friday"
    """
    ws = open_workspace(workspace)
    if _works_alone(ws):
        from tasks.promotion.decision import promoted
        from tasks.registry.registration import check_reachable
        from tasks.registry.rights import RELEASE, check_right
        from tasks.workspace.settings import load_settings

        check_reachable(ws)
        settings = load_settings(ws.params)
        check_right(ws, settings.register_.model, RELEASE)
        decision = promoted(ws, settings.register_.model, settings.promote, version, force=force, reason=reason)
    else:
        from flows.prefect_api import prefect_server

        with prefect_server(ws, meanwhile=_import_flows):
            from flows.promote import promote as promote_flow

            decision = promote_flow(str(ws.root), version, force, reason)
    if as_json:
        print_json(decision.as_json())
    else:
        show_decision(decision)
    return DONE if decision.promoted else FAILED


@app.command(rich_help_panel=REGISTRY_PANEL)
def publish(
    repo: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="A repository on the hub; made, private, where there is none.")
    ],
    version: VersionArgument = "champion",
    revision: Annotated[
        str | None, typer.Option(metavar="TAG", help="The revision it gets there; default: v and the version's number.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="The repository may be seen by everybody.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Prove the version and say what would be sent; send nothing.")
    ] = False,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Publish a version to a hub repository, once it is proved: checkpoint, card, bill of materials, masks and records,
    as one commit on main with a tag.

    The login is HF_TOKEN's or `hf auth login`'s, the hub HF_ENDPOINT's. Interrupted, the same command goes on.

        dass publish org/name --dry-run
        dass publish org/name
        dass publish org/name 3 --revision 2026-11 --public
    """
    ws = open_workspace(workspace)
    from tasks.release.publish import publish as publish_version

    done = publish_version(ws, model_of(ws), version, repo, revision=revision, public=public, dry_run=dry_run)
    if as_json:
        print_json(done.as_json())
        return
    for line in done.lines():
        print(line)


@app.command(rich_help_panel=REGISTRY_PANEL)
def rollback(
    reason: Annotated[str, typer.Option("--reason", help="Why; goes to the ledger.")],
    to: Annotated[
        str | None,
        typer.Option(metavar="VERSION", autocompletion=versions, help="An earlier champion; default: the one before."),
    ] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Make an earlier champion the champion again, after its proof was checked once more.

    dass rollback --reason "worse answers in production"
    dass rollback --to 2 --reason "..."
    """
    ws = open_workspace(workspace)
    if _works_alone(ws):
        from tasks.promotion.decision import go_back
        from tasks.registry.registration import check_reachable
        from tasks.registry.rights import RELEASE, check_right

        check_reachable(ws)
        check_right(ws, model_of(ws), RELEASE)
        done = go_back(ws, model_of(ws), reason, to)
    else:
        from flows.prefect_api import prefect_server

        with prefect_server(ws, meanwhile=_import_flows):
            from flows.promote import rollback as rollback_flow

            done = rollback_flow(str(ws.root), reason, to)
    if done.told:
        tell(done.told)
    if as_json:
        print_json({"version": done.entry.version, "entry": done.entry.n, **done.entry.details})
    else:
        print(f"{done.entry.model}: version {done.entry.version} is champion again (ledger entry {done.entry.n}).")
