"""What the win rate would be if both answers were of equal length, as AlpacaEval 2 asks it (Dubois et al. 2024, arXiv:2404.04475).

::

    published    P(m beats b on x) = logistic(theta_m - theta_b + phi tanh((len_m - len_b) / std(len_m - len_b)) + (psi_m - psi_b) gamma_x)
    here         P(m beats b on x) = logistic(theta + phi tanh((len_m - len_b) / std(len_m - len_b)))
    told         logistic(theta): the length term set to 0

Left out is the term of an instruction's difficulty: gamma_x is learnt from the judgments of many models on the same questions, which a
comparison of a few does not have. It is what AlpacaEval's own code calls ``length_controlled_minimal``. The published fit chooses an L1
penalty on all coefficients by cross-validation; here only phi has one, so small that it decides nothing but where length tells wins from
losses without an exception. So without differences of length the figure is the win rate itself, and the two models' figures add up to one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from selfinstruct.judge.intervals import estimate, without_spread
from selfinstruct.judge.outcomes import Game
from sft.intervals import Interval

_RESAMPLES = 1_999
_RIDGE = 0.01
_MOST = 15.0
"""|theta| beyond it is a win rate of 0 or 1 to six digits."""
_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Controlled:
    """One model against another at equal length.

    Attributes:
        win_rate, interval: ties as halves; 95 %, questions resampled.
        effect: phi; above 0 the longer answer wins more often.
        longer: by how many characters our answers are longer, in the mean.
        extrapolated: one model's answers are always the longer ones, so that equal length lies outside of what was judged.
        games: whose lengths are known.
    """

    win_rate: float
    interval: Interval
    effect: float
    longer: float
    extrapolated: bool
    games: int


def with_lengths(games: Sequence[Game], answers: Mapping[str, Mapping[str, Sequence[str]]]) -> list[Game]:
    """Games with the lengths (characters) of the answers that were compared, where both are there; ``answers``: model, question id, turns."""
    found = []
    for game in games:
        said = [answers.get(model, {}).get(game.question, ()) for model in (game.first, game.second)]
        known = all(len(turns) >= game.turn for turns in said)
        found.append(replace(game, lengths=(len(said[0][game.turn - 1]), len(said[1][game.turn - 1]))) if known else game)
    return found


def length_controlled(games: Sequence[Game], ours: str, theirs: str) -> Controlled | None:
    """Compare two models at equal length; None where no lengths are known, or every answer is longer by the same number of characters."""
    between = [game for game in games if {game.first, game.second} == {ours, theirs}]
    usable = [(game, game.points(ours), game.lengths) for game in between]
    known = [(game, points, lengths) for game, points, lengths in usable if points is not None and lengths is not None]
    if not known:
        return None
    wins = np.array([points for _, points, _ in known])
    longer = np.array([(a - b) * (1 if game.first == ours else -1) for game, _, (a, b) in known], dtype=float)
    spread = float(np.std(longer, ddof=1)) if len(longer) > 1 else 0.0
    if spread == 0 and longer.any():
        return None
    x = np.tanh(longer / spread) if spread else np.zeros_like(longer)
    place, weights = _weights([game for game, _, _ in known])

    def win_rate(chosen: Any, axis: int = -1) -> Any:
        drawn = np.asarray(chosen, dtype=int).reshape(-1, np.shape(chosen)[-1])
        counts = np.stack([np.bincount(row, minlength=int(place.max()) + 1) for row in drawn])
        return _logistic(fit(x, wins, counts[:, place] * weights)[0]).reshape(np.shape(chosen)[:-1])

    questions = int(place.max()) + 1
    value, interval = estimate(np.arange(questions, dtype=float), win_rate, resamples=_RESAMPLES)
    if np.ptp(wins) == 0:
        value = float(wins[0]) if wins[0] in (0.0, 1.0) else value
        interval = without_spread(value, questions)
    effect = float(fit(x, wins, weights[None])[1][0])
    apart = bool((longer > 0).all() or (longer < 0).all())
    return Controlled(value, interval, effect, float(longer.mean()), apart, len(known))


def _weights(games: Sequence[Game]) -> tuple[npt.NDArray[np.int64], _Array]:
    """Each game's question, counted from 0, and its weight: a question weighs 1, its turns alike, their repeats alike."""
    names = {name: i for i, name in enumerate(dict.fromkeys(game.question for game in games))}
    turns = Counter((game.question, game.turn) for game in games)
    per_question = Counter(question for question, _ in turns)
    weights = [1 / (turns[game.question, game.turn] * per_question[game.question]) for game in games]
    return np.array([names[game.question] for game in games]), np.array(weights)


def _logistic(value: _Array) -> _Array:
    from scipy.special import expit

    found: _Array = expit(value)
    return found


def fit(x: _Array, wins: _Array, weights: _Array) -> tuple[_Array, _Array]:
    """Theta and phi of largest penalised likelihood, by Newton's method, for many weightings at once.

    Args:
        x: [games], the length term.
        wins: [games], 1, 0.5 or 0.
        weights: [fits, games].

    Returns:
        theta, phi: [fits].
    """
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(100):
        p = _logistic(theta[:, None] + phi[:, None] * x)
        off, bend = weights * (p - wins), weights * p * (1 - p)
        slope = off.sum(axis=1), off @ x + _RIDGE * phi
        a, b, c = bend.sum(axis=1) + 1e-12, bend @ x, bend @ (x * x) + _RIDGE
        whole = a * c - b * b
        steps = (c * slope[0] - b * slope[1]) / whole, (a * slope[1] - b * slope[0]) / whole
        theta = np.clip(theta - np.clip(steps[0], -2, 2), -_MOST, _MOST)
        phi = phi - np.clip(steps[1], -2, 2)
        if max(np.abs(steps[0]).max(), np.abs(steps[1]).max()) < 1e-9:
            break
    return theta, phi
