"""Who decides as whom: judges with each other, with people, people among themselves, and a judge with itself when it is asked again.

::

    agreement     of all pairs of votes, one of each side, on the same turn of the same question between the same models, the share that is
                  equal: FastChat's count (Zheng et al. 2023, 4.2). With ties as an outcome of their own, and without votes that are ties
    people        votes of all people are one side; among themselves the pairs are of votes by different people
    consistency   the same over two repeats of one judge: of the same prompt (verdict), of both orders together (game), or of a rating
    interval      95 %, questions resampled
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from selfinstruct.judge.intervals import estimate, without_spread
from selfinstruct.judge.outcomes import Game, Rated
from sft.errors import DataError
from sft.intervals import Interval, ratio

PEOPLE = "people"
_Pair = tuple[str, Any, Any]
"""Question, and two decisions on the same thing."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of pairs of votes.

    Attributes:
        value, interval: between 0 and 1.
        pairs, questions: that it counts.
    """

    value: float
    interval: Interval
    pairs: int
    questions: int


@dataclass(frozen=True, slots=True)
class Agreed:
    """Two sides on the games that both judged.

    Attributes:
        sides: names.
        turn: None for all turns.
        every: ties as an outcome of their own.
        firm: without votes that are ties; None if no pair is left.
    """

    sides: tuple[str, str]
    turn: int | None
    every: Share
    firm: Share | None


@dataclass(frozen=True, slots=True)
class Consistency:
    """A judge with itself over repeats.

    Attributes:
        judge: who.
        what: ``verdict`` (the same prompt), ``game`` (both orders) or ``rating``.
        same: share of pairs of repeats that are equal.
        difference: of ratings, mean of the absolute differences; None for the others.
    """

    judge: str
    what: str
    same: Share
    difference: float | None


def agreements(games: Sequence[Game]) -> list[Agreed]:
    """Of each two judges that share games, people as one of them, and of people among each other; over all turns, then by turn."""
    readable = [game for game in games if game.outcome is not None]
    sides: dict[str, list[Game]] = defaultdict(list)
    for game in readable:
        sides[PEOPLE if game.human else game.judge].append(game)
    names = sorted(sides, key=lambda name: (name == PEOPLE, name))
    found = []
    for one, other in [*combinations(names, 2), *([(PEOPLE, PEOPLE)] if PEOPLE in sides else [])]:
        turns = sorted({game.turn for game in sides[one]} & {game.turn for game in sides[other]})
        for turn in (None, *(turns if len(turns) > 1 else ())):
            chosen = [[game for game in sides[side] if turn in (None, game.turn)] for side in (one, other)]
            pairs = list(_among(chosen[0]) if one == other else _between(*chosen))
            if pairs:
                found.append(_agreed((one, other), turn, pairs))
    return found


def agreement(one: Sequence[Game], other: Sequence[Game]) -> Agreed:
    """Agreement of two sides on the games that both judged.

    Raises:
        DataError: they have no readable game in common.
    """
    sides = [[game for game in games if game.outcome is not None] for games in (one, other)]
    pairs = list(_between(*sides))
    if not pairs:
        raise DataError("these judges have no readable game in common")
    return _agreed((sides[0][0].judge, sides[1][0].judge), None, pairs)


def _key(game: Game) -> tuple[str, int, str, str]:
    first, second = sorted((game.first, game.second))
    return game.question, game.turn, first, second


def _winner(game: Game) -> str:
    return "" if game.outcome == "tie" else game.first if game.outcome == "first" else game.second


def _grouped(games: Iterable[Game]) -> dict[tuple[str, int, str, str], list[Game]]:
    found: dict[tuple[str, int, str, str], list[Game]] = defaultdict(list)
    for game in games:
        found[_key(game)].append(game)
    return found


def _between(one: Sequence[Game], other: Sequence[Game]) -> Iterator[_Pair]:
    sides = _grouped(one), _grouped(other)
    for key in sorted(sides[0].keys() & sides[1].keys()):
        for a, b in product(sides[0][key], sides[1][key]):
            yield key[0], _winner(a), _winner(b)


def _among(games: Sequence[Game]) -> Iterator[_Pair]:
    """Votes by different people; one without a name may be by anybody, and is left out."""
    for key, group in sorted(_grouped(game for game in games if game.judge).items()):
        for a, b in combinations(group, 2):
            if a.judge != b.judge:
                yield key[0], _winner(a), _winner(b)


def _agreed(sides: tuple[str, str], turn: int | None, pairs: Sequence[_Pair]) -> Agreed:
    firm = [pair for pair in pairs if pair[1] and pair[2]]
    return Agreed(sides, turn, _share(pairs), _share(firm) if firm else None)


def _share(pairs: Sequence[_Pair]) -> Share:
    """Equal pairs over pairs."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for question, a, b in pairs:
        counts[question][0] += a == b
        counts[question][1] += 1
    value, interval = estimate(np.array(list(counts.values()), dtype=float).T, ratio)
    if value in (0.0, 1.0) or interval[0] == interval[1]:
        interval = without_spread(value, len(counts))
    return Share(value, interval, len(pairs), len(counts))


def consistencies(games: Sequence[Game], ratings: Sequence[Rated]) -> list[Consistency]:
    """How often a judge decides as before when it is asked again; empty without repeats."""
    found = []
    for judge in sorted({game.judge for game in games if not game.human} | {one.judge for one in ratings}):
        own = [game for game in games if game.judge == judge and not game.human]
        rated = [one for one in ratings if one.judge == judge and one.rating is not None]
        verdicts, whole, values = list(_verdicts(own)), list(_games(own)), list(_ratings(rated))
        found += [
            Consistency(judge, what, _share(pairs), None) for what, pairs in (("verdict", verdicts), ("game", whole)) if pairs
        ]
        if values:
            found.append(Consistency(judge, "rating", _share(values), float(np.mean([abs(a - b) for _, a, b in values]))))
    return found


def _verdicts(games: Sequence[Game]) -> Iterator[_Pair]:
    """Of the same prompt: the same order of the same pair."""
    asked: dict[Any, list[Game]] = defaultdict(list)
    for game in games:
        asked[game.question, game.turn, game.first, game.second].append(game)
    for group in asked.values():
        for a, b in combinations(group, 2):
            for left, right in zip(a.verdicts, b.verdicts, strict=False):
                if a.repeat != b.repeat and left is not None and right is not None:
                    yield a.question, left, right


def _games(games: Sequence[Game]) -> Iterator[_Pair]:
    for key, group in _grouped(game for game in games if game.outcome is not None and len(game.verdicts) > 1).items():
        for a, b in combinations(group, 2):
            if a.repeat != b.repeat:
                yield key[0], _winner(a), _winner(b)


def _ratings(ratings: Sequence[Rated]) -> Iterator[_Pair]:
    asked: dict[Any, list[Rated]] = defaultdict(list)
    for one in ratings:
        asked[one.question, one.turn, one.model].append(one)
    for group in asked.values():
        for a, b in combinations(group, 2):
            if a.repeat != b.repeat:
                yield a.question, a.rating, b.rating
