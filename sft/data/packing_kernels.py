"""The loops of :mod:`sft.data.packing` that see every row of a run, compiled on the first call; importing this imports numba."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sft.compiled import compiled

TRIES = 8
"""Items whose complement is looked for before the search over all sizes."""


class Pool(NamedTuple):
    """Items that are in no bin yet.

    Attributes:
        sizes: int64 ``[n]``, in draw order.
        bins: int64 ``[n]``: where each of them is; -1 for those in none.
        left: int64 ``[capacity + 2]``: how many of each size are left.
        by_size: int64 ``[n]``: the items of each size, in draw order, one size behind the other.
        begin: int64 ``[capacity + 2]``: where those of each size begin that may be left.
        below: int64 ``[capacity + 2]``: itself for a size that is left; one that is used up points to a smaller one, 0 is the end.
    """

    sizes: Any
    bins: Any
    left: Any
    by_size: Any
    begin: Any
    below: Any


@compiled
def fill_bins(sizes: Any, capacity: int) -> Any:
    """Bins that are as full as can be, of items of all sizes, so that the last bins have as much choice as the first ones.

    An item of more than half a bin opens one, the largest first. Else items go in as they are drawn, until two can fill the bin
    exactly: one of the next few with any that has the rest. Where none do, any two that fill it are looked for, and at last the largest
    that fits goes in. Best-fit decreasing (Eilon and Christofides 1971) runs out of short items, or of all but them, and ends with many
    bins that nothing fills.

    Args:
        sizes: int64 ``[n]``, from 1 to ``capacity``, in draw order.
        capacity: of a bin.

    Returns:
        int64 ``[n]``: the bin of each item, numbered as they are opened.
    """
    pool = _pool(sizes, capacity)
    placed, head, number = 0, 0, -1
    while placed < sizes.shape[0]:
        number += 1
        first = _largest(pool.below, capacity)
        room = capacity
        if 2 * first > capacity:
            _take(pool, first, -1, number)
            room, placed = room - first, placed + 1
        while room > 0 and _largest(pool.below, room) > 0:
            while pool.bins[head] >= 0:
                head += 1
            item, size, rest = _next(pool, head, room)
            _take(pool, size, item, number)
            placed += 1
            if rest > 0:
                _take(pool, rest, -1, number)
                placed += 1
            room -= size + rest
    return pool.bins


@compiled
def _pool(sizes: Any, capacity: int) -> Any:
    left = np.zeros(capacity + 2, np.int64)
    for size in sizes:
        left[size] += 1
    begin, below = np.zeros(capacity + 2, np.int64), np.arange(capacity + 2)
    for size in range(1, capacity + 1):
        begin[size + 1] = begin[size] + left[size]
        if left[size] == 0:
            below[size] = size - 1
    by_size, at = np.empty(sizes.shape[0], np.int64), begin.copy()
    for i, size in enumerate(sizes):
        by_size[at[size]] = i
        at[size] += 1
    return Pool(sizes, np.full(sizes.shape[0], -1, np.int64), left, by_size, begin, below)


@compiled
def _take(pool: Any, size: int, item: int, number: int) -> None:
    """Put an item into a bin: the given one, or (-1) the first of that size that is left."""
    if item < 0:
        at = pool.begin[size]
        while pool.bins[pool.by_size[at]] >= 0:
            at += 1
        item = pool.by_size[at]
        pool.begin[size] = at + 1
    pool.bins[item] = number
    pool.left[size] -= 1
    if pool.left[size] == 0:
        pool.below[size] = size - 1


@compiled
def _next(pool: Any, head: int, room: int) -> tuple[int, int, int]:
    """What goes into a bin with some room: an item (or -1 for any of that size), its size, and the size of a second one or 0."""
    if pool.left[room] > 0:
        return -1, room, 0
    largest = _largest(pool.below, room)
    fits, tried, item = -1, 0, head
    while item < pool.sizes.shape[0] and tried < TRIES:
        size = pool.sizes[item]
        if pool.bins[item] < 0:
            tried += 1
            if size <= room:
                if pool.left[room - size] > (1 if room == 2 * size else 0):
                    return item, size, room - size
                if fits < 0:
                    fits = item
        item += 1
    if room > 2 * largest:  # no two can fill it
        return (fits, pool.sizes[fits], 0) if fits >= 0 else (-1, largest, 0)
    first = largest
    while 2 * first >= room and first > 0:
        if pool.left[room - first] > (1 if room == 2 * first else 0):
            return -1, first, room - first
        first = _largest(pool.below, first - 1)
    return -1, largest, 0


@compiled
def _largest(below: Any, size: int) -> int:
    """The largest size up to this one that is left, 0 if none is; shortens the way for the next time."""
    root = size
    while below[root] != root:
        root = below[root]
    while below[size] != root and size != root:
        below[size], size = root, below[size]
    return root


@compiled
def _fullest(descending: Any, bins: int) -> int:
    """Load of the fullest bin, by the rule of :func:`sft.data.packing.split_evenly`."""
    heap = np.zeros(bins, np.int64)
    most = 0
    for size in descending:
        load = heap[0] + size
        most = max(most, load)
        at = 0
        while 2 * at + 1 < bins:  # sift the load down
            child = 2 * at + 1
            if child + 1 < bins and heap[child + 1] < heap[child]:
                child += 1
            if heap[child] >= load:
                break
            heap[at] = heap[child]
            at = child
        heap[at] = load
    return most


@compiled
def _widest(descending: Any, bins: int) -> int:
    """Area of the largest rectangle, by the rule of :func:`sft.data.packing.split_rectangles`."""
    base, extra = divmod(descending.shape[0], bins)
    most, at = 0, 0
    for number in range(bins):
        count = base + (1 if number >= bins - extra else 0)
        if count > 0:
            most = max(most, count * descending[at])
        at += count
    return most


@compiled
def _load(descending: Any, bins: int, padded: bool) -> int:
    if padded:
        return _widest(descending, bins)
    return _fullest(descending, bins)


@compiled
def _parts_in_order(sizes: Any, capacity: int) -> int:
    """Parts of :func:`sft.data.packing.split_in_order`."""
    parts, room = 0, 0
    for size in sizes:
        if size > room:
            parts, room = parts + 1, capacity
        room -= size
    return parts


@compiled
def accumulation(sizes: Any, offsets: Any, world: int, capacity: int, padded: bool) -> int:
    """The smallest number of micro-batches per rank with which no micro-batch of any step holds more than ``capacity`` tokens.

    More bins never make the largest one larger, so the answer can be bisected:

    - flat: give longest-first filling one more bin, and before and after every row its loads, without the smallest, are at most
      the loads of the run with fewer bins, in order; the row goes to the emptiest bin in both.
    - padded: with one more bin every count is the same or smaller, and the first row of the first bin with a given count moves
      towards shorter rows.

    Args:
        sizes: int64, tokens of the rows of all steps in draw order, none above ``capacity``.
        offsets: int64 ``[steps + 1]``.
        world: ranks.
        capacity: most tokens of a flat micro-batch, or of a padded rectangle.
        padded: rectangles instead of flat rows.
    """
    found = 1
    for step in range(offsets.shape[0] - 1):
        ordered = sizes[offsets[step] : offsets[step + 1]]
        descending = -np.sort(-ordered)
        low = max(found, -(-descending.sum() // (world * capacity)))  # fewer have no room for the tokens, padding aside
        if not padded and _parts_in_order(ordered, capacity) <= low * world:
            found = low
            continue
        if _load(descending, low * world, padded) <= capacity:
            found = low
            continue
        stride = 1  # invariant: ``low`` does not hold; with a bin per row everything does
        while _load(descending, (low + stride) * world, padded) > capacity:
            low, stride = low + stride, 2 * stride
        high = low + stride
        while high - low > 1:
            middle = (low + high) // 2
            if _load(descending, middle * world, padded) <= capacity:
                high = middle
            else:
                low = middle
        found = high if padded else min(high, max(found, -(-_parts_in_order(ordered, capacity) // world)))
    return found
