"""What candidates are measured against: the seeds, and the rows accepted so far.

::

    seeds ─┐                 ┌─ normal forms ──► exact duplicates, contradictory instances
           ├─► Pool.add ─────┼─ novelty index ─► near-duplicates, nearest rows
    rows  ─┘                 └─ seed index ────► distance from the seeds
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfinstruct.records import Candidate, SeedTask
from sft.errors import DataError
from sft.text.tokens import normal

if TYPE_CHECKING:
    from selfinstruct.filters.novelty import NoveltyIndex

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a filter refuses: the code, and what decided."""

    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


def _key(*texts: str) -> bytes:
    """16 bytes that stand for the normal forms of texts."""
    return hashlib.blake2b("\x1f".join(map(normal, texts)).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _entry(id: str, instruction: str) -> bytes:
    return f"{id}\x1f{instruction}\x1e".encode("utf-8", "surrogatepass")


class Pool:
    """Seeds and accepted rows.

    Args:
        seeds: they refuse candidates as rows do.
        threshold: of the novelty index; None keeps no index.
    """

    def __init__(self, seeds: Iterable[SeedTask] = (), threshold: float | None = None) -> None:
        self._threshold = threshold
        self._instructions: dict[bytes, str] = {}
        self._tasks: dict[bytes, str] = {}
        self._rows: dict[bytes, str] = {}
        self._outputs: dict[bytes, tuple[str, str]] = {}  # task -> id and normal form of its output
        self._texts: dict[str, str] = {}
        self._groups: set[str] = set()
        self._said = hashlib.sha256()
        self.index: NoveltyIndex | None = None
        self.seed_index: NoveltyIndex | None = None
        if threshold is not None:
            from selfinstruct.filters.novelty import NoveltyIndex  # here, since it brings numba

            self.index, self.seed_index = NoveltyIndex(threshold), NoveltyIndex(threshold)
        for seed in seeds:
            self._add_seed(seed)

    def __len__(self) -> int:
        """Seeds and rows."""
        return len(self._texts)

    def _add_seed(self, seed: SeedTask) -> None:
        self._index(seed.id, seed.instruction)
        if self.seed_index is not None:
            self.seed_index.add(seed.id, seed.instruction)
        for instance in seed.instances:
            self._remember(seed.id, seed.instruction, instance.input, instance.output)

    def add(self, row: Candidate) -> None:
        """Take in an accepted row. Of the rows of one group only the first is measured against."""
        if not self.has_group(row):
            self._index(row.id, row.instruction)
        if row.group:
            self._groups.add(row.group)
        self._remember(row.id, row.instruction, row.input, row.output)

    def _index(self, id: str, instruction: str) -> None:
        self._said.update(_entry(id, instruction))
        if self.index is not None:
            self.index.add(id, instruction)

    def _remember(self, id: str, instruction: str, given: str, output: str) -> None:
        self._texts.setdefault(id, instruction)
        self._instructions.setdefault(_key(instruction), id)
        self._tasks.setdefault(_key(instruction, given), id)
        self._rows.setdefault(_key(instruction, given, output), id)
        if given.strip():
            self._outputs.setdefault(_key(instruction, given), (id, normal(output)))

    def has_group(self, candidate: Candidate) -> bool:
        """Whether a row of the candidate's group was accepted: its instruction has passed."""
        return bool(candidate.group) and candidate.group in self._groups

    def text(self, id: str) -> str:
        """Instruction of a seed or row."""
        return self._texts[id]

    def same_instruction(self, candidate: Candidate) -> str | None:
        """Id of the first seed or row with this instruction, up to case, white space and Unicode form."""
        return self._instructions.get(_key(candidate.instruction))

    def same_task(self, candidate: Candidate) -> str | None:
        """The same for instruction and input."""
        return self._tasks.get(_key(candidate.instruction, candidate.input))

    def same_row(self, candidate: Candidate) -> str | None:
        """The same for instruction, input and output."""
        return self._rows.get(_key(candidate.instruction, candidate.input, candidate.output))

    def other_output(self, candidate: Candidate) -> str | None:
        """Id of a seed or row with this instruction and this (not empty) input, and another output."""
        found = self._outputs.get(_key(candidate.instruction, candidate.input))
        return None if found is None or found[1] == normal(candidate.output) else found[0]

    def save(self, path: str | Path) -> None:
        """Write the novelty index, sealed with what it was made from; nothing if there is none."""
        if self.index is not None:
            self.index.save(path, self._said.hexdigest())

    def restore(self, rows: Iterable[Candidate], path: str | Path | None = None) -> bool:
        """Take in the rows of an earlier run.

        Args:
            rows: in the order in which they were accepted.
            path: a file of :meth:`save`. It is used if it was made from these seeds and the first of these rows; a file that was not, or
                that is damaged, is passed over with a warning, and the index is built again. The decisions are the same.

        Returns:
            Whether the file was used.
        """
        listed = list(rows)
        saved = self._saved(path) if path is not None else None
        covered = None if saved is None else self._covered(listed, saved.note)
        if saved is not None and covered is None:
            log.warning("%s: not the index of these rows; it is built again", path)
        if covered is not None:
            self.index = None
            for row in listed[:covered]:
                self.add(row)
            self.index = saved
        for row in listed[covered or 0 :]:
            self.add(row)
        return covered is not None

    def _covered(self, rows: list[Candidate], note: str) -> int | None:
        """How many of the rows an index with this note holds; None if it is not theirs."""
        said, groups = self._said.copy(), set(self._groups)
        if said.hexdigest() == note:
            return 0
        for count, row in enumerate(rows, 1):
            if not row.group or row.group not in groups:
                said.update(_entry(row.id, row.instruction))
            groups.add(row.group)
            if said.hexdigest() == note:
                return count
        return None

    def _saved(self, path: str | Path) -> NoveltyIndex | None:
        if self._threshold is None or not Path(path).exists():
            return None
        from selfinstruct.filters.novelty import NoveltyIndex

        try:
            return NoveltyIndex.load(path, self._threshold)
        except DataError as error:
            log.warning("%s", error)
            return None
