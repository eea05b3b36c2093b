"""How many tokens a tokenizer needs for a character, by language: what a vocabulary that was made for another language costs.

A LLaMA spells most Chinese characters in two or three byte tokens, an extended vocabulary in well under one: context, time and price go
with it. (Chinese-LLaMA, Cui et al. 2023, compares tokenizers by this ratio.)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from sft.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE = 1_000
"""Conversations looked at, of each source, from its start."""
_BEGINNING = 400
"""Characters of a turn that its language is told from."""
UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class LanguageTokens:
    """Turns of one language. ``language`` is an ISO 639-1 code, or ``?``: symbols, code, too few words."""

    language: str
    turns: int
    characters: int
    tokens: int

    @property
    def tokens_per_character(self) -> float:
        return self.tokens / self.characters


def tokens_by_language(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[LanguageTokens, ...]:
    """Count turns, characters and tokens by language, most characters first, over the first conversations of every source.

    Returns:
        Empty if no source has a turn with text.
    """
    from sft.data.conversation import Drops
    from sft.data.sources import read_source

    texts = [
        turn.content
        for source in recipe.data.sources
        for conversation in islice(read_source(source, Drops()), _SAMPLE)
        for turn in conversation.turns
        if turn.content
    ]
    if not texts:
        return ()
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
        for place, count in enumerate((1, len(text), len(ids))):
            found[_language(text)][place] += count
    made = (LanguageTokens(language, *counts) for language, counts in found.items())
    return tuple(sorted(made, key=lambda one: (-one.characters, one.language)))


def _language(text: str) -> str:
    from sft.curate.rules.language import languages_of

    shares = languages_of((text[:_BEGINNING],))
    code, share = max(shares.items(), key=lambda one: (one[1], one[0]), default=(UNKNOWN, 0.0))
    return code if share > 0.5 else UNKNOWN
