"""Two texts side by side: nothing invented, nothing lost, differences marked by words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.curate.results.worddiff import diff


@pytest.mark.parametrize(
    ("before", "after", "left", "right"),
    [
        (
            "use <b>foo</b> now",
            "use **foo** now",
            [("use ", False), ("<b>", True), ("foo", False), ("</b>", True), (" now", False)],
            [("use ", False), ("**", True), ("foo", False), ("**", True), (" now", False)],
        ),
        (
            "春天来了",
            "春天走了",
            [("春天", False), ("来", True), ("了", False)],
            [("春天", False), ("走", True), ("了", False)],
        ),
        ("call 13812345678", "call [PHONE]", [("call ", False), ("13812345678", True)], [("call ", False), ("[PHONE]", True)]),
        ("same", "same", [("same", False)], [("same", False)]),
        ("gone", "", [("gone", True)], []),
        ("", "come", [], [("come", True)]),
        ("a < b", "a < c", [("a < ", False), ("b", True)], [("a < ", False), ("c", True)]),
    ],
)
def test_words_are_marked(before: str, after: str, left: list[tuple[str, bool]], right: list[tuple[str, bool]]) -> None:
    assert diff(before, after) == (left, right)


TEXT = st.text(st.sampled_from("ab <>/\n你好é_1."), max_size=80)


@given(TEXT, TEXT)
def test_both_texts_are_whole_and_agree_outside_the_marks(before: str, after: str) -> None:
    left, right = diff(before, after)
    assert "".join(text for text, _ in left) == before
    assert "".join(text for text, _ in right) == after
    assert [text for text, marked in left if not marked] == [text for text, marked in right if not marked]


def test_long_equal_stretches_are_cut_on_both_sides() -> None:
    around = "word " * 200
    left, right = diff(around + "old " + around, around + "new " + around)
    assert [text for text, marked in left if marked] == ["old"]
    assert [text for text, marked in right if marked] == ["new"]
    assert len("".join(text for text, _ in left)) < 400
    assert left[0][0].startswith(" […] ")
    assert left[-1][0].endswith(" […] ")


def test_what_a_beginning_has_behind_the_other_is_not_called_a_change() -> None:
    assert diff("<p>one two", "one two three", whole=False) == (
        [("<p>", True), ("one two […] ", False)],
        [("one two […] ", False)],
    )
    assert diff("<p>one two", "one two three")[1] == [("one two", False), (" three", True)]


def test_texts_of_any_length_take_bounded_time() -> None:
    left, right = diff("a b c d " * 50_000, "b c d a " * 50_000)
    assert len("".join(text for text, _ in left + right)) < 10_000
