"""A share or a mean over units (rows, questions), and how sure it is. A change is the same estimate over differences, so it is paired.

::

    value      sum of a quantity over units / sum of what it is counted by (learnt tokens, answers)
    interval   95 %; up to 2,000 units BCa bootstrap (Efron 1987) over units, as scipy has it; above, the normal interval of a ratio by
               linearisation (Cochran 1977, 6.4), to which the bootstrap converges
               a share of 0 or 1: exact (Clopper and Pearson 1934); no spread otherwise: the value itself
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft.intervals import NORMAL, Floats, Interval, bootstrap, exact_share, ratio

_MOST_RESAMPLED = 2_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure.

    Attributes:
        value: NaN if there is nothing to measure.
        low, high: 95 % interval; None where there is none.
        units: independent units that it is over: rows, documents, questions; None where they are not known.
        counted: what the quantity is counted by, over all units: learnt tokens of a loss, answers of a rate.
    """

    value: float
    low: float | None = None
    high: float | None = None
    units: int | None = None
    counted: int | None = None

    def to_json(self) -> dict[str, Any]:
        value = None if math.isnan(self.value) else self.value  # JSON has no NaN
        return {"value": value, "low": self.low, "high": self.high, "units": self.units, "counted": self.counted}


@dataclass(frozen=True, slots=True, eq=False)
class Quantity:
    """What a figure is made of, unit by unit.

    Attributes:
        sums: float64 ``[units]``.
        counts: float64 ``[units]``, what the sums are counted by; units without any are left out.
        share: whether it counts cases, so that it lies between 0 and 1.
    """

    sums: Floats
    counts: Floats
    share: bool = False

    def estimate(self) -> Estimate:
        """The figure with its interval."""
        return estimate(self.sums, self.counts, share=self.share)

    def change_from(self, before: Quantity) -> Estimate:
        """How much larger than before, on the same units.

        Raises:
            ValueError: other units, or units that are counted otherwise.
        """
        if not np.array_equal(self.counts, before.counts):
            raise ValueError("a change is taken on the same units")
        return estimate(self.sums - before.sums, self.counts)


def estimate(sums: Floats, counts: Floats, *, share: bool = False) -> Estimate:
    """``sum(sums) / sum(counts)`` with its interval; see the head of this module."""
    kept = counts > 0
    sums, counts = np.asarray(sums, np.float64)[kept], np.asarray(counts, np.float64)[kept]
    units = len(sums)
    if units == 0:
        return Estimate(math.nan, units=0, counted=0)
    total = int(counts.sum())
    value = float(sums.sum() / counts.sum())
    if share and value in (0.0, 1.0):
        low, high = exact_share(value, units)
    elif units < 2:
        return Estimate(value, units=units, counted=total)
    elif np.ptp(sums / counts) == 0:
        low = high = value
    elif units > _MOST_RESAMPLED:
        low, high = _linearised(sums, counts, value)
    else:
        low, high = bootstrap((sums, counts), ratio)
    return Estimate(value, low, high, units, total)


def _linearised(sums: Floats, counts: Floats, value: float) -> Interval:
    units = len(sums)
    residual = sums - value * counts
    half = NORMAL * math.sqrt(units / (units - 1) * float(np.square(residual).sum())) / float(counts.sum())
    return value - half, value + half


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What was measured of one model.

    Attributes:
        quantities: by the name of the figure, such as ``stop_rate`` or ``loss.held_out``.
        plain: figures without units, such as ``median_tokens``.
    """

    quantities: dict[str, Quantity]
    plain: dict[str, Estimate]

    def estimates(self) -> dict[str, Estimate]:
        """All figures."""
        return {name: quantity.estimate() for name, quantity in self.quantities.items()} | self.plain

    @staticmethod
    def joined(parts: list[Measured]) -> Measured:
        """The figures of several measurements; their names must differ."""
        return Measured(
            {name: value for part in parts for name, value in part.quantities.items()},
            {name: value for part in parts for name, value in part.plain.items()},
        )


def changes(after: Measured, before: Measured) -> dict[str, Estimate]:
    """After minus before of every figure that both have; with an interval where it has units."""
    out = {}
    for name, quantity in after.quantities.items():
        if name in before.quantities:
            out[name] = quantity.change_from(before.quantities[name])
    for name, figure in after.plain.items():
        if name in before.plain:
            out[name] = Estimate(figure.value - before.plain[name].value)
    return out


def flat(own: Mapping[str, Estimate], base: Mapping[str, Estimate], change: Mapping[str, Estimate]) -> dict[str, float]:
    """Every number by the name that a condition calls it: ``NAME``, ``base.NAME``, ``change.NAME``, each also with ``.low`` and ``.high``."""
    out: dict[str, float] = {}
    for prefix, figures in (("", own), ("base.", base), ("change.", change)):
        for name, figure in figures.items():
            out[prefix + name] = figure.value
            for end, value in (("low", figure.low), ("high", figure.high)):
                if value is not None:
                    out[f"{prefix}{name}.{end}"] = value
    return out
