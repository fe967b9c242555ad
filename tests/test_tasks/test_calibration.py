"""The calibration cache."""

import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from dass.errors import InputError
from dass.files import read_json, sha256_file
from tasks.calibration import cache_windows
from tasks.sources.base import fetch_base
from tasks.sources.tokens import digest_of_ids
from tasks.versioning.pins import refresh_pins
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Source
from tests.workspaces import change_settings, start_workspace


def cache(root: Path, family: str = "llama", **changes: Any) -> Workspace:
    ws, settings = start_workspace(root, family, **changes)
    fetch_base(ws, settings)
    cache_windows(ws, settings)
    return ws


def ids(ws: Workspace) -> torch.Tensor:
    return load_file(ws.calibration / "tokens.safetensors")["input_ids"]


def test_the_cache_holds_the_windows_asked_for_and_says_what_they_are(tmp_path: Path) -> None:
    ws = cache(tmp_path)
    record = read_json(ws.calibration / "calibration.json")
    assert sorted(os.listdir(ws.calibration)) == ["calibration.json", "tokens.safetensors"]
    assert (ids(ws).shape, ids(ws).dtype) == ((6, 32), torch.int64)
    assert record == {
        "source": {"uri": "./text.txt", "sha256": sha256_file(ws.root / "text.txt")},
        "tokenizer": read_json(ws.base / "source.json")["tokenizer"],
        "settings": {"samples": 6, "sequence_length": 32, "seed": 0, "bos": "auto"},
        "bos": False,
        "documents": 1,
        "tokens": 192,
        "digest": digest_of_ids(ids(ws)),
    }


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    ws = cache(tmp_path)
    before = {path.name: sha256_file(path) for path in ws.calibration.iterdir()}
    cache_windows(ws, change_settings(ws))
    assert {path.name: sha256_file(path) for path in ws.calibration.iterdir()} == before
    cache_windows(ws, change_settings(ws, calibration__seed=1))
    assert sha256_file(ws.calibration / "tokens.safetensors") != before["tokens.safetensors"]


def test_gemma_s_windows_start_with_bos(tmp_path: Path) -> None:
    ws = cache(tmp_path, "gemma")
    assert ids(ws)[:, 0].tolist() == [0] * 6
    assert read_json(ws.calibration / "calibration.json")["bos"] is True


def test_rows_are_documents_of_their_own(tmp_path: Path) -> None:
    ws, settings = start_workspace(tmp_path, calibration__samples=2)
    fetch_base(ws, settings)
    text = (tmp_path / "text.txt").read_text()
    rows = [text[:40], text[100:400], text[500:800]]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "rows.parquet")
    settings = settings.model_copy(
        update={"sources": settings.sources.model_copy(update={"calibration": Source(uri="rows.parquet")})}
    )
    refresh_pins(ws, settings)
    cache_windows(ws, settings)
    assert read_json(ws.calibration / "calibration.json")["documents"] == 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"calibration__samples": 10_000},
            r"calibration: The text gives \d+ windows of 32 tokens, 10000 were asked for",
        ),
        ({"calibration__sequence_length": 129}, r"calibration\.sequence_length is 129: the model's context is 128"),
    ],
)
def test_a_request_the_text_or_the_model_cannot_meet_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        cache(tmp_path, **changes)
    assert not (tmp_path / "artifacts" / "calibration").exists()


def test_an_empty_text_is_refused(tmp_path: Path) -> None:
    ws, settings = start_workspace(tmp_path)
    fetch_base(ws, settings)
    (tmp_path / "text.txt").write_text("\n")
    with pytest.raises(InputError, match="holds no text"):
        cache_windows(ws, change_settings(ws))


def test_a_text_that_changed_since_it_was_pinned_is_refused(tmp_path: Path) -> None:
    ws, settings = start_workspace(tmp_path)
    fetch_base(ws, settings)
    (tmp_path / "text.txt").write_text("another text " * 1000)
    with pytest.raises(InputError, match=r"dass\.lock\.json says"):
        cache_windows(ws, settings)
    assert not ws.calibration.exists()
