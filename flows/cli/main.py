"""The command line. It reads arguments and prints; the work is elsewhere, and imported when it is wanted."""

import os
import signal
import sys
import traceback

from flows.cli import pipeline, registry, stages  # noqa: F401  (they register their commands)
from flows.cli.app import app
from flows.cli.output import escape_what_cannot_be_shown, print_json, tell
from flows.exit_status import DONE, INTERRUPTED, KINDS, judged
from tasks.workspace.patience import patience

_INTERRUPTION = "dass: interrupted. Finished layers are kept; run again to go on."
_interrupted: list[int] = []


def main() -> None:
    """Run the command line and exit with its status."""
    escape_what_cannot_be_shown()
    signal.signal(signal.SIGINT, _interrupt)
    status = run_command(sys.argv[1:])
    if _interrupted and status != INTERRUPTED:  # Ctrl-C also stopped the server, whose silence was noticed first
        tell(_INTERRUPTION)
        status = INTERRUPTED
    sys.exit(status)


def _interrupt(number: int, frame: object) -> None:
    _interrupted.append(number)
    raise KeyboardInterrupt


def run_command(arguments: list[str]) -> int:
    """Run one command.

    Returns:
        Its exit status, as flows.exit_status lists them. What went wrong is one line on standard error and, with
        --json, {"error": {"status", "kind", "message"}} on standard output. DASS_DEBUG=1 adds the traceback.
    """
    try:
        with patience():
            status = int(app(arguments, prog_name="dass", standalone_mode=False) or DONE)
    except Exception as error:
        if os.environ.get("DASS_DEBUG"):
            tell("".join(traceback.format_exception(error)).rstrip())
        status, message = judged(error)
        if not _interrupted:
            tell(f"dass: {message}")
            if "--json" in arguments:
                print_json({"error": {"status": status, "kind": KINDS[status], "message": message}})
    if status == INTERRUPTED:
        tell(_INTERRUPTION)
    return status
