"""Judgments of files, in the three shapes that there are, as games between two models.

::

    FastChat, pairs      {"question_id", "model_1", "model_2", "g1_winner", "g2_winner", "judge", "turn"}       two orders of the same pair
    FastChat, single     {"question_id", "model", "score", "judge", "turn"}                                     a rating of one answer
    Vicuna's reviews     {"question_id", "score": [9.0, 8.5], "reviewer_id"}   in review_MODEL1_MODEL2.jsonl    two ratings in one order
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.data.jsonl import read_rows
from sft.errors import DataError

_REVIEW = re.compile(r"review_(?P<first>[^_]+)_(?P<second>[^_]+)")
_WINNERS = {"model_1": "first", "model_2": "second", "tie": "tie", "error": None}
_CLOSE = 0.1
"""Ratings that differ by no more are a tie, as in Vicuna's own evaluation."""


@dataclass(frozen=True, slots=True)
class Game:
    """Two models on one turn of one question.

    Attributes:
        question: id.
        turn: from 1.
        first, second: models.
        verdicts: for each order that was judged ``first`` or ``second`` (the model, wherever it stood), ``tie``, or None: not readable.
        ratings: of the two, where the judge gave them.
        judge: who judged.
    """

    question: str
    turn: int
    first: str
    second: str
    verdicts: tuple[str | None, ...]
    ratings: tuple[float, float] | None = None
    judge: str = ""

    @property
    def outcome(self) -> str | None:
        """Both orders agree, or it is a tie; None if one of them could not be read."""
        if None in self.verdicts:
            return None
        return self.verdicts[0] if len(set(self.verdicts)) == 1 else "tie"

    def points(self, model: str) -> float | None:
        """1 for a win of a model, 0.5 for a tie, 0 for a loss; None if there is no outcome."""
        if self.outcome is None:
            return None
        won = self.first if self.outcome == "first" else self.second
        return 0.5 if self.outcome == "tie" else float(won == model)


@dataclass(frozen=True, slots=True)
class Rated:
    """A rating of one answer, None where it could not be read."""

    question: str
    turn: int
    model: str
    rating: float | None
    judge: str = ""


def read_judgments(paths: Iterable[Path]) -> tuple[list[Game], list[Rated]]:
    """Read judgment files; the same game or rating twice is refused.

    Raises:
        DataError: a line that is none of the three shapes, or there already, with ``file:line``.
    """
    games, ratings, places = list[Game](), list[Rated](), dict[tuple[Any, ...], str]()
    for path in paths:
        for row in read_rows(path):
            if row.error is not None:
                raise DataError(f"{row.where}: {row.error}")
            found = _judgment(row.value, path, row.where)
            names = (found.first, found.second) if isinstance(found, Game) else (found.model,)
            key = (type(found), found.question, found.turn, found.judge, *sorted(names))
            if key in places:
                raise DataError(f"{row.where}: this was judged at {places[key]} already, by the same judge; remove one of them")
            places[key] = row.where
            if isinstance(found, Game):
                games.append(found)
            else:
                ratings.append(found)
    return games, ratings


def _judgment(value: Any, path: Path, where: str) -> Game | Rated:
    if not isinstance(value, Mapping) or "question_id" not in value:
        raise DataError(f"{where}: a judgment is an object with question_id")
    question, turn, judge = str(value["question_id"]), value.get("turn", 1), _judge(value)
    if not isinstance(turn, int):
        raise DataError(f"{where}: turn must be a number, not {turn!r}")
    if "g1_winner" in value:
        return _pair(value, question, turn, judge, where)
    score = value.get("score")
    if "model" in value and isinstance(score, int | float):
        return Rated(question, turn, str(value["model"]), float(score) if score > 0 else None, judge)
    if isinstance(score, Sequence) and len(score) == 2 and all(isinstance(one, int | float) for one in score):
        named = _REVIEW.fullmatch(path.stem)
        if named is None:
            raise DataError(f"{where}: two ratings without names; call the file review_MODEL1_MODEL2.jsonl")
        left, right = map(float, score)
        readable = left > 0 and right > 0  # FastChat writes -1 for what it could not read
        verdict = "tie" if abs(left - right) <= _CLOSE else "first" if left > right else "second"
        return Game(
            *(question, turn, named["first"], named["second"], (verdict if readable else None,)),
            ratings=(left, right) if readable else None,
            judge=judge,
        )
    raise DataError(f"{where}: neither a pair (g1_winner), a rating (model, score) nor a review (two scores)")


def _judge(value: Mapping[str, Any]) -> str:
    named = value.get("judge", value.get("reviewer_id", ""))
    return str(named[0] if isinstance(named, list) and named else named)


def _pair(value: Mapping[str, Any], question: str, turn: int, judge: str, where: str) -> Game:
    verdicts = []
    for key in ("g1_winner", "g2_winner"):
        if value.get(key) not in _WINNERS:
            raise DataError(f"{where}: {key} must be one of {', '.join(_WINNERS)}, not {value.get(key)!r}")
        verdicts.append(_WINNERS[value[key]])
    models = [value.get(key) for key in ("model_1", "model_2")]
    if not all(isinstance(model, str) and model for model in models) or models[0] == models[1]:
        raise DataError(f"{where}: model_1 and model_2 must be two names, not {models}")
    return Game(question, turn, str(models[0]), str(models[1]), tuple(verdicts), judge=judge)
