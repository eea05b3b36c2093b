"""Tokens and lengths: rouge_score's tokens on ASCII, sensible ones for every other script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import tokenize

from sft.text.tokens import length, normal, tokens


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_tokens_are_those_of_rouge_score(text: str) -> None:
    assert tokens(text) == tokenize.tokenize(text, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Écris un poème à l'été.", ["écris", "un", "poème", "à", "l", "été"]),
        ("用3个词描述Python编程", ["用", "3", "个", "词", "描", "述", "python", "编", "程"]),
        ("きょうはAIです。", ["き", "ょ", "う", "は", "ai", "で", "す"]),
        ("파이썬 3", ["파", "이", "썬", "3"]),
        ("ＡＢＣ １２３", ["abc", "123"]),
        ("cafe\u0301 snake_case x²", ["café", "snake", "case", "x2"]),
        ("Привет, мир", ["привет", "мир"]),
        ("《红楼梦》、—…！？“”", ["红", "楼", "梦"]),
        ("🎉 --- !!", []),
    ],
)
def test_tokens_of_other_scripts(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@given(st.text())
def test_a_space_between_tokens_changes_nothing(text: str) -> None:
    found = tokens(text)
    assert tokens(" ".join(found)) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Name the capital.", (3, "words")),
        ("翻译成英文。", (6, "characters")),
        ("用Python写一个排序函数", (9, "characters")),
        ("Translate 你好 into English, please, and explain every word", (9, "words")),
        ("", (0, "words")),
    ],
)
def test_length_has_the_unit_of_the_script(text: str, expected: tuple[int, str]) -> None:
    assert length(text) == expected


def test_normal_forms() -> None:
    assert normal("  It\u2019s  ＯＫ\n now ") == normal("it's ok NOW") == "it's ok now"
