"""13-grams of a test text that the calibration windows hold."""

import logging
from pathlib import Path

import pytest
import torch

from dass.files import read_json
from tasks.calibration import cache_windows
from tasks.evaluation.overlap import CalibrationGrams, overlaps
from tasks.evaluation.same_text import same_as_calibration, tell_same_text
from tasks.sources.base import fetch_base
from tests.workspaces import change_settings, start_workspace


def test_shared_runs_of_thirteen_are_counted() -> None:
    known = CalibrationGrams(torch.arange(100).view(2, 50))
    assert known.share_of([torch.arange(10, 40)]) == {"share": 1.0, "grams": 18}
    assert known.share_of([torch.arange(40, 60)]) == {"share": 0.0, "grams": 8}  # over the border of two windows
    assert known.share_of([torch.arange(20, 45), torch.arange(200, 213)]) == {"share": 13 / 14, "grams": 14}
    assert known.share_of([torch.arange(12)]) == {"share": None, "grams": 0}


def test_the_text_that_is_calibrated_on_overlaps_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ws, _ = start_workspace(tmp_path)
    settings = change_settings(
        ws,
        sources__evaluation={"uri": "./text.txt"},
        evaluate__texts={"other": {"uri": "./held_out.txt"}, "again": {"uri": "./text.txt"}},
    )
    assert same_as_calibration(ws, settings) == ["sources.evaluation", "evaluate.texts.again"]
    with caplog.at_level(logging.WARNING, "dass"):
        tell_same_text(ws, settings)
    assert "sources.evaluation and evaluate.texts.again are calibrated on too" in caplog.text
    fetch_base(ws, settings)
    cache_windows(ws, settings)

    sha256 = read_json(ws.calibration / "calibration.json")["source"]["sha256"]
    windows_WL = torch.full((2, 20), 3)
    texts = {name: {"source": {"sha256": each}} for name, each in (("evaluation", sha256), ("other", "0" * 64))}
    found = overlaps(ws, texts, dict.fromkeys(texts, windows_WL), bos=False)
    assert found == {"evaluation": {"share": 1.0, "grams": 16}, "other": {"share": 0.0, "grams": 16}}


def test_other_texts_are_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ws, settings = start_workspace(tmp_path)
    with caplog.at_level(logging.WARNING, "dass"):
        tell_same_text(ws, settings)
    assert caplog.messages == []
