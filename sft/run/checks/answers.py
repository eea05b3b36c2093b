"""What can be told of answers without a judge: whether they end, repeat themselves, refuse, and how long they are.

::

    stop_rate         answers that end with the trained stop, not at --max-tokens
    repetition_rate   mean share of 4-grams of an answer that stood in it before: 1 - distinct / all, over tokens
                      (seq-rep-4 of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training")
    loop_rate         answers whose end is one phrase of 2 to 90 tokens three times or more
                      (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration"; the longest phrase as in their program)
    refusal_rate      answers that only refuse, English or Chinese (rule ``refusal`` of a curation)
    empty_rate        answers of white space only
    mean_tokens       tokens of an answer, its stop left out; with median_tokens and longest_tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.curate.rules.answers import RefusalRule
from sft.data.questions import Question
from sft.run.checks.estimates import Estimate, Measured, Quantity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIGURES = (
    *("stop_rate", "repetition_rate", "loop_rate", "refusal_rate", "empty_rate", "mean_tokens"),
    *("median_tokens", "longest_tokens"),
)
_SHARES = {"stop_rate": "stopped", "loop_rate": "loops", "refusal_rate": "refuses", "empty_rate": "empty"}
_GRAM = 4
_PHRASE, _TIMES = (2, 90), 3


@dataclass(frozen=True, slots=True)
class Checked:
    """One answer.

    Attributes:
        question: its id.
        turn: from 0.
        text: the answer.
        stopped: whether it ended with the trained stop.
        repetition: share of 4-grams that repeat.
        loops: tokens of the phrase that its end repeats; 0 if none.
        refuses: its words of refusal; empty if it does not only refuse.
        empty: white space only.
        tokens: of its text.
    """

    question: int | str
    turn: int
    text: str
    stopped: bool
    repetition: float
    loops: int
    refuses: str
    empty: bool
    tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def repetition(tokens: Sequence[int], size: int = _GRAM) -> float:
    """Share of n-grams that stood before; 0 for a text that holds none."""
    grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loop(tokens: Sequence[int]) -> int:
    """Tokens of the shortest phrase that stands three times at the end; 0 if none does."""
    tokens = list(tokens)
    for size in range(_PHRASE[0], min(_PHRASE[1], len(tokens) // _TIMES) + 1):
        if tokens[-size * _TIMES :] == tokens[-size:] * _TIMES:
            return size
    return 0


def check_answers(
    records: Sequence[dict[str, Any]], questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase
) -> list[Checked]:
    """Check the answers that :func:`sft.run.answer.answer_file` wrote, in the order of the questions.

    Tokens are those of the answer's text, so an answer counts alike whatever engine gave it.
    """
    rule = RefusalRule()
    out = []
    for record, question in zip(records, questions, strict=True):
        choice = record["choices"][0]
        for turn, (asked, text, finish) in enumerate(zip(question.turns, choice["turns"], choice["finish"], strict=True)):
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
            out.append(
                Checked(
                    question.id,
                    turn,
                    text,
                    finish == "stop",
                    repetition(tokens),
                    loop(tokens),
                    rule.refusal(asked, text) or "",
                    not text.strip(),
                    len(tokens),
                )
            )
    return out


def measure_answers(checked: Sequence[Checked]) -> Measured:
    """The figures at the head of this module; the unit is the question, whose turns are not independent."""
    names = {name: i for i, name in enumerate(dict.fromkeys(one.question for one in checked))}
    unit = np.array([names[one.question] for one in checked], dtype=np.int64)
    counts = np.bincount(unit, minlength=len(names)).astype(np.float64)

    def by_question(values: Sequence[float], *, share: bool = False) -> Quantity:
        sums = np.bincount(unit, np.asarray(values, np.float64), len(names))
        return Quantity(sums.astype(np.float64), counts, share)

    found = {name: by_question([bool(getattr(one, key)) for one in checked], share=True) for name, key in _SHARES.items()}
    found["repetition_rate"] = by_question([one.repetition for one in checked])
    found["mean_tokens"] = by_question([one.tokens for one in checked])
    lengths = [one.tokens for one in checked]
    plain = {"median_tokens": Estimate(float(np.median(lengths))), "longest_tokens": Estimate(float(max(lengths)))}
    return Measured({name: found[name] for name in FIGURES if name in found}, plain)
