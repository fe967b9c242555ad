"""Reading ahead gives the same items, sooner."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dass.model.prefetch import Prefetcher, one_ahead
from dass.model.streaming import StreamedDecoder
from tests.models import tiny_model


def test_items_come_in_any_order() -> None:
    items = Prefetcher(lambda index: index * 10, 4)
    assert [items.get(index) for index in (0, 1, 2, 3, 1, 3, 0)] == [0, 10, 20, 30, 10, 30, 0]
    items.close()


def test_the_next_item_is_read_while_one_is_in_use_and_none_beyond_the_last() -> None:
    read: list[int] = []
    second = threading.Event()

    def note(index: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        read.append(index)
        if index == 1:
            second.set()
        return index

    items = Prefetcher(note, 2)
    items.get(0)
    assert second.wait(timeout=60)  # nobody has asked for item 1
    items.get(1)
    items.close()
    assert read == [0, 1]


def test_what_goes_wrong_in_the_thread_is_raised_where_the_item_is_asked_for() -> None:
    def fail(index: int) -> int:
        if index:
            raise OSError(f"item {index}")
        return index

    items = Prefetcher(fail, 3)
    assert items.get(0) == 0
    with pytest.raises(OSError, match="item 1"):
        items.get(1)
    assert items.get(0) == 0
    items.close()


@pytest.mark.parametrize("family", ["llama", "mixtral", "deepseek_v3"])
def test_layers_read_ahead_are_the_same_layers(family: str, tmp_path: Path) -> None:
    tiny_model(family, torch.float32).save_pretrained(tmp_path)
    plain, ahead = (
        StreamedDecoder(tmp_path, torch.device("cpu"), torch.bfloat16, prefetch=prefetch) for prefetch in (False, True)
    )
    for index in (0, 1, 2, 0):
        with plain.layer(index) as expected, ahead.layer(index) as layer:
            assert layer.state_dict().keys() == expected.state_dict().keys()
            for name, value in expected.state_dict().items():
                assert torch.equal(layer.state_dict()[name], value), name
                assert layer.state_dict()[name].dtype == value.dtype
    assert all(parameter.is_meta for parameter in ahead.model.parameters())


def test_the_next_of_an_iterator_is_made_while_one_is_used_and_what_goes_wrong_comes_in_its_place() -> None:
    made: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for number in range(2):
            made.append(number)
            if number == 1:
                second.set()
            yield number
        raise OSError("no third")

    ahead = one_ahead(items())
    assert next(ahead) == 0
    assert second.wait(timeout=60)  # nobody has asked for it
    assert next(ahead) == 1
    with pytest.raises(OSError, match="no third"):
        next(ahead)
    assert made == [0, 1]


def test_an_iterator_left_early_leaves_no_thread() -> None:
    ahead = one_ahead(iter(range(10)))
    assert next(ahead) == 0
    ahead.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("dass-ahead") for thread in threading.enumerate())
    assert list(one_ahead(iter([]))) == []
