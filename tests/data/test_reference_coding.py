"""The references of the coding questions: their programs are run on cases, in processes with a time limit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.coding_cases import cases
from tests.data.coding_second import fewest_lists
from tests.data.references import figures, numbers, program, reference

ROOT = Path(__file__).parents[2]


def run(number: int, first: str, second: str) -> subprocess.CompletedProcess[str]:
    """The cases of a question on two programs, 20 seconds at most."""
    command = [sys.executable, "-m", "tests.data.coding_cases", str(number)]
    return subprocess.run(command, input=json.dumps([first, second]), capture_output=True, text=True, timeout=20, cwd=ROOT)


@pytest.mark.parametrize("number", cases())
def test_programs_of_the_references_hold_their_cases(number: int) -> None:
    language = "sql" if number == 244 else "python"
    done = run(number, *(program(reference(number, turn), language) for turn in (1, 2)))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("number", "turn", "right", "wrong"),
    [
        (241, 1, "fullmatch", "match"),
        (241, 2, "3600", "3660"),
        (242, 1, ">= expires", "> expires"),
        (242, 2, ">= self._max_size", "> self._max_size"),
        (243, 1, "size - 1", "size"),
        (243, 2, "<= i - size", "< i - size"),
        (244, 1, "2026-01-01", "2025-12-31"),
        (244, 2, "MAX(days)", "MIN(days)"),
        (245, 1, "(b, line), arrival", "(b, b), arrival"),
        (245, 2, "key=len", "key=lambda way: -len(way)"),
        (246, 1, "key=lambda change: change[1]", "key=lambda change: change[0]"),
        (246, 2, "deepcopy(old)", "dict(old)"),
        (247, 1, "{0,2}", "{0,3}"),
        (247, 2, "[.,]", "[,]"),
        (248, 1, "> limit", ">= limit"),
        (248, 2, "reverse=True", "reverse=False"),
        (249, 1, "if failed:", "if False:"),
        (249, 2, "left == 0", "left == 1"),
        (250, 1, "open_terms[user] -= 1", "open_terms[user] -= 2"),
        (250, 2, "values.get(t, 0)", "values.get(t, 1)"),
    ],
)
def test_the_cases_notice_a_wrong_program(number: int, turn: int, right: str, wrong: str) -> None:
    programs = [program(reference(number, side), "sql" if number == 244 else "python") for side in (1, 2)]
    assert right in programs[turn - 1]
    programs[turn - 1] = programs[turn - 1].replace(right, wrong)
    assert run(number, *programs).returncode == 1


def test_careless_amounts_are_named_right() -> None:
    said = reference(247, 1).partition("\n\n")[0]
    assert said == "Careless ones accept, for instance, 01, 1,23, 1234,567, 1.5 and 1,234, (with a comma at the end)."
    found: dict[str, str] = {}
    exec(program(reference(247, 1)), found)
    assert not any(re.fullmatch(found["AMOUNT"], text) for text in ("01", "1,23", "1234,567", "1.5", "1,234,"))


def test_the_example_needs_more_lists_than_necessary() -> None:
    found: dict[str, object] = {}
    exec(program(reference(248, 2)), found)
    said = numbers(reference(248, 2).partition("```")[0])
    limit, items = said[0], tuple(said[1:7])
    packed = found["packed"]
    assert callable(packed)
    lists = packed(items, limit, int)
    best = fewest_lists(items, limit)
    assert len(lists) > best
    shown = [item for one in lists for item in one]
    assert said[7:] == [len(lists), *shown, best, *said[-6:]]
    assert sorted(said[-6:]) == sorted(items)
    assert sum(said[-6:-3]) <= limit
    assert sum(said[-3:]) <= limit
    assert figures(reference(248, 2).partition("```")[0]) == [str(number) for number in said]
