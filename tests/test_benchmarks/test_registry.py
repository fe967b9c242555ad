"""The benchmark of a large registry: the product verifies its store, and its table holds what was measured."""

from pathlib import Path

import pytest

from benchmarks import registry
from tasks.promotion.verification import verify_version
from tasks.registry.ledger import Ledger
from tasks.registry.tracking import reading


def test_the_table_shows_what_was_measured() -> None:
    record = {"row": "history", "versions": 200, "entries": 2000}
    text = registry.table([record | {"seconds": 1.5, "slowest": 1.75, "cpu_seconds": 1.25, "turns": 3}])
    assert "| dass history | 200 | 2,000 | 1.5 s | 1.8 s | 1.2 s | 3 |" in text


@pytest.mark.slow
def test_its_store_is_real(tmp_path: Path) -> None:
    ws = registry.store(tmp_path / "ws", versions=2, entries=12)
    with reading(ws) as client:
        ledger = Ledger.open(client, registry.MODEL, ws)
        entries = ledger.chain().entries
        ledger.check_heads(entries)
    assert len(entries) == 12
    assert not verify_version(ws, registry.MODEL, "2").failed
    assert registry.store(tmp_path / "ws", versions=2, entries=12).root == ws.root  # and is not made twice
