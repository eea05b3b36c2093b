"""The search of :mod:`selfinstruct.filters.novelty`, over the arrays of :mod:`selfinstruct.filters.postings`; compiled on the first call.

numba's cache does not see that a function of another file has changed: after a change there, touch this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from selfinstruct.filters.postings import CLASSES, ONE, add, add_all, bits, int64, popcount
from sft.compiled import compiled

__all__ = ["add", "add_all", "find", "nearest", "score_all"]

_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_EPSILON = 1e-9  # far above the rounding of the bounds, far below 1 / (longest sum of lengths): a tie is never pruned


@compiled
def _common(known: int, n: int, sig: np.uint64, other: np.uint64) -> tuple[int, int]:
    """Most tokens that a query and a row of ``n`` can have in common, for what the one lacks and for what the other lacks."""
    return known - int64(popcount(sig & ~other)), n - int64(popcount(other & ~sig))


@compiled
def _f_measure(common: int, m: int, n: int) -> float:
    """rouge_score's F measure, in its order of operations, so that ties fall as they do there."""
    if common == 0:
        return 0.0
    precision = common / n
    recall = common / m
    return 2 * precision * recall / (precision + recall)


@compiled
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
        return int64(popcount(~v))
    for w in range(words):
        state[w] = _ALL
    for i in range(low, high):
        which = int64(masks[flat[i]])
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
        common += int64(popcount(~state[w]))
    return common


@compiled
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
            a, b, c = bits(token)
            sig |= a
            sig2 |= b
            small |= c
            if words > 1:
                masks[token] = np.uint64(d)
        if words > 1:
            table[int64(masks[token]) - 1, i >> 6] |= ONE << np.uint64(i & 63)
        else:
            masks[token] |= ONE << np.uint64(i)
    for j in range(d):
        if words > 1:
            for w in range(words):
                counts[j] += int64(popcount(table[j, w]))
        else:
            counts[j] = int64(popcount(masks[distinct[j]]))
    return d, known, sig, sig2, small, table, state


@compiled
def _rarest_first(distinct: Any, counts: Any, d: int, heads: Any) -> None:
    """Insertion sort by frequency in the pool."""
    for j in range(1, d):
        token, count, size = distinct[j], counts[j], heads[distinct[j], 1]
        i = j - 1
        while i >= 0 and heads[distinct[i], 1] > size:
            distinct[i + 1], counts[i + 1] = distinct[i], counts[i]
            i -= 1
        distinct[i + 1], counts[i + 1] = token, count


@compiled
def _longest(common: int, m: int, threshold: float) -> int:
    """Most tokens of a row that can pass with so many in common with a query of ``m``."""
    return int64((2 * common + _EPSILON) / threshold) - m if threshold > 0 else 1 << 30


@compiled
def _scan(
    start: int,
    size: int,
    rest: int,
    query: Any,
    need: Any,
    threshold: float,
    flat: Any,
    starts: Any,
    sigs: Any,
    arena: Any,
    rows: Any,
) -> float:
    """F of the first row above ``threshold`` among postings, its number left in ``rows``; 0 if there is none."""
    m, known, sig, sig2, small, masks, table, state = query
    for p in range(start, start + size):
        posting = arena[p]
        n = int64((posting >> np.uint64(24)) & np.uint64(255))
        other = posting & np.uint64(0xFFFFFF)
        a = min(rest, known - int64(popcount(small & ~other)))
        b = n - int64(popcount(other & ~small))
        if min(a, b) < need[n]:
            continue
        row = int64(posting >> np.uint64(32))
        n = starts[row + 1] - starts[row]
        a, b = _common(known, n, sig, sigs[0, row])
        c, d = _common(known, n, sig2, sigs[1, row])
        if 2 * min(rest, a, b, c, d) < threshold * (m + n) - 2 * _EPSILON:
            continue
        score = _f_measure(_lcs(flat, starts[row], starts[row + 1], masks, table, state), m, n)
        if score > threshold:
            rows[0] = row
            return score
    return 0.0


@compiled
def find(
    ids: Any, flat: Any, starts: Any, sigs: Any, heads: Any, parts: Any, arena: Any, masks: Any, threshold: float
) -> tuple[int, float]:
    """The first row found whose F with the query is above ``threshold``, and F; (-1, 0.0) if there is none.

    F > t needs 2 * LCS > t * (m + n). LCS is at most the common tokens, so n >= LCS gives LCS > t * m / (2 - t): a row that has none of
    the rarest tokens, down to where the rest of the query is too short for that, cannot pass. Only their postings are read, rarest
    first. A row first met at token j shares none of the rarer ones: at most ``rest`` tokens, which bounds its length, too.
    """
    m = ids.shape[0]
    distinct, counts = np.empty(m, np.int32), np.empty(m, np.int32)
    d, known, sig, sig2, small, table, state = _open(ids, masks, distinct, counts)
    query = (m, known, sig, sig2, small, masks, table, state)
    _rarest_first(distinct, counts, d, heads)
    need = np.full(256, 1 << 20, np.int32)  # common tokens that a row of n tokens needs, ties included
    for n in range(min(255, _longest(known, m, threshold) + 1)):
        need[n] = max(1, int64(np.ceil(threshold * (m + n) / 2 - _EPSILON)))
    need[255] = -255  # stands for more, too: its row decides
    least = max(1.0, threshold * m / (2 - threshold) - _EPSILON)
    rest, score = known, 0.0
    rows = np.full(1, -1, np.int64)
    for j in range(d):
        if rest < least:
            break
        start, size, part = heads[distinct[j], 0], heads[distinct[j], 1], heads[distinct[j], 2]
        if part == 0:
            score = _scan(start, size, rest, query, need, threshold, flat, starts, sigs, arena, rows)
        else:
            for n in range(min(int64(least), CLASSES - 1), min(_longest(rest, m, threshold), CLASSES - 1) + 1):
                start, size = parts[part - 1, n, 0], parts[part - 1, n, 1]
                score = _scan(start, size, rest, query, need, threshold, flat, starts, sigs, arena, rows)
                if rows[0] >= 0:
                    break
        if rows[0] >= 0:
            break
        rest -= counts[j]
    for j in range(d):
        masks[distinct[j]] = 0
    return rows[0], score


@compiled
def _bound(rows: int, m: int, known: int, sig: np.uint64, starts: Any, sigs: Any, bounds: Any) -> None:
    """Above 240 times each row's F, at most 241; 32-bit throughout, so that the loop runs on vectors."""
    for row in range(rows):
        n = np.int32(starts[row + 1] - starts[row])
        other = sigs[row]
        a = np.int32(known) - np.int32(popcount(sig & ~other))
        b = n - np.int32(popcount(other & ~sig))
        common = np.int32(480) * max(np.int32(0), min(a, b))
        bounds[row] = np.uint8(np.int32(np.float32(common) / np.float32(np.int32(m) + n)) + np.int32(1))


@compiled
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
            floor = int64(least) + 1
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
                floor = int64(least) + 1
    for j in range(d):
        masks[distinct[j]] = 0
    return filled


@compiled
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
