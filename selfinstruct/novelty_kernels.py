"""The compiled part of :mod:`selfinstruct.novelty`; importing it imports numba, and the first call of each function compiles it.

A pool of token lists, as flat arrays that the caller owns and grows::

    flat    int32[used]        tokens of row 0, row 1, ...
    starts  int64[rows + 1]    row r is flat[starts[r]:starts[r + 1]]
    sigs    uint64[2, rows]    signatures: one bit of 64 per token of the row, by two hashes
    heads   int64[tokens, 2]   where a token's postings start in the arena, and how many there are
    arena   uint64[...]        postings: row (32 bits) | its length, at most 255 (8) | a second signature (24)
    free    int64[64]          heads of the lists of free blocks, by power of two; free[63] is the used part of the arena
    masks   uint64[tokens]     zero between calls; during one, the places of each token in the query

A posting list with s entries fills a block of the next power of two. A block that has become too small goes to the free list of its size,
so the arena stays below about twice the postings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

_ONE, _ALL = np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)
_int64: Any = np.int64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_EPSILON = 1e-9  # far above the rounding of the bounds, far below 1 / (longest sum of lengths): a tie is never pruned


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use, kept on disk where a folder for that can be written."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba found no place for its cache
        return njit(nogil=True)(function)


@intrinsic  # type: ignore[untyped-decorator]
def _popcount(typing_context: Any, value: Any) -> Any:
    """Bits set in a uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@_compiled
def _bits(token: int) -> tuple[np.uint64, np.uint64, np.uint64]:
    """A token's bit in the two signatures of 64 bits, and in the one of 24."""
    mixed = np.uint64(token + 1) * _GOLDEN
    small = ((mixed >> np.uint64(26)) & np.uint64(0xFFFF)) * np.uint64(24) >> np.uint64(16)
    return _ONE << (mixed >> np.uint64(58)), _ONE << ((mixed >> np.uint64(48)) & np.uint64(63)), _ONE << small


@_compiled
def _common(known: int, n: int, sig: np.uint64, other: np.uint64) -> tuple[int, int]:
    """Most tokens that a query and a row of ``n`` can have in common, for what the one lacks and for what the other lacks."""
    return known - _int64(_popcount(sig & ~other)), n - _int64(_popcount(other & ~sig))


@_compiled
def _f_measure(common: int, m: int, n: int) -> float:
    """rouge_score's F measure, in its order of operations, so that ties fall as they do there."""
    if common == 0:
        return 0.0
    precision = common / n
    recall = common / m
    return 2 * precision * recall / (precision + recall)


@_compiled
def _lcs(flat: Any, low: int, high: int, masks: Any, table: Any, state: Any) -> int:
    """Longest common subsequence of the query and ``flat[low:high]``, bit-parallel (Hyyro 2004, "Bit-parallel LCS-length computation").

    Up to 64 query tokens: ``masks`` holds their places. Beyond: ``masks`` holds 1 + the row of ``table`` that does, in several words.
    """
    words = state.shape[0]
    if words == 1:
        v = _ALL
        for i in range(low, high):
            u = v & masks[flat[i]]
            v = (v + u) | (v - u)
        return _int64(_popcount(~v))
    for w in range(words):
        state[w] = _ALL
    for i in range(low, high):
        which = _int64(masks[flat[i]])
        if which == 0:
            continue
        carry = np.uint64(0)
        for w in range(words):
            v = state[w]
            u = v & table[which - 1, w]
            half = v + u
            total = half + carry
            carry = np.uint64(half < v) | np.uint64(total < half)
            state[w] = total | (v - u)
    common = 0
    for w in range(words):
        common += _int64(_popcount(~state[w]))
    return common


@_compiled
def _open(ids: Any, masks: Any, distinct: Any, counts: Any) -> tuple[int, int, np.uint64, np.uint64, np.uint64, Any, Any]:
    """Enter a query into ``masks``: (distinct tokens, known tokens, signatures, table and state for :func:`_lcs`). -1 is a token of no row."""
    m = ids.shape[0]
    words = max(1, (m + 63) // 64)
    state = np.empty(words, np.uint64)
    table = np.zeros((m if words > 1 else 1, words), np.uint64)
    d, known = 0, 0
    sig, sig2, small = np.uint64(0), np.uint64(0), np.uint64(0)
    for i in range(m):
        token = ids[i]
        if token < 0:
            continue
        known += 1
        if masks[token] == 0:
            distinct[d], counts[d] = token, 0
            d += 1
            a, b, c = _bits(token)
            sig |= a
            sig2 |= b
            small |= c
            if words > 1:
                masks[token] = np.uint64(d)
        if words > 1:
            table[_int64(masks[token]) - 1, i >> 6] |= _ONE << np.uint64(i & 63)
        else:
            masks[token] |= _ONE << np.uint64(i)
    for j in range(d):
        if words > 1:
            for w in range(words):
                counts[j] += _int64(_popcount(table[j, w]))
        else:
            counts[j] = _int64(_popcount(masks[distinct[j]]))
    return d, known, sig, sig2, small, table, state


@_compiled
def find(
    ids: Any, flat: Any, starts: Any, sigs: Any, heads: Any, arena: Any, masks: Any, threshold: float
) -> tuple[int, float]:
    """The first row found whose F with the query is above ``threshold``, and F; (-1, 0.0) if there is none.

    F > t needs 2 * LCS > t * (m + n). LCS is at most the common tokens, so n >= LCS gives LCS > t * m / (2 - t): a row that has none of
    the rarest tokens, down to where the rest of the query is too short for that, cannot pass. Only their postings are read, rarest
    first. A row first met at token j shares none of the rarer ones: at most ``rest`` tokens.
    """
    m = ids.shape[0]
    distinct, counts = np.empty(m, np.int32), np.empty(m, np.int32)
    d, known, sig, sig2, small, table, state = _open(ids, masks, distinct, counts)
    for j in range(1, d):  # insertion sort by frequency in the pool
        token, count, size = distinct[j], counts[j], heads[distinct[j], 1]
        i = j - 1
        while i >= 0 and heads[distinct[i], 1] > size:
            distinct[i + 1], counts[i + 1] = distinct[i], counts[i]
            i -= 1
        distinct[i + 1], counts[i + 1] = token, count
    longest = _int64((2 * known + _EPSILON) / threshold) - m if threshold > 0 else 254
    longest = min(max(longest, 0), 254)
    need = np.empty(longest + 1, np.int64)  # common tokens that a row of n tokens needs, ties included
    for n in range(longest + 1):
        need[n] = max(1, _int64(np.ceil(threshold * (m + n) / 2 - _EPSILON)))
    least = max(1.0, threshold * m / (2 - threshold) - _EPSILON)
    rest, found, score = known, -1, 0.0
    for j in range(d):
        if rest < least or found >= 0:
            break
        start, size = heads[distinct[j], 0], heads[distinct[j], 1]
        for p in range(start, start + size):
            posting = arena[p]
            n = _int64((posting >> np.uint64(24)) & np.uint64(255))
            if n < 255:
                if n > longest:
                    continue
                other = posting & np.uint64(0xFFFFFF)
                a = min(rest, known - _int64(_popcount(small & ~other)))
                b = n - _int64(_popcount(other & ~small))
                if min(a, b) < need[n]:
                    continue
            row = _int64(posting >> np.uint64(32))
            n = starts[row + 1] - starts[row]
            a, b = _common(known, n, sig, sigs[0, row])
            c, e = _common(known, n, sig2, sigs[1, row])
            a = min(rest, a, c)
            b = min(b, e)
            if 2 * min(a, b) < threshold * (m + n) - 2 * _EPSILON:
                continue
            score = _f_measure(_lcs(flat, starts[row], starts[row + 1], masks, table, state), m, n)
            if score > threshold:
                found = row
                break
        rest -= counts[j]
    for j in range(d):
        masks[distinct[j]] = 0
    return found, score if found >= 0 else 0.0


@_compiled
def add(ids: Any, rows: int, flat: Any, starts: Any, sigs: Any, heads: Any, arena: Any, free: Any) -> int:
    """Append a row, known by its number ``rows``; 0, or, with nothing changed, how many arena entries are missing at most."""
    need = 0
    for i in range(ids.shape[0]):
        size = heads[ids[i], 1]
        if size & (size - 1) == 0:
            need += max(1, 2 * size)
    missing = free[63] + need - arena.shape[0]
    if missing > 0:
        return missing
    length = ids.shape[0]
    sig, sig2, small = np.uint64(0), np.uint64(0), np.uint64(0)
    for i in range(length):
        a, b, c = _bits(ids[i])
        sig |= a
        sig2 |= b
        small |= c
        flat[starts[rows] + i] = ids[i]
    starts[rows + 1] = starts[rows] + length
    sigs[0, rows], sigs[1, rows] = sig, sig2
    posting = (np.uint64(rows) << np.uint64(32)) | (np.uint64(min(length, 255)) << np.uint64(24)) | small
    for i in range(length):
        token = ids[i]
        start, size = heads[token, 0], heads[token, 1]
        if size > 0 and arena[start + size - 1] == posting:
            continue  # a token of this row that came before
        if size & (size - 1) == 0:  # the block is full
            start = _move(start, size, arena, free)
            heads[token, 0] = start
        arena[start + size] = posting
        heads[token, 1] = size + 1
    return 0


@_compiled
def _move(start: int, size: int, arena: Any, free: Any) -> int:
    """Move a full posting list of ``size`` entries (0, or a power of two) into a block of twice that; the start of the new block."""
    order = 0
    while size and (1 << order) < 2 * size:
        order += 1
    if free[order] > 0:
        block = free[order] - 1
        free[order] = _int64(arena[block])
    else:
        block = free[63]
        free[63] = block + (1 << order)
    for i in range(size):
        arena[block + i] = arena[start + i]
    if size:
        arena[start] = np.uint64(free[order - 1])
        free[order - 1] = start + 1
    return block


@_compiled
def add_all(rows: int, flat: Any, starts: Any, sigs: Any, heads: Any, arena: Any, free: Any, first: int) -> tuple[int, int]:
    """Enter rows ``first`` to ``rows`` of a loaded pool into the postings: (rows entered, 0 or the entries missing)."""
    for row in range(first, rows):
        missing = add(flat[starts[row] : starts[row + 1]], row, flat, starts, sigs, heads, arena, free)
        if missing:
            return row, missing
    return rows, 0


@_compiled
def _bound(rows: int, m: int, known: int, sig: np.uint64, starts: Any, sigs: Any, bounds: Any) -> None:
    """Above 240 times each row's F, at most 241; 32-bit throughout, so that the loop runs on vectors."""
    for row in range(rows):
        n = np.int32(starts[row + 1] - starts[row])
        other = sigs[row]
        a = np.int32(known) - np.int32(_popcount(sig & ~other))
        b = n - np.int32(_popcount(other & ~sig))
        common = np.int32(480) * max(np.int32(0), min(a, b))
        bounds[row] = np.uint8(np.int32(np.float32(common) / np.float32(np.int32(m) + n)) + np.int32(1))


@_compiled
def nearest(
    ids: Any, rows: int, flat: Any, starts: Any, sigs: Any, masks: Any, bounds: Any, best_rows: Any, best_scores: Any
) -> int:
    """Fill in the rows of the highest F above 0, highest first, older rows first among equals; how many there are.

    The signatures bound each row's F from above, in steps of 1/240, rounded up; the rows with the highest bounds are measured first, then
    only those whose bound reaches the worst of the best.
    """
    m, k = ids.shape[0], best_rows.shape[0]
    distinct, counts = np.empty(m, np.int32), np.empty(m, np.int32)
    d, known, sig, sig2, _, table, state = _open(ids, masks, distinct, counts)
    _bound(rows, m, known, sig, starts, sigs[0], bounds)
    histogram = np.zeros(256, np.int64)
    for row in range(rows):
        histogram[bounds[row]] += 1
    cut, above = 242, 0
    while cut > 1 and above < 20 * k:
        cut -= 1
        above += histogram[cut]
    filled = 0
    for turn in range(2):
        floor, least = (cut, 0.0) if turn == 0 else (1, 0.0)
        if turn == 1 and filled == k:
            least = 240 * best_scores[k - 1] - 1e-3
            floor = _int64(least) + 1
        for row in range(rows):
            bound = bounds[row]
            if bound < floor or (turn == 1 and bound >= cut):
                continue
            low, high = starts[row], starts[row + 1]
            if turn == 1:
                a, b = _common(known, high - low, sig2, sigs[1, row])
                if 480 * min(a, b) < least * (m + high - low):
                    continue
            score = _f_measure(_lcs(flat, low, high, masks, table, state), m, high - low)
            if score <= 0.0:
                continue
            if filled == k:
                worst = best_scores[k - 1]
                if score < worst or (score == worst and row > best_rows[k - 1]):
                    continue
            else:
                filled += 1
            i = filled - 1
            while i > 0 and (best_scores[i - 1] < score or (best_scores[i - 1] == score and best_rows[i - 1] > row)):
                best_scores[i], best_rows[i] = best_scores[i - 1], best_rows[i - 1]
                i -= 1
            best_scores[i], best_rows[i] = score, row
            if filled == k and turn == 1:
                least = 240 * best_scores[k - 1] - 1e-3
                floor = _int64(least) + 1
    for j in range(d):
        masks[distinct[j]] = 0
    return filled


@_compiled
def score_all(ids: Any, rows: int, flat: Any, starts: Any, masks: Any, scores: Any) -> None:
    """F of the query with every row, into ``scores``."""
    m = ids.shape[0]
    distinct, counts = np.empty(m, np.int32), np.empty(m, np.int32)
    d, _, _, _, _, table, state = _open(ids, masks, distinct, counts)
    for row in range(rows):
        low, high = starts[row], starts[row + 1]
        scores[row] = _f_measure(_lcs(flat, low, high, masks, table, state), m, high - low) if high > low else 0.0
    for j in range(d):
        masks[distinct[j]] = 0
