"""What is counted: exact numbers on small rows, and the same totals for any number of workers and any size of part."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.curate import statistics
from sft.curate.chat import Chat, Message, read_chat
from sft.curate.parts import EXAMPLES, PartReport, beginning, near_the_change, total
from sft.data.conversation import Drop
from tests.curate.conftest import quickstart_into, told


def chat(*texts: str, role: str = "user") -> Chat:
    roles = ("user", "assistant") if role == "user" else ("system", "user", "assistant")
    return Chat("c", tuple(Message(roles[i % len(roles)], text) for i, text in enumerate(texts)))


def report() -> PartReport:
    return PartReport("", 0, "s")


def test_ranges_have_upper_ends_that_grow_by_a_half_and_a_third() -> None:
    assert [statistics.bucket(n) for n in (0, 1, 2, 3, 4, 5, 7, 9, 13, 2048, 2049)] == (
        ["0", "1", "2", "3", "4", "6", "8", "12", "16", "2048", "3072"]
    )
    assert [statistics.lower_end(upper) for upper in (0, 1, 2, 3, 4, 6, 2048)] == [0, 1, 2, 3, 4, 5, 1537]


@given(st.integers(0, 10**12))
def test_a_number_lies_in_its_range(number: int) -> None:
    upper = int(statistics.bucket(number))
    assert statistics.lower_end(upper) <= number <= upper


def test_a_conversation_is_counted_as_it_came_and_as_it_stays() -> None:
    found = report()
    statistics.count_read(found, chat("What is the capital of Norway?", "<p>Oslo, 奥斯陆</p>"))
    statistics.count_kept(found, chat("What is the capital of Norway?", "Oslo, 奥斯陆"))
    assert (found.characters_in, found.characters_out, found.bytes_in) == (30 + 16, 30 + 9, 30 + 22)
    assert found.histograms == {
        "characters before": {"48": 1},
        "characters after": {"48": 1},
        "turns": {"2": 1},
        "languages": {"en": 1},
        "characters user": {"32": 1},
        "characters assistant": {"12": 1},
    }


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("How do I boil an egg so that the yolk stays soft?", "en"),
        ("请介绍一下二十四节气中的立春。", "zh"),
        ("Quelle est la différence entre un croissant et un pain au chocolat ?", "fr"),
        ("?", "?"),
        ("```python\nimport os\n```", "?"),
        ("", "?"),
    ],
)
def test_the_first_question_tells_the_language(asked: str, wanted: str) -> None:
    assert statistics.language(chat(asked, "Una respuesta en otra lengua, bastante larga.")) == wanted


def test_rows_are_counted_with_what_they_learn() -> None:
    found = report()
    row = chat("Be brief.", "Hi", "Hello there.", role="system")
    for learnt in (5, 19, 20):
        statistics.count_row(found, row, 20, learnt)
    statistics.count_answers(found, "en", row, 6)
    statistics.count_answers(found, "en", row, 7)
    assert found.histograms == {
        "turns": {"3": 3},
        "tokens": {"24": 3},
        "totals": {"tokens": 60, "learnt tokens": 44},
        "learnt share": {"20": 1, "90": 1, "100": 1},
        "language tokens": {"en": 13},
        "language characters": {"en": 24},
    }


def test_quantiles_and_means_of_histograms() -> None:
    turns = {"2": 5, "4": 3, "10": 2}
    assert [statistics.quantile(turns, share) for share in (0.1, 0.5, 0.51, 0.8, 0.81, 1.0)] == [2, 2, 4, 4, 10, 10]
    assert statistics.mean(turns) == 4.2
    assert (statistics.quantile({}, 0.5), statistics.mean({})) == (0, 0.0)


CHANGES = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 99), st.text(max_size=5)), max_size=30)


@given(CHANGES, st.integers(1, 7))
def test_examples_do_not_depend_on_the_parts(changes: list[tuple[str, int, str]], size: int) -> None:
    whole, parts = report(), []
    for start in range(0, len(changes), size):
        parts.append(report())
        for reason, place, text in changes[start : start + size]:
            for part in (whole, parts[-1]):
                part.change(reason, f"f:{place}", text, text + "!")
                part.drop(Drop(f"f:{place}", reason, text), text)
    found = total(parts)
    assert (found.examples, found.left_out) == (whole.examples, whole.left_out)
    assert (found.changed, found.counts, found.dropped) == (whole.changed, whole.counts, whole.dropped)
    counts = Counter(reason for reason, _, _ in changes)
    assert {reason: len(shown) for reason, shown in found.examples.items()} == {
        reason: min(count, EXAMPLES) for reason, count in counts.items()
    }


def test_long_texts_are_shown_near_their_change() -> None:
    assert near_the_change("same", "some") == ("same", "some")
    before, after = "x" * 9000 + "old" + "y" * 9000, "x" * 9000 + "new" + "y" * 9000
    assert near_the_change(before, after) == (
        "…" + "x" * 200 + "old" + "y" * 3797 + "…",
        "…" + "x" * 200 + "new" + "y" * 3797 + "…",
    )
    assert beginning([("user", "Hi"), ("assistant", "z" * 301)]) == "user: Hi\nassistant: " + "z" * 300 + "…"


def test_totals_do_not_depend_on_the_parts(quickstart: Path, tmp_path: Path) -> None:
    """Nor on the workers: test_pipeline.py holds them to it."""
    assert told(quickstart_into(tmp_path / "run", "output.rows_per_part=7")) == told(quickstart)


def test_totals_are_those_of_the_rows(quickstart: Path) -> None:
    run = json.loads((quickstart / "run.json").read_text(encoding="utf-8"))
    for stage in ("clean", "split"):
        lines = [line for path in sorted((quickstart / stage).glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
        rows = [read_chat(json.loads(line), "") for line in lines]
        assert run["stages"][stage]["histograms"]["turns"] == dict(
            sorted(Counter(str(len(row.messages)) for row in rows).items())
        )
        assert run["stages"][stage]["characters_out"] == sum(len(m.text) for row in rows for m in row.messages)
    split = run["stages"]["split"]["histograms"]
    assert sum(split["tokens"].values()) == sum(split["learnt share"].values()) == len(rows)
    answers = sum(len(m.text) for row in rows for m in row.messages if m.role == "assistant")
    assert sum(split["language characters"].values()) == answers
    assert sum(split["language tokens"].values()) == split["totals"]["learnt tokens"]
    assert run["clusters"]["sizes"] == {"2": 6}
    assert [cluster["reason"] for cluster in run["clusters"]["shown"]] == ["near_duplicate"] * 3 + ["exact_duplicate"] * 3
