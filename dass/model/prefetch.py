"""Reading one item ahead: while item i is used, a thread reads item i + 1.

At most two items are alive, the one in use and the next. Reading a file or copying a tensor releases Python's lock, so
the thread runs beside whatever uses the item.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """Gives items 0 … count − 1. In any order; in ascending order each but the first is read ahead."""

    def __init__(self, read: Callable[[int], Item], count: int) -> None:
        """Start nothing yet.

        Args:
            read: makes an item from its number. Called in a thread, one call at a time.
            count: how many there are; nothing is read beyond.
        """
        self._read, self._count = read, count
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dass-prefetch")
        self._ahead: tuple[int, Future[Item]] | None = None

    def get(self, index: int) -> Item:
        """Wait for an item and begin to read the one behind it. Raises what reading it raised."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == index:
            item = ahead[1].result()
        else:
            if ahead is not None:
                ahead[1].cancel()
            item = self._thread.submit(self._read, index).result()
        if index + 1 < self._count:
            self._ahead = index + 1, self._thread.submit(self._read, index + 1)
        return item

    def close(self) -> None:
        """Forget what was read ahead and end the thread."""
        self._ahead = None
        self._thread.shutdown(wait=True, cancel_futures=True)


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items: while one is used, a thread makes the next. Raises what making one raised, in its place.

    Two items are alive at a time. Closed early, it waits for the one that is being made.
    """
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="dass-ahead") as thread:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield cast(Item, item)
            del item
