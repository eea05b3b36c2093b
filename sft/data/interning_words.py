"""Where words end: the rules of the pre-tokenisers, and the cuts that no merge crosses; compiled, so importing this imports numba.

Text is an array of code points, ``classes`` has the class of each code point.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sft.compiled import compiled

LETTER, NUMBER, BLANK, OTHER, UNKNOWN = 1, 2, 3, 4, 8
"""Classes of characters for the rules of words; a row with an UNKNOWN one is left to the tokenizer."""
JOINS_NEXT, JOINS_LAST = 1, 2
"""Classes for SentencePiece, to be added: some merge joins such a character to the one behind it, or to the one before it."""
NO_WORDS, GPT2, QWEN2 = 0, 1, 2
"""Rules; NO_WORDS is for SentencePiece, where only merges say what stays together."""
int64: Any = np.int64
EMPTY, MIX, HALF = np.uint64(0), np.uint64(0x9E3779B97F4A7C15), np.uint64(32)


@compiled
def place(keys: Any, key: np.uint64) -> int:
    """Where a key stands, or would stand, in a table of open addressing."""
    mask = keys.shape[0] - 1
    at = int64((key * MIX) >> HALF) & mask
    while keys[at] != EMPTY and keys[at] != key:
        at = (at + 1) & mask
    return at


@compiled
def _run(text: Any, i: int, end: int, classes: Any, kind: int) -> int:
    while i < end and classes[text[i]] == kind:
        i += 1
    return i


@compiled
def _contraction(text: Any, i: int, end: int, any_case: bool) -> int:
    """Characters of ``'s 't 'm 'd 're 've 'll`` at ``i``, or 0."""
    if text[i] != 39 or i + 1 >= end:
        return 0
    one = text[i + 1]
    two = text[i + 2] if i + 2 < end else 0
    if any_case:
        one = 115 if one == 0x17F else one  # the long s is an s in another case
        one = one + 32 if 65 <= one <= 90 else one
        two = two + 32 if 65 <= two <= 90 else two
    if one == 115 or one == 116 or one == 109 or one == 100:
        return 2
    if (one == 114 and two == 101) or (one == 118 and two == 101) or (one == 108 and two == 108):
        return 3
    return 0


@compiled
def _blanks(text: Any, i: int, end: int, classes: Any) -> int:
    r"""End of ``\s+(?!\S)|\s+`` at ``i``: a run of blanks leaves its last one to the word behind it."""
    stop = _run(text, i, end, classes, BLANK)
    return stop if stop == end or stop == i + 1 else stop - 1


@compiled
def _gpt2_word(text: Any, i: int, end: int, classes: Any) -> int:
    found = _contraction(text, i, end, False)
    if found:
        return i + found
    first = i + 1 if text[i] == 32 and i + 1 < end and classes[text[i + 1]] != BLANK else i
    kind = classes[text[first]]
    if kind == BLANK:
        return _blanks(text, i, end, classes)
    return _run(text, first + 1, end, classes, kind)


@compiled
def _qwen2_word(text: Any, i: int, end: int, classes: Any, digits: int) -> int:
    found = _contraction(text, i, end, True)
    if found:
        return i + found
    kind = classes[text[i]]
    if kind == LETTER:
        return _run(text, i + 1, end, classes, LETTER)
    if kind == NUMBER:
        return _run(text, i + 1, min(end, i + digits), classes, NUMBER)
    line = text[i] == 10 or text[i] == 13
    if not line and i + 1 < end and classes[text[i + 1]] == LETTER:
        return _run(text, i + 2, end, classes, LETTER)
    first = i + 1 if text[i] == 32 and i + 1 < end and classes[text[i + 1]] == OTHER else i
    if classes[text[first]] == OTHER:
        stop = _run(text, first + 1, end, classes, OTHER)
        while stop < end and (text[stop] == 10 or text[stop] == 13):
            stop += 1
        return stop
    stop = _run(text, i, end, classes, BLANK)
    for j in range(stop - 1, i - 1, -1):  # the run up to its last line break
        if text[j] == 10 or text[j] == 13:
            return j + 1
    return stop if stop == end or stop == i + 1 else stop - 1


@compiled
def _unjoined(text: Any, i: int, end: int, split: bool, classes: Any, ascii_joins: Any, joins: Any) -> int:
    """The first place behind ``i`` where no merge can join the two sides."""
    before = text[i]
    i += 1
    while i < end:
        char = text[i]
        if split and char == 32:
            return i
        if before < 128 and char < 128:
            joined = ascii_joins[before, char]
        elif classes[before] & JOINS_NEXT and classes[char] & JOINS_LAST:
            joined = joins[place(joins, np.uint64(before) << HALF | np.uint64(char))] != EMPTY
        else:
            joined = False
        if not joined:
            return i
        before = char
        i += 1
    return i


@compiled
def _gpt2_digit_word(text: Any, i: int, end: int, classes: Any) -> int:
    """Each digit is a word, and the rule is applied to what stands between digits."""
    if classes[text[i]] == NUMBER:
        return i + 1
    stop = i
    while stop < end and classes[text[stop]] != NUMBER:
        stop += 1
    return _gpt2_word(text, i, stop, classes)


@compiled
def word_end(text: Any, i: int, end: int, how: Any, classes: Any, ascii_joins: Any, joins: Any) -> int:
    """Where the word that begins at ``i`` ends.

    Args:
        end: of the text.
        how: the rule, the longest run of digits (GPT2: whether each is a word), and whether every space begins a word.
        ascii_joins: bool[128, 128]: characters that a merge may join.
        joins: the other pairs of such characters, a table (:func:`place`) of ``first << 32 | second``.
    """
    if how[0] == NO_WORDS:
        return _unjoined(text, i, end, how[2] != 0, classes, ascii_joins, joins)
    if how[0] == QWEN2:
        return _qwen2_word(text, i, end, classes, how[1])
    if how[1]:
        return _gpt2_digit_word(text, i, end, classes)
    return _gpt2_word(text, i, end, classes)
