"""A pool of token lists as flat arrays, and how a row enters it; compiled, so importing this imports numba.

The caller owns the arrays and grows them::

    flat    int32[used]        tokens of row 0, row 1, ...
    starts  int64[rows + 1]    row r is flat[starts[r]:starts[r + 1]]
    sigs    uint64[2, rows]    signatures: one bit of 64 per token of the row, by two hashes
    heads   int64[tokens, 3]   a token's postings: where they start in the arena, how many, 0 or 1 + the number of their parts
    parts   int64[k, 64, 2]    postings of a frequent token by the length of the row, 63 for all from 63 on: start, how many
    arena   uint64[...]        postings: row (32 bits) | its length, at most 255 (8) | a second signature (24)
    free    int64[64]          heads of the lists of free blocks, by power of two; free[62:] are the parts used and the arena used
    masks   uint64[tokens]     zero between calls; during one, the places of each token in the query

A posting list with s entries fills a block of the next power of two. A block that has become too small goes to the free list of its size,
so the arena stays below about twice the postings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from sft.compiled import compiled

ONE = np.uint64(1)
int64: Any = np.int64
CLASSES = 64
"""Parts of the postings of a frequent token."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SPLIT = 256  # postings from which on a token has them in parts; a power of two


@intrinsic  # type: ignore[untyped-decorator]
def popcount(typing_context: Any, value: Any) -> Any:
    """Bits set in a uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@compiled
def bits(token: int) -> tuple[np.uint64, np.uint64, np.uint64]:
    """A token's bit in the two signatures of 64 bits, and in the one of 24."""
    mixed = np.uint64(token + 1) * _GOLDEN
    small = ((mixed >> np.uint64(26)) & np.uint64(0xFFFF)) * np.uint64(24) >> np.uint64(16)
    return ONE << (mixed >> np.uint64(58)), ONE << ((mixed >> np.uint64(48)) & np.uint64(63)), ONE << small


@compiled
def _move(start: int, size: int, arena: Any, free: Any) -> int:
    """Move a full posting list of ``size`` entries (0, or a power of two) into a block of twice that; the start of the new block."""
    order = 0
    while size and (1 << order) < 2 * size:
        order += 1
    if free[order] > 0:
        block = free[order] - 1
        free[order] = int64(arena[block])
    else:
        block = free[63]
        free[63] = block + (1 << order)
    for i in range(size):
        arena[block + i] = arena[start + i]
    if size:
        arena[start] = np.uint64(free[order - 1])
        free[order - 1] = start + 1
    return block


@compiled
def _put(head: Any, posting: np.uint64, arena: Any, free: Any) -> bool:
    """Append to a posting list, unless the posting is its last one: the row then has the token twice."""
    start, size = head[0], head[1]
    if size > 0 and arena[start + size - 1] == posting:
        return False
    if size & (size - 1) == 0:  # the block is full
        start = _move(start, size, arena, free)
        head[0] = start
    arena[start + size] = posting
    head[1] = size + 1
    return True


@compiled
def _split(token: int, heads: Any, parts: Any, arena: Any, free: Any) -> None:
    """Part the postings of a token by the length of their rows."""
    start, size, order = heads[token, 0], heads[token, 1], 0
    for i in range(size):
        posting = arena[start + i]
        n = min(int64((posting >> np.uint64(24)) & np.uint64(255)), CLASSES - 1)
        _put(parts[free[62], n], posting, arena, free)
    while (1 << order) < size:
        order += 1
    arena[start] = np.uint64(free[order])
    free[order] = start + 1
    free[62] += 1
    heads[token, 2] = free[62]


@compiled
def add(ids: Any, rows: int, flat: Any, starts: Any, sigs: Any, heads: Any, parts: Any, arena: Any, free: Any) -> int:
    """Append a row, known by its number ``rows``; 0, or, with nothing changed, how many arena entries (or, below 0, parts) may be missing."""
    need, splits = 0, 0
    length = ids.shape[0]
    for i in range(length):
        size, part = heads[ids[i], 1], heads[ids[i], 2]
        if part > 0:
            size = parts[part - 1, min(length, CLASSES - 1), 1]
        elif size == _SPLIT:
            splits += 1
            need += 4 * _SPLIT
        if size & (size - 1) == 0:
            need += max(1, 2 * size)
    if free[62] + splits > parts.shape[0]:
        return -splits
    missing = free[63] + need - arena.shape[0]
    if missing > 0:
        return missing
    sig, sig2, small = np.uint64(0), np.uint64(0), np.uint64(0)
    for i in range(length):
        a, b, c = bits(ids[i])
        sig |= a
        sig2 |= b
        small |= c
        flat[starts[rows] + i] = ids[i]
    starts[rows + 1] = starts[rows] + length
    sigs[0, rows], sigs[1, rows] = sig, sig2
    posting = (np.uint64(rows) << np.uint64(32)) | (np.uint64(min(length, 255)) << np.uint64(24)) | small
    for i in range(length):
        token = ids[i]
        if heads[token, 2] == 0 and heads[token, 1] == _SPLIT and arena[heads[token, 0] + _SPLIT - 1] != posting:
            _split(token, heads, parts, arena, free)
        part = heads[token, 2]
        if part == 0:
            _put(heads[token], posting, arena, free)
        elif _put(parts[part - 1, min(length, CLASSES - 1)], posting, arena, free):
            heads[token, 1] += 1
    return 0


@compiled
def add_all(
    rows: int, flat: Any, starts: Any, sigs: Any, heads: Any, parts: Any, arena: Any, free: Any, first: int
) -> tuple[int, int]:
    """Enter rows ``first`` to ``rows`` of a loaded pool into the postings: (rows entered, what :func:`add` says is missing)."""
    for row in range(first, rows):
        missing = add(flat[starts[row] : starts[row + 1]], row, flat, starts, sigs, heads, parts, arena, free)
        if missing:
            return row, missing
    return rows, 0
