from pathlib import Path
from typing import Any

import pytest

from benchmarks.paths import RESULTS
from benchmarks.render import PAGE, QUALITY_PAGE, SECTIONS, page, quality_page
from dass.errors import InputError
from dass.files import write_json

MACHINE = {
    "cpu": "Abacus 2000",
    "cores": 2,
    "memory_gib": 24,
    "gpu": None,
    "python": "3.11.7",
    "torch": "2.13.0",
    "transformers": "5.17.0",
}
STAMP = {"commit": "abc1234", "when": "2026-11-20T10:00:00+00:00"}


def _write(folder: Path, file: str, *records: dict[str, Any]) -> None:
    content = {
        "environment": MACHINE,
        "commands": ["python -m benchmarks.some"],
        "records": [STAMP | r for r in records],
    }
    write_json(folder / file, content)


def _speed(side: str, dtype: str, turn: int, seconds: float, peak: float) -> dict[str, Any]:
    what = {"model": "smollm2-135m", "windows": 32, "length": 512, "method": "dass"}
    measured = {"seconds": seconds, "peak_bytes": peak, "operations_ratio": 0.75}
    return {**what, **measured, "side": side, "dtype": dtype, "turn": turn}


def test_speed_shows_medians_and_ratios_taken_inside_each_turn(tmp_path: Path) -> None:
    reference = [_speed("reference", "float32", turn, 80.0 + 10 * turn, 2e9) for turn in range(3)]
    engine = [_speed("engine", "bfloat16", turn, seconds, 1e9) for turn, seconds in enumerate((8.0, 18.0, 50.0))]
    _write(tmp_path, "speed.json", *reference, *engine)
    text = page(tmp_path)
    assert "**smollm2-135m, 32 windows of 512 tokens**" in text
    assert "| dass | reference float32 | 90.0 s | 1.00 | 2.00 GB | 1.00 | 3 |" in text
    assert "| dass | engine bfloat16 | 18.0 s | 0.20 | 1.00 GB | 0.50 | 3 |" in text
    assert "the engine needs 0.75 of the reference's matrix-product operations" in text
    assert "2026-11-20, Abacus 2000, 2 cores, 24 GiB, torch 2.13.0" in text
    assert "commit abc1234" in text
    assert "python -m benchmarks.some" in text


def test_growth_and_the_7b_shape_show_what_was_measured(tmp_path: Path) -> None:
    growth = {"length": 512, "side": "engine", "dtype": "float32", "turn": 0}
    _write(
        tmp_path,
        "growth.json",
        growth | {"layers": 32, "windows": 16, "seconds": 12.34, "peak_bytes": 7.7e8},
        growth | {"layers": 8, "windows": 64, "seconds": 45.67, "peak_bytes": 8.8e8},
    )
    shape = {"pattern": "2:4", "windows": 4, "length": 128, "baseline_bytes": 5e8, "stored_bytes": 13.5e9}
    _write(
        tmp_path,
        "shape_7b.json",
        shape | {"layers": 32, "seconds": 321.0, "peak_bytes": 2.05e9},
        shape | {"layers": 16, "seconds": 160.0, "peak_bytes": 2.0e9},
    )
    text = page(tmp_path)
    assert "| 32 | — | — | 12.3 s | 0.77 GB | — | — |" in text
    assert "| 64 | — | — | 45.7 s | 0.88 GB | — | — |" in text
    assert "| 2:4 | 32 | 4 × 128 | 13.50 GB | 2.05 GB | +2.5% | 0.50 GB | 321.0 s |" in text


def test_what_was_not_measured_is_said_and_no_figure_stands_for_it(tmp_path: Path) -> None:
    _write(tmp_path, "speed.json", _speed("reference", "float32", 0, 80.0, 2e9))
    text = page(tmp_path)
    assert "Not measured yet: `python -m benchmarks.growth`." in text
    assert "Not measured: no GPU was at hand." in text
    _write(tmp_path, "gpu-dry-run.json", {"what": "pruning", "layer_seconds": [987.654]})
    text = page(tmp_path)
    assert "On 2026-11-20 the same code passed on the CPU at a small size" in text.replace("\n", " ")
    assert "987" not in text


def test_the_best_allocation_stands_beside_the_others(tmp_path: Path) -> None:
    for name in ("quality.json", "cost.json"):
        (tmp_path / name).write_bytes((RESULTS / name).read_bytes())
    assert "Which matrices are spared" not in quality_page(tmp_path)
    found = {"total": 0.4, "allocation": "sensitivity", "removed": 0.40123, "kl": 0.45678, "loss": 3.2}
    measured = {"score": "dass", "layout": "paper", "held_out": [4, 512], "rank_correlation": 0.876}
    what = {"model": "tiny", "what": "2:4 or dense", "allocations": [found | {"top1_agreement": 0.7}]}
    _write(tmp_path, "allocations.json", what | measured)
    text = quality_page(tmp_path)
    assert "| tiny, dass, 2:4 or dense | 40 % | sensitivity | 40.12 % | 0.4568 | 3.2000 | 70.0% |" in text
    assert "tiny, 2:4 or dense: 0.88, judged on 4 × 512 held-out tokens" in text


def test_nothing_measured_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No results in .* Run: make bench"):
        page(tmp_path)


def test_every_benchmark_of_the_page_can_be_called() -> None:
    for section in SECTIONS:
        assert section.command == f"python -m benchmarks.{Path(section.results).stem}"


def test_the_pages_in_docs_are_made_of_the_tracked_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(RESULTS)
    assert QUALITY_PAGE.read_text(encoding="utf-8") == quality_page(RESULTS)
