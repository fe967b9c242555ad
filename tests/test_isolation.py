"""What one test leaves behind for the next. The two run in this order, in one process."""

import os
from pathlib import Path

from flows.environment import configure


def test_a_command_line_sets_defaults_for_what_it_starts(tmp_path: Path) -> None:
    configure(tmp_path)
    assert os.environ["PYTHONSAFEPATH"] == "1"


def test_the_next_test_has_none_of_them() -> None:
    assert "PYTHONSAFEPATH" not in os.environ
