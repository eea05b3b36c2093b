"""Every knob of a judgment: which answers, by whom, in which mode.

::

    questions: data/questions.jsonl            budget:  (optional) caps and prices
    answers: [answers/a.jsonl, ...]            judge:   mode, prompts, references
    teacher:   who judges                      output:  where
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pydantic
from pydantic import Field

from selfinstruct.recipe import Teacher
from selfinstruct.teacher.sections import BudgetSection
from sft.config import Document, KeyedError, Section, load


class JudgeSection(Section):
    """How answers are judged."""

    mode: Literal["pairs", "baseline", "single"] = "pairs"
    """Every two models against each other, each against ``baseline``, or a rating from 1 to 10 for each answer."""
    baseline: str | None = None
    """The model that the others are held against."""
    pair_prompt: str = "judge_pair_en"
    """Prompt of pairs: a name, or a path that ends in .jinja."""
    single_prompt: str = "judge_single_en"
    """Prompt of ratings."""
    references: str | None = None
    """Answers to hold to, as an answer file (MT-bench's ``reference_answer``); null takes the questions' own ``reference``."""
    reference_categories: tuple[str, ...] = ("math", "coding", "reasoning")
    """Categories whose reference, where there is one, is shown to the judge."""
    retries: int = Field(default=1, ge=0, le=10)
    """How often a judge whose verdict cannot be read is asked again; then it counts as unreadable."""
    repeats: int = Field(default=1, ge=1, le=100)
    """How often each question is put to the judge, each time paid for; from 2 on its consistency with itself is told."""
    structured: bool = True
    """Ask for JSON with reasons and verdict; an endpoint that refuses that is asked for plain text."""


class JudgeOutput(Section):
    """Where a judgment is written."""

    dir: str
    """Run directory."""
    charts: bool = True
    """Draw results by category: in report.html, and as PNG files in charts/."""


class JudgeRecipe(Section):
    """A whole judgment. The order of the fields is the order of the file."""

    questions: str
    """What was asked: Vicuna's or MT-bench's shape."""
    answers: tuple[str, ...] = Field(min_length=1)
    """Answer files, as ``sft answer`` or FastChat writes them; one model each."""
    teacher: Teacher
    budget: BudgetSection = Field(default_factory=BudgetSection)
    judge: JudgeSection = Field(default_factory=JudgeSection)
    output: JudgeOutput

    @pydantic.model_validator(mode="after")
    def _sections_agree(self) -> JudgeRecipe:
        mode, baseline = self.judge.mode, self.judge.baseline
        if (mode == "baseline") != (baseline is not None):
            raise KeyedError("judge.baseline", "names the model that others are held against: give it with mode: baseline only")
        if mode != "single" and len(self.answers) < 2:
            raise KeyedError("answers", f"mode: {mode} compares models; give the answers of two at least, or set mode: single")
        return self


def load_judge_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[JudgeRecipe, Document]:
    """Read, edit and check a recipe; see :func:`sft.config.load`."""
    return load(JudgeRecipe, path, overrides)
