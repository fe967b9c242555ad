import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.kernels import LAYOUTS, compare_kernel
from dass.files import read_json
from dass.method.methods import PROJECTIONS


def test_dry_run_measures_on_the_cpu_and_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dry-run", "--results", str(tmp_path / "gpu.json"), "--scratch", str(tmp_path / "scratch")]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    gpu.main()
    assert "Dry run on the CPU at a small size." in capsys.readouterr().out
    assert not (tmp_path / "gpu.json").exists()  # that file is for figures of a GPU
    records = read_json(tmp_path / "gpu-dry-run.json")["records"]
    pruning = [record for record in records if record["what"] == "pruning"]
    assert [len(record["layer_seconds"]) for record in pruning] == [2]
    assert pruning[0]["flops"] == 64 * 2 * (4 * 64 * 64 * 2 + 64 * 128 * (5 + 2)) + 2 * 4 * 2 * (32 * 33 // 2) * 64
    assert pruning[0]["matmul_flops_per_second"] > 0
    assert len(records) == 1 + len(LAYOUTS) * len(PROJECTIONS)
    assert not list(tmp_path.glob("scratch/*/*"))


def test_without_a_gpu_it_says_so_and_runs_dry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--results", str(tmp_path / "gpu.json"), "--scratch", str(tmp_path)])
    gpu.main()
    assert "small size: torch finds no GPU." in capsys.readouterr().out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_kernels_can_run_everything_but_gate_and_up_of_the_papers_layout(layout, projection) -> None:
    row = compare_kernel(layout, projection, hidden=64, intermediate=128, tokens=32, device=torch.device("cpu"))
    assert row["has_kernel"] == (layout != "paper" or projection == "down_proj")
    assert row["shape"] == ([64, 128] if projection == "down_proj" else [128, 64])
    assert "sparse_seconds" not in row


def test_fewer_layers_give_a_total_that_is_labelled_extrapolated() -> None:
    record = {
        "what": "pruning",
        "layers": 4,
        "windows": 128,
        "length": 2048,
        "embedding_seconds": 1.0,
        "layer_seconds": [0.75, 0.5, 0.5, 0.25],
        "flops": 600 * 10**12,
        "matmul_flops_per_second": 600e12,
        "peak_device_bytes": 9_870_000_000,
    }
    row = gpu.tables([record]).splitlines()[2]
    assert "| 4 | 128 × 2048 | 500 ms | 3.0 s (17.0 s extrapolated to 32 layers) |" in row
    assert "| 300 TFLOP/s | 50% of 600 TFLOP/s | 9.87 GB |" in row
    assert "extrapolated" not in gpu.tables([record | {"layers": 32}])
