"""The command line. It reads arguments and prints; the work is elsewhere, and imported when it is wanted."""

import os
import signal
import sys

from flows.cli import pipeline, registry, stages  # noqa: F401  (they register their commands)
from flows.cli.app import app
from flows.cli.output import tell
from flows.exit_status import DONE, INTERRUPTED, judged

_INTERRUPTION = "dass: interrupted. Finished layers are kept; run again to go on."
_interrupted: list[int] = []


def main() -> None:
    """Run the command line and exit with its status."""
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
        0 done, 1 failed, 2 bad input, 130 interrupted. What went wrong is one line on standard error.
    """
    try:
        status = int(app(arguments, prog_name="dass", standalone_mode=False) or DONE)
    except Exception as error:
        if os.environ.get("DASS_DEBUG"):
            raise
        status, message = judged(error)
        if not _interrupted:
            tell(f"dass: {' '.join(message.split())}")
    if status == INTERRUPTED:
        tell(_INTERRUPTION)
    return status
