"""What a command says: tables and JSON on standard output, single lines on standard error.

Whatever the terminal's encoding, nothing that is said can fail: what it cannot show is escaped.
"""

import json
import logging
import os
import sys
from io import TextIOWrapper
from typing import Any

from flows.exit_status import printable
from tasks.workspace.log_format import JsonFormatter, is_json
from tasks.workspace.redaction import redacted


def escape_what_cannot_be_shown() -> None:
    """Let both streams write a character that their encoding lacks as an escape, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show_table(table: Any) -> None:
    from rich.console import Console

    # Bold is an escape code, too, which rich's own NO_COLOR leaves.
    console = Console(color_system=None if os.environ.get("NO_COLOR") else "auto")
    # A file or a pipe has no width of its own, and 80 columns would cut the tables there.
    (console if console.is_terminal else Console(width=160)).print(table)


def show_decision(decision: Any) -> None:
    if decision.repaired:
        tell(decision.repaired)
    show_table(decision.table())
    tell(f"Signed by {decision.signed_by} (ledger entry {decision.entry}).")


def tell(line: str, level: int = logging.INFO) -> None:
    """Say a line on standard error, as a record of the log where that is JSON."""
    text = printable(redacted(line))
    if is_json():
        text = JsonFormatter().format(logging.LogRecord("dass", level, __file__, 0, text, None, None))
    print(text, file=sys.stderr)


def reveal(line: str) -> None:
    """Say a line as it stands: it holds a secret on purpose, or the address of a page, cleaned before."""
    print(printable(line), file=sys.stderr)


def shown(value: Any) -> str:
    return "null" if value is None else str(value)


def print_json(value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    print(text, flush=True)  # the command may go on for days
