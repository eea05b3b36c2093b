"""Run directories, read back whole or refused with the place of the fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfinstruct.results.display import evidence, sample, shown
from selfinstruct.results.report import facts_of
from selfinstruct.results.review import Query, select
from selfinstruct.results.rundir import read_run
from sft.errors import DataError
from tests.selfinstruct.finished import FAILURES, KEPT, REFUSED, write_run


def test_everything_is_read(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert [(row.instruction, row.input, row.output) for row in run.rows] == KEPT
    assert [(item.filter, item.reason) for item in run.judged if not item.accepted] == [
        (name, reason) for name, reason, _, _ in REFUSED
    ]
    assert [(failure.reason, failure.detail) for failure in run.failures] == FAILURES


def test_requests_without_a_reply_are_no_pieces(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    with (path / "candidates.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"failure": {"request_id": "cd", "item": -1, "reason": "timeout", "detail": "after 5 tries"}}\n')
    run = read_run(path)
    assert [(failure.request_id, failure.reason) for failure in run.unanswered] == [("cd", "timeout")]
    assert [failure.reason for failure in run.failures] == [reason for reason, _ in FAILURES]
    assert run.funnel()[0].refused == len(FAILURES)
    assert [entry.reason for entry in select(run, Query(filter="teacher"))] == ["timeout"]
    assert ("without a reply", "timeout 1") in facts_of(run)


def test_the_funnel_follows_the_recipe_and_loses_nobody(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert [(stage.name, stage.refused, stage.left) for stage in run.funnel()] == [
        ("parsing", 2, 8),
        ("length", 1, 7),
        ("blacklist", 0, 7),
        ("novelty", 2, 5),
        ("target", 1, 4),
    ]
    assert sum(stage.refused for stage in run.funnel()) + len(run.rows) == len(run.judged) + len(run.failures)


def test_filters_that_the_facts_do_not_name_follow_in_order_of_appearance(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", changes={"filters": [{"kind": "novelty"}, 7]}))
    assert [stage.name for stage in run.funnel()] == ["parsing", "novelty", "length", "target"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", None, "no run.json; give the directory of a run"),
        ("run.json", "[]", r"run\.json: this must be an object"),
        ("run.json", "{", r"run\.json: not JSON"),
        ("candidates.jsonl", None, "no such file"),
        ("candidates.jsonl", "[]\n", r"candidates\.jsonl:1: the line must be an object"),
        ("candidates.jsonl", "{", r"candidates\.jsonl:1: invalid_json"),
        ("candidates.jsonl", '{"candidate": {}}\n', r"candidates\.jsonl:1: verdict must be an object"),
        ("candidates.jsonl", '{"candidate": {}, "verdict": {"accepted": "no"}}\n', "verdict.accepted must be true or false"),
        ("candidates.jsonl", '{"candidate": {}, "verdict": {"accepted": true}}\n', "'id' is missing or no text"),
        ("candidates.jsonl", '{"failure": {"request_id": "a", "item": true}}\n', "failure.item must be a whole number"),
        ("dataset.jsonl", '{"id": "a", "instruction": 3}\n', r"dataset\.jsonl:1: 'instruction' is missing or no text"),
    ],
)
def test_damage_is_named(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    run = write_run(tmp_path / "run")
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_run(run)


def test_text_that_steers_a_terminal_is_spelled_out() -> None:
    assert shown("a\x1b[31m\u202eb\n\tc\r") == "a\\u001b[31m\\u202eb\n\tc\\u000d"
    assert shown("x" * 30, 10) == "x" * 10 + "…"
    assert json.loads(json.dumps(shown("\ud800"))) == "\\ud800"
    assert evidence({"nearest": "a\x07", "score": 0.81234, "words": 2}) == "nearest “a\\u0007”, score 0.8123, words 2"


def test_a_draw_is_a_function_of_its_seed_and_keeps_the_order() -> None:
    items = list(range(1000))
    drawn = sample(items, 20, seed=5)
    assert drawn == sample(items, 20, seed=5) == sorted(set(drawn))
    assert drawn != sample(items, 20, seed=6)
    assert sample(items[:3], 20, seed=5) == [0, 1, 2]
