"""The search for the fastest setting: what it takes was measured to fit, however wrong the estimate; a good estimate costs little speed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sft.plan_choice import Setting, search

LAYERS, FIXED = 32, 14e9
SIZES = [128 * math.ceil(2048 / 128 * 2 ** (i / 2)) for i in range(9)]
KEPT, RECOMPUTED = 123_000.0, 8_192.0


def moving(setting: Setting) -> float:
    """Bytes that go with tokens and recomputed layers: a 7B's."""
    k = setting.checkpointed
    return setting.tokens * ((LAYERS - k) * KEPT + k * RECOMPUTED + (KEPT if k else 0.0))


def grid() -> list[Setting]:
    """Every setting of a million tokens under LoRA, the fastest first."""
    found = []
    for size in SIZES:
        for k in range(LAYERS + 1):
            found.append(Setting(size, k, LAYERS, 1e6 * (1 + k / LAYERS / 2) + 256 * 1e6 / size))
    return sorted(found, key=lambda setting: setting.cost)


class Truth:
    """A card: fixed and moving bytes are ``off`` times those estimated; past ``room`` memory runs out and says nothing of itself."""

    def __init__(self, off: tuple[float, float], room: float) -> None:
        self.off, self.room = off, room
        self.measured: list[Setting] = []

    def bytes_of(self, setting: Setting) -> float:
        return FIXED * self.off[0] + moving(setting) * self.off[1]

    def measure(self, setting: Setting) -> float:
        assert setting not in self.measured
        self.measured.append(setting)
        size = self.bytes_of(setting)
        return size if size <= self.room else math.inf


def found_on(truth: Truth, limit: float) -> tuple[Setting | None, float]:
    """What the search takes, and the cost of the fastest that fits in truth (infinite if none does)."""
    settings = grid()
    found = search(settings, lambda setting: (FIXED, moving(setting)), truth.measure, limit)
    assert [setting for setting, _ in found.tried] == truth.measured
    best = min((setting.cost for setting in settings if truth.bytes_of(setting) <= limit), default=math.inf)
    return found.setting, best


@pytest.mark.parametrize("seed", range(60))
def test_what_is_taken_fits_whatever_the_estimate(seed: int) -> None:
    draws = np.random.default_rng(seed)
    limit = float(draws.uniform(10e9, 90e9))
    truth = Truth((float(draws.uniform(0.5, 1.6)), float(draws.uniform(0.4, 2.5))), limit * float(draws.uniform(1.0, 1.2)))
    taken, best = found_on(truth, limit)
    assert (taken is None) == math.isinf(best)
    assert len(truth.measured) <= 7
    if taken is not None:
        assert taken in truth.measured
        assert truth.bytes_of(taken) <= limit


@pytest.mark.parametrize("limit", [16e9, 20e9, 40e9, 76e9])
@pytest.mark.parametrize("off", [(1.0, 1.0), (1.05, 0.9), (0.97, 1.15), (1.0, 1.3), (1.0, 0.7)])
def test_near_estimates_find_what_is_nearly_the_fastest(off: tuple[float, float], limit: float) -> None:
    truth = Truth(off, limit * 1.03)
    taken, best = found_on(truth, limit)
    assert taken is not None
    assert taken.cost <= best * 1.03


def test_nothing_that_fits_is_found_out_by_trying_the_least() -> None:
    truth = Truth((2.0, 1.0), 20e9)
    taken, best = found_on(truth, 20e9)
    assert taken is None
    assert math.isinf(best)
    assert min(grid(), key=moving) in truth.measured
