"""Means over questions and how sure they are. The unit is the question: its turns, orders and repeats are not independent of each other.

::

    repeats ─mean─► turn ─mean─► question ─mean─► value      resampled: questions, whole (Miller 2024, "Adding error bars to evals")
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from sft.intervals import RESAMPLES, Interval, bootstrap, exact_share


def by_question(values: Iterable[tuple[str, int, float]]) -> npt.NDArray[np.float64]:
    """The mean of each question over its turns, of each turn over its repeats. Args: question, turn, value."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for question, turn, value in values:
        found[question][turn].append(value)
    return np.array([np.mean([np.mean(some) for some in turns.values()]) for turns in found.values()])


def estimate(
    values: npt.NDArray[np.float64], statistic: Callable[..., Any], *, resamples: int = RESAMPLES
) -> tuple[float, Interval]:
    """A statistic of questions (the last axis), and its interval of 95 % (BCa, Efron 1987); without spread the interval is the value."""
    rows = values if values.ndim > 1 else values[None]
    value = float(statistic(*rows, axis=-1))
    if rows.shape[-1] < 2 or (np.ptp(rows, axis=-1) == 0).all():
        return value, (value, value)
    return value, bootstrap(list(rows), statistic, resamples=resamples)


def without_spread(value: float, count: int) -> Interval:
    """Where every question went the same way there is nothing to resample: exact for a share of 0 or 1 (Clopper and Pearson 1934), else
    what holds for any mean of numbers between 0 and 1 (Hoeffding 1963)."""
    if value in (0.0, 1.0):
        return exact_share(value, count)
    half = math.sqrt(math.log(2 / 0.05) / (2 * count))
    return max(0.0, value - half), min(1.0, value + half)


def mean_share(values: npt.NDArray[np.float64], *, resamples: int = RESAMPLES) -> tuple[float, Interval]:
    """Mean of shares of questions (numbers between 0 and 1) with its interval, also where there is no spread."""
    value, interval = estimate(values, np.mean, resamples=resamples)
    return value, without_spread(value, len(values)) if np.ptp(values) == 0 else interval
