"""Evaluation sets, to keep their questions out of the training data.

A candidate is refused if it shares a run of ``ngram`` tokens with an evaluation text (13, as in Brown et al. 2020, appendix C), or holds
a shorter evaluation text whole. Very short ones ("Why?") count only if they are all there is::

    evaluation text of 20 tokens     every run of 13 tokens is looked for, anywhere
    of 8 tokens                      the 8 tokens are looked for, anywhere
    of 3 tokens                      the instruction, or instruction and input, must be these 3 tokens
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sft.data.jsonl import read_rows
from sft.errors import DataError
from sft.text.tokens import tokens

FIELDS = (
    "question",
    "instruction",
    "prompt",
    "turns",
    "text",
    "input",
    "problem",
    "query",
    "goal",
    "sentence",
    "passage",
    "context",
)
"""Keys whose texts are what an evaluation asks, in the formats of Vicuna-80, MT-bench, AlpacaEval, MMLU, GSM8K and the like."""
_HEAD = 4  # tokens; no run is shorter
_SHORTEST = 6  # tokens of an evaluation text that is looked for inside other text


@dataclass(frozen=True, slots=True)
class Shared:
    """What a candidate and an evaluation text have in common.

    Attributes:
        where: ``file:line`` of the evaluation row.
        text: the tokens in common, joined by spaces.
        exact: the candidate's text is the evaluation text, token by token.
    """

    where: str
    text: str
    exact: bool


class EvaluationTexts:
    """Texts of evaluation files, searched by runs of tokens.

    Args:
        files: as :func:`sft.data.jsonl.read_rows` reads them.
        fields: keys of their rows; a text, or a list of texts.
        ngram: tokens.

    Raises:
        DataError: a file that cannot be read, or a row with none of the fields: a set that is only half guarded is not guarded.
    """

    def __init__(self, files: Sequence[str], fields: Sequence[str] = FIELDS, ngram: int = 13) -> None:
        self._ngram = ngram
        self._texts: list[tuple[str, list[str]]] = []
        # First tokens of a run -> its length -> hash of the run -> text: few places of a text reach the second step.
        self._runs: dict[tuple[str, ...], dict[int, dict[int, int]]] = {}
        self._whole: dict[int, int] = {}
        for file in files:
            for row in read_rows(file):
                if row.error is not None:
                    raise DataError(f"{row.where}: {row.error}")
                found = list(_texts(row.value, fields)) if isinstance(row.value, dict) else []
                if not found:
                    raise DataError(
                        f"{row.where}: no text under any of {', '.join(fields)}; name the keys of this file in 'fields'"
                    )
                for text in found:
                    self._add(row.where, tokens(text))

    def __len__(self) -> int:
        return len(self._texts)

    def _add(self, where: str, words: list[str]) -> None:
        if not words:
            return
        number = len(self._texts)
        self._texts.append((where, words))
        self._whole.setdefault(hash(tuple(words)), number)
        size = min(self._ngram, len(words))
        if size >= min(_SHORTEST, self._ngram):
            for start in range(len(words) - size + 1):
                runs = self._runs.setdefault(tuple(words[start : start + _HEAD]), {}).setdefault(size, {})
                runs.setdefault(hash(tuple(words[start : start + size])), number)

    def equal(self, text: str) -> Shared | None:
        """The first evaluation text with the same tokens."""
        words = tokens(text)
        number = self._whole.get(hash(tuple(words)), -1)
        if number >= 0 and self._texts[number][1] == words:
            return Shared(self._texts[number][0], " ".join(words), True)
        return None

    def find(self, text: str) -> Shared | None:
        """The evaluation text that ``text`` equals, or else the first one that it shares a run with."""
        if (same := self.equal(text)) is not None:
            return same
        words = tokens(text)
        heads = self._runs
        for start, head in enumerate(zip(*(words[i:] for i in range(_HEAD)), strict=False)):
            if head not in heads:
                continue
            for size, runs in heads[head].items():
                run = words[start : start + size]
                number = runs.get(hash(tuple(run)), -1)
                if number >= 0 and _holds(self._texts[number][1], run):
                    return Shared(self._texts[number][0], " ".join(run), False)
        return None


def _holds(words: list[str], run: list[str]) -> bool:
    """Whether a run stands in a text: equal hashes are not believed."""
    return any(words[i : i + len(run)] == run for i in range(len(words) - len(run) + 1))


def _texts(row: dict[str, Any], fields: Sequence[str]) -> Iterator[str]:
    for name in fields:
        value = row.get(name)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.strip():
                yield text
