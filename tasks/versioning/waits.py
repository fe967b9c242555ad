"""Stores that fall silent or hang up: how long they are waited for, and that a broken connection is not used again."""

import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.workspace.patience import answer_seconds

if TYPE_CHECKING:
    from dvc.repo import Repo

_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 15  # as s3fs has it where nobody says otherwise
_ATTEMPTS = "2"  # of botocore, inside each of s3fs' five


def bound_waits(repo: "Repo") -> None:
    """Give remotes on S3 a time limit where their user has set none: DVC sets none either, and S3's client then waits
    for ever. It counts for each answer; a transfer that goes on may take as long as it needs. SSH has DVC's own, half
    an hour for each file. What stands still in the middle of a push ends earlier: `tasks.versioning.stillness`.
    """
    seconds = min(_ANSWER_SECONDS, math.ceil(answer_seconds()))
    for remote in repo.config["remote"].values():
        if str(remote.get("url", "")).startswith("s3://"):
            os.environ.setdefault("AWS_MAX_ATTEMPTS", _ATTEMPTS)
            remote.setdefault("read_timeout", seconds)
            remote.setdefault("connect_timeout", min(_CONNECT_SECONDS, seconds))


def connect_anew() -> None:
    """Have every store be connected to anew. What speaks to them keeps connections for whoever asks again in this
    process, broken ones too: those of the question before a run's work, hours ago, or of a push that failed."""
    from fsspec import AbstractFileSystem

    for kind in _kinds(AbstractFileSystem):
        kind.clear_instance_cache()


def _kinds(kind: Any) -> Iterator[Any]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)
