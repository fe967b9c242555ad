"""The benchmark of what is read for digests: its table, and what it counts."""

from pathlib import Path

import pytest

from benchmarks import digests


def test_the_table_shows_a_row_a_step_in_the_order_of_a_run() -> None:
    record = {"layers": 2, "stored_bytes": 800_000_000}
    steps = {"registration": 804_000_000, "begin": 0}
    text = digests.table([record | {"step": step, "read_bytes": size} for step, size in steps.items()])
    assert text.splitlines()[2].startswith("| a run begins | 2 | 0.80 GB | nothing")
    assert "| registration | 2 | 0.80 GB | the copy into MLflow's store | 1.00 |" in text.splitlines()[3]


@pytest.mark.slow
def test_every_step_of_a_run_is_counted(tmp_path: Path) -> None:
    taken = digests._measured(tmp_path, layers=1)
    assert list(taken) == ["begin", "sources", "materialize", "registration"]
    for step, reads in {"begin": 0, "sources": 1, "materialize": 1, "registration": 1}.items():
        assert reads <= taken[step]["read_bytes"] / taken[step]["stored_bytes"] < reads + 0.2, step
