"""Candidates that share text with evaluation sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfinstruct.filters.chain import make_chain
from selfinstruct.records import Candidate
from sft.errors import DataError
from sft.text.contamination import EvaluationTexts
from tests.selfinstruct.judged import refusal, sections, task


def _write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


LONG = "A farmer has seventeen sheep and all but nine run away so how many sheep does the farmer have left?"


@pytest.fixture
def evaluation(tmp_path: Path) -> str:
    return _write(
        tmp_path / "eval.jsonl",
        {"question_id": 1, "turns": [LONG, "Why?"]},
        {"question_id": 2, "text": "Describe a quiet harbour town at dawn."},
        {"instruction": "请用一句话解释什么是光合作用以及它为什么重要。"},
    )


@pytest.mark.parametrize(
    ("candidate", "reason", "field", "line"),
    [
        (task(LONG.upper()), "in_evaluation_set", "instruction", 1),
        (task("Why?"), "in_evaluation_set", "instruction", 1),
        (task("Why is that so in your view?"), None, "", 0),
        (task("Solve this:", LONG), "in_evaluation_set", "input", 1),
        (task("Solve.", f"Now {LONG[:70]} and no more"), "overlaps_evaluation_set", "task", 1),
        (task("A farmer has seventeen sheep and some cows", "all but nine run away"), None, "", 0),
        (task("A farmer has seventeen sheep and all but nine", "run away so how many"), "overlaps_evaluation_set", "task", 1),
        (task(output=f"Here: {LONG}"), "overlaps_evaluation_set", "output", 1),
        (task("Please describe a quiet harbour town at dawn, with birds."), "overlaps_evaluation_set", "task", 2),
        (task("Describe a quiet harbour town."), None, "", 0),
        (task("小明说：请用一句话解释什么是光合作用以及别的。"), "overlaps_evaluation_set", "task", 3),
    ],
)
def test_contamination(evaluation: str, candidate: Candidate, reason: str | None, field: str, line: int) -> None:
    found = refusal({"kind": "contamination", "files": [evaluation]}, candidate)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert (found[0], found[1]["field"], found[1]["where"]) == (reason, field, f"{evaluation}:{line}")


def test_every_run_of_the_length_is_found(evaluation: str) -> None:
    words = LONG.rstrip("?").split()
    sets = EvaluationTexts([evaluation])
    assert len(sets) == 4
    for start in range(len(words) - 12):
        shared = sets.find("zz " + " ".join(words[start : start + 13]) + " zz")
        assert shared is not None
        assert shared.text == " ".join(words[start : start + 13]).lower()
    for start in range(len(words) - 11):
        assert sets.find("zz " + " ".join(words[start : start + 12]) + " zz") is None


def test_an_evaluation_set_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        make_chain(sections({"kind": "contamination", "files": [str(tmp_path / "gone.jsonl")]}))
    path = _write(tmp_path / "odd.jsonl", {"text": "a"}, {"frage": "b"})
    with pytest.raises(
        DataError, match=r"odd\.jsonl:2: no text under any of question, .*; name the keys of this file in 'fields'"
    ):
        make_chain(sections({"kind": "contamination", "files": [path]}))
    assert make_chain(sections({"kind": "contamination", "files": [path], "fields": ["text", "frage"]})).files() == (path,)
    (tmp_path / "bad.jsonl").write_text("{nope\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl:1: invalid_json"):
        EvaluationTexts([str(tmp_path / "bad.jsonl")])
