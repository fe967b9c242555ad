"""`dass stack`: Postgres, MLflow with roles, Prefect and a worker on this machine."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dass.errors import InputError
from flows.cli.app import app
from flows.cli.options import JsonOption, WorkspaceOption, open_workspace
from flows.cli.output import print_json, show_table, tell
from flows.exit_status import DONE, FAILED

if TYPE_CHECKING:
    from flows.stack.whole import Stack

stack = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""The whole stack on this machine: Postgres, an MLflow server with roles, a Prefect server, a worker.

It is kept in .dass/stack of the workspace: data, logs, and for each account a file with its login that only you read.
Everything listens on loopback unless told otherwise, and asks for a login.

dass stack up
. .dass/stack/accounts/runner.env && dass run
. .dass/stack/accounts/releaser.env && dass promote
dass stack down
""",
)
app.add_typer(stack, name="stack")

_PORT = {"min": 1, "max": 65535, "metavar": "PORT"}


@stack.command()
def up(
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where MLflow and Prefect listen; default: 127.0.0.1. Postgres stays on loopback. There is no TLS: "
            "another address wants a proxy with it in front.",
        ),
    ] = None,
    mlflow_port: Annotated[int | None, typer.Option(help="Default: 5000.", **_PORT)] = None,
    prefect_port: Annotated[int | None, typer.Option(help="Default: 4200.", **_PORT)] = None,
    postgres_port: Annotated[int | None, typer.Option(help="Default: 55432.", **_PORT)] = None,
    worker_port: Annotated[
        int | None, typer.Option(help="Where the worker tells its health, on loopback; default: 8081.", **_PORT)
    ] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Start what does not run yet, and return when everything answers. Needs Debian's package postgresql.

    The worker takes runs from the work pool "dass", one at a time, and registers as the account runner.

        dass stack up
        dass stack up --mlflow-port 5001 --prefect-port 4201
        . .dass/stack/accounts/runner.env && prefect --no-prompt deploy --all
    """
    ws = open_workspace(workspace)
    from flows.stack.whole import up as start

    asked = {"mlflow": mlflow_port, "prefect": prefect_port, "postgres": postgres_port, "worker": worker_port}
    found = start(ws, host, asked, tell)
    if as_json:
        print_json(found.as_json())
        return
    _show(found)
    tell("The stack runs." if found.started else "The stack was running.")
    for name, file in found.accounts.items():
        print(f"{name + ':':10} . {file}")


@stack.command()
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Also remove its data, logs and logins.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Stop what `dass stack up` started and nothing else. The data stays, and the next start has it.

    dass stack down
    dass stack down --purge
    """
    ws = open_workspace(workspace)
    from flows.stack.whole import down as end

    kept = end(ws, purge, tell)
    print(
        f"Stopped. Its data is in {kept}; dass stack down --purge removes it."
        if kept
        else "Nothing runs, nothing is kept."
    )


@stack.command()
def status(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> int:
    """Say what of it works, where it is, and where its log is. Status 1 when something does not work.

    dass stack status
    dass stack status --json
    """
    ws = open_workspace(workspace)
    from flows.stack.whole import status as look

    found = look(ws)
    if as_json:
        print_json(found.as_json())
    else:
        _show(found)
    return DONE if all(each.state == "works" for each in found.services) else FAILED


@stack.command()
def worker(
    pool: Annotated[str, typer.Option(metavar="NAME", help="The work pool, made when there is none.")] = "dass",
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What Prefect calls it: each of a pool has its own. Default: dass@ and this machine."
        ),
    ] = None,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Take runs from a work pool of the server at PREFECT_API_URL, until stopped: `prefect worker start`, behind
    a look at what its predecessor left.

    Runs that were killed together with a worker are still counted by Prefect, and those behind them wait. They are
    called crashed first, where their process is gone from this machine for certain, and each is told in a line.
    `dass stack up` starts its worker so; the containers of deploy/ do, too. One works in a workspace at a time.

        dass stack worker
        dass stack worker --pool release --name release
    """
    environment = dict(os.environ)  # the worker gets what we were given
    ws = open_workspace(workspace)
    from flows.stack.worker import become_worker

    become_worker(ws, pool, name, environment)


@stack.command()
def account(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the account; one that is there gets the role.")],
    role: Annotated[
        str,
        typer.Option(
            metavar="ROLE",
            autocompletion=lambda: ["reader", "runner", "releaser"],
            help="reader sees, runner registers, releaser also sets the champion.",
        ),
    ],
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Another MLflow server that was started with --app-name dass. The administrator's password is taken "
            "from MLFLOW_ADMIN_PASSWORD, the account's from DASS_ACCOUNT_PASSWORD, and no file is written.",
        ),
    ] = None,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Give somebody an account on the stack's MLflow server. Its login is a file that only you read: hand it over.

    dass stack account kim --role releaser
    dass stack account runner --role runner --server https://mlflow.example
    """
    if server is not None:
        from flows.stack.accounts import Server, give_role

        own, theirs = _from_environment("MLFLOW_ADMIN_PASSWORD"), _from_environment("DASS_ACCOUNT_PASSWORD")
        give_role(Server(server.rstrip("/"), own), name, role, theirs)
        tell(f"{name} is a {role} at {server}.")
        return
    ws = open_workspace(workspace)
    from flows.stack.whole import account as make

    print(f". {make(ws, name, role)}")
    if role != "reader":
        tell("The file also holds the login to Prefect, which all accounts share.")


def _from_environment(name: str) -> str:
    if not (value := os.environ.get(name)):
        raise InputError(f"{name} is not set: --server needs it.")
    return value


def _show(found: "Stack") -> None:
    from rich.markup import escape

    from tasks.workspace.tables import Fitted, table

    def build(width: int) -> object:
        made = table(width, "service", "", "address", "process", "log")
        for each in found.services:
            cells = (each.name, each.state, each.address or "", str(each.pid or ""), each.log)
            made.add_row(*map(escape, cells))
        return made

    show_table(Fitted(build))  # type: ignore[arg-type]
