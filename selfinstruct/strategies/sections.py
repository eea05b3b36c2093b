"""Knobs of the strategies: one section per method, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from selfinstruct.teacher.sections import SamplingSection
from sft.config import KeyedError, Section


class AlpacaSection(Section):
    """One call asks for many tasks, each with input and output; demonstrations come from the seeds alone (Taori et al. 2023)."""

    kind: Literal["alpaca"]
    prompt: str = "alpaca_en"
    """Prompt file: a name in ``selfinstruct/prompts`` or a path to a ``.jinja``."""
    demonstrations: int = Field(default=3, ge=1, le=20)
    """Seed tasks shown in each request."""
    tasks_per_call: int = Field(default=20, ge=1, le=100)
    """New tasks asked for in each request."""
    requests_per_round: int = Field(default=64, ge=1)
    """Requests between two barriers. More keep a fast endpoint busier; fewer waste less in the last round."""
    format: Literal["numbered", "json"] = "numbered"
    """How replies are written: between marks, or as a JSON object (with its schema, where the endpoint takes one)."""


class ClassicSection(Section):
    """The four stages of Self-Instruct (Wang et al. 2023)."""

    kind: Literal["classic"]
    instructions_prompt: str = "classic_instructions_en"
    """Prompt file of stage 1."""
    classification_prompt: str = "classic_classification_en"
    """Prompt file of stage 2."""
    input_first_prompt: str = "classic_input_first_en"
    """Prompt file of stage 3 for tasks that are no classification."""
    output_first_prompt: str = "classic_output_first_en"
    """Prompt file of stage 3 for classification: labels first, so that no label dominates."""
    seed_demonstrations: int = Field(default=6, ge=1, le=30)
    """Instructions of seed tasks shown in stage 1."""
    machine_demonstrations: int = Field(default=2, ge=0, le=30)
    """Instructions accepted in earlier rounds shown in stage 1; seeds stand in while there are none."""
    instructions_per_call: int = Field(default=8, ge=1, le=50)
    """New instructions asked for in each request of stage 1."""
    classification_only: bool = False
    """Draw demonstrations from classification seeds and ask for classification tasks."""
    instances_per_task: int = Field(default=5, ge=1, le=20)
    """Most instances kept of one instruction."""
    augment: bool = False
    """Format augmentation of stage 4: drop a lone field name, halve blank lines, each with probability one half."""
    requests_per_round: int = Field(default=32, ge=1)
    """Requests of stage 1 between two barriers."""
    classification: SamplingSection = SamplingSection(max_tokens=3, temperature=0.0)
    """How stage 2 draws; ``teacher.sampling`` is for stage 1."""
    instances: SamplingSection = SamplingSection(max_tokens=350, temperature=0.0, presence_penalty=1.5)
    """How stage 3 draws."""


Operator = Literal["constraints", "deepen", "concretize", "reasoning", "broaden"]


class EvolveSection(Section):
    """Evol-Instruct (Xu et al. 2023): rewrite existing tasks into harder ones or new ones, answer them, eliminate what failed."""

    kind: Literal["evolve"]
    prompt: str = "evolve_en"
    """Prompt file of the operators."""
    gain_prompt: str | None = "evolve_gain_en"
    """Prompt file that asks the teacher whether the rewriting gained anything; null leaves the question out."""
    operators: tuple[Operator, ...] = Field(
        default=("constraints", "deepen", "concretize", "reasoning", "broaden"), min_length=1
    )
    """Operators, drawn with equal chance."""
    generations: int = Field(default=4, ge=1, le=20)
    """How often each task of the set is evolved, each time from its newest accepted form."""
    requests_per_round: int = Field(default=64, ge=1)
    """Tasks evolved between two barriers."""
    answer: SamplingSection | None = None
    """How the answer draws; null takes ``teacher.sampling``, which the rewriting takes."""

    @pydantic.model_validator(mode="after")
    def _operators_once(self) -> EvolveSection:
        if len(set(self.operators)) != len(self.operators):
            raise KeyedError("operators", "an operator is named twice; name each once")
        return self


StrategySection = Annotated[AlpacaSection | ClassicSection | EvolveSection, Field(discriminator="kind")]
