"""What transformers 5 saved gets the keys that older ones read, and reads as before in transformers 5."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, Gemma3Config, PreTrainedTokenizerFast

from dass.files import read_json, sha256_file, write_json
from dass.model.older_keys import older_config, older_tokenizer_config, write_older_keys
from tests.models import EVERY_FAMILY, save_tiny_checkpoint, tiny_config, tiny_text, tiny_tokenizer

PLAIN = {"rope_type": "default", "rope_theta": 123_456.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 123_456.0}
SLIDING = {"rope_type": "default", "rope_theta": 777.0}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 123_456.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0}


def saved(folder: Path, family: str, **changes: Any) -> dict[str, Any]:
    """config.json as transformers 5 saves it."""
    tiny_config(family, **changes).save_pretrained(folder)
    config: dict[str, Any] = read_json(folder / "config.json")
    return config


def as_read(folder: Path) -> dict[str, Any]:
    """What transformers makes of config.json, origin aside; `type` is another word for `rope_type`."""
    config: dict[str, Any] = AutoConfig.from_pretrained(folder).to_dict()
    if isinstance(config.get("rope_parameters"), dict):
        config["rope_parameters"].pop("type", None)
    return {key: value for key, value in config.items() if key != "_name_or_path"}


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_newest_transformers_reads_the_same_as_before(family: str, tmp_path: Path) -> None:
    before = saved(tmp_path, family)
    read_before = as_read(tmp_path)
    write_older_keys(tmp_path)
    after = read_json(tmp_path / "config.json")
    assert after.items() >= before.items()
    read_after = as_read(tmp_path)
    assert {key: read_after[key] for key in read_before} == read_before
    assert "rope_theta" in after
    assert "rope_scaling" in after


@pytest.mark.parametrize(
    ("family", "rotary", "older"),
    [
        ("llama", PLAIN, {"rope_theta": 123_456.0, "rope_scaling": None}),
        ("llama", {**LLAMA3, "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
        ("qwen2", {**YARN, "rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": YARN}),
        ("mistral", LINEAR, {"rope_theta": 123_456.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        (
            "glm",
            {**PLAIN, "partial_rotary_factor": 0.5},
            {"rope_theta": 123_456.0, "rope_scaling": None, "partial_rotary_factor": 0.5},
        ),
        (
            "qwen2",
            {**PLAIN, "mrope_section": [1, 1, 2]},
            {"rope_theta": 123_456.0, "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        ),
        (
            "gemma3_text",
            {"full_attention": LINEAR, "sliding_attention": SLIDING},
            {
                "rope_theta": 123_456.0,
                "rope_local_base_freq": 777.0,
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            },
        ),
        (
            "olmo3",
            {"full_attention": {**YARN, "rope_theta": 777.0}, "sliding_attention": SLIDING},
            {"rope_theta": 777.0, "rope_scaling": YARN},
        ),
        (
            "phi3",
            {**LONGROPE, "original_max_position_embeddings": 64},
            {
                "rope_theta": 123_456.0,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
                "original_max_position_embeddings": 64,
                "partial_rotary_factor": 1.0,
            },
        ),
    ],
)
def test_the_rotary_embedding_is_told_in_the_former_words(
    family: str, rotary: dict[str, Any], older: dict[str, Any], tmp_path: Path
) -> None:
    layer_types = ["sliding_attention", "sliding_attention", "full_attention"]
    by_type = {"layer_types": layer_types} if family in ("gemma3_text", "olmo3") else {}
    phi = {"original_max_position_embeddings": 64} if family == "phi3" else {}
    saved(tmp_path, family, rope_parameters=rotary, **by_type, **phi)
    before = as_read(tmp_path)
    write_older_keys(tmp_path)
    now = read_json(tmp_path / "config.json")
    assert {key: now.get(key) for key in older} == older
    after = as_read(tmp_path)
    assert {key: after[key] for key in before} == before


def test_configs_inside_a_config_are_told_too(tmp_path: Path) -> None:
    rotary = {"full_attention": LINEAR, "sliding_attention": SLIDING}
    text = tiny_config("gemma3_text", rope_parameters=rotary).to_dict()
    Gemma3Config(text_config=text).save_pretrained(tmp_path)
    before = as_read(tmp_path)
    write_older_keys(tmp_path)
    inside = read_json(tmp_path / "config.json")["text_config"]
    assert (inside["rope_theta"], inside["rope_local_base_freq"]) == (123_456.0, 777.0)
    assert inside["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert as_read(tmp_path)["text_config"]["rope_parameters"] == before["text_config"]["rope_parameters"]


def test_keys_that_have_another_name_now_are_there_by_both() -> None:
    told = {"transformers_version": "5.17.0", "dtype": "bfloat16"}
    assert older_config({"model_type": "qwen3_moe", "num_local_experts": 4, **told}) == {
        "model_type": "qwen3_moe",
        "num_local_experts": 4,
        "num_experts": 4,
        "torch_dtype": "bfloat16",
        **told,
    }
    layers = ["sliding_attention", "full_attention"] * 2
    assert older_config({"model_type": "gemma3_text", "layer_types": layers, **told})["sliding_window_pattern"] == 2


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {
                "model_type": "olmo3",
                "rope_parameters": {"full_attention": PLAIN, "sliding_attention": SLIDING},
            },
            "olmo3 .* another rope_theta",
        ),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {"full_attention": PLAIN, "sliding_attention": LINEAR},
            },
            "gemma3_text .* sliding layers is scaled",
        ),
        ({"model_type": "phi3", "rope_parameters": {**LONGROPE, "factor": 3.0}}, "phi3 .* more fields"),
    ],
)
def test_what_older_ones_have_no_words_for_is_left_out_and_said(
    config: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="dass"):
        assert older_config(config) == config
    assert len(caplog.messages) == 1
    assert re.search(told, caplog.messages[0])


def test_a_value_that_contradicts_what_transformers_5_reads_is_mended() -> None:
    contradicting = {"model_type": "llama", "rope_parameters": PLAIN, "rope_theta": 10_000.0}
    assert older_config(contradicting)["rope_theta"] == 123_456.0


def test_what_older_ones_saved_keeps_its_bytes(tmp_path: Path) -> None:
    config = {"model_type": "llama", "rope_theta": 5e5, "transformers_version": "4.57.0", "dtype": "bfloat16"}
    write_json(tmp_path / "config.json", config)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    before = {path.name: sha256_file(path) for path in tmp_path.iterdir()}
    write_older_keys(tmp_path)
    assert {path.name: sha256_file(path) for path in tmp_path.iterdir()} == before


def test_a_second_time_changes_nothing_and_nothing_is_made_of_nothing(tmp_path: Path) -> None:
    write_older_keys(tmp_path)
    assert list(tmp_path.iterdir()) == []
    save_tiny_checkpoint(tmp_path, "gemma3_text")
    write_older_keys(tmp_path)
    before = {path.name: sha256_file(path) for path in tmp_path.iterdir()}
    write_older_keys(tmp_path)
    assert {path.name: sha256_file(path) for path in tmp_path.iterdir()} == before


def test_a_tokenizer_is_told_in_the_former_words_and_stays_the_same(tmp_path: Path) -> None:
    backend = tiny_tokenizer().backend_tokenizer
    more = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<a>", "<b>"]}
    PreTrainedTokenizerFast(tokenizer_object=backend, **more).save_pretrained(tmp_path)
    tiny_config().save_pretrained(tmp_path)
    before = AutoTokenizer.from_pretrained(tmp_path)
    write_older_keys(tmp_path)
    told = read_json(tmp_path / "tokenizer_config.json")
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert told["additional_special_tokens"] == ["<a>", "<b>"]
    assert "extra_special_tokens" not in told  # older ones expect a table there
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert (type(after), after.all_special_tokens) == (type(before), before.all_special_tokens)
    text = f"<a>{tiny_text(2)}</s><b>"
    assert after(text)["input_ids"] == before(text)["input_ids"]


@pytest.mark.parametrize("puts", [True, False])
def test_a_class_that_once_put_bos_by_itself_is_told_whether_to(puts: bool) -> None:
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] if puts else []
    post_processor = {"type": "TemplateProcessing", "single": [*single, {"Sequence": {"id": "A", "type_id": 0}}]}
    for tokenizer in (
        {"post_processor": post_processor},
        {"post_processor": {"type": "Sequence", "processors": [post_processor]}},
    ):
        told = {"backend": "tokenizers", "tokenizer_class": "GemmaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
        expected = {**told, "add_bos_token": puts, "add_eos_token": False}
        assert older_tokenizer_config(told, tokenizer) == expected
