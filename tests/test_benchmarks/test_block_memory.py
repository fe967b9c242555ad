import sys
from pathlib import Path

import pytest

from benchmarks import block_memory, job
from benchmarks.random_checkpoint import llama_config
from dass.files import read_json
from tests.test_benchmarks.test_job import measured_here


def test_each_size_is_measured_once_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        block_memory, "llama_1b", lambda layers: llama_config(layers, 32, 64, heads=4, vocabulary=300, context=128)
    )
    arguments = ["--layers", "2", "--length", "16", "--results", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["block_memory.py", *arguments, "--scratch", str(tmp_path / "scratch")])
    monkeypatch.setattr(job, "run", measured_here)
    block_memory.main()
    records = read_json(tmp_path / "found.json")["records"]
    assert [(each["layers"], each["buffers_bytes"]) for each in records] == [(2, 2 * 4 * 16 * 32 * 4)]
    assert records[0]["peak_bytes"] >= records[0]["baseline_bytes"]
    assert not list((tmp_path / "scratch").iterdir())
    block_memory.main()  # found in the results
    assert read_json(tmp_path / "found.json")["records"] == records
    more = {**records[0], "layers": 4, "peak_bytes": records[0]["peak_bytes"] * 1.1}
    last = block_memory.table([more, *records]).splitlines()[-1]
    assert last.startswith("| 4 | 4 × 16 | 0.00 GB |")
    assert "| +10.0% |" in last
