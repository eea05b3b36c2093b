"""Judgments of files, in the four shapes that there are, as games between two models.

::

    FastChat, pairs      {"question_id", "model_1", "model_2", "g1_winner", "g2_winner", "judge", "turn"}       two orders of the same pair
    FastChat, single     {"question_id", "model", "score", "judge", "turn"}                                     a rating of one answer
    Vicuna's reviews     {"question_id", "score": [9.0, 8.5], "reviewer_id"}   in review_MODEL1_MODEL2.jsonl    two ratings in one order
    votes                {"question_id", "model_a", "model_b", "winner", "judge", "turn", "conversation_a", ...}     of people, as in the arena

A pair may have ``repeat`` (from 1) and the answers' ``length_1`` and ``length_2`` in characters. A vote may lack ``question_id``: what was
asked is the question then; and ``judge``: it is somebody's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfinstruct.records import digest
from sft.data.jsonl import read_rows
from sft.errors import DataError

_REVIEW = re.compile(r"review_(?P<first>[^_]+)_(?P<second>[^_]+)")
_WINNERS = {"model_1": "first", "model_2": "second", "tie": "tie", "error": None}
_VOTES = {"model_a": "first", "model_b": "second", "tie": "tie", "tie (bothbad)": "tie", "tie (inconsistent)": "tie"}
_PERSON = re.compile(r"(expert|author|arena_user|human|person|user)(_.*)?")
"""Names of voters in FastChat's files: ``expert_17``, ``author_2``, ``arena_user_973``."""
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
        judge: who judged; "" for a voter without a name.
        repeat: from 1, where a judge was asked the same more than once.
        lengths: of the two answers, in characters; None if not known.
        human: a vote of a person.
    """

    question: str
    turn: int
    first: str
    second: str
    verdicts: tuple[str | None, ...]
    ratings: tuple[float, float] | None = None
    judge: str = ""
    repeat: int = 1
    lengths: tuple[int, int] | None = None
    human: bool = False

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
    repeat: int = 1


def read_judgments(paths: Iterable[Path]) -> tuple[list[Game], list[Rated]]:
    """Read judgment files; the same game, rating or vote twice is refused. One person may vote twice on a pair, in two different lines.

    Raises:
        DataError: a line that is none of the four shapes, or there already, with ``file:line``.
    """
    games, ratings, places = list[Game](), list[Rated](), dict[tuple[Any, ...], str]()
    for path in paths:
        for row in read_rows(path):
            if row.error is not None:
                raise DataError(f"{row.where}: {row.error}")
            found = _judgment(row.value, path, row.where)
            names = (found.first, found.second) if isinstance(found, Game) else (found.model,)
            key: tuple[Any, ...] = (type(found), found.question, found.turn, found.judge, found.repeat, *sorted(names))
            if "g1_winner" not in row.value and "winner" in row.value:
                key = ("vote", digest(row.value))
            if key in places:
                raise DataError(f"{row.where}: this was judged at {places[key]} already, by the same judge; remove one of them")
            places[key] = row.where
            if isinstance(found, Game):
                games.append(found)
            else:
                ratings.append(found)
    return games, ratings


def _judgment(value: Any, path: Path, where: str) -> Game | Rated:
    is_vote = isinstance(value, Mapping) and "winner" in value and "g1_winner" not in value
    if not isinstance(value, Mapping) or ("question_id" not in value and not is_vote):
        raise DataError(f"{where}: a judgment is an object with question_id")
    turn, judge, repeat = value.get("turn", 1), _judge(value), value.get("repeat", 1)
    for key, number in (("turn", turn), ("repeat", repeat)):
        if not isinstance(number, int) or number < 1:
            raise DataError(f"{where}: {key} must be a number from 1, not {number!r}")
    if is_vote:
        return _vote(value, turn, judge, where)
    question = str(value["question_id"])
    if "g1_winner" in value:
        return _pair(value, question, turn, judge, repeat, where)
    score = value.get("score")
    if "model" in value and isinstance(score, int | float):
        return Rated(question, turn, str(value["model"]), float(score) if score > 0 else None, judge, repeat)
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
    raise DataError(f"{where}: neither a pair (g1_winner), a vote (winner), a rating (model, score) nor a review (two scores)")


def _judge(value: Mapping[str, Any]) -> str:
    named = value.get("judge", value.get("reviewer_id", ""))
    return str(named[0] if isinstance(named, list) and named else named)


def _names(value: Mapping[str, Any], keys: tuple[str, str], where: str) -> tuple[str, str]:
    one, two = (value.get(key) for key in keys)
    if not (isinstance(one, str) and isinstance(two, str) and one and two) or one == two:
        raise DataError(f"{where}: {keys[0]} and {keys[1]} must be two names, not {[one, two]}")
    return one, two


def _pair(value: Mapping[str, Any], question: str, turn: int, judge: str, repeat: int, where: str) -> Game:
    verdicts = []
    for key in ("g1_winner", "g2_winner"):
        if value.get(key) not in _WINNERS:
            raise DataError(f"{where}: {key} must be one of {', '.join(_WINNERS)}, not {value.get(key)!r}")
        verdicts.append(_WINNERS[value[key]])
    names = _names(value, ("model_1", "model_2"), where)
    one, two = value.get("length_1"), value.get("length_2")
    lengths = (one, two) if isinstance(one, int) and isinstance(two, int) else None
    return Game(question, turn, *names, tuple(verdicts), judge=judge, repeat=repeat, lengths=lengths)


def _vote(value: Mapping[str, Any], turn: int, judge: str, where: str) -> Game:
    if value["winner"] not in _VOTES:
        raise DataError(f"{where}: winner must be one of {', '.join(_VOTES)}, not {value['winner']!r}")
    names = _names(value, ("model_a", "model_b"), where)
    said = [_said(value[key], key, where) if key in value else None for key in ("conversation_a", "conversation_b")]
    if "question_id" not in value and said[0] is None:
        raise DataError(f"{where}: a vote has question_id, or conversation_a to know the question by")
    question = str(value["question_id"]) if "question_id" in value else f"asked-{digest(said[0][0] if said[0] else '')}"
    lengths = (said[0][1], said[1][1]) if said[0] and said[1] else None
    human = not judge or _PERSON.fullmatch(judge) is not None
    return Game(question, turn, *names, (_VOTES[value["winner"]],), judge=judge, lengths=lengths, human=human)


def _said(value: Any, key: str, where: str) -> tuple[list[str], int]:
    """What was asked in a conversation, and how long its last answer is."""
    good = isinstance(value, Sequence) and not isinstance(value, str)
    if not good or not all(isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in value):
        raise DataError(f"{where}: {key} must be a list of messages with role and content")
    answers = [message["content"] for message in value if message.get("role") == "assistant"]
    return [message["content"] for message in value if message.get("role") == "user"], len(answers[-1]) if answers else 0
