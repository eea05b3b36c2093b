"""Signatures that estimate how much of two texts is the same, and who of many belongs together; compiled on the first call.

A message is cut into tokens (lower-case words; single characters of scripts without spaces between words, as Chinese, Japanese and
Thai), and every ``size`` tokens in a row are a shingle::

    "Read it: 读两遍"  ->  read it 读 两 遍  ->  {read it, it 读, 读 两, 两 遍}                    size = 2

Two texts are as similar as the share of shingles that they have in common (Jaccard: common ones through all). For each of P orders of
all shingles a signature keeps the first shingle of the text, shortened to 16 bits; so the share of equal marks in two signatures
estimates the similarity, with a standard error of sqrt(s (1 - s) / P): 0.035 at 0.8 with 128 (Broder 1997, "On the resemblance and
containment of documents"). Shingles never run over the end of a message, and the role is part of them.

numba's cache does not see that a function of another file has changed; everything compiled is therefore in this one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sft.compiled import compiled

Marks = npt.NDArray[np.uint16]
Rows = npt.NDArray[np.int64]

_SPACELESS = (
    *((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3031, 0x3035), (0x3038, 0x303B)),  # radicals, marks
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)),  # Han
    *((0x3041, 0x30FF), (0x31F0, 0x31FF), (0x3105, 0x312F), (0x31A0, 0x31BF)),  # kana, bopomofo
    *((0x1100, 0x11FF), (0x3131, 0x318E), (0xAC00, 0xD7A3)),  # hangul
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17DD)),  # Thai, Lao, Burmese, Khmer
)
_KNOWN, _HAN_END = 0x20000, 0x40000  # code points with an entry in the table; from there to the second all are Han
_GAP, _WORD, _SINGLE = 0, 1, 2
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FNV = np.uint64(0x100000001B3)
_MIX_A, _MIX_B = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_HALF = np.uint64(33)
_MOST_MISSED = 1e-3  # share of the pairs exactly at the threshold that no band may show
int64: Any = np.int64


@lru_cache(maxsize=2)
def _classes(unit: Literal["words", "characters"]) -> npt.NDArray[np.uint8]:
    """What each code point is: 0 between tokens, 1 part of a word, 2 a token by itself. Letters, digits and their marks are not 0."""
    table = np.zeros(_KNOWN, np.uint8)
    categories = [unicodedata.category(chr(code))[0] for code in range(_KNOWN)]
    table[np.isin(categories, list("LNM"))] = _WORD if unit == "words" else _SINGLE
    for first, last in _SPACELESS:
        part = table[first : last + 1]
        part[part == _WORD] = _SINGLE
    return table


@lru_cache(maxsize=4)
def _orders(permutations: int) -> npt.NDArray[np.uint32]:
    """``[2, P]``: h -> a * h + b modulo 2**32 with an odd a, one for each order of the shingles."""
    dice = np.random.Generator(np.random.PCG64([20_231_116, permutations]))
    drawn = dice.integers(0, 1 << 32, (2, permutations), dtype=np.uint32)
    drawn[0] |= np.uint32(1)
    return drawn


@compiled
def _mixed(value: np.uint64) -> np.uint64:
    """MurmurHash3's finaliser: every bit of the result depends on every bit of the value."""
    value = (value ^ (value >> _HALF)) * _MIX_A
    value = (value ^ (value >> _HALF)) * _MIX_B
    return value ^ (value >> _HALF)


@compiled
def _kind(code: int, classes: Any, visible: bool) -> int:
    """Gap, part of a word or a token by itself; with ``visible`` whatever can be seen is a token."""
    if visible:
        return _SINGLE if code > 32 else _GAP
    if code >= _KNOWN:
        return _SINGLE if code < _HAN_END else _GAP
    return int64(classes[code])


@compiled
def _tokenise(codes: Any, low: int, high: int, classes: Any, visible: bool, tokens: Any) -> int:
    """Hashes of the tokens of ``codes[low:high]`` into ``tokens``; how many."""
    found, i = 0, low
    while i < high:
        code = codes[i]
        kind = _kind(code, classes, visible)
        i += 1
        if kind == _GAP:
            continue
        value = (np.uint64(code) + np.uint64(1)) * _FNV
        while kind == _WORD and i < high and codes[i] < _KNOWN and classes[codes[i]] == _WORD:
            value = (value ^ np.uint64(codes[i])) * _FNV
            i += 1
        tokens[found] = _mixed(value)
        found += 1
    return found


@compiled
def _shingle(codes: Any, ends: Any, roles: Any, classes: Any, size: int) -> Any:
    """Hashes of all shingles, repeated ones too; a message with fewer than ``size`` tokens is one shingle."""
    tokens = np.empty(codes.shape[0], np.uint64)
    shingles = np.empty(codes.shape[0], np.uint32)
    count, low = 0, 0
    for message in range(ends.shape[0]):
        high = ends[message]
        found = _tokenise(codes, low, high, classes, False, tokens)
        if found == 0:  # an answer of an emoji, or of "=" alone, must still count
            found = _tokenise(codes, low, high, classes, True, tokens)
        low = high
        width = min(size, found)
        for first in range(found - width + 1 if width > 0 else 0):
            value = np.uint64(roles[message])
            for i in range(first, first + width):
                value = value * _GOLDEN + tokens[i]
            shingles[count] = np.uint32(_mixed(value) >> np.uint64(32))
            count += 1
    return shingles[:count]


@compiled
def _least(shingles: Any, orders: Any) -> Any:
    """The least value of every order over the shingles."""
    least = np.full(orders.shape[1], 0xFFFFFFFF, np.uint32)
    a, b = orders[0], orders[1]
    for shingle in shingles:
        for k in range(least.shape[0]):
            least[k] = min(least[k], np.uint32(a[k] * shingle + b[k]))
    return least


def marks(
    messages: Sequence[tuple[int, str]], unit: Literal["words", "characters"], size: int, permutations: int
) -> Marks | None:
    """The signature of some messages, ``(number of the role, text)`` each.

    Returns:
        ``[P]`` marks, the same in every process; None where nothing is visible in any text.
    """
    texts = [text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower() for _, text in messages]
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    roles = np.array([role for role, _ in messages], np.uint8)
    found = _shingle(codes, ends, roles, _classes(unit), size)
    if len(found) == 0:
        return None
    return _least(found, _orders(permutations)).astype(np.uint16)  # the low bits: the high ones of a least value are zeros


def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """``(bands, marks in a band)``: pairs that are equal in all marks of a band are compared in full.

    Bands are as wide as they can be while at most 1 pair in 1,000 at the threshold is equal in none: 25 of 5 at 0.8 with 128.
    """
    fitting = [w for w in range(1, permutations + 1) if (1 - threshold**w) ** (permutations // w) <= _MOST_MISSED]
    width = max(fitting, default=1)
    return permutations // width, width


@compiled
def _band_keys(table: Any, rows: Any, low: int, high: int, keys: Any) -> None:
    """One number for the marks ``low`` to ``high`` of each row."""
    for i in range(rows.shape[0]):
        value = np.uint64(0)
        for k in range(low, high):
            value = (value ^ np.uint64(table[rows[i], k])) * _FNV
        keys[i] = _mixed(value)


@compiled
def _root(parent: Any, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled
def _equal(table: Any, one: int, other: int) -> int:
    """Marks that two rows have in common."""
    equal = 0
    for k in range(table.shape[1]):
        equal += int64(table[one, k] == table[other, k])
    return equal


@compiled
def _join(order: Any, keys: Any, table: Any, rows: Any, need: int, parent: Any, heads: Any, following: Any, tails: Any) -> None:
    """Unite all rows with equal keys that have ``need`` marks in common; ``order`` sorts the keys.

    The rows of one key are kept in lists of those already united (``heads``, ``following``, ``tails``), so that a row is compared with
    one list only until it fits: many copies of one text cost one comparison each.
    """
    start, n = 0, order.shape[0]
    while start < n:
        stop = start + 1
        while stop < n and keys[order[stop]] == keys[order[start]]:
            stop += 1
        lists = 0
        for at in range(start, stop if stop - start > 1 else start):
            node = order[at]
            following[node] = -1
            home, i = -1, 0
            while i < lists:
                other = heads[i]
                fits = _root(parent, node) == _root(parent, other)
                while not fits and other >= 0:
                    fits = _equal(table, rows[node], rows[other]) >= need
                    other = following[other]
                if not fits:
                    i += 1
                    continue
                parent[_root(parent, node)] = _root(parent, heads[i])
                if home < 0:
                    home = i
                    following[tails[i]] = node
                    tails[i] = node
                    i += 1
                else:  # it links two lists
                    following[tails[home]] = heads[i]
                    tails[home] = tails[i]
                    lists -= 1
                    heads[i], tails[i] = heads[lists], tails[lists]
            if home < 0:
                heads[lists], tails[lists] = node, node
                lists += 1
        start = stop


@compiled
def _split(order: Any, groups: Any, table: Any, rows: Any, need: int, kept: Any, following: Any) -> None:
    """Inside each group, first come first kept: who is like one that is kept is left out for the first such."""
    start, n = 0, order.shape[0]
    while start < n:
        first = last = order[start]
        kept[first], following[first] = first, -1
        stop = start + 1
        while stop < n and groups[order[stop]] == groups[first]:
            node, other = order[stop], first
            while other >= 0 and _equal(table, rows[node], rows[other]) < need:
                other = following[other]
            kept[node] = node if other < 0 else other
            if other < 0:
                following[last], following[node] = node, -1
                last = node
            stop += 1
        start = stop


def components(table: Marks, rows: Rows, threshold: float) -> Rows:
    """Which rows hang together through pairs whose estimated similarity reaches the threshold.

    Args:
        table: ``[n, P]`` marks.
        rows: those to look at.
        threshold: share of equal marks.

    Returns:
        For each of ``rows`` a number: equal for two rows iff a chain of such pairs, each found by a band, joins them. Memory beyond the
        arguments: 48 bytes per row.
    """
    count = len(rows)
    parent, keys = np.arange(count), np.empty(count, np.uint64)
    heads, following, tails = (np.empty(count, np.int64) for _ in range(3))
    number, width = bands(threshold, table.shape[1])
    for band in range(number):
        _band_keys(table, rows, band * width, (band + 1) * width, keys)
        _join(np.argsort(keys), keys, table, rows, _need(threshold, table), parent, heads, following, tails)
    while True:  # every node straight to its root
        above = parent[parent]
        if np.array_equal(above, parent):
            return parent
        parent = above


def nearest_kept(table: Marks, rows: Rows, threshold: float) -> Rows:
    """Who stays for whom, if each row stays unless one before it that stays is as similar as the threshold.

    Args:
        table, threshold: as for :func:`components`.
        rows: the best first.

    Returns:
        For each of ``rows`` the place in ``rows`` of the one that stays for it: its own, or that of the first similar one. Only rows
        of one component are compared, but there every row with every one that stays.
    """
    groups = components(table, rows, threshold)
    kept, following = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    _split(np.argsort(groups, kind="stable"), groups, table, rows, _need(threshold, table), kept, following)
    return kept


def _need(threshold: float, table: Marks) -> int:
    """Equal marks that a pair at the threshold has."""
    return int(np.ceil(threshold * table.shape[1] - 1e-9))
