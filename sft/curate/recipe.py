"""The recipe of a curation: where shared conversations come from, what is done to them, and where the rows go.

::

    sources -> rules -> dedup -> split -> mix -> train.jsonl, holdout.jsonl
               clean/   dedup/   split/
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

from sft.config import Document, KeyedError, KeyedErrors, Section, load
from sft.curate.chat import Rule
from sft.curate.dedup import DedupSection
from sft.curate.mix import MixSection
from sft.curate.rules import RuleSection
from sft.curate.split import SplitSection
from sft.recipe import Source

IDENTITY = "identity"
"""Label of the rows of :class:`IdentitySection`."""


class IdentitySection(Section):
    """Questions about who answers, with answers of ours, so that the model does not take its teacher's name."""

    name: str
    """What the model is called."""
    organisation: str
    """Who made it."""
    languages: tuple[Literal["en", "zh"], ...] = ("en", "zh")
    """Of the pairs."""
    weight: float = Field(default=1.0, gt=0.0, le=100.0)
    """How often each pair goes in, as ``weight`` of a source: 477 conversations at 1 in both languages."""

    @pydantic.model_validator(mode="after")
    def _says_something(self) -> IdentitySection:
        for key in ("name", "organisation"):
            if not getattr(self, key).strip():
                raise KeyedError(key, "must say something; it stands in every answer")
        return self


class OutputSection(Section):
    """What is written, and by how many processes."""

    dir: str
    """The run directory."""
    rows_per_part: int = Field(default=2000, ge=1)
    """Rows worked on, written and resumed together. Changes no row of the result."""
    workers: int | None = Field(default=None, ge=1)
    """Processes; null is one for each core, with ``ray`` for each of the cluster. Changes no byte of the result."""
    ray: str | None = None
    """Ray cluster whose machines work: ``local`` starts one here, ``auto`` joins the one that this machine belongs to, ``HOST:PORT`` that
    one; null works without Ray. Needs the extra ``ray``. Changes no byte of the result."""

    @pydantic.field_validator("ray")
    @classmethod
    def _is_an_address(cls, ray: str | None) -> str | None:
        if ray is not None and ray.startswith("ray://"):
            raise ValueError("ray:// is for machines outside a cluster, which do not see its files; start this on one inside")
        if ray is not None and ray not in ("auto", "local") and not re.fullmatch(r"\S+:\d+", ray):
            raise ValueError(f"must be local, auto or HOST:PORT, got {ray!r}")
        return ray


class CurateRecipe(Section):
    """A whole curation. The order of the fields is the order of the file."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Where conversations come from. ``weight`` is in ``mix``'s hands."""
    rules: tuple[RuleSection, ...] = ()
    """Applied in this order, and again until they change nothing more."""
    dedup: DedupSection | None = None
    """Equal and nearly equal conversations; null keeps all."""
    split: SplitSection | None = None
    """Cut to the length of a training row; null leaves conversations whole."""
    identity: IdentitySection | None = None
    """Rows about the model's own name; null adds none."""
    mix: MixSection = Field(default_factory=MixSection)
    """Order, shares and held-out rows."""
    max_unreadable_share: float = Field(default=0.01, ge=0.0, le=1.0)
    """Stop behind ``clean`` if more than this share of the rows cannot be read: no JSON, or not of the shape of their source."""
    output: OutputSection

    @pydantic.model_validator(mode="after")
    def _labels_differ(self) -> CurateRecipe:
        labels = [*(source.label for source in self.sources), *([IDENTITY] if self.identity else [])]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            also = " (the label of the rows of 'identity')" if twice == IDENTITY and self.identity else ""
            raise KeyedError("sources", f"two sources are called {twice!r}{also}; give one of them another name")
        if strange := next((label for label in self.mix.limits if label not in labels), None):
            raise KeyedErrors([("mix.limits", f"no source is called {strange!r}; there are {', '.join(labels)}")])
        return self


class _Rules(Section):
    rules: tuple[RuleSection, ...]


def rules_of(values: Sequence[Any]) -> tuple[Rule, ...]:
    """Rules from their plain data, as a worker gets them."""
    return _Rules.model_validate({"rules": tuple(values)}, strict=False).rules


def load_curate_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[CurateRecipe, Document]:
    """Read, edit and check a recipe; see :func:`sft.config.load`."""
    return load(CurateRecipe, path, overrides)
