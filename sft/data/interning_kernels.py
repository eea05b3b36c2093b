"""The loops of :mod:`sft.data.interning`, compiled on the first call; importing this imports numba.

numba's cache does not see that a function of another file has changed: after a change in ``interning_words``, touch this file.

Text is an array of code points. One word after the other is cut off it, looked up, and its tokens are copied::

    text      U S E R :   H i          a space may be put in front of it (lead)
    words     |U S E R|:|  H i|        cut where no merge can join the two sides, or by the rule of the pre-tokeniser
    memory    hash -> word: its characters (compared), its ids, and the characters that each id covers
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sft.compiled import compiled
from sft.data.interning_words import EMPTY, HALF, MIX, UNKNOWN, int64, place, word_end

NEVER, ALWAYS, MISSING, FIRST = 0, 1, 2, 3
FIRST_SPECIAL = 0x100000
LONGEST = 1 << 10
"""Symbols of one word; the time of merging grows with the square. A row with a longer word is left to the tokenizer."""
_NONE = np.int64(0x7FFFFFFFFFFFFFFF)
_ONE, _SHIFT = np.uint64(1), np.uint64(29)
_LOWER = np.uint64(0xFFFFFFFF)


class Rules(NamedTuple):
    """A vocabulary as arrays, never written to.

    Attributes:
        how: int64[4]: the three of :func:`~sft.data.interning_words.word_end`, and the rule for the space in front.
        classes: uint8[0x110000] by code point.
        letters: int32[0x110000]: the id of a character, -1 for its bytes.
        byte_ids: int32[256].
        specials: int32[k]: id of the stand-in ``FIRST_SPECIAL + i``, or -1.
        ascii_joins: bool[128, 128]: characters that a merge may join.
        joins: uint64[2^n], open addressing: the other such pairs, ``first << 32 | second``, 0 for none.
        pairs: uint64[2^n], open addressing: ``left id << 32 | right id``, plus 1.
        merged: int64[2^n]: ``rank << 32 | joined id`` of the pair in the same place.
    """

    how: Any
    classes: Any
    letters: Any
    byte_ids: Any
    specials: Any
    ascii_joins: Any
    joins: Any
    pairs: Any
    merged: Any


class Memory(NamedTuple):
    """The words seen so far.

    Attributes:
        slots: uint64[2^n], open addressing: upper half of a word's hash, lower half where its record begins; 0 for none.
        records: int32[...], from 1 on: per word its characters' count, its tokens' count, the characters, and for each token its id,
            the first character that it covers, and the one behind the last.
        used: int64[2]: words, and where the next record begins.
    """

    slots: Any
    records: Any
    used: Any


@compiled
def most(chars: int) -> tuple[int, int]:
    """Words, and entries of records, that a row of so many characters may need at most."""
    return 2 * chars, 2 * (2 * chars) + 2 * chars + 3 * 5 * chars


@compiled
def fill(keys: Any, values: Any, new_keys: Any, new_values: Any) -> None:
    """Enter pairs into a table; a later value replaces an earlier one."""
    for i in range(new_keys.shape[0]):
        at = place(keys, new_keys[i])
        keys[at], values[at] = new_keys[i], new_values[i]


@compiled
def _symbols(text: Any, i: int, end: int, letters: Any, byte_ids: Any, ids: Any, froms: Any, tos: Any) -> int:
    """The tokens of single characters or bytes of ``text[i:end]`` with what they cover; their count, -1 if there are too many."""
    count = 0
    for j in range(i, end):
        if count + 4 > LONGEST:
            return -1
        char = int64(text[j])
        begin = count
        if letters[char] >= 0:
            ids[count] = letters[char]
        elif char < 0x80:
            ids[count] = byte_ids[char]
        else:
            if char < 0x800:
                ids[count] = byte_ids[0xC0 | char >> 6]
            else:
                if char < 0x10000:
                    ids[count] = byte_ids[0xE0 | char >> 12]
                else:
                    ids[count] = byte_ids[0xF0 | char >> 18]
                    count += 1
                    ids[count] = byte_ids[0x80 | (char >> 12 & 0x3F)]
                count += 1
                ids[count] = byte_ids[0x80 | (char >> 6 & 0x3F)]
            count += 1
            ids[count] = byte_ids[0x80 | (char & 0x3F)]
        count += 1
        for k in range(begin, count):
            froms[k], tos[k] = j - i, j - i + 1
    return count


@compiled
def _merge_of(pairs: Any, merged: Any, left: int, right: int) -> int:
    key = (np.uint64(left) << HALF | np.uint64(right)) + _ONE
    at = place(pairs, key)
    return int64(merged[at] if pairs[at] == key else _NONE)


@compiled
def _merge(ids: Any, froms: Any, tos: Any, found: Any, count: int, pairs: Any, merged: Any) -> int:
    """Merge in place, always the pair of lowest rank, the leftmost of equal ones; the tokens that are left."""
    for k in range(count - 1):
        found[k] = _merge_of(pairs, merged, ids[k], ids[k + 1])
    while count > 1:
        best = 0
        for k in range(1, count - 1):
            if found[k] >> 32 < found[best] >> 32:
                best = k
        if found[best] == _NONE:
            break
        ids[best], tos[best] = found[best] & 0xFFFFFFFF, tos[best + 1]
        count -= 1
        for k in range(best + 1, count):
            ids[k], froms[k], tos[k], found[k] = ids[k + 1], froms[k + 1], tos[k + 1], found[k + 1]
        if best > 0:
            found[best - 1] = _merge_of(pairs, merged, ids[best - 1], ids[best])
        if best < count - 1:
            found[best] = _merge_of(pairs, merged, ids[best], ids[best + 1])
    return count


@compiled
def _hash(text: Any, i: int, end: int) -> np.uint64:
    value = np.uint64(end - i)
    for j in range(i, end):
        value = (value ^ np.uint64(text[j])) * MIX
        value ^= value >> _SHIFT
    return value


@compiled
def _find(text: Any, i: int, end: int, value: np.uint64, slots: Any, records: Any) -> int:
    """Where the record of the word ``text[i:end]`` begins, or ``-1 - slot`` where it would be entered."""
    mask = slots.shape[0] - 1
    at = int64(value) & mask
    while slots[at] != EMPTY:
        if (slots[at] ^ value) >> HALF == EMPTY:
            record = int64(slots[at] & _LOWER)
            if records[record] == end - i:
                shift = record + 2 - i
                j = i
                while j < end and records[shift + j] == text[j]:
                    j += 1
                if j == end:
                    return record
        at = (at + 1) & mask
    return -1 - at


@compiled
def _enter(text: Any, i: int, end: int, value: np.uint64, at: int, memory: Any, work: Any, count: int) -> int:
    """Remember a word with its tokens; its record."""
    slots, records, used = memory
    record = used[1]
    slots[at] = (value & ~_LOWER) | np.uint64(record)
    records[record], records[record + 1] = end - i, count
    record += 2
    for j in range(i, end):
        records[record] = text[j]
        record += 1
    for k in range(count):
        records[record], records[record + 1], records[record + 2] = work[0, k], work[1, k], work[2, k]
        record += 3
    record, used[0], used[1] = used[1], used[0] + 1, record
    return record


@compiled
def rehash(memory: Any, slots: Any) -> None:
    """Enter all words into empty slots."""
    _, records, used = memory
    mask = slots.shape[0] - 1
    record = 1
    while record < used[1]:
        first = record + 2
        value = _hash(records, first, first + records[record])
        at = int64(value) & mask
        while slots[at] != EMPTY:
            at = (at + 1) & mask
        slots[at] = (value & ~_LOWER) | np.uint64(record)
        record = first + records[record] + 3 * records[record + 1]


@compiled
def learn(text: Any, ends: Any, ids: Any, memory: Any) -> None:
    """Enter words that are one token each, whatever the merges say."""
    slots, records, _ = memory
    work = np.zeros((3, 1), np.int64)
    begin = 0
    for w in range(ends.shape[0]):
        value = _hash(text, begin, ends[w])
        found = _find(text, begin, ends[w], value, slots, records)
        if found < 0:
            work[0, 0], work[2, 0] = ids[w], ends[w] - begin
            _enter(text, begin, ends[w], value, -1 - found, memory, work, 1)
        begin = ends[w]


@compiled
def _segment(text: Any, lead: int, base: int, end: int, rules: Any, memory: Any, work: Any, out: Any, count: int) -> int:
    """Tokens of ``text[:end]``, which holds no special token; the new count, or -1 for a word that is too long.

    Args:
        text: its first ``lead`` characters are not in the row: they belong to the row's first.
        base: where the rest of it stands in the row.
    """
    how, classes, letters, byte_ids, _, ascii_joins, joins, pairs, merged = rules
    slots, records, _ = memory
    i = 0
    while i < end:
        stop = word_end(text, i, end, how, classes, ascii_joins, joins)
        char = int64(text[i])
        if stop == i + 1 and i >= lead and (letters[char] >= 0 or char < 0x80):  # nothing to merge
            out[count, 0] = letters[char] if letters[char] >= 0 else byte_ids[char]
            out[count, 1], out[count, 2] = base + i - lead, base + i - lead + 1
            count, i = count + 1, stop
            continue
        value = _hash(text, i, stop)
        record = _find(text, i, stop, value, slots, records)
        if record < 0:
            many = _symbols(text, i, stop, letters, byte_ids, work[0], work[1], work[2])
            if many < 0:
                return -1
            many = _merge(work[0], work[1], work[2], work[3], many, pairs, merged)
            record = _enter(text, i, stop, value, -1 - record, memory, work, many)
        shift = base + i - lead
        first = record + 2 + records[record]
        for k in range(first, first + 3 * records[record + 1], 3):
            out[count, 0] = records[k]
            out[count, 1] = max(records[k + 1] + shift, base)
            out[count, 2] = max(records[k + 2] + shift, base + 1)
            count += 1
        i = stop
    return count


@compiled
def encode(text: Any, ends: Any, rules: Any, memory: Any, segment: Any, out: Any, out_ends: Any, whole: Any, first: int) -> int:
    """Encode rows, from ``first`` on until one may need more memory than there is; the row that comes next.

    Args:
        text: code points of all rows.
        ends: int64[rows]: where each row ends in it.
        segment: uint32[longest row + 1], to work in.
        out: int32[5 * characters + rows, 3]: becomes id, first character of the row, and the one behind the last.
        out_ends: int64[rows]: becomes where each row ends in ``out``.
        whole: bool[rows]: becomes False for a row that is left to the tokenizer.
    """
    work = np.empty((4, LONGEST), np.int64)
    begin, kept = (ends[first - 1], out_ends[first - 1]) if first else (0, 0)
    for r in range(first, ends.shape[0]):
        i, end, count = begin, ends[r], kept
        words, records = most(end - i)
        if 2 * (memory.used[0] + words) > memory.slots.shape[0] or memory.used[1] + records > memory.records.shape[0]:
            return r
        while i < end and count >= 0:
            if text[i] >= FIRST_SPECIAL:
                special = int64(text[i]) - FIRST_SPECIAL
                known = special < rules.specials.shape[0] and rules.specials[special] >= 0
                if known:
                    out[count, 0], out[count, 1], out[count, 2] = rules.specials[special], i - begin, i - begin + 1
                i, count = i + 1, count + 1 if known else -1
                continue
            scheme, lead = rules.how[3], 0
            if scheme == ALWAYS or (text[i] != 32 and (scheme == MISSING or (scheme == FIRST and i == begin))):
                segment[0], lead = 32, 1
            stop, size = i, lead
            while stop < end and text[stop] < FIRST_SPECIAL and rules.classes[text[stop]] != UNKNOWN:
                segment[size] = text[stop]
                stop, size = stop + 1, size + 1
            if stop < end and text[stop] < FIRST_SPECIAL:
                count = -1
            else:
                count = _segment(segment, lead, i - begin, size, rules, memory, work, out, count)
            i = stop
        whole[r] = count >= 0
        kept = max(count, kept)
        out_ends[r] = kept
        begin = end
    return ends.shape[0]


@compiled
def locate(starts: Any, ends: Any, row_ends: Any, edges: Any, counts: Any) -> Any:
    """For each edge the token of its row that begins there, or the row's count of tokens at its end, or -1 if it is inside a token.

    Args:
        starts, ends: what tokens cover, rows one behind the other.
        row_ends: where each row ends in them.
        edges: positions in rows, ``counts`` for each.
    """
    found = np.empty(edges.shape[0], np.int64)
    begin, edge = 0, 0
    for r in range(row_ends.shape[0]):
        stop = row_ends[r]
        for _ in range(counts[r]):
            low, high = begin, stop
            while low < high:
                middle = (low + high) >> 1
                if starts[middle] < edges[edge]:
                    low = middle + 1
                else:
                    high = middle
            inside = (low > begin and ends[low - 1] > edges[edge]) or (low < stop and starts[low] != edges[edge])
            found[edge] = -1 if inside else low - begin
            edge += 1
        begin = stop
    return found
