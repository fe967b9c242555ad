"""Two models on the same documents: what lies between them, and how sure that is. scipy computes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.evaluation.bootstrap import LEVEL, mean_interval


@dataclass(frozen=True)
class Difference:
    """Pruned minus dense.

    Attributes:
        value: of the means.
        interval: of `value`, by a bootstrap over documents, each with both its scores.
        mcnemar_p: exact, two-sided; None where scores are more than right or wrong.
        lost: documents that only the dense model has right; None as above.
        gained: documents that only the pruned model has right.
    """

    value: float
    interval: tuple[float, float]
    mcnemar_p: float | None
    lost: int | None
    gained: int | None

    def as_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "interval": list(self.interval),
            "level": LEVEL,
            "mcnemar_p": self.mcnemar_p,
            "lost": self.lost,
            "gained": self.gained,
        }


def difference(dense: Sequence[float], pruned: Sequence[float], seed: int) -> Difference:
    """Compare two models' scores.

    Args:
        dense: a score for each document.
        pruned: scores for the same documents in the same order.
        seed: of the bootstrap.
    """
    import numpy as np
    from scipy.stats import binomtest

    changes = np.asarray(pruned, dtype=float) - np.asarray(dense, dtype=float)
    value = float(np.mean(pruned) - np.mean(dense))
    unchanged = np.ptp(changes) == 0.0  # then every resample is the same
    interval = (value, value) if unchanged else mean_interval(changes, seed)
    if not set(dense) | set(pruned) <= {0.0, 1.0}:
        return Difference(value, interval, None, None, None)
    lost, gained = int((changes < 0).sum()), int((changes > 0).sum())
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return Difference(value, interval, p, lost, gained)
