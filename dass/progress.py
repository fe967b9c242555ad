"""A bar on stderr, a step a layer: transformers' own, so `transformers.utils.logging.disable_progress_bar` hides it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def layer_bar(layers: int, shown: bool, description: str = "pruning") -> Iterator[Callable[[], None]]:
    """Yield what is to be called when one more layer is done."""
    if not shown:
        yield lambda: None
        return
    with logging.tqdm(total=layers, desc=description, unit="layer") as bar:
        yield lambda: bar.update(1)
