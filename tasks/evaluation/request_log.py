"""The requests a model has answered, one line of a file for each finished batch: what a killed evaluation goes on from.

A line is written and synced when its batch is done, so what is left are whole batches. lm_eval puts them together as it
would have, and the answers are the same to the last bit.
"""

import hashlib
import json
import os
from collections import defaultdict, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def request_key(kind: str, arguments: Iterable[Any]) -> str:
    """Equal for equal requests."""
    return hashlib.sha256(json.dumps([kind, *arguments], sort_keys=True).encode()).hexdigest()[:32]


class RequestLog:
    """A file of answered requests, read when it is opened. A last line that was cut off is dropped.

    Args:
        path: made with its folder when the first batch is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batches = 0
        self._answers: dict[str, deque[Any]] = defaultdict(deque)
        whole = 0
        content = path.read_bytes() if path.is_file() else b""
        for line in content.splitlines(keepends=True):
            batch = _parsed(line)
            if batch is None:
                break
            whole += len(line)
            self.batches += 1
            for key, answer in batch:
                self._answers[key].append(answer)
        if whole < len(content):
            os.truncate(path, whole)

    def take(self, key: str) -> Any:
        """The answer to a request, None when there is none (left): a request asked twice has two."""
        answers = self._answers.get(key)
        return answers.popleft() if answers else None

    def add(self, batch: list[tuple[str, Any]]) -> None:
        """Write a finished batch so that it survives a power cut."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(batch, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.batches += 1


def _parsed(line: bytes) -> list[tuple[str, Any]] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return [(str(key), answer) for key, answer in json.loads(line)]
    except (ValueError, TypeError):
        return None
