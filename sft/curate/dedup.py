"""Which conversations say what another one says already, and which of them stays.

::

    worker   signature(chat, section) -> bytes               everything that the decision needs, 312 bytes at 128 permutations
    one      Deduplicator(section).add(index, signature)     in any order
             .decide() -> Decision                           {index: Duplicate(of, reason, similarity)}, new ids, clusters

Four questions, each asked about what the ones before it left::

    exact            the same roles and texts (white space and composition of characters aside)
    same_id          another conversation under the same id
    first_exchange   the same first question with the same first answer
    near             nearly the same words: see sft.curate.minhash

Who stays is decided by content: the longest, then the one with the smallest hash, of equal contents the one with the smallest hash of its
id (``keep: longest``). So what is kept does not depend on the order of the rows. Nothing that stays is a duplicate of anything else that
stays: doing it again drops nothing.
"""

from __future__ import annotations

import hashlib
import struct
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sft.config import Section
from sft.curate.chat import ASSISTANT, SYSTEM, USER, Chat

Reason = Literal["exact_duplicate", "same_id", "first_exchange", "near_duplicate"]
Ints = npt.NDArray[np.int64]

_NUMBERS: Final = {USER: 1, ASSISTANT: 2, SYSTEM: 3}
_SIZES: Final = {"words": 2, "characters": 5}


class NearSection(Section):
    """Nearly equal conversations."""

    threshold: float = Field(default=0.8, ge=0.5, le=1.0)
    """Least similarity: common shingles through all shingles, estimated."""
    shingle: Literal["words", "characters"] = "words"
    """What a shingle is made of: words, and single characters of Chinese, Japanese, Korean or Thai; or characters everywhere."""
    size: int | None = Field(default=None, ge=1, le=32)
    """How many of them in a row; null is 2 words or 5 characters. A larger one sees small edits as larger differences."""
    permutations: int = Field(default=128, ge=16, le=1024)
    """Marks per conversation, 2 bytes each: more of them estimate the similarity better."""
    reach: Literal["direct", "chain"] = "direct"
    """``direct``: whoever is left out is itself that similar to one that stays. ``chain``: of all that hang together through similar pairs
    one stays, however little the ends of the chain have in common."""


class DedupSection(Section):
    """Conversations that are in the data already."""

    exact: bool = True
    """Drop conversations with the same roles and texts; white space does not matter, upper and lower case do."""
    same_id: Literal["drop", "keep", "rename"] = "rename"
    """What happens to another conversation under a known id: left out (as the original does), left as it is, or given an id of its own."""
    first_exchange: bool = False
    """Drop conversations that begin with the same question and the same answer (as the original does), however they go on."""
    near: NearSection | None = NearSection()
    """Drop nearly equal conversations; null keeps them."""
    keep: Literal["longest", "first"] = "longest"
    """Which one stays: the longest whatever the order of the rows, or the first of them."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A conversation that is left out.

    Attributes:
        of: index of the one that it repeats, which may in turn repeat a third: :attr:`Decision.clusters` has the one that stays.
        reason: which question found it.
        similarity: to ``of``: 1.0 for an exact duplicate, the estimate for a near one (with ``reach: chain`` perhaps below the
            threshold), None where the question was another.
    """

    of: int
    reason: Reason
    similarity: float | None


@dataclass(frozen=True, slots=True)
class Cluster:
    """A conversation that stays, and the indices of all that are left out for it, in ascending order."""

    kept: int
    dropped: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with each row; one that is in neither mapping stays as it is.

    Attributes:
        duplicates: index -> why it is left out, in ascending order.
        renamed: index -> what to put behind its id (``same_id: rename``).
    """

    duplicates: Mapping[int, Duplicate]
    renamed: Mapping[int, str]

    @property
    def counts(self) -> Counter[str]:
        """Rows left out by reason."""
        return Counter(found.reason for found in self.duplicates.values())

    @property
    def clusters(self) -> list[Cluster]:
        """Largest first."""
        members: dict[int, list[int]] = defaultdict(list)
        for index in self.duplicates:
            kept = index
            while kept in self.duplicates:
                kept = self.duplicates[kept].of
            members[kept].append(index)
        ordered = sorted(members.items(), key=lambda item: (-len(item[1]), item[0]))
        return [Cluster(kept, tuple(dropped)) for kept, dropped in ordered]


def record_type(section: DedupSection) -> np.dtype[np.void]:
    """The layout of a signature, little-endian: keys (0: the question does not arise), length in characters, marks."""
    keys = [("exact", "<u8", (2,)), ("first", "<u8", (2,)), ("id", "<u8"), ("content", "<u8")]
    return np.dtype([*keys, ("length", "<i8"), ("compared", "<i8"), ("marks", "<u2", (_permutations(section),))])


def _permutations(section: DedupSection) -> int:
    return 0 if section.near is None else section.near.permutations


def plain(text: str) -> str:
    """The form in which two texts are the same: composed characters, every run of white space one space, none at the ends."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def _digest(messages: list[tuple[str, str]]) -> bytes:
    """16 bytes that are equal for equal roles and texts only."""
    state = hashlib.blake2b(digest_size=16)
    for role, text in messages:
        data = text.encode("utf-8", "surrogatepass")
        state.update(f"{role}:{len(data)}:".encode())
        state.update(data)
    return state.digest()


def content_key(chat: Chat) -> bytes:
    """16 bytes, the same for conversations with the same roles and texts up to white space, whatever their id or other fields."""
    return _digest([(message.role, plain(message.text)) for message in chat.messages])


def signature(chat: Chat, section: DedupSection) -> bytes:
    """All that the decision needs to know of a conversation; pure, so that it can be made in any process.

    Returns:
        One record of :func:`record_type`. Records one behind the other can be kept in a file, and given to :meth:`Deduplicator.extend`.
    """
    texts = [(message.role, plain(message.text)) for message in chat.messages]
    exact = _digest(texts)
    raw = [(message.role, message.text) for message in chat.messages]
    content = exact if raw == texts else _digest(raw)
    length = sum(len(text) for _, text in texts)
    found = None
    if section.near is not None:
        from sft.curate.minhash import marks  # here: importing numba takes a second that a recipe need not pay

        near = section.near
        size = near.size or _SIZES[near.shingle]
        found = marks([(_NUMBERS[role], text) for role, text in texts], near.shingle, size, near.permutations)
    keys = exact + _first_exchange(texts) + _digest([("id", chat.id)])[:8] + content[:8]
    rest = bytes(2 * _permutations(section)) if found is None else found.astype("<u2").tobytes()
    return struct.pack("<48sqq", keys, length, found is not None) + rest


def _first_exchange(texts: list[tuple[str, str]]) -> bytes:
    """Of the first question and the answer behind it; zeros where there are not both."""
    question = next((i for i, (role, _) in enumerate(texts) if role == USER), None)
    if question is None or question + 1 == len(texts) or texts[question + 1][0] != ASSISTANT:
        return bytes(16)
    return _digest(texts[question : question + 2])


class Deduplicator:
    """Gathers signatures and decides. Memory: 72 bytes and the marks per row (328 at 128 permutations), up to 500 in all while deciding."""

    def __init__(self, section: DedupSection) -> None:
        self._section, self._type = section, record_type(section)
        self._count = 0
        self._index = np.empty(0, np.int64)
        names = self._type.names or ()
        self._columns = {name: np.empty((0, *self._type[name].shape), self._type[name].base) for name in names}

    def __len__(self) -> int:
        return self._count

    def add(self, index: int, signature: bytes) -> None:
        """Take one row's :func:`signature`; each index once, in any order."""
        self.extend((index,), signature)

    def extend(self, indices: Sequence[int], signatures: bytes) -> None:
        """Take the signatures of several rows, one behind the other."""
        records = np.frombuffer(signatures, self._type)
        assert len(records) == len(indices), f"{len(records)} signatures for {len(indices)} rows"
        begin, end = self._count, self._count + len(records)
        if end > len(self._index):
            for column in (self._index, *self._columns.values()):
                # in place: the memory that is added is not touched before it is filled
                column.resize((max(1024, end, 3 * len(column) // 2), *column.shape[1:]), refcheck=False)
        self._index[begin:end] = indices
        for name, column in self._columns.items():
            column[begin:end] = records[name]
        self._count = end

    def decide(self) -> Decision:
        """Who is left out for whom."""
        section, index = self._section, self._index[: self._count]
        of = {name: column[: self._count] for name, column in self._columns.items()}
        assert len(np.unique(index)) == self._count, "an index was given twice"
        ranked = np.argsort(index) if section.keep == "first" else np.lexsort((index, of["id"], of["content"], -of["length"]))
        finds: list[tuple[Reason, Ints, Ints]] = []

        def leave_out(reason: Reason, asked: Ints, *keys: npt.NDArray[np.generic]) -> None:
            nonlocal ranked
            dropped, kept = _repeats(asked, *keys)
            finds.append((reason, dropped, kept))
            ranked = ranked[~np.isin(ranked, dropped)]

        if section.exact:
            leave_out("exact_duplicate", ranked, *of["exact"][ranked].T)
        if section.same_id == "drop":
            leave_out("same_id", ranked, of["id"][ranked])
        if section.first_exchange:
            asked = ranked[of["first"][ranked].any(axis=1)]
            leave_out("first_exchange", asked, *of["first"][asked].T)
        if section.near is not None:
            from sft.curate import minhash

            gather = minhash.components if section.near.reach == "chain" else minhash.nearest_kept
            asked = ranked[of["compared"][ranked] == 1]
            leave_out("near_duplicate", asked, gather(of["marks"], asked, section.near.threshold))
        renamed = _new_names(ranked, index, of["id"], of["exact"]) if section.same_id == "rename" else {}
        return Decision(_duplicates(finds, index, of["marks"]), renamed)


def _repeats(ranked: Ints, *keys: npt.NDArray[np.generic]) -> tuple[Ints, Ints]:
    """Rows whose keys another row has that comes before them, and the first row with those keys."""
    if len(ranked) == 0:
        return ranked, ranked
    order = np.lexsort(keys)  # stable: among equal keys the order stays
    first = np.ones(len(ranked), np.bool_)
    first[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    rows = ranked[order]
    return rows[~first], rows[first][np.cumsum(first) - 1][~first]


def _new_names(ranked: Ints, index: Ints, ids: npt.NDArray[np.uint64], exact: npt.NDArray[np.uint64]) -> dict[int, str]:
    """Endings for all but the first row of each id, made of their content: they do not depend on the other rows."""
    repeated, _ = _repeats(ranked, ids[ranked])
    names, seen = dict[int, str](), Counter[tuple[int, ...]]()
    for row in repeated.tolist():
        content = (int(ids[row]), *exact[row].tolist())
        seen[content] += 1
        again = f"-{seen[content]}" if seen[content] > 1 else ""
        names[int(index[row])] = f"~{content[1]:016x}"[:9] + again
    return dict(sorted(names.items()))


def _duplicates(finds: list[tuple[Reason, Ints, Ints]], index: Ints, marks: npt.NDArray[np.uint16]) -> dict[int, Duplicate]:
    found: list[tuple[int, Duplicate]] = []
    for reason, dropped, kept in finds:
        for at in range(0, len(dropped), 4096):
            rows, others = dropped[at : at + 4096], kept[at : at + 4096]
            seen: list[float | None] = [1.0 if reason == "exact_duplicate" else None] * len(rows)
            if reason == "near_duplicate":
                seen = (marks[rows] == marks[others]).mean(axis=1).tolist()
            pairs = zip(index[rows].tolist(), index[others].tolist(), seen, strict=True)
            found += [(row, Duplicate(other, reason, similarity)) for row, other, similarity in pairs]
    return dict(sorted(found, key=lambda item: item[0]))
