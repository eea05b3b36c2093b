"""Conversations that share text with evaluation sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft.errors import DataError
from tests.curate.rules.talks import check_drop, rule, talk, turns

SHEEP = "A farmer has seventeen sheep and all but nine run away so how many sheep does the farmer have left?"


@pytest.fixture
def evaluation(tmp_path: Path) -> str:
    path = tmp_path / "evaluation.jsonl"
    rows = [
        {"turns": [SHEEP, "Why?"]},
        {"question": "Describe a quiet harbour town at dawn."},
        {"question": "请用一句话解释什么是光合作用以及它为什么重要。"},
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        (SHEEP.upper(), "in_evaluation_set", 1),
        ("Why?", "in_evaluation_set", 1),
        ("Why is that so?", None, 0),
        (f"Solve this: {SHEEP[:75]} or so", "overlaps_evaluation_set", 1),
        ("A farmer has seventeen sheep and some cows", None, 0),
        ("Please describe a quiet harbour town at dawn, with birds.", "overlaps_evaluation_set", 2),
        ("小明说：请用一句话解释什么是光合作用以及别的。", "overlaps_evaluation_set", 3),
        ("光合作用是什么？", None, 0),
    ],
)
def test_contamination(evaluation: str, text: str, reason: str | None, line: int) -> None:
    guard = rule("contamination", files=[evaluation])
    for chat in (talk(f"u {text}", "a Well."), talk("u Well?", f"a {text}")):
        found = guard.apply(chat)
        if reason is None:
            assert found is chat
        else:
            check_drop(found, reason, rf"shares '.+' with .*evaluation\.jsonl:{line}$")
    assert guard.reads == (evaluation,)


def test_a_round_may_go_alone_and_roles_are_chosen(evaluation: str) -> None:
    chat = talk("u Hi", "a Hello.", f"u {SHEEP}", "a Nine.", "u Thanks", "a Gladly.")
    kept = rule("contamination", files=[evaluation], action="drop_round").apply(chat)
    assert turns(kept) == ["u Hi", "a Hello.", "u Thanks", "a Gladly."]
    assert rule("contamination", files=[evaluation], roles=["assistant"]).apply(chat) is chat


def test_code_is_searched_unless_told_otherwise(tmp_path: Path) -> None:
    loop = "for i in range(1, m + 1):\n    for j in range(1, n + 1):\n        total += table[i][j]"
    path = tmp_path / "code.jsonl"
    path.write_text(json.dumps({"prompt": f"What does this print?\n{loop}"}) + "\n", encoding="utf-8")
    chat = talk("u Sum a table", f"a Like this:\n```python\n{loop}\n```")
    check_drop(rule("contamination", files=[str(path)]).apply(chat), "overlaps_evaluation_set", "for i in range")
    assert rule("contamination", files=[str(path)], code=False).apply(chat) is chat


def test_a_set_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        rule("contamination", files=[str(tmp_path / "gone.jsonl")]).apply(talk("u Hi", "a Hello."))
