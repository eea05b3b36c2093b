"""The seed tasks: as many as promised, in the promised mixture, and no two alike."""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).resolve().parent.parent / "data"
WORD = {"en": re.compile(r"[a-z0-9]+"), "zh": re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[a-z0-9]+")}
FILES = {"en": ("seed_tasks.jsonl", "seed_task_", 0.0745), "zh": ("seed_tasks_zh.jsonl", "zh_seed_task_", 0.05)}


@cache
def _tasks(language: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / FILES[language][0]).read_text(encoding="utf-8").splitlines()]


def lcs(a: list[str], where: dict[str, int], length: int) -> int:
    """Length of the longest common subsequence, a row of the table at a time in the bits of one integer.

    ``where[word]`` has a bit for each place of the word in the other text, of ``length`` words.
    """
    row = full = (1 << length) - 1
    for word in a:
        hits = row & where.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return length - row.bit_count()


def _places(words: list[str]) -> dict[str, int]:
    where: dict[str, int] = {}
    for index, word in enumerate(words):
        where[word] = where.get(word, 0) | 1 << index
    return where


def _slow_lcs(a: list[str], b: list[str]) -> int:
    before = [0] * (len(b) + 1)
    for x in a:
        now = [0]
        for j, y in enumerate(b):
            now.append(before[j] + 1 if x == y else max(before[j + 1], now[j]))
        before = now
    return before[-1]


@pytest.mark.parametrize("language", FILES)
def test_counts(language: str) -> None:
    tasks, (_, prefix, _) = _tasks(language), FILES[language]
    assert [task["id"] for task in tasks] == [f"{prefix}{i}" for i in range(175)]
    assert len({task["name"] for task in tasks}) == 175
    assert sum(task["is_classification"] for task in tasks) == 25
    assert sum(all(not i["input"] for i in task["instances"]) for task in tasks) == 50
    for task in tasks:
        assert set(task) == {"id", "name", "instruction", "instances", "is_classification"}
        assert task["instruction"].strip()
        assert all(set(i) == {"input", "output"} and i["output"].strip() for i in task["instances"]), task["id"]


@pytest.mark.parametrize("language", FILES)
def test_texts_are_clean(language: str) -> None:
    lines = (DATA / FILES[language][0]).read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "", "the file ends with one newline"
    assert lines == [line.strip() for line in lines]
    for task in _tasks(language):
        texts = [task["name"], task["instruction"], *(text for i in task["instances"] for text in i.values())]
        for text in texts:
            assert text == text.strip(), task["id"]
            assert not re.search(r"[ \t]\n|\n{4,}|[\r\u00a0\u200b\ufeff\ufffd]", text), task["id"]


def test_every_text_is_there_once() -> None:
    for language in FILES:
        instructions = [" ".join(task["instruction"].lower().split()) for task in _tasks(language)]
        assert len(set(instructions)) == len(instructions)
        outputs = [i["output"] for task in _tasks(language) if not task["is_classification"] for i in task["instances"]]
        assert len(set(outputs)) == len(outputs)


def test_english_tasks_begin_in_many_ways() -> None:
    assert len({WORD["en"].findall(task["instruction"].lower())[0] for task in _tasks("en")}) >= 90


@pytest.mark.parametrize("language", FILES)
def test_instructions_differ(language: str) -> None:
    tasks = _tasks(language)
    texts = [WORD[language].findall(task["instruction"].lower()) for task in tasks]
    places = [_places(words) for words in texts]
    scores = {
        (i, j): 2 * lcs(texts[i], places[j], len(texts[j])) / (len(texts[i]) + len(texts[j]))
        for i, j in combinations(range(len(texts)), 2)
    }
    closest = max(scores, key=scores.__getitem__)
    assert scores[closest] < 0.6, [tasks[i]["instruction"] for i in closest]
    assert sum(scores.values()) / len(scores) <= FILES[language][2]


def test_the_fast_subsequence_is_the_plain_one() -> None:
    texts = [WORD["en"].findall(task["instruction"].lower()) for task in _tasks("en")[:12]]
    texts += [list("abcbdab"), list("bdcaba"), []]
    for a in texts:
        for b in texts:
            assert lcs(a, _places(b), len(b)) == _slow_lcs(a, b)
