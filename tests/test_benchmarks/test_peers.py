import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from benchmarks import peers
from benchmarks.job import Job, JobFailed, Measurement
from benchmarks.measured import measure
from benchmarks.paths import ROOT
from benchmarks.random_checkpoint import write_tokens
from benchmarks.timing import model_rate
from dass.errors import InputError
from tests.models import VOCABULARY, save_tiny_checkpoint


def _run(side: str, dtype: str, seconds: float, peak: float, same: float = 1.0) -> dict[str, Any]:
    measured = {"seconds": seconds, "peak_bytes": peak, "baseline_bytes": 4e8}
    return {"side": side, "dtype": dtype, **measured, "removed": 0.5, "same": same}


def _turn(*runs: dict[str, Any], dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> dict[str, Any]:
    size = {
        "model": "smollm2-135m",
        "windows": 32,
        "length": 512,
        "pattern": "2:4",
        "peer": "llm-compressor 1 with torch",
    }
    floor = {"flops": 6 * 10**12, "rates": {"float32": 2e11, "bfloat16": 4e11}}
    return {**size, **floor, "dtypes": list(dtypes), "runs": list(runs)}


def test_ratios_are_to_the_peer_of_the_same_type_in_the_same_turn() -> None:
    turns = [
        _turn(
            _run("reference", "float32", 90.0, 3e9),
            _run("peer", "float32", 60.0 * slow, 2e9, same),
            _run("engine", "float32", 40.0, 1e9),
            _run("peer", "bfloat16", 30.0, 1.5e9),
            _run("engine", "bfloat16", 20.0, 0.6e9),
        )
        for slow, same in ((1, 0.9999), (2, 0.9998), (1, 0.9997))
    ]
    lines = peers.tables(turns).splitlines()
    assert lines[0] == "**smollm2-135m, 32 windows of 512 tokens, Wanda 2:4**"
    assert lines[4].startswith("| reference float32 | 90.0 s | 1.50 (0.75 to 1.50) | 3.00 GB | 1.50 (1.50 to 1.50) |")
    assert lines[5].endswith("| 2.00 GB | 1.00 (1.00 to 1.00) | 50% | 50.00% | 99.97% | 3 |")
    assert lines[6].startswith(
        "| engine float32 | 40.0 s | 0.67 (0.33 to 0.67) | 1.00 GB | 0.50 (0.50 to 0.50) | 75% |"
    )
    assert lines[8].startswith(
        "| engine bfloat16 | 20.0 s | 0.67 (0.67 to 0.67) | 0.60 GB | 0.40 (0.40 to 0.40) | 75% |"
    )
    told = " ".join(lines[10:])
    assert told.startswith(
        "llm-compressor 1 with torch. Floor: 6.00 TFLOP of matrix products, 30.0 s in float32 at 200"
    )
    assert "15.0 s in bfloat16 at 400 GFLOP/s." in told


def test_a_turn_of_one_type_has_rows_of_that_type_only() -> None:
    runs = [_run("peer", "bfloat16", 30.0, 1.5e9), _run("engine", "bfloat16", 20.0, 0.6e9)]
    text = peers.tables([_turn(*runs, dtypes=("bfloat16",))])
    assert "| engine bfloat16 | 20.0 s | 0.67 | 0.60 GB | 0.40 |" in text
    assert "float32" not in text


@pytest.mark.parametrize("pattern", peers.PATTERNS)
def test_a_turn_compares_what_was_written_with_the_engines(pattern: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.safetensors"
    write_tokens(tokens, 4, 16, VOCABULARY)

    @contextmanager
    def here(job: Job) -> Iterator[tuple[Measurement, Path]]:
        folder = tmp_path / f"{job.side}-{job.method}"
        yield measure(job, folder), folder

    def job(side: Any, method: str) -> Job:
        return Job(side, method, "float32", tiny_checkpoint, tokens, 4, 16, pattern=pattern)

    # The published procedure stands for the peer: it speaks the same protocol.
    alike = peers.take_turn([job("peer", "wanda"), job("engine", "wanda")], here)
    assert [(run["side"], run["dtype"]) for run in alike] == [("peer", "float32"), ("engine", "float32")]
    assert all(run["removed"] == 0.5 for run in alike)
    assert 0.998 < alike[0]["same"] <= alike[1]["same"] == 1.0
    other = peers.take_turn([job("peer", "magnitude"), job("engine", "wanda")], here)
    assert other[0]["removed"] == 0.5
    assert other[0]["same"] < 0.95


@pytest.mark.slow
@pytest.mark.skipif(not peers.PYTHON.exists(), reason="llm-compressor's environment is not there: make bench-peers")
@pytest.mark.parametrize("pattern", peers.PATTERNS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_llm_compressor_removes_what_the_engine_removes_and_changes_nothing_else(
    family: str, pattern: str, tmp_path: Path
) -> None:
    checkpoint, tokens = save_tiny_checkpoint(tmp_path / "model", family), tmp_path / "tokens.safetensors"
    write_tokens(tokens, 4, 16, VOCABULARY)
    theirs, ours = (
        Job(side, "wanda", "float32", checkpoint, tokens, 4, 16, pattern=pattern) for side in ("peer", "engine")
    )
    measure(ours, tmp_path / "ours")
    with peers.measured_process(theirs, tmp_path) as (taken, folder):
        assert taken.peak_bytes >= taken.baseline_bytes > 50e6
        assert peers.same_masks(peers.mlp_zeros(folder), peers.mlp_zeros(tmp_path / "ours")) > 0.998
        written = load_file(folder / "model.safetensors")
    base = load_file(checkpoint / "model.safetensors")
    assert written.keys() == base.keys()
    for name, value in written.items():
        kept = (value != 0) | (".mlp." not in name)
        assert torch.equal(value, torch.where(kept, base[name].to(value.dtype), 0.0)), name


def test_a_checkpoint_of_other_matrices_is_no_peer() -> None:
    zeros = {"model.layers.0.mlp.up_proj.weight": torch.zeros(2, 3, dtype=torch.bool)}
    with pytest.raises(JobFailed, match="1 MLP matrices are not the engine's 0"):
        peers.same_masks(zeros, {})


def test_the_floors_rate_is_measured_on_the_models_own_shapes() -> None:
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2)
    for dtype in (torch.float32, torch.bfloat16):
        assert model_rate(config, dtype, seconds=0.0) > 1e6


def test_without_llm_compressors_environment_it_says_what_builds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "PYTHON", tmp_path / "peer" / "bin" / "python")
    monkeypatch.setattr(sys, "argv", ["peers.py", "--results", str(tmp_path / "peers.json")])
    with pytest.raises(InputError, match=r"No environment of llm-compressor in .*/peer\. Run: make bench-peers"):
        peers.main()


def test_llm_compressor_runs_on_the_engines_torch_and_transformers() -> None:
    ours, theirs = (
        dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE))
        for file in ("requirements.lock", "benchmarks/llm_compressor.lock")
    )
    assert theirs["llmcompressor"] == "0.14.0.1"
    for name in ("torch", "transformers", "safetensors", "numpy"):
        assert theirs[name] == ours[name], name
