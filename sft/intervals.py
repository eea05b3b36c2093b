"""Intervals of 95 % for figures over units that are independent of each other: rows, documents, questions.

::

    bootstrap      units are drawn again, whole: BCa (Efron 1987), as scipy has it
    exact_share    a share of 0 or 1, which leaves nothing to draw: Clopper and Pearson (1934)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 9_999
SEED = 0
NORMAL = 1.959964
"""The 97.5th percentile of the standard normal distribution."""
Interval = tuple[float, float]
Floats = npt.NDArray[np.float64]


def ratio(above: Floats, below: Floats, axis: int = -1) -> Floats:
    """Sum over sum."""
    found: Floats = above.sum(axis=axis) / below.sum(axis=axis)
    return found


def bootstrap(rows: Sequence[Floats], statistic: Callable[..., Any], *, resamples: int = RESAMPLES) -> Interval:
    """Interval of a statistic of units.

    Args:
        rows: each ``[units]``; the same units are drawn from all of them.
        statistic: of the rows, along ``axis``.
        resamples: how often is drawn.
    """
    from scipy import stats

    with warnings.catch_warnings():
        # BCa has no answer where one unit carries all of the spread: it divides by zero and says nan, and percentiles are taken then
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        for method in ("BCa", "percentile"):
            rng = np.random.default_rng(SEED)
            found = stats.bootstrap(
                tuple(rows), statistic, paired=True, vectorized=True, n_resamples=resamples, method=method, rng=rng, batch=500
            ).confidence_interval
            if not math.isnan(found.low) and not math.isnan(found.high):
                break
    return float(found.low), float(found.high)


def exact_share(value: float, units: int) -> Interval:
    """Interval of a share of exactly 0 or 1."""
    least = 0.025 ** (1 / units)
    return (least, 1.0) if value else (0.0, 1 - least)
