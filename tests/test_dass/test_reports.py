"""What the public functions give back can be read: in one line by `repr`, as a table by `summary`."""

from pathlib import Path

import pytest

import dass
from dass.reports import AppliedReport
from tests.models import LAYERS, tiny_model, tiny_tokens


def test_a_report_is_one_short_line() -> None:
    report = dass.prune(tiny_model(), tiny_tokens(), pattern="2:4")
    errors = sorted(layer.relative_error or 0.0 for layer in report.layers)
    expected = f"PruneReport(3 layers, sparsity 0.5000, output error {errors[0]:.3f} to {errors[-1]:.3f}, median"
    assert repr(report).startswith(expected)
    assert len(repr(report)) < 120


def test_a_summary_has_a_row_a_layer_and_fits_a_terminal() -> None:
    report = dass.prune(tiny_model(), tiny_tokens(), pattern="2:4", only=["down_proj"], skip_layers=[1])
    first, head, *rows = report.summary().splitlines()
    assert first.startswith("dass α 0.5, 2:4: 11.11% of the MLP weights of 3 layers removed in")
    assert head.split() == ["layer", "gate", "up", "down", "output", "error", "seconds"]
    assert len(rows) == LAYERS
    error = report.layers[0].relative_error
    assert error is not None
    assert rows[0].split()[:5] == ["0", "0.00%", "0.00%", "50.00%", f"{error:.4f}"]
    assert rows[1].split()[:4] == ["1", "0.00%", "0.00%", "0.00%"]
    assert rows[1].endswith("skipped")
    assert max(map(len, report.summary().splitlines())) <= 80


def test_where_layers_differ_each_says_how() -> None:
    report = dass.prune(tiny_model(), tiny_tokens(), allocation="owl", pattern="4:8", owl_bound=0.2)
    lines = report.summary().splitlines()
    assert "a pattern for each layer" in lines[0] or len({layer.pattern for layer in report.layers}) == 1
    auto = dass.prune(tiny_model(), tiny_tokens(), "auto", auto_windows=1, auto_budget=0)
    assert auto.choice is not None
    assert f"auto chose {auto.choice.told}" in auto.summary()


def test_a_checkpoint_s_report_says_what_was_there_and_what_stayed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tiny_checkpoint / "notes.bin").write_bytes(b"mine")
    work = tmp_path / "work"
    dass.prune_checkpoint(tiny_checkpoint, tmp_path / "one", tiny_tokens(), work=work)
    report = dass.prune_checkpoint(tiny_checkpoint, tmp_path / "two", tiny_tokens(), work=work)
    assert report.sparsity == 0.5
    assert repr(report).endswith(", 3 resumed)")
    assert "3 layers were finished by an earlier run." in report.summary()
    assert "Left behind: notes.bin" in report.summary()


def test_what_was_put_back_is_counted() -> None:
    assert AppliedReport(2_000, 1_500, []).summary().startswith("1,500 of 2,000 removed weights had come back")


def test_progress_is_a_bar_on_stderr_and_silence_without(capfd: pytest.CaptureFixture[str]) -> None:
    dass.prune(tiny_model(), tiny_tokens(), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "pruning: 100%" in err
    assert f"{LAYERS}/{LAYERS}" in err
    dass.prune(tiny_model(), tiny_tokens())
    assert capfd.readouterr() == ("", "")


def test_and_of_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dass.prune_checkpoint(tiny_checkpoint, tmp_path / "out", tiny_tokens(), progress=True)
    assert f"{LAYERS}/{LAYERS}" in capfd.readouterr().err
