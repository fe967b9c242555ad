"""Confidence interval of a mean, by drawing what was measured again and again. scipy computes it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEVEL, RESAMPLES = 0.95, 9999
_AT_ONCE = 1 << 22  # values drawn at once


def mean_interval(values: "np.ndarray", seed: int) -> tuple[float, float]:
    """The interval of the mean of `values`, float64 (n,), n ≥ 2: windows or documents, each the difference of a pair.

    By percentiles: BCa is not defined where all that changed went one way.
    """
    import numpy as np
    from scipy.stats import bootstrap  # here: it takes most of a second

    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _AT_ONCE // len(values)),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
