"""`dass keys`: who may register versions, promote them, and change this list."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.options import REGISTRY_PANEL, JsonOption, WorkspaceOption, model_of, open_workspace
from flows.cli.output import print_json, show_table, tell

keys = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Who may register versions, promote them, and change this list.

Nobody needs these commands to begin with: whoever registers first holds every role. A team writes the list down
(dass keys init, and commit dass.keys), adds the others, and gives each only what it needs.
""",
)
app.add_typer(keys, name="keys", rich_help_panel=REGISTRY_PANEL)

_FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A public key, PEM: dass keys list --public > FILE")
]


@keys.command("list")
def list_keys(
    public: Annotated[bool, typer.Option("--public", help="Print your own public key instead, to give away.")] = False,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Show the keys of the model's ledger: name, fingerprint, roles, and whether each is trusted.

    dass keys list
    dass keys list --public > alice.pem
    """
    if public:
        from tasks.registry.key_file import fingerprint, public_key

        own = public_key()
        if as_json:
            print_json({"public": own, "fingerprint": fingerprint(own)})
        else:
            print(own, end="")
        return
    ws = open_workspace(workspace)
    from tasks.registry.keys import keys_table, listed

    record = listed(ws, model_of(ws))
    if as_json:
        print_json(record)
    else:
        show_table(keys_table(record))


@keys.command()
def init(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Write dass.keys: the keys that the model's ledger must begin with. Commit it.

    dass keys init && git add dass.keys && git commit
    """
    ws = open_workspace(workspace)
    from tasks.registry.keys import start

    done = start(ws, model_of(ws))
    if as_json:
        print_json(done)
        return
    names = ", ".join(key["name"] for key in done["keys"])
    print(
        f"{done['file']} {'lists' if not done['written'] else 'now lists'} {names}. Commit it: it is what clones trust."
    )
    if done["entry"] is not None:
        print(f"The ledger's list of keys begins with entry {done['entry']}.")


@keys.command()
def add(
    file: _FileArgument,
    name: Annotated[str, typer.Option(help="What people call it: the actor of what it signs.")],
    role: Annotated[
        list[str],
        typer.Option(help="register: versions; promote: and roll back; keys: change this list. Repeatable."),
    ],
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Add a public key to the list, or give one of it other roles. Needs the role keys.

    dass keys add ci.pem --name ci --role register
    dass keys add alice.pem --name alice --role register --role promote
    """
    ws = open_workspace(workspace)
    from tasks.registry.keys import add as add_key

    _tell(add_key(ws, model_of(ws), file, name, role), as_json, f"{name} is in the list")


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its name, or the start of its fingerprint.")],
    reason: Annotated[str, typer.Option(help="Why; goes to the ledger.")],
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Distrust a key: it signs no more, and no version that it registered is used any more. Needs the role keys.

    A key that is only given up is rotated instead.

        dass keys revoke ci --reason "the runner was broken into"
    """
    ws = open_workspace(workspace)
    from tasks.registry.keys import revoke as revoke_key

    _tell(revoke_key(ws, model_of(ws), key, reason), as_json, f"{key} is distrusted")


@keys.command()
def rotate(
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A public key that takes over; default: a new key is made here.")
    ] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Let a new key take your key's place, with its name and roles. What the old one signed still holds.

    Once for each model whose ledger lists the key; behind the first, with the old key and --to.

        dass keys rotate
        DASS_SIGNING_KEY=old.pem dass keys rotate --to new-public.pem --workspace other
    """
    ws = open_workspace(workspace)
    from tasks.registry.keys import rotate as rotate_key

    done = rotate_key(ws, model_of(ws), to)
    _tell(done, as_json, "the key was rotated")
    if done["old"] and not as_json:
        tell(f"The old key is kept in {done['old']}: other models' ledgers may list it still.")


def _tell(done: dict[str, object], as_json: bool, said: str) -> None:
    if as_json:
        print_json(done)
    else:
        print(f"{said} (key {str(done['key'])[:16]}, ledger entry {done['entry']}).")
