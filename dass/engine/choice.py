"""What `auto` proposed for each layer, what the judge said of it, and what was chosen: the record."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from dass.method.methods import Score

CHOICE = "choice.json"
"""Its name in the folder of a search."""


@dataclass(frozen=True)
class Proposal:
    """Scores for all layers, judged.

    Attributes:
        name: how it came about.
        layers: of each layer, the number of its score among the candidates.
        kl: KL(dense ‖ pruned) on the held-back windows, nats a token.
        errors: of a mix: layer -> candidate -> the local error it went by.
    """

    name: str
    layers: list[int]
    kl: float
    errors: list[list[float]] | None = None


@dataclass(frozen=True)
class Choice:
    """What was proposed, and what was chosen.

    Attributes:
        candidates: scores a layer may have.
        proposals: in the order in which they were judged.
        chosen: the best one's name: the first with the least KL.
        windows: how many were held back to judge by.
        tokens: of these.
    """

    candidates: list[Score]
    proposals: list[Proposal]
    chosen: str
    windows: int
    tokens: int

    @property
    def best(self) -> Proposal:
        """What was chosen."""
        return next(each for each in self.proposals if each.name == self.chosen)

    @property
    def single(self) -> Proposal:
        """The best of those with one score for all layers."""
        return min(self.proposals[: len(self.candidates)], key=lambda each: each.kl)

    @property
    def scores(self) -> list[Score]:
        """Of each layer."""
        return [self.candidates[number] for number in self.best.layers]

    @property
    def told(self) -> str:
        """What was chosen and how far ahead it is, in one line."""
        counts = {score: self.scores.count(score) for score in self.candidates if score in self.scores}
        shares = ", ".join(f"{score} in {count} of {len(self.scores)} layers" for score, count in counts.items())
        if self.chosen == self.single.name:
            others = [each.kl for each in self.proposals if each.name != self.chosen]
            ahead = f", the next best {min(others):.4g}" if others else ""
        else:
            ahead = f", the best single score ({self.single.name}) {self.single.kl:.4g}"
        return f"{self.chosen}: {shares}; KL {self.best.kl:.4g}{ahead}"

    @property
    def named(self) -> dict[str, Any]:
        """As records name it, in JSON; without the local errors."""
        proposals = [{"name": each.name, "kl": each.kl, "layers": each.layers} for each in self.proposals]
        return {**asdict(self), "proposals": proposals}

    @classmethod
    def of(cls, named: Mapping[str, Any]) -> Self:
        """Undo `named`."""
        parts = {
            "candidates": [Score(**each) for each in named["candidates"]],
            "proposals": [Proposal(**each) for each in named["proposals"]],
        }
        return cls(**{**named, **parts})
