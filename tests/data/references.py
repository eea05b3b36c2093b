"""The questions of two turns, and the readers with which their references are checked."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from sft.data.questions import Question, read_questions

FILE = Path(__file__).parents[2] / "data" / "questions_two_turns.jsonl"
_FIGURE = re.compile(r"(?<![\w.])-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?:/[0-9]+)?")
_FENCE = re.compile(r"^```(\w+)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


@cache
def questions() -> dict[int | str, Question]:
    """By id."""
    return {question.id: question for question in read_questions(FILE)}


def asked(number: int, turn: int) -> str:
    """What is asked in a turn, counted from 1."""
    return questions()[number].turns[turn - 1]


def reference(number: int, turn: int) -> str:
    """What is right in a turn, counted from 1."""
    return questions()[number].reference[turn - 1]


def figures(text: str) -> list[str]:
    """All numbers in digits, in order, without commas: ``"1,347 and 2/9"`` gives ``["1347", "2/9"]``."""
    return [figure.replace(",", "") for figure in _FIGURE.findall(text)]


def numbers(text: str) -> list[int]:
    """The whole numbers among the figures."""
    return [int(figure) for figure in figures(text) if re.fullmatch(r"-?[0-9]+", figure)]


def texts(*values: object) -> list[str]:
    """Values as figures are written."""
    return [str(value) for value in values]


def program(text: str, language: str = "python") -> str:
    """The one fenced program of a text."""
    [(named, source)] = _FENCE.findall(text)
    assert named == language
    return str(source)
