"""Token ids, BOS, and whether tokenizer, windows and model fit together."""

import json
from pathlib import Path

import pytest
import torch

from dass.errors import InputError
from dass.files import read_json
from dass.model.pretrained import load_tokenizer
from tasks.sources.tokens import (
    bos_token,
    check_context,
    check_ids,
    check_tokenizer,
    encode,
    tokenize,
)
from tests.models import save_tiny_checkpoint, tiny_text, tiny_tokenizer


def test_a_text_s_ids_hold_no_special_token(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    ids = encode(tokenizer, tiny_text(2))
    assert ids.dtype == torch.long
    assert int(ids.min()) > 1  # <s> is 0 and </s> is 1
    assert tokenizer.decode(ids) == tiny_text(2)


def test_documents_are_joined_with_blank_lines_and_tokenised_as_one(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    assert torch.equal(tokenize(tokenizer, ["one", "", "two"]), encode(tokenizer, "one\n\n\n\ntwo"))


def test_a_text_longer_than_the_tokenizer_s_limit_is_not_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 8
    tokenizer.save_pretrained(tmp_path)
    assert len(encode(load_tokenizer(tmp_path), tiny_text())) > 8
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("family", "auto"), [("llama", None), ("gemma", 0), ("gemma3_text", 0), ("mistral", None)])
def test_auto_starts_gemma_s_windows_with_bos_and_no_other_s(tmp_path: Path, family: str, auto: int | None) -> None:
    save_tiny_checkpoint(tmp_path, family)
    assert bos_token("auto", tmp_path) == auto
    assert bos_token("always", tmp_path) == 0
    assert bos_token("never", tmp_path) is None


def test_bos_always_is_refused_where_there_is_none(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path, bos_token_id=None)
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"bos is 'always' but neither tokenizer nor config .* Use never"):
        bos_token("always", tmp_path)


def test_a_window_may_be_as_long_as_the_context_and_no_longer(tiny_checkpoint: Path) -> None:
    check_context(tiny_checkpoint, 128, "calibration.sequence_length")
    with pytest.raises(InputError, match=r"calibration\.sequence_length is 129: the model's context is 128 tokens"):
        check_context(tiny_checkpoint, 129, "calibration.sequence_length")


def test_an_id_without_an_embedding_is_refused(tiny_checkpoint: Path) -> None:
    check_ids(tiny_checkpoint, torch.tensor([[0, 299]]))
    with pytest.raises(InputError, match=r"token id 300 \(None\), and the model's vocab_size is 300"):
        check_ids(tiny_checkpoint, torch.tensor([[0, 300]]))
    with pytest.raises(InputError, match="token id -1 "):
        check_ids(tiny_checkpoint, torch.tensor([[-1, 5]]))


def test_a_placeholder_beyond_the_embedding_is_said_and_refused_only_where_it_occurs(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(tiny_checkpoint)
    check_tokenizer(tiny_checkpoint)
    assert "knows 1 tokens that are not embedded (first: '<image>', id 300)" in caplog.text
    check_ids(tiny_checkpoint, encode(load_tokenizer(tiny_checkpoint), tiny_text(2)))
    with pytest.raises(InputError, match=r"token id 300 \('<image>'\), .*Take it out of the text"):
        check_ids(tiny_checkpoint, encode(load_tokenizer(tiny_checkpoint), "stones <image>"))


def test_a_bos_token_beyond_the_embedding_is_refused(tiny_checkpoint: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<start>"})
    tokenizer.save_pretrained(tiny_checkpoint)
    with pytest.raises(InputError, match="has id 300: it is not embedded. Use bos: never"):
        bos_token("always", tiny_checkpoint)


def test_a_tokenizer_may_know_fewer_tokens_than_the_model(tiny_checkpoint: Path) -> None:
    config = read_json(tiny_checkpoint / "config.json")
    (tiny_checkpoint / "config.json").write_text(json.dumps({**config, "vocab_size": 320}))
    check_tokenizer(tiny_checkpoint)


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No tokenizer that transformers can read in") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
