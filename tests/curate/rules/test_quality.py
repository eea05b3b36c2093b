"""Text that got stuck, and lists that lost their numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.curate.rules.prose import without_code
from tests.curate.rules.talks import answer, check_drop, rule, said, talk, turns

STUCK = [
    ("Pi is 3.14" + "1" * 20, "repeated_digits", "repeats '11111111111111111111'"),
    ("The code is " + "0" * 25, "repeated_digits", "00000"),
    ("N" + "o" * 40 + "!", "repeated_characters", "oooo"),
    ("哈" * 35, "repeated_characters", "哈哈"),
    ("!" * 30, "repeated_characters", "!!!"),
    ("I see a ship at sea.\n" * 9, "repeated_lines", "the line 'I see a ship at sea.' 9 times"),
    ("One more\nthe ship at sea\n" * 8, "repeated_lines", "8 times"),
    ("The tide is high. " + "and then it falls again, " * 20, "repeated_phrase", "'and then it falls again' 20 times"),
    ("Well, " + "very " * 90 + "good", "repeated_phrase", "'very' 90 times"),
    ("潮水涨了又落，" * 14, "repeated_phrase", "14 times"),
    ("x y z " * 40, "repeated_phrase", "'x y z' 40 times"),
]
NOT_STUCK = [
    "A billion is 1000000000, a trillion 1000000000000; 887 / 3 is 295.6666666666667, and the phone is 9999999999.",
    '<div class="cell"></div>\n' * 12,
    "count = count + 1;\n" * 9,
    "```\n111111111111\nabc abc\n```\nThat prints ones.",
    "Nooooooooooooo! Ahhhhhh.",
    "-" * 80 + "\n" + "=" * 80 + "\n| --- | --- |\n" + "." * 50 + "\n" + "_" * 60,
    "**Pros:**\n- cheap\n**Cons:**\n- slow\n" * 10,
    "\n".join(f"line {n} of the song\nover the sea we go\nand verse {n}\nsays another thing {n}" for n in range(10)),
    "Ha ha ha ha ha! Very, very, very good.",
    " ".join(f"word{n} and word{n + 1}" for n in range(60)),
    "",
    "a",
    "Row, row, row your boat, gently down the stream.\n" * 4,
]


@pytest.mark.parametrize(("text", "reason", "detail"), STUCK)
def test_stuck_texts_are_found(text: str, reason: str, detail: str) -> None:
    check_drop(rule("repetition").apply(answer(text)), reason, detail)
    chat = talk("u Why is there a tide?", "a The moon.", "u Go on", f"a {text}")
    check_drop(rule("repetition").apply(chat), reason, r"turn 4 \(assistant\) repeats")
    assert turns(rule("repetition", action="drop_round").apply(chat)) == ["u Why is there a tide?", "a The moon."]
    off = rule("repetition", digits=0, characters=0, lines=0, phrase=0)
    assert off.apply(chat) is chat


@pytest.mark.parametrize("text", NOT_STUCK)
def test_sound_texts_stay(text: str) -> None:
    chat = answer(text)
    assert rule("repetition").apply(chat) is chat


def test_the_original_takes_nine_digits() -> None:
    check_drop(rule("repetition", digits=9).apply(answer("295.6666666666667")), "repeated_digits", "'666666666'")


def test_only_answers_are_looked_at_unless_asked() -> None:
    chat = talk("u " + "go " * 100, "a Where to?")
    assert rule("repetition").apply(chat) is chat
    check_drop(rule("repetition", roles=["user"]).apply(chat), "repeated_phrase", r"turn 1 \(user\) repeats 'go' 100 times")


WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=1, max_size=12)


@given(st.text("ijklmn ,.\n", max_size=300), WORDS, st.integers(6, 40), st.text("opqrs ,.\n", max_size=300))
def test_every_loop_is_found(before: str, period: list[str], times: int, after: str) -> None:
    times = max(times, -(-80 // len(period)))
    text = f"{before} {' '.join(period * times)} {after}"
    found = rule("repetition", digits=0, characters=0, lines=0).apply(answer(text))
    check_drop(found, "repeated_phrase", "times")


BROKEN = [
    ("1. Cage:\n* big\n1. Food:\n* fresh\n1. Care:\n* daily", "1. Cage:\n* big\n2. Food:\n* fresh\n3. Care:\n* daily"),
    (
        "Steps:\n\n1. Dig.\n\nA spade helps.\n\n1. Plant.\n\n1. Water.\n",
        "Steps:\n\n1. Dig.\n\nA spade helps.\n\n2. Plant.\n\n3. Water.\n",
    ),
    ("1) a\n1) b\n1) c", "1) a\n2) b\n3) c"),
    ("# A\n1. a\n1. b\n1. c\n# B\n1. d\n2. e", "# A\n1. a\n2. b\n3. c\n# B\n1. d\n2. e"),
    ("1. 挖坑\n1. 种树\n1. 浇水", "1. 挖坑\n2. 种树\n3. 浇水"),
    ("1. out\n   1. in\n   1. in\n   1. in\n2. out", "1. out\n   1. in\n   2. in\n   3. in\n2. out"),
]
WHOLE = [
    "1. a\n2. b\n3. c",
    "# A\n1. a\n\n# B\n1. b\n\n# C\n1. c",
    "**A**\n1. a\n\n**B:**\n1. b\n\n**C**\n1. c",
    "1. a\n   1. x\n2. b\n   1. y\n3. c\n   1. z",
    "- a\n  1. x\n- b\n  1. y\n- c\n  1. z",
    "1. one\n\nand\n\n1. one",
    "1. a\n1. b\n2. c",
    "```\n1. a\n1. b\n1. c\n```",
    "It weighs 1. something, or 1.5 kg, or 1. or 1.",
]


@pytest.mark.parametrize(("text", "after"), BROKEN)
def test_lists_of_ones_are_numbered_or_refused(text: str, after: str) -> None:
    assert said(rule("broken_list").apply(answer(text))) == after
    chat = talk("u Why is there a tide?", "a The moon.", "u Go on", f"a {text}")
    check_drop(rule("broken_list", action="drop_chat").apply(chat), "broken_list", r"turn 4 \(assistant\) numbers every item")
    assert turns(rule("broken_list", action="drop_round").apply(chat)) == ["u Why is there a tide?", "a The moon."]


@pytest.mark.parametrize("text", WHOLE)
def test_sound_lists_stay(text: str) -> None:
    for action in ("renumber", "drop_chat"):
        chat = answer(text)
        assert rule("broken_list", action=action).apply(chat) is chat


def test_two_ones_count_if_asked_and_questions_never() -> None:
    check_drop(rule("broken_list", items=2, action="drop_chat").apply(answer("1. a\n1. b")), "broken_list", "")
    chat = talk("u 1. a\n1. b\n1. c", "a Fine.")
    assert rule("broken_list").apply(chat) is chat


@pytest.mark.parametrize("start", ["```", "~~~", "`\n", "`\n- "])
def test_code_is_told_from_prose_in_one_pass(start: str) -> None:
    """Fences and blanks without end, of which each shorter one could be tried too."""
    for unit in "`~ ":
        assert len(without_code(start + unit * 200_000 + "x")) == len(start) + 200_001
