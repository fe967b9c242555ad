"""Windows from a caller's own texts, and what a tokenizer gives in their place."""

from typing import Any

import pytest
import torch
from transformers import BatchEncoding, PreTrainedTokenizerFast

import dass
from dass.engine.windows import windows_of
from dass.errors import InputError
from tests.models import tiny_model, tiny_text, tiny_tokenizer, tiny_tokens

TEXT = tiny_text()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def occurs(window: torch.Tensor, ids: list[int]) -> bool:
    listed = window.tolist()
    return any(ids[start : start + len(listed)] == listed for start in range(len(ids) - len(listed) + 1))


def test_windows_are_stretches_of_the_texts_and_the_same_for_a_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = dass.calibration_windows(tokenizer, TEXT, samples=5, sequence_length=32)
    assert (windows.shape, windows.dtype) == ((5, 32), torch.int64)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert all(occurs(window, ids) for window in windows)
    again, other = (dass.calibration_windows(tokenizer, TEXT, samples=5, sequence_length=32, seed=s) for s in (0, 1))
    assert torch.equal(windows, again)
    assert not torch.equal(windows, other)


def test_without_a_number_there_are_as_many_as_the_texts_give(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = TEXT.split("\n\n")[:4]
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    windows = dass.calibration_windows(tokenizer, texts, sequence_length=16)
    assert len(windows) == sum(length // 16 for length in lengths)
    assert len(dass.calibration_windows(tokenizer, 9 * TEXT, sequence_length=8)) == 128


def test_bos_stands_where_the_tokenizer_puts_it_or_the_caller_says(tokenizer: PreTrainedTokenizerFast) -> None:
    def first(bos: bool | None, using: PreTrainedTokenizerFast = tokenizer) -> set[int]:
        return set(dass.calibration_windows(using, TEXT, samples=4, sequence_length=16, bos=bos)[:, 0].tolist())

    assert first(True) == {tokenizer.bos_token_id}
    assert tokenizer.bos_token_id not in first(None) | first(False)
    starting: Any = tiny_tokenizer()
    from tokenizers.processors import TemplateProcessing

    starting.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert first(None, starting) == {0}
    assert 0 not in first(False, starting)


def test_a_tokenizer_and_texts_stand_for_the_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    by_texts = dass.prune(tiny_model(), tokenizer=tokenizer, texts=TEXT)
    windows = dass.calibration_windows(tokenizer, TEXT, sequence_length=128)  # the model's context
    by_windows = dass.prune(tiny_model(), windows)
    assert all(torch.equal(mask, by_windows.keep[name]) for name, mask in by_texts.keep.items())


IDS = tiny_tokens()
FORMS: list[Any] = [
    BatchEncoding({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}),
    BatchEncoding({"input_ids": IDS.tolist(), "attention_mask": torch.ones_like(IDS).tolist()}),
    {"input_ids": IDS},
    IDS.tolist(),
    tuple(map(tuple, IDS.tolist())),
    list(IDS),
    [window[None] for window in IDS],
    IDS.numpy(),
    list(IDS.numpy()),
]


@pytest.mark.parametrize("given", FORMS, ids=[f"{number} {type(form).__name__}" for number, form in enumerate(FORMS)])
def test_what_a_tokenizer_or_a_data_loader_gives_is_taken_as_windows(given: Any) -> None:
    assert torch.equal(windows_of(given), IDS)


def test_and_prunes_alike_in_memory_and_on_disk(tiny_checkpoint: Any, tmp_path: Any) -> None:
    masks = [dass.prune(tiny_model(), given).keep for given in (IDS, FORMS[1])]
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
    alike: tuple[Any, ...] = (IDS, IDS.tolist())
    reports = [
        dass.prune_checkpoint(tiny_checkpoint, tmp_path / str(number), given, work=tmp_path / "work")
        for number, given in enumerate(alike)
    ]
    assert [report.resumed for report in reports] == [0, 3]  # the same run, by its fingerprint


PADDED = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS).index_fill(1, torch.tensor([0]), 0)}
REFUSED: list[tuple[Any, str]] = [
    (PADDED, "input_ids has 4 tokens of padding"),
    ({"tokens": IDS}, 'input_ids is a dict without "input_ids"'),
    ([[1, 2, 3], [1, 2]], r"input_ids\[1\] has 2 tokens and input_ids\[0\] 3: expected windows of one length"),
    (
        BatchEncoding({"input_ids": [[1, 2, 3], [1, 2]], "attention_mask": [[1, 1, 1], [1, 1]]}),
        r"input_ids\[1\] has 2 tokens and input_ids\[0\] 3: expected windows of one length",
    ),
    ([1, 2, 3], r"input_ids\[0\] is a number: expected one window"),
    ([IDS, IDS], r"input_ids\[0\] is of shape \(4, 16\): expected one window"),
    (["some", "text"], r"input_ids\[0\] is a str: expected a list of token ids"),
    ([], "input_ids is empty"),
    ([[1.5, 2.5]], "expected whole numbers"),
    (3, "input_ids is a int: expected a LongTensor"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_what_are_no_windows_is_refused_in_one_line(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        windows_of(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "gpt2"}, "tokenizer is 'gpt2': expected a transformers tokenizer"),
        ({"texts": []}, r"texts is \[\]: expected a text, or a list of texts"),
        ({"texts": [TEXT, None]}, r"texts\[1\] is None: expected a text"),
        ({"texts": {"text": TEXT}}, "texts is a dict: expected a text, or a list"),
        ({"samples": 0}, "samples is 0: expected a whole number of 1 or more"),
        ({"samples": 10**6}, "The text gives .* windows of 32 tokens, 1000000 were asked for"),
        ({"texts": "short"}, "The text gives 0 windows of 32 tokens"),
        ({"sequence_length": "512"}, "sequence_length is '512': expected a whole number"),
        ({"seed": None}, "seed is None: expected a whole number"),
        ({"bos": "auto"}, "bos is 'auto': expected True, False, or None"),
    ],
)
def test_a_wrong_argument_is_refused(change: dict[str, Any], message: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=message):
        dass.calibration_windows(**{"tokenizer": tokenizer, "texts": TEXT, "sequence_length": 32, **change})
