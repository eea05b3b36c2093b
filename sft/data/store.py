"""Tokenised rows in flat arrays, shard behind shard, and stores that are an index into them.

::

    shard 0   ids      a0 a1 a2 b0 b1        shard 1   ids      c0 c1 d0 d1 d2 e0
              offsets  0        3     5                offsets  0     2        5  6
    store     rows     [0, 2, 4]    ──>   a, c, e      (no rows: all of them)

A shard read from disk is memory-mapped, and nothing here makes a Python object per row: a million rows are open at once, and any of
them is found without those before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from sft.data.collate import Row


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """Some rows one behind the other.

    Attributes:
        ids: int32 ``[tokens]``.
        mask: bool ``[tokens]``, true where a token is learnt.
        offsets: int64 ``[rows + 1]``, where each row begins in ``ids``.
        trained: int32 ``[rows]``, learnt tokens of each.
        source_of: int32 ``[rows]``, index into the store's labels.
        names: uint8 ``[bytes]``, the ids of the rows in UTF-8 (half a surrogate pair, which JSON can hold, included).
        name_offsets: int64 ``[rows + 1]``, where each name begins.
    """

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    trained: npt.NDArray[np.int32]
    source_of: npt.NDArray[np.int32]
    names: npt.NDArray[np.uint8]
    name_offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.source_of)

    @staticmethod
    def of(rows: Sequence[Row], source_of: Sequence[int], names: Sequence[str]) -> Shard:
        """Lay rows out, each ``(ids [T], mask [T])`` with its source and its name."""
        written = [name.encode("utf-8", "surrogatepass") for name in names]
        return Shard(
            np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in rows)]),
            np.concatenate([np.zeros(0, np.bool_), *(mask for _, mask in rows)]),
            _ends([len(ids) for ids, _ in rows]),
            np.asarray([np.count_nonzero(mask) for _, mask in rows], dtype=np.int32),
            np.asarray(source_of, dtype=np.int32),
            np.frombuffer(b"".join(written), dtype=np.uint8),
            _ends([len(name) for name in written]),
        )

    @staticmethod
    def joined(parts: Sequence[Shard]) -> Shard:
        """One shard of several."""
        if len(parts) == 1:
            return parts[0]
        parts = [Shard.of([], [], []), *parts]
        return Shard(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.mask for part in parts]),
            _ends(np.concatenate([np.diff(part.offsets) for part in parts])),
            np.concatenate([part.trained for part in parts]),
            np.concatenate([part.source_of for part in parts]),
            np.concatenate([part.names for part in parts]),
            _ends(np.concatenate([np.diff(part.name_offsets) for part in parts])),
        )


def _ends(lengths: Any) -> npt.NDArray[np.int64]:
    out = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=out[1:])
    return out


class Flat(NamedTuple):
    """Copied rows: ids int32 ``[tokens]``, mask bool ``[tokens]``, offsets int64 ``[rows + 1]``."""

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]


class RowStore:
    """Rows by number, from 0.

    Args:
        shards: that hold them.
        labels: source labels.
        rows: int64 ``[rows]``, which rows of the shards, counted through all of them, in this order; None for all.
        learnt_as: ids that are learnt as others, where they are learnt at all.

    Attributes:
        shards: as given.
        labels: as given.
        learnt_as: as given.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        labels: Sequence[str],
        rows: npt.NDArray[np.int64] | None = None,
        learnt_as: Mapping[int, int] | None = None,
    ) -> None:
        self.shards, self.labels, self.learnt_as = tuple(shards), tuple(labels), dict(learnt_as or {})
        self._rows = rows
        self._starts = _ends([len(shard) for shard in self.shards])

    @staticmethod
    def of(
        ids: npt.NDArray[np.int32],
        mask: npt.NDArray[np.bool_],
        offsets: npt.NDArray[np.int64],
        source_of: npt.NDArray[np.int32],
        labels: Sequence[str],
        names: Sequence[str],
    ) -> RowStore:
        """A store of rows in memory: those of ``ids`` and ``mask`` between ``offsets``."""
        rows = [(ids[a:b], mask[a:b]) for a, b in pairwise(offsets)]
        return RowStore([Shard.of(rows, source_of.tolist(), names)], labels)

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    def place(self, index: int) -> tuple[Shard, int]:
        """The shard of a row, and its number there.

        Raises:
            IndexError: no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = index if self._rows is None else int(self._rows[index])
        which = int(self._starts.searchsorted(number, "right")) - 1
        return self.shards[which], number - int(self._starts[which])

    def row(self, index: int) -> Row:
        """``(ids [T], mask [T])`` of one row; views, not copies."""
        shard, at = self.place(index)
        begin, end = shard.offsets[at], shard.offsets[at + 1]
        return shard.ids[begin:end], shard.mask[begin:end]

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""
        return self._gather([np.diff(shard.offsets) for shard in self.shards], np.int64)

    @cached_property
    def trained(self) -> npt.NDArray[np.int64]:
        """Learnt tokens of each row."""
        return self._gather([shard.trained for shard in self.shards], np.int64)

    @cached_property
    def source_of(self) -> npt.NDArray[np.int32]:
        """Index into ``labels`` of each row."""
        return self._gather([shard.source_of for shard in self.shards], np.int32)

    @property
    def names(self) -> Sequence[str]:
        """Row ids, decoded as they are asked for."""
        return _Names(self)

    def _gather(self, parts: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
        whole = np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)
        return whole if self._rows is None else whole[self._rows]

    def select(self, rows: npt.NDArray[np.int64]) -> RowStore:
        """A store of some rows, in the given order; nothing is copied."""
        rows = np.asarray(rows, dtype=np.int64)
        return RowStore(self.shards, self.labels, rows if self._rows is None else self._rows[rows], self.learnt_as)

    def flat(self) -> Flat:
        """All rows one behind the other, copied: of use for a few of them."""
        rows = [self.row(index) for index in range(len(self))]
        joined = Shard.of(rows, [0] * len(rows), [""] * len(rows))
        return Flat(joined.ids, joined.mask, joined.offsets)


class _Names(Sequence[str]):
    """The names of a store's rows."""

    def __init__(self, store: RowStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        shard, at = self._store.place(index + len(self) if index < 0 else index)
        return shard.names[shard.name_offsets[at] : shard.name_offsets[at + 1]].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
