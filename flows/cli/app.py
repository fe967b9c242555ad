"""The command `dass` itself. Each group of commands is a file beside this one and registers itself here."""

import logging
import os
from typing import Annotated

import typer

from flows.cli.log import say_from
from tasks.workspace.log_format import VARIABLE
from tasks.workspace.log_format import log_format as check_log_format

app = typer.Typer(
    name="dass",
    add_completion=True,
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
Prune the MLPs of a GLU language model with DaSS, measure what that cost, version and register the result.

dass init my-model --model org/name   make a workspace
dass run --workspace my-model         do everything in it
dass run --dry-run                    what a run would do, and why
dass run -S prune.sparsity=0.6        change a setting, then run
dass sweep -S prune.alpha=0,0.5,1     many settings, one pass where they allow it
dass show                             the result again
dass report                           the same as a page for a browser
dass history                          every version and decision
dass promote                          champion, if every rule holds
dass verify champion                  prove it, bit for bit
dass rollback --reason "..."          back to the champion before
dass publish org/name                 the champion, to a hub repository
dass export-audit history.zip         signed, in one file, for an auditor
dass serve --cron "0 2 * * *"         run every night at two
dass join                             be one of the machines that a run works on
dass status                           what runs, what is stuck, who is champion, the disk
dass gc                               free what nothing needs
dass --install-completion             the Tab key completes, from now on

A workspace is a folder with params.yaml, dvc.yaml and .dvc.

Exit status: 0 done, 1 a rule or a proof failed, 2 bad input, 3 infrastructure failed (a server, a
database, the disk: the same command may succeed later), 4 a fault of dass itself, 130 interrupted.

DASS_TIMEOUT: seconds that one answer of MLflow, a database, a package index or the hub may take (60);
a command waits four times as long in all. Transfers that go on are not counted.

DASS_DEBUG=1 shows the traceback of an error, NO_COLOR=1 neither colours nor escape codes,
DASS_LOG_FORMAT=json lines for a collector.
""",
)
SHARED = ("quiet", "verbose", "log_format")
"""Options of `dass` that stand behind a command's name, too."""


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"dass {version('dass')}")
        raise typer.Exit


def _be_quiet(asked: bool) -> None:
    if asked:
        say_from(logging.WARNING)


def _log_as(asked: str | None) -> None:
    if asked is not None:
        os.environ[VARIABLE] = asked  # what this process starts logs alike
        check_log_format()


def _be_verbose(asked: bool) -> None:
    if asked:
        say_from(logging.DEBUG)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Print the version of dass.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", expose_value=False, callback=_be_quiet, help="Say warnings and errors only."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", expose_value=False, callback=_be_verbose, help="Say details, too.")
    ] = False,
    log_format: Annotated[
        str | None,
        typer.Option(
            "--log-format",
            metavar="text|json",
            expose_value=False,
            callback=_log_as,
            help="How lines on standard error and in .dass/logs are written; json is OpenTelemetry's, a record a line.",
        ),
    ] = None,
) -> None:
    """The options have done their work when they were read."""
