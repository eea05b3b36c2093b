"""Every knob of a generation run, and the refusals that span two sections.

A recipe is one flat YAML file::

    seeds:     what it starts from      teacher:   who answers, where, how fast
    strategy:  the method               budget:    (optional) hard caps and prices
    filters:   what is refused          output:    how many rows, and where

A knob exists once; the sections of teacher, strategy and filters stand beside the code that they steer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

from selfinstruct.filters.chain import FilterSection
from selfinstruct.strategies.sections import AlpacaSection, ClassicSection, StrategySection
from selfinstruct.teacher.sections import BudgetSection, TeacherSection
from sft.config import Document, KeyedError, KeyedErrors, Section, dotted, flatten, load

_FEWEST_TOKENS_PER_TASK = 20


class SeedsSection(Section):
    """What a run starts from."""

    path: str
    """Seed tasks in Self-Instruct's format, or Alpaca rows (for ``evolve``: the set to start from): .jsonl, .json, .parquet."""
    max_drop_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Most rows, as a share, that may be unusable and are then left out and counted; 0 refuses the file for the first."""


class Teacher(TeacherSection):
    """The endpoints' section, and how they are asked."""

    kind: Literal["chat", "completion"] = "chat"
    """Chat messages, or the legacy completion endpoint for models that only continue a text."""
    replay: tuple[str, ...] = ()
    """Ledgers that answer in place of the endpoints: no key, no network, no cost."""

    @pydantic.model_validator(mode="after")
    def _replay_is_no_batch(self) -> Teacher:
        if self.replay and self.batch.enabled:
            raise KeyedError("replay", "a replay has no Batch API; remove replay or set batch.enabled: false")
        return self


class OutputSection(Section):
    """How many rows, and where."""

    dir: str
    """Run directory."""
    rows: int = Field(ge=1)
    """Rows to end with: exactly this many."""
    formats: tuple[Literal["alpaca", "sharegpt", "messages", "parquet"], ...] = ()
    """Formats that ``run`` exports at its end; ``selfinstruct export`` writes any of them later."""
    max_rounds: int | None = Field(default=None, ge=1)
    """Stop with what there is after this many rounds; null goes on until the rows are there."""
    stall_rounds: int = Field(default=5, ge=1)
    """Stop if so many rounds in a row gave no row: something is wrong with prompt, teacher or filters."""
    licence: str = ""
    """Note on the terms under which the rows may be used, for the data set card: the teacher's terms may bind you."""


class Recipe(Section):
    """A whole run. The order of the fields is the order of the file."""

    seed: int = Field(default=42, ge=0)
    """Of the demonstrations and the operators: round r draws from ``Random(f"{seed}:{r}")``."""
    seeds: SeedsSection
    teacher: Teacher
    budget: BudgetSection = Field(default_factory=BudgetSection)
    strategy: StrategySection
    """The method, one of three."""
    filters: tuple[FilterSection, ...] = ()
    """Applied in this order; the first that refuses a candidate decides."""
    output: OutputSection

    @pydantic.model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        found = _disagreements(self)
        if found:
            raise KeyedErrors(found)
        return self


def _disagreements(recipe: Recipe) -> list[tuple[str, str]]:
    """Refusals that need two sections, each with the key to change."""
    strategy, sampling = recipe.strategy, recipe.teacher.sampling
    found: list[tuple[str, str]] = []
    twice = [kind for kind, count in Counter(f.kind for f in recipe.filters).items() if count > 1]
    if twice:
        found.append(("filters", f"the filter {twice[0]!r} is given twice; its refusals could not be told apart: keep one"))
    if isinstance(strategy, AlpacaSection):
        least = _FEWEST_TOKENS_PER_TASK * strategy.tasks_per_call
        if sampling.max_tokens < least:
            found.append(
                (
                    "teacher.sampling.max_tokens",
                    f"{sampling.max_tokens} tokens cannot hold {strategy.tasks_per_call} tasks; give at least {least}, or lower "
                    "strategy.tasks_per_call",
                )
            )
        if (strategy.format == "json") != ("json" in Path(strategy.prompt).name):
            found.append(
                (
                    "strategy.format",
                    f"the prompt {strategy.prompt!r} and format: {strategy.format} do not go together; change one",
                )
            )
    if len(sampling.stop) > (4 if isinstance(strategy, ClassicSection) else 3):
        found.append(
            ("teacher.sampling.stop", "the API takes four stop strings, and the strategy needs one of them; remove one")
        )
    return found


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Document]:
    """Read, edit and check a recipe; see :func:`sft.config.load`."""
    return load(Recipe, path, overrides)


def values(recipe: Recipe) -> dict[str, Any]:
    """Every value by its dotted key, defaults included."""
    return {dotted(key): value for key, value in flatten(recipe.model_dump(mode="json"))}
