"""Filters in recipe order: the first refusal decides, with a code and what decided.

::

    candidate ──► length ──► blacklist ──► ... ──► novelty ──► accepted, joins the pool
                    └ too_short {"words": 2, "least": 4}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from selfinstruct.filters.measures import (
    ContaminationFilter,
    ContradictionFilter,
    CriticFilter,
    ExactDuplicateFilter,
    NoveltyFilter,
)
from selfinstruct.filters.pool import Pool, Refusal
from selfinstruct.filters.sections import (
    BlacklistFilter,
    EchoFilter,
    EmptyOutputFilter,
    Filter,
    FirstCharacterFilter,
    InputIsOutputFilter,
    LanguageFilter,
    LengthFilter,
    OutputLengthFilter,
    ProgramFilter,
    RefusalFilter,
    TrailingColonFilter,
)
from selfinstruct.records import Candidate, SeedTask, Verdict

__all__ = ["CriticFilter", "Filter", "FilterChain", "FilterSection", "NoveltyFilter", "Pool", "Refusal", "make_chain"]

FilterSection = Annotated[
    LengthFilter
    | BlacklistFilter
    | ProgramFilter
    | FirstCharacterFilter
    | LanguageFilter
    | EmptyOutputFilter
    | OutputLengthFilter
    | EchoFilter
    | InputIsOutputFilter
    | ContradictionFilter
    | RefusalFilter
    | TrailingColonFilter
    | ExactDuplicateFilter
    | NoveltyFilter
    | ContaminationFilter
    | CriticFilter,
    Field(discriminator="kind"),
]
"""Any filter, told apart by ``kind``."""


class FilterChain:
    """Filters over one pool.

    Args:
        filters: in order.
        pool: what was accepted so far; accepted candidates join it.

    Raises:
        DataError: an evaluation set that cannot be read.
        ValueError: a novelty filter over a pool without an index, or with another threshold (:func:`make_chain` fits them).
    """

    def __init__(self, filters: Sequence[Filter], pool: Pool) -> None:
        self.filters, self.pool = tuple(filters), pool
        for section in self.filters:
            if isinstance(section, ContaminationFilter):
                section.texts()
            if isinstance(section, NoveltyFilter) and (pool.index is None or pool.index.threshold != section.threshold):
                raise ValueError(f"the pool has no novelty index with the threshold {section.threshold}")

    def judge(self, candidate: Candidate, scores: Mapping[str, Any] | None = None, *, keep: bool = True) -> Verdict:
        """Judge one candidate.

        Args:
            candidate: parsed.
            scores: from outside the chain, such as ``{"critic": 4}``.
            keep: let it join the pool if it is accepted.

        Raises:
            RunError: it reached the critic without a score.
        """
        given = scores or {}
        refused = self._refusal(self.filters, candidate, given)
        if refused is not None:
            return refused
        found: dict[str, Any] = {}
        for section in self.filters:
            found |= section.measure(candidate, self.pool, given)
        if keep:
            self.pool.add(candidate)
        return Verdict(candidate_id=candidate.id, accepted=True, scores=found)

    def screen(self, candidate: Candidate) -> Verdict | None:
        """The refusal that the instruction alone is enough for, or None: asked before input and output are paid for."""
        return self._refusal([section for section in self.filters if section.of_instruction], candidate, {})

    def needs_critic(self, candidate: Candidate) -> bool:
        """Whether there is a critic, and every filter before it lets the candidate pass."""
        kinds = [isinstance(section, CriticFilter) for section in self.filters]
        return any(kinds) and self._refusal(self.filters[: kinds.index(True)], candidate, {}) is None

    def _refusal(self, filters: Iterable[Filter], candidate: Candidate, scores: Mapping[str, Any]) -> Verdict | None:
        for section in filters:
            refusal = section.check(candidate, self.pool, scores)
            if refusal is not None:
                kind = str(getattr(section, "kind", type(section).__name__))
                return Verdict(
                    candidate_id=candidate.id,
                    accepted=False,
                    filter=kind,
                    reason=refusal.reason,
                    evidence=refusal.evidence,
                    scores=dict(scores) if kind == "critic" else {},
                )
        return None

    def restore(self, rows: Iterable[Candidate], index: str | Path | None = None) -> bool:
        """Take in the accepted rows of an earlier run: see :meth:`selfinstruct.filters.pool.Pool.restore`."""
        return self.pool.restore(rows, index)

    def save(self, path: str | Path) -> None:
        """Write the novelty index for :meth:`restore`; nothing if no filter needs one."""
        self.pool.save(path)

    def files(self) -> tuple[str, ...]:
        """Files that decisions depend on: the evaluation sets."""
        return tuple(file for section in self.filters if isinstance(section, ContaminationFilter) for file in section.files)


def make_chain(filters: Sequence[Filter], seeds: Iterable[SeedTask] = ()) -> FilterChain:
    """Filters over a pool of seeds, with a novelty index if one of them needs it."""
    novelty = [section.threshold for section in filters if isinstance(section, NoveltyFilter)]
    return FilterChain(filters, Pool(seeds, novelty[0] if novelty else None))
