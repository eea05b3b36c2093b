"""Several cleaned sources as one file: which rows go in, how often, on which side, in which order.

::

    source   limit               holdout             weight                 order
    rows ──> the rows with   ──> held-out rows,  ──> each row floor(w) ──>  by key = hash(seed, content, copy)
             least hashes        once each           or floor(w) + 1 times

Every choice is made by a hash of the content and the seed. So it is the same for any order of the rows and any number of processes, rows
with the same content share their fate, and a smaller weight or limit takes a part of what a larger one takes. The key of the order needs
nothing but its own row: where the rows do not fit into memory, they can be sorted by it outside.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydantic
from pydantic import Field

from sft.config import Section
from sft.curate.chat import Chat
from sft.curate.dedup import content_key
from sft.errors import DataError

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A, _MIX_B = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_HALF = np.uint64(33)


class MixSection(Section):
    """Order, shares and held-out rows."""

    limits: dict[str, int] = Field(default_factory=dict)
    """Most rows of a source, by its label; which ones, the content decides. Counted before the weight."""
    holdout: int | float = 0
    """Rows kept apart for evaluation: a whole number, or a share below 1. Chosen by content, so equal rows stay on one side."""
    shuffle: bool = True
    """Order by seed and content; false keeps the order of the sources and of their rows."""
    seed: int = Field(default=0, ge=0)
    """Another seed makes other choices and another order."""

    @pydantic.field_validator("holdout")
    @classmethod
    def _is_below_all(cls, holdout: int | float) -> int | float:
        if holdout < 0 or (isinstance(holdout, float) and holdout >= 1.0):
            raise ValueError("must be a number of rows, or a share of at least 0 and below 1")
        return holdout

    @pydantic.field_validator("limits")
    @classmethod
    def _leave_something(cls, limits: dict[str, int]) -> dict[str, int]:
        if low := [label for label, limit in limits.items() if limit < 1]:
            raise ValueError(f"{low[0]}: a limit is at least 1; leave the source out instead")
        return limits


@dataclass(frozen=True, slots=True)
class MixSource:
    """The rows of one source.

    Attributes:
        label: its name.
        marks: :func:`content_mark` of each row, ``[rows]``.
        weight: how often each row goes in: 2 is twice, 0.5 is half of the rows.
        groups: rows with the same number stay on one side of the holdout, as the parts of a split conversation should; the marks if None.
    """

    label: str
    marks: Hashes
    weight: float = 1.0
    groups: Hashes | None = None


@dataclass(frozen=True, slots=True)
class MixedRows:
    """Rows in the order in which they are written; all arrays ``[rows]``.

    Attributes:
        source: index of the source.
        row: number of the row in its source.
        copy: 0 for the first copy of a row.
        key: what a shuffled order sorts by; equal for equal contents only.
    """

    source: npt.NDArray[np.int32]
    row: Ints
    copy: npt.NDArray[np.int32]
    key: Hashes

    def __len__(self) -> int:
        return len(self.row)

    def select(self, chosen: npt.NDArray[np.generic]) -> MixedRows:
        """Some of them, by mask or places."""
        return MixedRows(self.source[chosen], self.row[chosen], self.copy[chosen], self.key[chosen])


@dataclass(frozen=True, slots=True)
class MixPlan:
    """What to write.

    Attributes:
        train: rows to train on, repeated by weight.
        holdout: held-out rows, once each.
        counts: label -> ``{"rows", "within_limit", "held_out", "by_weight", "written"}``: all of them, those that the limit leaves, held
            out, left out by a weight below 1, and written, copies included.
        beyond: of each source the rows that its limit leaves out.
        thinned: of each source the rows that its weight leaves out.
    """

    train: MixedRows
    holdout: MixedRows
    counts: dict[str, dict[str, int]]
    beyond: tuple[Ints, ...]
    thinned: tuple[Ints, ...]


def content_mark(chat: Chat) -> int:
    """64 bits of :func:`sft.curate.dedup.content_key`: equal for equal roles and texts."""
    return int.from_bytes(content_key(chat)[:8], "little")


def hashes(marks: Hashes, seed: int, purpose: str) -> Hashes:
    """One hash per mark, other ones for each seed and purpose; different marks have different hashes. Pure and by row."""
    salt = np.frombuffer(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:8], "<u8")
    return _mixed(marks ^ salt)


def _mixed(values: Hashes) -> Hashes:
    """MurmurHash3's finaliser: every bit of the result depends on every bit of the value, and no two values collide."""
    values = (values ^ (values >> _HALF)) * _MIX_A
    values = (values ^ (values >> _HALF)) * _MIX_B
    return values ^ (values >> _HALF)


def order_keys(marks: Hashes, copies: npt.NDArray[np.integer], seed: int) -> Hashes:
    """The keys of a shuffled order: by row, so that an external sort can take them as they come."""
    return _mixed(hashes(marks, seed, "order") + copies.astype(np.uint64) * _GOLDEN)


def copies_of(marks: Hashes, weight: float, seed: int) -> Ints:
    """How often each row goes in: floor(weight), and one more for the share of contents that the rest of the weight is. By row."""
    whole = math.floor(weight)
    bound = math.floor((weight - whole) * 2.0**64)  # below 2**64: the rest is below 1
    return whole + (hashes(marks, seed, "weight") < np.uint64(bound)).astype(np.int64)


def plan_mix(section: MixSection, sources: Sequence[MixSource]) -> MixPlan:
    """Decide what is written. Memory: some 80 bytes per row and copy.

    Args:
        section: the recipe's ``mix``.
        sources: in the recipe's order.

    Raises:
        DataError: a limit for a source that is not there, or a holdout that leaves nothing to train on.
    """
    labels = [source.label for source in sources]
    if strange := [label for label in section.limits if label not in labels]:
        raise DataError(f"mix.limits names {strange[0]!r}; the sources are {', '.join(labels)}")
    taken = [_within(source.marks, section.limits.get(source.label), section.seed) for source in sources]
    chosen = [source.marks if source.groups is None else source.groups for source in sources]
    groups = np.concatenate([np.empty(0, np.uint64), *(group[rows] for group, rows in zip(chosen, taken, strict=True))])
    held = np.split(_held_out(groups, section.holdout, section.seed), np.cumsum([len(rows) for rows in taken])[:-1])
    train, holdout, counts = list[MixedRows](), list[MixedRows](), dict[str, dict[str, int]]()
    beyond, thinned = list[Ints](), list[Ints]()
    for number, (source, rows, apart) in enumerate(zip(sources, taken, held, strict=True)):
        copies = copies_of(source.marks[rows[~apart]], source.weight, section.seed)
        train.append(_repeat(number, source.marks, rows[~apart], copies, section.seed))
        holdout.append(_repeat(number, source.marks, rows[apart], np.ones(int(apart.sum()), np.int64), section.seed))
        beyond.append(np.setdiff1d(np.arange(len(source.marks)), rows, assume_unique=True))
        thinned.append(rows[~apart][copies == 0])
        found = (len(source.marks), len(rows), len(holdout[-1]), len(thinned[-1]), len(train[-1]))
        counts[source.label] = dict(zip(("rows", "within_limit", "held_out", "by_weight", "written"), found, strict=True))
    sides = (_in_order(train, section.shuffle), _in_order(holdout, section.shuffle))
    return MixPlan(*sides, counts, tuple(beyond), tuple(thinned))


def _within(marks: Hashes, limit: int | None, seed: int) -> Ints:
    """The rows that a limit leaves, in their order."""
    if limit is None or limit >= len(marks):
        return np.arange(len(marks))
    return np.sort(np.argsort(hashes(marks, seed, "limit"), kind="stable")[:limit])


def _held_out(groups: Hashes, wanted: int | float, seed: int) -> npt.NDArray[np.bool_]:
    """At least so many rows, whole groups only."""
    count = round(wanted * len(groups)) if isinstance(wanted, float) else wanted
    if count == 0:
        return np.zeros(len(groups), np.bool_)
    if count >= len(groups):
        asked = f"{wanted} of {len(groups)} rows, which is {count}" if isinstance(wanted, float) else f"{count} rows"
        raise DataError(f"mix.holdout asks for {asked}, and there are only {len(groups)}: nothing would be left; lower it")
    unique, sizes = np.unique(groups, return_counts=True)
    ranked = np.argsort(hashes(unique, seed, "holdout"))
    enough = int(np.searchsorted(np.cumsum(sizes[ranked]), count)) + 1
    if enough >= len(unique):
        raise DataError(
            f"mix.holdout asks for {count} rows, and rows of equal content stay together: nothing would be left; lower it"
        )
    return np.isin(groups, unique[ranked[:enough]])


def _repeat(number: int, marks: Hashes, rows: Ints, times: Ints, seed: int) -> MixedRows:
    """Each of ``rows`` so many times, its copies one behind the other."""
    row = np.repeat(rows, times)
    first = np.repeat(np.cumsum(times) - times, times)
    copy = (np.arange(len(row)) - first).astype(np.int32)
    return MixedRows(np.full(len(row), number, np.int32), row, copy, order_keys(marks[row], copy, seed))


def _in_order(parts: Sequence[MixedRows], shuffle: bool) -> MixedRows:
    names = ("source", "row", "copy", "key")
    empty = (np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.uint64))
    columns = [
        np.concatenate([none, *(getattr(part, name) for part in parts)]) for name, none in zip(names, empty, strict=True)
    ]
    rows = MixedRows(*columns)
    return rows.select(np.argsort(rows.key, kind="stable")) if shuffle else rows
