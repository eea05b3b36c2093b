"""One candidate through one filter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pydantic

from selfinstruct.filters.chain import Filter, FilterSection, make_chain
from selfinstruct.records import Candidate, Instance, SeedTask
from sft.config import Section

SEED = SeedTask(
    "seed_task_0", "rhyme", "Give three words that rhyme with the given word.", (Instance("tin", "pin, win, bin"),), False
)
ADAPTER: pydantic.TypeAdapter[tuple[FilterSection, ...]] = pydantic.TypeAdapter(tuple[FilterSection, ...])


class OneSection(Section):
    filters: tuple[FilterSection, ...]


def sections(*given: dict[str, Any]) -> Sequence[Filter]:
    return ADAPTER.validate_json(json.dumps(given))


def task(
    instruction: str = "Name the capital of the country.", given: str = "", output: str = "Lima.", **about: Any
) -> Candidate:
    about.setdefault("id", f"0-0-{abs(hash((instruction, given, output)))}")
    return Candidate(request_id="r", instruction=instruction, input=given, output=output, round=0, item=0, **about)


def refusal(section: dict[str, Any], candidate: Candidate, *rows: Candidate) -> tuple[str, dict[str, Any]] | None:
    """Code and evidence of one filter over a pool of the seed and ``rows``."""
    chain = make_chain(sections(section), [SEED])
    for row in rows:
        chain.pool.add(row)
    verdict = chain.judge(candidate)
    assert verdict.accepted or verdict.filter == section["kind"]
    return None if verdict.accepted else (verdict.reason, dict(verdict.evidence))
