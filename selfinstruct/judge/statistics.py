"""What games add up to, and how sure that is. The unit is the question: its turns, orders and repeats are not independent of each other.

::

    win rate            wins / games                       adjusted: (wins + ties / 2) / games
    interval            95 %, BCa bootstrap over questions (Efron 1987), as scipy has it; exact where all went one way
    relative score      sum of our ratings / sum of theirs, Vicuna's "percent of ChatGPT's quality"
    strength            Bradley and Terry 1952, a tie is half a win for both, by choix; 400 points are odds of 10 to 1
    settled             whether the interval leaves out one half; else how many questions would be needed at this distance
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selfinstruct.judge.intervals import by_question, estimate, mean_share
from selfinstruct.judge.outcomes import Game, Rated
from sft.errors import DataError
from sft.intervals import SEED, Interval, ratio

_POINTS = 400 / math.log(10)
_POWER = 1.959964 + 0.841621
"""Standard normal quantiles of a two-sided test at 5 % with a power of 80 %."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One model against another.

    Attributes:
        ours, theirs: models.
        wins, ties, losses: games by outcome, both orders together, each repeat a game; ``unreadable`` is not among them.
        questions: with at least one outcome.
        adjusted: win rate with ties as halves, the mean over questions.
        interval: of it, 95 %.
        relative: sum of our ratings over theirs, with its interval; None without ratings.
        consistent: share of games whose two orders agree; None if only one was judged.
        first_place: of those that do not agree, the share that favoured whoever stood first.
        needed: questions that would settle a difference of this size; None if it is settled, or there is none.
    """

    ours: str
    theirs: str
    wins: int
    ties: int
    losses: int
    unreadable: int
    questions: int
    adjusted: float
    interval: Interval
    relative: tuple[float, Interval] | None
    consistent: float | None
    first_place: float | None
    needed: int | None

    @property
    def win_rate(self) -> float:
        """Wins over games."""
        return self.wins / (self.wins + self.ties + self.losses)

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``not settled``."""
        return "better" if self.interval[0] > 0.5 else "worse" if self.interval[1] < 0.5 else "not settled"


def compare(games: Sequence[Game], ours: str, theirs: str) -> Compared:
    """Compare two models by the games between them.

    Raises:
        DataError: no game between them that could be read.
    """
    between = [game for game in games if {game.first, game.second} == {ours, theirs}]
    points = [(game.question, game.turn, game.points(ours)) for game in between]
    readable = [(question, turn, value) for question, turn, value in points if value is not None]
    if not readable:
        raise DataError(f"no readable judgment compares {ours} with {theirs}")
    values = by_question(readable)
    adjusted, interval = mean_share(values)
    both = [game for game in between if len(game.verdicts) == 2 and None not in game.verdicts]
    torn = [game for game in both if game.outcome != game.verdicts[0] or game.outcome != game.verdicts[1]]
    counted = [value for _, _, value in readable]
    return Compared(
        ours=ours,
        theirs=theirs,
        wins=counted.count(1.0),
        ties=counted.count(0.5),
        losses=counted.count(0.0),
        unreadable=len(points) - len(readable),
        questions=len(values),
        adjusted=adjusted,
        interval=interval,
        relative=_relative(between, ours),
        consistent=1 - len(torn) / len(both) if both else None,
        first_place=_first_place(torn),
        needed=_needed(values, adjusted, interval),
    )


def _needed(values: npt.NDArray[np.float64], adjusted: float, interval: Interval) -> int | None:
    """Questions that settle a difference of this size in four of five cases; None if it is settled, or there is none."""
    if interval[0] > 0.5 or interval[1] < 0.5 or adjusted == 0.5:
        return None
    if adjusted in (0.0, 1.0):
        return math.ceil(math.log(0.025) / math.log(0.5))  # the first number whose exact bound is beyond one half
    if np.ptp(values) == 0:
        return math.ceil(math.log(2 / 0.05) / (2 * (adjusted - 0.5) ** 2))
    return math.ceil((_POWER * float(np.std(values, ddof=1)) / abs(adjusted - 0.5)) ** 2)


def _relative(games: Sequence[Game], ours: str) -> tuple[float, Interval] | None:
    rated = [
        (game.question, game.turn, game.ratings if game.first == ours else game.ratings[::-1]) for game in games if game.ratings
    ]
    if not rated:
        return None
    sides = [by_question((question, turn, pair[side]) for question, turn, pair in rated) for side in (0, 1)]
    return estimate(np.stack(sides), ratio)


def _first_place(torn: Sequence[Game]) -> float | None:
    """In the first of the two orders ``first`` stands first, in the second ``second``."""
    if not torn:
        return None
    pulls = {"first": 1, "tie": 0, "second": -1}
    return float(np.mean([pulls[str(game.verdicts[0])] - pulls[str(game.verdicts[1])] > 0 for game in torn]))


@dataclass(frozen=True, slots=True)
class Strength:
    """A model's strength: odds of winning are ``10^(difference / 400)``; the mean over models is 1000."""

    model: str
    points: float
    interval: Interval
    games: int


def strengths(games: Sequence[Game], *, rounds: int = 200) -> list[Strength]:
    """Bradley–Terry strengths of all models, the strongest first; intervals by resampling questions.

    Raises:
        DataError: models that no chain of games connects, or one that won or lost every game: their distance is infinite.
    """
    usable = [game for game in games if game.outcome is not None]
    models = sorted({model for game in usable for model in (game.first, game.second)})
    if len(models) < 2:
        raise DataError("Bradley-Terry needs games between at least two models")
    place = {model: i for i, model in enumerate(models)}
    questions = sorted({game.question for game in usable})
    by_question: dict[str, list[tuple[int, int]]] = {question: [] for question in questions}
    for game in usable:
        by_question[game.question] += _won(game, place)
    whole = [pair for question in questions for pair in by_question[question]]
    _refuse_unconnected(whole, models)
    value = _fit(len(models), whole)
    rng, drawn = np.random.default_rng(SEED), []
    for _ in range(rounds):
        chosen = rng.integers(0, len(questions), len(questions))
        pairs = [pair for i in chosen for pair in by_question[questions[i]]]
        if _connected(pairs, len(models)):
            drawn.append(_fit(len(models), pairs))
    if len(drawn) < rounds / 2:
        raise DataError(
            "too few questions for intervals: most resamples leave a model without a win or a loss; judge more questions"
        )
    low, high = np.percentile(np.stack(drawn), (2.5, 97.5), axis=0)
    count = [sum(i in (place[game.first], place[game.second]) for game in usable) for i in range(len(models))]
    found = [Strength(model, float(value[i]), (float(low[i]), float(high[i])), count[i]) for i, model in enumerate(models)]
    return sorted(found, key=lambda one: -one.points)


def _won(game: Game, place: Mapping[str, int]) -> list[tuple[int, int]]:
    """Pairs of winner and loser: two for a win, one each way for a tie."""
    first, second = place[game.first], place[game.second]
    if game.outcome == "tie":
        return [(first, second), (second, first)]
    return [(first, second)] * 2 if game.outcome == "first" else [(second, first)] * 2


def _fit(count: int, pairs: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
    import choix

    wins = np.zeros((count, count))
    np.add.at(wins, tuple(np.array(pairs).T), 1)
    found = choix.ilsr_pairwise_dense(wins, tol=1e-10, max_iter=1_000)
    return 1000 + _POINTS * (np.asarray(found) - np.mean(found))


def _connected(pairs: Sequence[tuple[int, int]], count: int) -> bool:
    """Whether every model is reached from every other along wins: else strengths are infinitely far apart (Ford 1957)."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    won = np.array(pairs).T
    graph = csr_array((np.ones(len(pairs)), (won[0], won[1])), shape=(count, count))
    return bool(connected_components(graph, directed=True, connection="strong")[0] == 1)


def _refuse_unconnected(pairs: Sequence[tuple[int, int]], models: Sequence[str]) -> None:
    if not _connected(pairs, len(models)):
        winners, losers = {a for a, _ in pairs}, {b for _, b in pairs}
        lone = [model for i, model in enumerate(models) if i not in winners or i not in losers]
        who = f"{lone[0]} won or lost every game" if lone else "some models never meet the others"
        raise DataError(
            f"Bradley-Terry has no answer: {who}, so its distance is infinite; judge more questions, or leave it out"
        )


def mean_ratings(ratings: Sequence[Rated]) -> dict[str, tuple[float, Interval, int]]:
    """Mean rating of each model over questions with its interval, the best first, and how many could not be read."""
    found = {}
    for model in sorted({one.model for one in ratings}):
        own = [one for one in ratings if one.model == model]
        read = [(one.question, one.turn, one.rating) for one in own if one.rating is not None]
        if read:
            found[model] = (*estimate(by_question(read), np.mean), len(own) - len(read))
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))
