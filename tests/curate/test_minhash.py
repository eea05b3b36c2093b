"""Signatures against a plain reimplementation, and components against all pairs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.curate import minhash
from sft.curate.minhash import bands, components, marks, nearest_kept

_M64, _M32 = (1 << 64) - 1, (1 << 32) - 1
_SINGLES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\u0e00-\u0e7f"
_TOKEN = re.compile(rf"[{_SINGLES}]|(?:(?![{_SINGLES}_])\w)+")


def _mixed(value: int) -> int:
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & _M64
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & _M64
    return value ^ value >> 33


def _token(text: str) -> int:
    value = (ord(text[0]) + 1) * 0x100000001B3 & _M64
    for character in text[1:]:
        value = (value ^ ord(character)) * 0x100000001B3 & _M64
    return _mixed(value)


def shingles(messages: Sequence[tuple[int, str]], size: int) -> set[int]:
    """The shingles of some messages, in plain Python."""
    found = set()
    for role, text in messages:
        text = unicodedata.normalize("NFKC", text).lower()
        tokens = _TOKEN.findall(text) or [character for character in text if ord(character) > 32]
        width = min(size, len(tokens))
        for first in range(len(tokens) - width + 1 if tokens else 0):
            value = role
            for token in tokens[first : first + width]:
                value = (value * 0x9E3779B97F4A7C15 + _token(token)) & _M64
            found.add(_mixed(value) >> 32)
    return found


_TEXTS = st.text(st.sampled_from("abcXYZ 01_-.\n中文字か한ไท Éß😀=ａ１，"), max_size=40)
_MESSAGES = st.lists(st.tuples(st.integers(1, 3), _TEXTS), max_size=5)


@given(_MESSAGES, st.integers(1, 4))
def test_marks_are_the_least_values_over_the_shingles(messages: list[tuple[int, str]], size: int) -> None:
    wanted = shingles(messages, size)
    found = marks(messages, "words", size, 16)
    if not wanted:
        assert found is None
        return
    a, b = minhash._orders(16).tolist()
    assert found is not None
    assert found.tolist() == [min((a[k] * shingle + b[k]) & _M32 for shingle in wanted) & 0xFFFF for k in range(16)]


def test_marks_are_the_same_on_every_machine() -> None:
    found = marks([(1, "Read it: 读两遍"), (2, "Twice.")], "words", 2, 128)
    assert found is not None
    assert found.dtype == np.uint16
    assert found[:6].tolist() == [8395, 64993, 463, 54808, 35287, 40732]


def _similarity(one: str, other: str, unit: Literal["words", "characters"] = "words", size: int = 2) -> float:
    left, right = marks([(1, one)], unit, size, 256), marks([(1, other)], unit, size, 256)
    assert left is not None
    assert right is not None
    return float((left == right).mean())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Read it TWICE, please!", "read it - twice; please"),
        ("请把这本书读两遍。", "请 把 这 本 书 读 两 遍"),
        ("ＡＢＣ１２３", "abc123"),
        ("Cafe\u0301 au lait", "Café au lait"),
        ("हिन्दी में", "हिन्दी  में।"),
    ],
)
def test_case_width_spaces_and_punctuation_do_not_matter(one: str, other: str) -> None:
    assert _similarity(one, other) == 1.0


def test_chinese_is_cut_into_characters() -> None:
    text = "".join(chr(0x4E00 + 7 * i) for i in range(300))
    edited = text[:150] + "龘" + text[151:]  # 2 of 299 pairs lost, 2 new ones: 297 / 301
    assert abs(_similarity(text, edited) - 297 / 301) < 0.02


def test_a_message_of_symbols_counts_by_what_is_seen() -> None:
    assert _similarity("😀", "😀 ") == 1.0
    assert _similarity("😀", "😡") == 0.0
    assert marks([(1, " \n\t"), (2, "")], "words", 2, 16) is None
    assert marks([], "words", 2, 16) is None


def test_the_role_and_the_end_of_a_message_are_part_of_a_shingle() -> None:
    one = marks([(1, "red blue"), (2, "green")], "words", 2, 128)
    for other, exact in (
        ([(2, "red blue"), (1, "green")], 0),
        ([(1, "red"), (2, "blue green")], 0),
        ([(1, "red blue green")], 1 / 3),
    ):
        found = marks(other, "words", 2, 128)
        assert found is not None
        assert abs(float((found == one).mean()) - exact) < (0.15 if exact else 1e-9)


def test_characters_as_shingles_see_a_part_of_a_word() -> None:
    assert _similarity("internationalisation", "internationalization") == 0.0  # one word each
    assert _similarity("internationalisation", "internationalization", "characters", 5) > 0.3
    assert _similarity("a b-c d.e", "abcde", "characters", 5) == 1.0


def test_half_a_character_is_a_character() -> None:
    assert _similarity("a \ud83d b", "a \ud83d b") == 1.0


def test_similarity_is_estimated_within_its_error() -> None:
    dice = np.random.default_rng(1)
    words = [f"w{number}" for number in range(4000)]
    for share in (0.1, 0.5, 0.8, 0.95):
        errors = []
        for _ in range(30):
            drawn = dice.permutation(words)[:400].tolist()
            common = round(share * 400)
            one, other = drawn[:common] + drawn[common:][::2], drawn[:common] + drawn[common:][1::2]
            exact = len(set(one) & set(other)) / len(set(one) | set(other))
            errors.append(_similarity(" ".join(one), " ".join(other), size=1) - exact)
        bound = (share * (1 - share) / 256) ** 0.5
        assert abs(float(np.mean(errors))) < 4 * bound / 30**0.5
        assert max(map(abs, errors)) < 4 * bound


@pytest.mark.parametrize(
    ("threshold", "permutations", "wanted"),
    [(0.8, 128, (25, 5)), (0.5, 128, (64, 2)), (0.9, 256, (21, 12)), (1.0, 64, (1, 64)), (0.5, 16, (16, 1))],
)
def test_bands_show_nearly_all_pairs_at_the_threshold(threshold: float, permutations: int, wanted: tuple[int, int]) -> None:
    number, width = bands(threshold, permutations)
    assert (number, width) == wanted
    assert number * width <= permutations
    assert width == 1 or (1 - threshold**width) ** number <= 1e-3


def _family(dice: np.random.Generator, rows: int, permutations: int) -> npt.NDArray[np.uint16]:
    """Marks of a few families, whose members differ from their parent in a random share."""
    table = dice.integers(0, 1 << 16, (rows, permutations), dtype=np.uint16)
    for row in range(rows):
        parent = int(dice.integers(0, row + 1))
        same = dice.random(permutations) < dice.choice([0.0, 0.7, 0.8, 0.85, 0.95, 1.0])
        table[row] = np.where(same, table[parent], table[row])
    return table


def _shown(table: npt.NDArray[np.uint16], one: int, other: int, threshold: float) -> bool:
    number, width = bands(threshold, table.shape[1])
    equal = table[one] == table[other]
    return any(equal[band * width : (band + 1) * width].all() for band in range(number)) and equal.mean() >= threshold


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 40), st.sampled_from([0.5, 0.8, 0.9]))
def test_components_are_those_of_all_pairs(seed: int, count: int, threshold: float) -> None:
    dice = np.random.default_rng(seed)
    table = _family(dice, count + 3, 32)
    rows = dice.permutation(count + 3)[:count]
    wanted = list(range(count))
    for one, other in combinations(range(count), 2):
        if _shown(table, rows[one], rows[other], threshold):
            wanted = [wanted[one] if group == wanted[other] else group for group in wanted]
    found = components(table, rows, threshold).tolist()
    assert [[x == y for x in found] for y in found] == [[x == y for x in wanted] for y in wanted]


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 40))
def test_each_row_stays_unless_one_that_stays_is_like_it(seed: int, count: int) -> None:
    table = _family(np.random.default_rng(seed), count, 32)
    rows = np.arange(count)
    groups, kept = components(table, rows, 0.8), nearest_kept(table, rows, 0.8)
    for row in range(count):
        like = [
            other
            for other in range(row)
            if kept[other] == other and groups[other] == groups[row] and (table[other] == table[row]).mean() >= 0.8
        ]
        assert kept[row] == (like[0] if like else row)


def test_many_copies_of_one_text_do_not_cost_all_pairs() -> None:
    table = np.tile(np.arange(128, dtype=np.uint16), (50_000, 1))  # in each of 25 bands 1.2e9 pairs: minutes
    assert len(set(components(table, np.arange(50_000), 0.8).tolist())) == 1
    assert set(nearest_kept(table, np.arange(50_000), 0.8).tolist()) == {0}
