"""What a command says: tables and JSON on standard output, single lines on standard error."""

import json
import sys
from typing import Any


def show_table(table: Any) -> None:
    from rich.console import Console

    console = Console()
    # A file or a pipe has no width of its own, and 80 columns would cut the tables there.
    (console if console.is_terminal else Console(width=160)).print(table)


def show_decision(decision: Any) -> None:
    if decision.repaired:
        tell(decision.repaired)
    show_table(decision.table())


def tell(line: str) -> None:
    print(line, file=sys.stderr)


def shown(value: Any) -> str:
    return "null" if value is None else str(value)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
