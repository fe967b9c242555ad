import sys
from pathlib import Path

import pytest

from benchmarks import job, shape_7b
from benchmarks.random_checkpoint import llama_config
from dass.files import read_json
from tests.test_benchmarks.test_job import measured_here


def test_each_size_is_written_pruned_and_removed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shape_7b, "llama_2_7b", lambda layers: llama_config(layers, 32, 64, heads=4, vocabulary=300, context=128)
    )
    arguments = ["--layers", "2", "--results", str(tmp_path / "shape_7b.json"), "--scratch", str(tmp_path / "scratch")]
    monkeypatch.setattr(sys, "argv", ["shape_7b.py", *arguments])
    monkeypatch.setattr(job, "run", measured_here)
    shape_7b.main()
    records = read_json(tmp_path / "shape_7b.json")["records"]
    expected = [(2, "unstructured", 4, 128), (2, "2:4", 4, 128)]
    assert [
        tuple(record[name] for name in ("layers", "pattern", "windows", "length")) for record in records
    ] == expected
    assert records[0]["peak_bytes"] >= records[0]["baseline_bytes"]
    assert not list((tmp_path / "scratch").iterdir())
    shape_7b.main()  # found in the results
    assert read_json(tmp_path / "shape_7b.json")["records"] == records
