"""GGUF files become plain checkpoints, with the model's own tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dass.errors import InputError
from dass.files import read_json, sha256_file
from tasks.sources.gguf import build_tokenizer, convert_gguf
from tests.gguf_files import write_tiny_gguf
from tests.models import tiny_model, tiny_text, tiny_tokenizer


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_model())


@pytest.fixture(scope="module")
def converted(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    convert_gguf(tiny_gguf, folder, torch.float32)
    return folder


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """What a GGUF says of a tiny SentencePiece vocabulary: t+h before th+e before a+t."""
    pieces = ["t", "h", "e", "a", "▁", "th", "the", "at", "▁the", "he"]
    special, runs = ["<unk>", "<bos>", "<eos>"], ["▁▁", "\n\n"]
    tokens = [*special, "<0x0A>", "<0x21>", *runs, *pieces]
    scores = [*[0.0] * 5, *[-1000.0] * 2, *[-50.0] * 5, -1.0, -2.0, -3.0, -4.0, -5.0]
    return {
        "general.architecture": "gemma3",
        "gemma3.context_length": 64,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [3, 3, 3, 6, 6, 4, 4, *[1] * len(pieces)],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": False,
        **changes,
    }


def test_weights_come_back_as_they_were_and_stay_tied(converted: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(converted)
    expected = tiny_model().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_the_config_says_what_the_file_says_and_nothing_of_where_it_lay(converted: Path) -> None:
    config = read_json(converted / "config.json")
    assert (config["max_position_embeddings"], config["bos_token_id"], config["eos_token_id"]) == (128, 0, 1)
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config
    assert not any("name_or_path" in key for key in config)
    assert not any("tiny.gguf" in path.read_text() for path in converted.glob("*.json"))


def test_the_tokenizer_is_the_model_s_own(converted: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(converted)
    expected, text = tiny_tokenizer(), tiny_text(3)
    assert tokenizer(text)["input_ids"] == expected(text)["input_ids"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_same_file_gives_the_same_bytes(tiny_gguf: Path, converted: Path, tmp_path: Path) -> None:
    convert_gguf(tiny_gguf, tmp_path, torch.float32)
    assert {p.name: sha256_file(p) for p in tmp_path.iterdir()} == {p.name: sha256_file(p) for p in converted.iterdir()}


def test_weights_are_stored_in_the_dtype_asked_for(tiny_gguf: Path, tmp_path: Path) -> None:
    convert_gguf(tiny_gguf, tmp_path, torch.bfloat16)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_nothing_is_printed(tiny_gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    convert_gguf(tiny_gguf, tmp_path, torch.float32)
    assert capfd.readouterr() == ("", "")


def test_digits_are_tokens_of_their_own_under_the_smollm_rule(tmp_path: Path) -> None:
    file = write_tiny_gguf(tmp_path / "t.gguf", tiny_model(), pre="smollm")
    out = tmp_path / "out"
    convert_gguf(file, out, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.tokenize("a  12") == ["a", "Ġ", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer("a  12")["input_ids"]) == "a  12"


def test_sentencepiece_merges_by_score_and_survives_the_disk(tmp_path: Path) -> None:
    build_tokenizer(sentencepiece()).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("the that") == ["the", "▁", "th", "at"]
    assert tokenizer.tokenize("t  he\n\n") == ["t", "▁▁", "he", "\n\n"]
    assert tokenizer.tokenize("\n!") == ["<0x0A>", "<0x21>"]


def test_sentencepiece_text_comes_back_and_starts_with_bos() -> None:
    tokenizer = build_tokenizer(sentencepiece())
    ids = tokenizer("the  that\n\n!")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the  that\n\n!"


def test_a_space_is_put_before_the_text_where_the_file_asks_for_it() -> None:
    tokenizer = build_tokenizer(sentencepiece(**{"tokenizer.ggml.add_space_prefix": True}))
    assert tokenizer.tokenize("the") == ["▁the"]
    assert tokenizer.decode(tokenizer("the at")["input_ids"], skip_special_tokens=True) == "the at"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("tokenizer.ggml.model", "bert", "tokenizer.ggml.model is 'bert': expected 'gpt2' or 'llama'"),
        ("tokenizer.ggml.model", "gpt2", "tokenizer.ggml.pre is 'klingon': expected one of gpt-2, smollm"),
    ],
)
def test_a_tokenizer_that_is_not_known_is_refused(key: str, value: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        build_tokenizer({**sentencepiece(), "tokenizer.ggml.pre": "klingon", key: value})


def test_a_file_that_was_cut_off_is_refused_in_one_line(tiny_gguf: Path, tmp_path: Path) -> None:
    for size in (3, 200, 5000, tiny_gguf.stat().st_size - 1000):
        cut = tmp_path / f"cut{size}.gguf"
        cut.write_bytes(tiny_gguf.read_bytes()[:size])
        with pytest.raises(InputError) as error:
            convert_gguf(cut, tmp_path / "out", torch.float32)
        assert "\n" not in str(error.value)
