"""The filters that measure a candidate against something else: the pool, evaluation sets, the teacher's opinion."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import pydantic
from pydantic import Field

from selfinstruct.filters.pool import Pool, Refusal
from selfinstruct.filters.sections import Filter, Scores
from selfinstruct.records import Candidate
from sft.config import KeyedError
from sft.errors import RunError
from sft.text.contamination import FIELDS, EvaluationTexts


class ContradictionFilter(Filter):
    """``contradicts_row``: a seed or row has this instruction and this input (not empty), and another output.

    The first stays. Self-Instruct drops every instance of such a task: :func:`selfinstruct.postprocess.tidy` does, within one reply.
    """

    kind: Literal["contradiction"] = "contradiction"

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        found = pool.other_output(candidate)
        return None if found is None else Refusal("contradicts_row", {"row": found, "input": candidate.input[:200]})


class ExactDuplicateFilter(Filter):
    """``exact_duplicate``: of a seed or row, up to case, white space and Unicode form.

    Rows of one group (instances of one instruction) are measured against each other as whole rows only.
    """

    kind: Literal["exact_duplicate"] = "exact_duplicate"
    by: Literal["instruction", "task", "row"] = "instruction"
    """What must differ: the instruction, instruction or input, or anything."""

    @property
    def of_instruction(self) -> bool:
        return self.by == "instruction"

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        by = "row" if pool.has_group(candidate) else self.by
        found = {"instruction": pool.same_instruction, "task": pool.same_task, "row": pool.same_row}[by](candidate)
        return None if found is None else Refusal("exact_duplicate", {"row": found, "by": by})


class NoveltyFilter(Filter):
    """``near_duplicate``: ROUGE-L F of the instruction with a seed or row is strictly above the threshold.

    F is rouge_score's, over tokens that work for every script. Instances of one instruction are not measured against each other.
    """

    instruction_only = True
    kind: Literal["novelty"] = "novelty"
    threshold: float = Field(default=0.7, ge=0.0, le=1.0)
    """F, 0 to 1; the originals take 0.7."""
    neighbours: int = Field(default=10, ge=0, le=100)
    """Nearest seeds and rows stored with each accepted row; 0 stores none."""
    mean: bool = False
    """Store the mean F with all seeds and rows too. It needs all of them: about a millisecond per row at 50,000."""

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        assert pool.index is not None
        if pool.has_group(candidate):
            return None
        found = pool.index.check(candidate.instruction)
        if found is None:
            return None
        return Refusal("near_duplicate", {"row": found.id, "text": pool.text(found.id), "score": round(found.score, 6)})

    def measure(self, candidate: Candidate, pool: Pool, scores: Scores) -> dict[str, Any]:
        assert pool.index is not None
        assert pool.seed_index is not None
        if pool.has_group(candidate):
            return {}
        text, found = candidate.instruction, dict[str, Any]()
        if self.neighbours:
            near = pool.index.neighbours(text, self.neighbours)
            seed = pool.seed_index.neighbours(text, 1)
            found["nearest"] = round(near[0].score, 6) if near else 0.0
            found["nearest_seed"] = round(seed[0].score, 6) if seed else 0.0
            found["neighbours"] = [[n.id, round(n.score, 6)] for n in near]
        if self.mean and len(pool.index):
            found["mean"] = round(float(pool.index.scores(text).mean()), 6)
        return found


@lru_cache(maxsize=8)
def _evaluation(files: tuple[str, ...], fields: tuple[str, ...], ngram: int) -> EvaluationTexts:
    return EvaluationTexts(files, fields, ngram)


class ContaminationFilter(Filter):
    """``in_evaluation_set``, ``overlaps_evaluation_set``: the task or its output shares a run of tokens with an evaluation text."""

    kind: Literal["contamination"] = "contamination"
    files: tuple[str, ...] = Field(min_length=1)
    """Evaluation sets: .jsonl, .json or .parquet."""
    fields: tuple[str, ...] = Field(default=FIELDS, min_length=1)
    """Keys of their rows that hold texts, or lists of texts."""
    ngram: int = Field(default=13, ge=4, le=100)
    """Tokens in a row (characters, in Chinese) that must not be shared."""

    def texts(self) -> EvaluationTexts:
        """The sets, read once; raises ``DataError`` if they cannot be."""
        return _evaluation(self.files, self.fields, self.ngram)

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        sets = self.texts()
        asked = f"{candidate.instruction}\n{candidate.input}"
        for name, text, search in (
            ("instruction", candidate.instruction, sets.equal),
            ("input", candidate.input, sets.equal),
            ("task", asked, sets.find),
            ("output", candidate.output, sets.find),
        ):
            found = search(text)
            if found is not None:
                reason = "in_evaluation_set" if found.exact else "overlaps_evaluation_set"
                return Refusal(reason, {"field": name, "where": found.where, "text": found.text[:400]})
        return None


class CriticFilter(Filter):
    """``low_score``, ``no_score``: the teacher's own opinion of the task, asked for what passes the other filters."""

    kind: Literal["critic"] = "critic"
    prompt: str = "critic_en"
    """Prompt file that asks for the score: a name in ``selfinstruct/prompts`` or a path to a ``.jinja``."""
    minimum: float = Field(default=4.0)
    """Least score that passes."""
    lowest: float = 1.0
    """Scale of the prompt."""
    highest: float = 5.0
    """Scale of the prompt."""

    @pydantic.model_validator(mode="after")
    def _on_the_scale(self) -> CriticFilter:
        if not self.lowest <= self.minimum <= self.highest:
            raise KeyedError("minimum", f"{self.minimum} is outside the scale from {self.lowest} to {self.highest}; change it")
        return self

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        if "critic" not in scores:
            raise RunError(f"candidate {candidate.id} reached the critic without a score; ask the teacher first")
        score = scores["critic"]
        if not isinstance(score, int | float) or not self.lowest <= score <= self.highest:
            return Refusal("no_score", {"critic": score})
        return Refusal("low_score", {"critic": score, "least": self.minimum}) if score < self.minimum else None

    def measure(self, candidate: Candidate, pool: Pool, scores: Scores) -> dict[str, Any]:
        return {"critic": scores["critic"]}
