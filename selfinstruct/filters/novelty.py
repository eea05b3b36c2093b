"""Is a text new? Exact ROUGE-L F against everything kept so far, without comparing with everything kept so far.

The originals of 2023 compute ROUGE-L between each candidate and every row of the pool. The decision ``F > 0.7`` needs far less::

    candidate ──► tokens ──► postings of its rarest tokens ──► length and signature bounds ──► LCS of 1 to 5 rows ──► hit or new
                             (rows that cannot pass share none)

The bounds are exact: the decision is the one that the rouge_score package gives, also where F equals the threshold. numba is imported
with the first index, not with this module.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.errors import DataError
from sft.text.tokens import TOKENISER, tokens

if TYPE_CHECKING:
    import numpy as np

_MAGIC = b"vicugna novelty index 1\n"
_TOO_LONG = 1 << 20  # tokens of one text


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A row and its ROUGE-L F with the text in question, 0 to 1."""

    id: str
    score: float


class NoveltyIndex:
    """Texts by id, searched by ROUGE-L F. Rows are only ever added. Not for use by several threads at once.

    Args:
        threshold: F, 0 to 1; a text is a near-duplicate if its F with some row is strictly above.

    Raises:
        ValueError: a threshold outside 0 to 1.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        import numpy as np

        from selfinstruct.filters import kernels

        if not 0 <= threshold <= 1:
            raise ValueError(f"the novelty threshold is an F measure from 0 to 1, got {threshold}")
        self.threshold = float(threshold)
        self.note = ""
        self._np, self._kernels = np, kernels
        self._ids: list[str] = []
        self._vocabulary: dict[str, int] = {}
        self._flat = np.zeros(1 << 12, np.int32)
        self._starts = np.zeros(1 << 9, np.int64)
        self._sigs = np.zeros((2, 1 << 9), np.uint64)
        self._heads = np.zeros((1 << 10, 3), np.int64)
        self._parts = np.zeros((4, 64, 2), np.int64)
        self._masks = np.zeros(1 << 10, np.uint64)
        self._arena = np.zeros(1 << 12, np.uint64)
        self._free = np.zeros(64, np.int64)
        self._bounds = np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Sequence[str]:
        """Ids in the order of adding."""
        return self._ids

    def add(self, id: str, text: str) -> None:
        """Add a row, whatever it resembles. A text without tokens (symbols only) is a row that nothing resembles."""
        self._append(id, tokens(text))

    def check(self, text: str) -> Neighbour | None:
        """A row whose F with ``text`` is above the threshold, or None: the first one found, not always the nearest."""
        row, score = self._find(tokens(text))
        return None if row < 0 else Neighbour(self._ids[row], score)

    def offer(self, id: str, text: str) -> Neighbour | None:
        """:meth:`check`, and :meth:`add` if nothing was found."""
        words = tokens(text)
        row, score = self._find(words)
        if row >= 0:
            return Neighbour(self._ids[row], score)
        self._append(id, words)
        return None

    def neighbours(self, text: str, k: int = 10) -> list[Neighbour]:
        """The ``k`` rows of highest F, highest first and older rows first among equals; rows that share nothing are left out."""
        if len(self._bounds) < len(self._ids):
            self._bounds = self._np.zeros(len(self._starts), self._np.uint8)
        rows, scores = self._np.zeros(k, self._np.int64), self._np.zeros(k)
        query = self._query(tokens(text))
        found = 0
        if k > 0 and len(query):
            found = self._kernels.nearest(
                query, len(self._ids), self._flat, self._starts, self._sigs, self._masks, self._bounds, rows, scores
            )
        return [
            Neighbour(self._ids[row], score) for row, score in zip(rows[:found].tolist(), scores[:found].tolist(), strict=True)
        ]

    def scores(self, text: str) -> np.ndarray:
        """F with every row, float64[rows], in the order of :attr:`ids`. Reads the whole pool."""
        out = self._np.zeros(len(self._ids))
        query = self._query(tokens(text))
        if len(query) and len(out):
            self._kernels.score_all(query, len(out), self._flat, self._starts, self._masks, out)
        return out

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays; ids and vocabulary come on top."""
        arrays = (
            self._flat,
            self._starts,
            self._sigs,
            self._heads,
            self._parts,
            self._masks,
            self._arena,
            self._free,
            self._bounds,
        )
        return sum(array.nbytes for array in arrays)

    def _query(self, words: list[str]) -> np.ndarray:
        if len(words) > _TOO_LONG:
            raise DataError(f"a text of {len(words):,} tokens cannot be compared; the longest allowed has {_TOO_LONG:,}")
        known = self._vocabulary
        return self._np.array([known.get(word, -1) for word in words], self._np.int32)

    def _find(self, words: list[str]) -> tuple[int, float]:
        if not words:
            return -1, 0.0
        row, score = self._kernels.find(
            *(
                self._query(words),
                self._flat,
                self._starts,
                self._sigs,
                self._heads,
                self._parts,
                self._arena,
                self._masks,
                self.threshold,
            )
        )
        return int(row), float(score)

    def _append(self, id: str, words: list[str]) -> None:
        vocabulary = self._vocabulary
        ids = self._np.array([vocabulary.setdefault(word, len(vocabulary)) for word in words], self._np.int32)
        self._reserve(len(self._ids) + 1, int(self._starts[len(self._ids)]) + len(ids))
        arrays = (self._flat, self._starts, self._sigs, self._heads)
        while missing := self._kernels.add(ids, len(self._ids), *arrays, self._parts, self._arena, self._free):
            self._supply(missing)
        self._ids.append(id)

    def _reserve(self, rows: int, used: int) -> None:
        """Make room for so many rows and row tokens, and for the vocabulary as it stands."""
        if used > len(self._flat):
            self._flat = self._grown(self._flat, used)
        if rows >= len(self._starts):
            self._starts = self._grown(self._starts, rows + 1)
            sigs, held = self._np.zeros((2, len(self._starts)), self._np.uint64), self._sigs.shape[1]
            sigs[:, :held] = self._sigs
            self._sigs = sigs
        if len(self._vocabulary) > len(self._masks):
            self._heads = self._grown(self._heads, len(self._vocabulary))
            self._masks = self._grown(self._masks, len(self._vocabulary))

    def _supply(self, missing: int) -> None:
        """Make room for what a kernel found missing: arena entries, or parts if below 0."""
        if missing > 0:
            self._arena = self._grown(self._arena, len(self._arena) + missing)
        else:
            self._parts = self._grown(self._parts, len(self._parts) - missing)

    def _grown(self, array: np.ndarray, least: int) -> np.ndarray:
        """A copy with room for ``least`` entries and a quarter of it to spare, zeros behind the old entries."""
        out = self._np.zeros((least + least // 4 + 16, *array.shape[1:]), array.dtype)
        out[: len(array)] = array
        return out

    def save(self, path: str | Path, note: str = "") -> None:
        """Write the index into one file, whole or not at all. The same rows give the same bytes.

        Args:
            path: a file; its folder exists.
            note: kept as :attr:`note`, to tell what the rows were made from.

        Raises:
            DataError: it cannot be written.
        """
        target = Path(path)
        rows = len(self._ids)
        lengths = self._np.diff(self._starts[: rows + 1]).astype("<i4")
        parts = [
            json.dumps(self._ids).encode(),
            json.dumps(list(self._vocabulary)).encode(),
            lengths.tobytes(),
            self._flat[: int(self._starts[rows])].astype("<i4").tobytes(),
        ]
        about = {
            "tokeniser": TOKENISER,
            "rows": rows,
            "threshold": self.threshold,
            "note": note,
            "parts": [len(part) for part in parts],
        }
        body = b"".join([json.dumps(about).encode() + b"\n", *parts])
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("wb") as file:
                file.write(_MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            raise DataError(f"{target}: the novelty index cannot be written: {error}") from None
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, threshold: float | None = None) -> NoveltyIndex:
        """Read a saved index; it decides as the one that was saved.

        Args:
            path: a file of :meth:`save`.
            threshold: None for the one it was saved with. The file holds for any.

        Raises:
            DataError: no such file, not an index, damaged, or made by another tokenisation.
        """
        about, parts = _read(Path(path))
        index = cls(about["threshold"] if threshold is None else threshold)
        index.note = about["note"]
        np = index._np
        index._ids = json.loads(parts[0])
        index._vocabulary = {word: i for i, word in enumerate(json.loads(parts[1]))}
        lengths, flat = np.frombuffer(parts[2], "<i4"), np.frombuffer(parts[3], "<i4")
        rows = len(index._ids)
        index._reserve(rows, len(flat))
        index._flat[: len(flat)] = flat
        np.cumsum(lengths, out=index._starts[1 : rows + 1])
        row = 0
        while row < rows:
            arrays = (index._flat, index._starts, index._sigs, index._heads, index._parts, index._arena, index._free)
            row, missing = index._kernels.add_all(rows, *arrays, row)
            if missing:
                index._supply(missing)
        return index


def _read(path: Path) -> tuple[dict[str, Any], list[bytes]]:
    """Header and parts of a saved index, verified."""
    again = "delete it: it is built again from the candidates"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the novelty index cannot be read: {error.strerror}") from None
    if not data.startswith(_MAGIC):
        raise DataError(f"{path}: not a novelty index of this version; {again}")
    start = len(_MAGIC) + 65
    if data[len(_MAGIC) : start] != hashlib.sha256(data[start:]).hexdigest().encode() + b"\n":
        raise DataError(f"{path}: the novelty index is damaged (its checksum does not match); {again}")
    line, _, rest = data[start:].partition(b"\n")
    about = json.loads(line)
    if about["tokeniser"] != TOKENISER:
        raise DataError(f"{path}: made with the tokenisation {about['tokeniser']!r}, this is {TOKENISER!r}; {again}")
    parts = []
    for size in about["parts"]:
        parts.append(rest[:size])
        rest = rest[size:]
    return about, parts
