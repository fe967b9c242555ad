"""What may go, and why: one thing that nothing needs, in any of the three stores."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Store = Literal["work", "DVC cache", "MLflow"]


@dataclass(frozen=True)
class Candidate:
    """One thing that nothing needs.

    Attributes:
        store: where it lies.
        what: what kind of thing, in words; things of one kind are shown together.
        why: why nothing needs it.
        name: which one it is: a path, or an address.
        remove: removes it; a kill in the middle leaves nothing that looks complete.
        paths: its files and folders on this machine.
        bytes: its size, where it lies elsewhere.
    """

    store: Store
    what: str
    why: str
    name: str
    remove: Callable[[], None] = field(compare=False)
    paths: tuple[Path, ...] = ()
    bytes: int = 0


@dataclass(frozen=True)
class Left:
    """Something that is left alone, and what would have it go.

    Attributes:
        store: where it lies.
        what: what it is.
        why: why it stays, and how it may go.
    """

    store: Store
    what: str
    why: str

    def as_json(self) -> dict[str, Any]:
        return {"store": self.store, "what": self.what, "why": self.why}


@dataclass
class Found:
    """What was found in one store."""

    candidates: list[Candidate] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def add(self, other: "Found") -> None:
        self.candidates += other.candidates
        self.left += other.left
