"""Commands for auditors: a model's history in one file, and its check where there is nothing else of ours."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.options import REGISTRY_PANEL, JsonOption, WorkspaceOption, model_of, open_workspace
from flows.cli.output import print_json, show_table, tell
from flows.exit_status import DONE, FAILED


@app.command("export-audit", rich_help_panel=REGISTRY_PANEL)
def export_audit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, a zip.")],
    model: Annotated[str | None, typer.Option(help="Registered model; default: register.model.")] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> int:
    """Write the model's history for an auditor: entries, keys, manifests, figures, model cards. Neither weights nor
    masks.

    Status 1 when something in it does not hold: it is written all the same, and names what.

        dass export-audit history.zip
    """
    ws = open_workspace(workspace)
    from tasks.registry.audit_bundle import export_audit as export

    done = export(ws, model or model_of(ws), file)
    if as_json:
        print_json(done)
        return FAILED if done["faults"] else DONE
    from tasks.registry.timeline import plain

    for line in (*done["notes"], *done["faults"]):
        tell(plain(line))
    print(f"{file} holds {done['entries']} entries of {plain(done['model'])}. Check it with: dass audit {file}")
    print(f"Tell the auditor, by another way, the key that began the ledger: {done['root']}")
    return FAILED if done["faults"] else DONE


@app.command(rich_help_panel=REGISTRY_PANEL)
def audit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What dass export-audit wrote.")],
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A dass.keys: the keys that the ledger must begin with.")
    ] = None,
    root: Annotated[
        str | None, typer.Option(metavar="FINGERPRINT", help="The key that must have begun the ledger.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Check an exported history: every entry, signature and file. Needs no MLflow and no workspace, writes nothing.

    Status 1 when something does not hold.

        dass audit history.zip
        dass audit history.zip --keys dass.keys
    """
    from tasks.registry.audit import as_json as found_as_json
    from tasks.registry.audit import audit as check
    from tasks.registry.timeline import plain, timeline

    found = check(file, keys, root)
    status = FAILED if found.faults else DONE
    if as_json:
        print(json.dumps(found_as_json(found), indent=2))  # all of it ASCII: it comes from strangers
        return status
    if found.chain is not None and found.chain.root is not None:
        show_table(timeline(found.model, found.chain))
        print(plain(f"The ledger was begun by key {found.chain.root.key} with:"))
        for key in found.roots:
            print(plain(f"    {key.fingerprint}  {key.name} ({', '.join(key.roles)})"))
        print(plain(found.trusted))
        champion = found.chain.champion
        print(plain("There is no champion." if champion is None else f"The champion is version {champion}."))
    for line in found.notes:
        print(plain(line))
    for line in found.faults:
        tell(plain(f"fault: {line}"))
    checked = 0 if found.chain is None else len(found.chain.entries)
    print(
        f"{plain(str(file))} does not hold: {len(found.faults)} faults."
        if found.faults
        else f"{plain(str(file))} holds: {checked} entries, and the files of {len(found.versions)} versions."
    )
    return status
