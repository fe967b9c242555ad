"""The command line. It reads arguments and prints; the work is elsewhere, and imported when it is wanted."""

import gc
import os
import sys
import traceback
from contextlib import suppress

from flows.cli import answers, audit, doctor, keys, pipeline, registry, settings, stages  # noqa: F401  (they register their commands)
from flows.cli.app import app
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
    try:
        with patience():
            status = int(app(arguments, prog_name="dass", standalone_mode=False) or DONE)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except SystemExit as left:  # Prefect's runner, once it has heard SIGTERM
        status = left.code if isinstance(left.code, int) else FAULT
    except Exception as error:
        if os.environ.get("DASS_DEBUG"):
            tell("".join(traceback.format_exception(error)).rstrip())
        status, message = judged(error)
    if interruption is not None and interruption.status is not None:
        status, message = interruption.status, None  # what failed on the way out failed because of it
    if status > 128:
        message = TOLD.removeprefix("dass: ")
    if message is None:
        return status
    with suppress(OSError):  # the terminal was closed
        tell(f"dass: {message}")
        if "--json" in arguments:
            kind = KINDS[INTERRUPTED if status > 128 else status]
            print_json({"error": {"status": status, "kind": kind, "message": message}})
    return status
