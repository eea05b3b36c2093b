"""Rows by number: the same rows however they lie in shards, as views, found without those before them."""

from __future__ import annotations

import time
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest

from sft.data.collate import Row
from sft.data.store import RowStore, Shard
from tests.data.rows import equal

LENGTHS = [3, 0, 5, 1, 2, 4, 7, 1]


def rows() -> tuple[list[Row], list[int], list[str]]:
    """Eight rows, each id of its own, every third token learnt; names of one to four bytes a letter, and half a pair."""
    starts = np.cumsum([0, *LENGTHS])
    ids = [np.arange(a, a + n, dtype=np.int32) for a, n in zip(starts, LENGTHS, strict=False)]
    return (
        [(row, row % 3 == 0) for row in ids],
        [0, 1, 0, 0, 1, 1, 0, 1],
        ["a", "", "bé", "字", "\U0001f999", "\ud800", "a", "h#1"],
    )


def cut(*bounds: int) -> RowStore:
    """These rows, a shard between each two bounds."""
    made, source_of, names = rows()
    parts = [slice(a, b) for a, b in pairwise(bounds)]
    return RowStore([Shard.of(made[part], source_of[part], names[part]) for part in parts], ("x", "y"))


@pytest.mark.parametrize("bounds", [(0, 8), (0, 1, 8), (0, 3, 3, 7, 8), tuple(range(9))])
def test_a_row_is_the_same_in_any_shards(bounds: tuple[int, ...]) -> None:
    store = cut(*bounds)
    wanted, source_of, names = rows()
    assert len(store) == 8
    for index, (ids, mask) in enumerate(wanted):
        found = store.row(index)
        assert (found[0].tolist(), found[1].tolist()) == (ids.tolist(), mask.tolist())
        assert [part.dtype for part in found] == [np.int32, np.bool_]
    assert store.lengths.tolist() == LENGTHS
    assert store.trained.tolist() == [int(mask.sum()) for _, mask in wanted]
    assert store.source_of.tolist() == source_of
    assert (list(store.names), store.names[4], store.names[-1], store.names[1:3]) == (names, names[4], names[-1], names[1:3])
    assert [getattr(store, name).dtype for name in ("lengths", "trained", "source_of")] == [np.int64, np.int64, np.int32]
    assert equal(store, cut(0, 8))


def test_selected_rows_are_an_index_and_share_the_bytes() -> None:
    store = cut(0, 3, 5, 8)
    some = store.select(np.asarray([6, 0, 4, 4]))
    twice = some.select(np.asarray([2, 0]))
    wanted, source_of, names = rows()
    assert some.shards == twice.shards == store.shards
    assert list(twice.names) == [names[4], names[6]]
    assert [twice.row(i)[0].tolist() for i in (0, 1)] == [wanted[4][0].tolist(), wanted[6][0].tolist()]
    assert (some.lengths.tolist(), some.source_of.tolist()) == ([7, 3, 2, 2], [source_of[i] for i in (6, 0, 4, 4)])
    assert np.shares_memory(some.row(0)[0], store.shards[2].ids)
    assert some.flat().ids.tolist() == [*range(15, 22), 0, 1, 2, 9, 10, 9, 10]
    assert some.flat().offsets.tolist() == [0, 7, 10, 12, 14]
    assert some.flat().mask.tolist() == [token % 3 == 0 for token in some.flat().ids.tolist()]


@pytest.mark.parametrize("store", [RowStore([], ("x",)), cut(0, 8).select(np.zeros(0, np.int64)), cut(0, 0)])
def test_a_store_without_rows(store: RowStore) -> None:
    assert (len(store), list(store.names)) == (0, [])
    assert (store.lengths.tolist(), store.trained.tolist(), store.source_of.tolist()) == ([], [], [])
    assert store.flat().offsets.tolist() == [0]
    with pytest.raises(IndexError, match="row 0 of 0"):
        store.row(0)


@pytest.mark.parametrize("index", [-1, 8])
def test_no_other_row_is_given_for_one_that_is_not_there(index: int) -> None:
    with pytest.raises(IndexError, match=f"row {index} of 8"):
        cut(0, 3, 8).row(index)


def test_a_store_of_flat_arrays() -> None:
    made, source_of, names = rows()
    whole = cut(0, 8).flat()
    store = RowStore.of(*whole, np.asarray(source_of, np.int32), ("x", "y"), names)
    assert equal(store, cut(0, 2, 8))
    assert [row[0].tolist() for row in map(store.row, range(8))] == [ids.tolist() for ids, _ in made]


@pytest.mark.parametrize("bounds", [(0, 8), (0, 4, 8), (0, 0, 2, 8)])
def test_joined_shards_are_the_one_shard(bounds: tuple[int, ...]) -> None:
    one, joined = cut(0, 8).shards[0], Shard.joined(cut(*bounds).shards)
    for field in fields(Shard):
        a, b = getattr(one, field.name), getattr(joined, field.name)
        assert (a.dtype, a.tolist()) == (b.dtype, b.tolist())


def test_millions_of_rows_are_open_at_once() -> None:
    """No object per row, and none is looked at to find another."""
    ids = np.zeros(1_000_000, np.int32)
    ends = np.arange(1_000_001)
    source = np.zeros(1_000_000, np.int32)
    shard = Shard(ids, ids == 0, ends, source, source, np.zeros(1_000_000, np.uint8), ends)
    begin = time.process_time()
    store = RowStore([shard] * 4, ("x",))
    assert (len(store), int(store.lengths.sum())) == (4_000_000, 4_000_000)
    for index in range(0, 4_000_000, 4000):
        assert len(store.row(index)[0]) == 1
    assert time.process_time() - begin < 1
