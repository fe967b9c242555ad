"""What a terminal of so many columns shows."""

from io import StringIO
from typing import Any

from rich.console import Console


def printed(what: Any, width: int) -> str:
    """The text; no line of it is longer than the terminal is wide."""
    console = Console(file=StringIO(), width=width)
    console.print(what)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text
