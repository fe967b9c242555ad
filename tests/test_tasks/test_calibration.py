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
from dass.model import memory
from dass.model.pretrained import load_tokenizer
from tasks.calibration import cache_windows
from tasks.evaluation.overlap import overlaps
from tasks.evaluation.same_text import same_as_calibration
from tasks.sources.base import fetch_base
from tasks.sources.calibrated_on import sources_of, told
from tasks.sources.tokens import digest_of_ids
from tasks.versioning.pins import refresh_pins
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Source, load_settings
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
        "source": {"uri": "./text.txt", "sha256": sha256_file(ws.root / "text.txt"), "documents": 1, "windows": 6},
        "texts": {},
        "window_sources": None,
        "tokenizer": read_json(ws.base / "source.json")["tokenizer"],
        "settings": {
            "samples": 6,
            "sequence_length": 32,
            "seed": 0,
            "bos": "auto",
            "source": "text",
            "temperature": 1.0,
            "top_k": None,
            "texts": {},
        },
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


def with_texts(root: Path, **changes: Any) -> Workspace:
    """A cache of sources.calibration and two further texts."""
    (root / "code.txt").write_text("".join(f"def f{n}(x):\n    return x + {n}\n" for n in range(400)))
    texts = {"code": {"uri": "./code.txt", "share": 0.3}, "held": {"uri": "./held_out.txt", "share": 0.2}}
    return cache(root, calibration__samples=8, calibration__texts=texts, **changes)


def test_several_texts_give_their_shares_shuffled_and_each_window_says_whose_it_is(tmp_path: Path) -> None:
    ws = with_texts(tmp_path)
    record = read_json(ws.calibration / "calibration.json")
    assert {name: each["windows"] for name, each in sources_of(record).items()} == {
        "calibration": 4,
        "code": 2,
        "held": 2,
    }
    assert record["texts"]["code"]["sha256"] == sha256_file(tmp_path / "code.txt")
    assert sorted(record["window_sources"]) == ["calibration"] * 4 + ["code"] * 2 + ["held"] * 2
    assert record["window_sources"] != sorted(record["window_sources"])
    assert record["documents"] == 3
    assert told(record) == "./text.txt (4 windows), ./code.txt (2 windows), ./held_out.txt (2 windows)"
    tokenizer = load_tokenizer(ws.base)
    for window, name in zip(ids(ws), record["window_sources"], strict=True):
        text = str(tokenizer.decode(window))
        assert ("x + " in text or "(x):" in text) == (name == "code")
    before = {path.name: sha256_file(path) for path in ws.calibration.iterdir()}
    cache_windows(ws, load_settings(ws.params))
    assert {path.name: sha256_file(path) for path in ws.calibration.iterdir()} == before


def test_one_of_several_texts_that_is_also_evaluated_on_is_named_and_overlaps_whole(tmp_path: Path) -> None:
    ws = with_texts(tmp_path)
    settings = load_settings(ws.params)
    assert same_as_calibration(ws, settings) == ["sources.evaluation"]
    windows = torch.arange(64).view(2, 32)
    text = {"source": {"sha256": sha256_file(tmp_path / "held_out.txt")}}
    found = overlaps(ws, {"evaluation": text}, {"evaluation": windows}, bos=False)
    assert found["evaluation"]["share"] == 1.0


def test_a_share_too_small_for_a_window_and_a_text_too_short_are_named(tmp_path: Path) -> None:
    short = {"code": {"uri": "./held_out.txt", "share": 0.01}}
    with pytest.raises(InputError, match=r"calibration\.texts\.code gets none of 6 windows: its share is too small"):
        cache(tmp_path / "one", calibration__texts=short)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "short.txt").write_text("too short")
    with pytest.raises(InputError, match=r"calibration\.texts\.short: The text gives 0 windows of 32 tokens, 3 were"):
        cache(tmp_path / "two", calibration__texts={"short": {"uri": "./short.txt", "share": 0.5}})


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_the_model_writes_its_own_windows(tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="dass")
    ws = cache(tmp_path, family, calibration__source="self", calibration__top_k=50, calibration__temperature=0.9)
    record = read_json(ws.calibration / "calibration.json")
    assert ids(ws).shape == (6, 32)
    assert record["source"]["uri"] == "self"
    assert record["source"]["sha256"] == read_json(ws.base / "source.json")["digest"]
    assert record["source"]["made"]["device"] == "cpu"
    assert (record["documents"], record["tokens"], record["digest"]) == (0, 192, digest_of_ids(ids(ws)))
    has_bos = family == "gemma"  # the model starts behind BOS, which Gemma's windows keep
    written = 6 * (31 if has_bos else 32)
    assert f"the model writes: {written} of {written} tokens" in caplog.text
    assert bool((ids(ws)[:, 0] == 0).all()) == record["bos"] == has_bos
    before = ids(ws)
    cache_windows(ws, load_settings(ws.params))
    assert torch.equal(ids(ws), before)
    assert told(record) == "text of the model's own"


def test_the_model_and_a_text_share_the_windows(tmp_path: Path) -> None:
    texts = {"code": {"uri": "./text.txt", "share": 0.5}}
    ws = cache(tmp_path, calibration__source="self", calibration__texts=texts)
    record = read_json(ws.calibration / "calibration.json")
    assert sorted(record["window_sources"]) == ["code"] * 3 + ["self"] * 3


def test_a_model_larger_than_memory_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMORY_SHARE", 0.0)
    with pytest.raises(
        InputError, match=r'calibration\.source is "self", and the model is larger than the free memory'
    ):
        cache(tmp_path, calibration__source="self")
    assert not (tmp_path / "artifacts" / "calibration").exists()


def test_what_stops_the_model_while_it_writes_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = cache(tmp_path)
    before = {path.name: sha256_file(path) for path in ws.calibration.iterdir()}

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.calibration.sampled_windows", stop)
    with pytest.raises(KeyboardInterrupt):
        cache_windows(ws, change_settings(ws, calibration__source="self"))
    assert {path.name: sha256_file(path) for path in ws.calibration.iterdir()} == before
    assert sorted(path.name for path in ws.calibration.parent.iterdir()) == ["base", "calibration"]
