"""The command line. It reads arguments and prints; the work is elsewhere, and imported when it is wanted."""

import gc
import inspect
import logging
import os
import sys
import traceback
from contextlib import suppress
from functools import cache
from typing import Any

import typer

from flows.cli import (  # noqa: F401  (commands)
    answers,
    audit,
    doctor,
    housekeeping,
    keys,
    nodes,
    pipeline,
    registry,
    serving,
    settings,
    stack,
    stages,
    study,
    sweep,
)
from flows.cli.app import SHARED, app
from flows.cli.log import say_from
from flows.cli.output import escape_what_cannot_be_shown, print_json, tell
from flows.exit_status import DONE, FAULT, INTERRUPTED, KINDS, judged
from flows.interruption import TOLD, Interruption
from tasks.workspace.patience import patience


def main() -> None:
    """Run the command line and exit with its status."""
    gc.set_threshold(100_000, 20, 100)  # what imports make stays: looking at it again is a tenth of the start
    escape_what_cannot_be_shown()
    interruption = Interruption()
    status = run_command(sys.argv[1:], interruption)
    interruption.leave(status)
    sys.exit(status)


def run_command(arguments: list[str], interruption: Interruption | None = None) -> int:
    """Run one command.

    Returns:
        Its exit status, as flows.exit_status lists them. What went wrong is one line on standard error and, with
        --json, {"error": {"status", "kind", "message"}} on standard output. DASS_DEBUG=1 adds the traceback.
    """
    message = None
    say_from(logging.INFO)
    try:
        with patience():
            status = int(_command_line()(arguments, prog_name="dass", standalone_mode=False) or DONE)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except SystemExit as left:  # Prefect's runner, once it has heard SIGTERM
        status = left.code if isinstance(left.code, int) else FAULT
    except Exception as error:
        if os.environ.get("DASS_DEBUG"):
            tell("".join(traceback.format_exception(error)).rstrip(), logging.ERROR)
        status, message = judged(error)
    if interruption is not None and interruption.status is not None:
        status, message = interruption.status, None  # what failed on the way out failed because of it
    if status > 128:
        message = TOLD.removeprefix("dass: ")
    if message is None:
        return status
    with suppress(OSError):  # the terminal was closed
        tell(f"dass: {message}", logging.ERROR)
        if "--json" in arguments:
            kind = KINDS[INTERRUPTED if status > 128 else status]
            print_json({"error": {"status": status, "kind": kind, "message": message}})
    return status


@cache
def _command_line() -> Any:
    """The whole command line, as click's tree of commands."""
    if os.environ.get("NO_COLOR"):
        from typer import rich_utils

        rich_utils.COLOR_SYSTEM = None  # rich takes NO_COLOR to mean no colours: bold would still be an escape code
    whole = typer.main.get_command(app)
    _complete(whole, [option for option in whole.params if option.name in SHARED])
    return whole


def _complete(command: Any, shared: list[Any]) -> None:
    """Let a command's help fill the terminal's width, and let those of a group take what stands before their names."""
    command.help = _flowing(command.help or "")
    for each in getattr(command, "commands", {}).values():
        each.params += shared
        _complete(each, shared)


def _flowing(text: str) -> str:
    """Each paragraph on one line, which the terminal then breaks; examples as they stand."""

    def laid_out(paragraph: str) -> str:
        lines = [line.strip() for line in paragraph.splitlines()]
        is_example = all(line.startswith("dass ") for line in lines)
        return "\n".join(lines) if is_example else " ".join(lines)

    return "\n\n".join(map(laid_out, inspect.cleandoc(text).split("\n\n")))
