"""Which language a conversation is in; the only door to the detector.

py3langid ships its model (4.5 MiB), needs no network, and gives the same answer everywhere. Why it and not lingua: docs/decisions.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pydantic
from pydantic import Field

from sft.config import KeyedError
from sft.curate.chat import ASSISTANT, USER, Chat
from sft.curate.rules.base import RuleBase
from sft.curate.rules.prose import prose
from sft.data.conversation import Drop

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_CODES = """
    af ar az be bg bn bs ca cs cy da de el en eo es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn ko ku ky la lb lo lt lv
    mg mk ml mn mr ms mt my ne nl nn no or pa pl ps pt ro ru sa si sk sl so sq sr sv sw ta te tg th tk tl tr tt ug uk ur uz vi xh yo zh zu
"""
LANGUAGES: Final = tuple(_CODES.split())
"""What the rule tells apart, by ISO 639-1 code. Creoles and dialects that the model knows too are left out: on short texts of programmers
they are found where nobody wrote them. ``zh`` stands for traditional and simplified characters."""
_LEAST_SHARE = 0.5  # of the probability; two sisters share it
_LEAST_LETTERS = 12  # of prose; below, nothing tells


class LanguageRule(RuleBase):
    """``other_language``, ``language_unknown``: of the questions and of the answers, code and addresses left out.

    Both sides share the probability by their length: a translation is in two languages, and neither is certain.
    """

    kind: Literal["language"] = "language"
    keep: tuple[str, ...] = ()
    """ISO 639-1 codes to keep; empty keeps all."""
    skip: tuple[str, ...] = ()
    """Codes to leave out."""
    certainty: float = Field(default=0.9, gt=0.5, lt=1.0)
    """Probability from which on a language is believed. In between the language is unknown."""
    unknown: Literal["keep", "drop"] = "keep"
    """Conversations of symbols, code or too few words, or in doubt."""
    characters: int = Field(default=300, ge=100)
    """Of each turn, from its start, that are looked at, of twice as many for each side; more costs time and tells little."""

    @pydantic.model_validator(mode="after")
    def _known(self) -> LanguageRule:
        for key in ("keep", "skip"):
            strange = [code for code in getattr(self, key) if code not in LANGUAGES]
            if strange:
                raise KeyedError(key, f"{', '.join(strange)} cannot be recognised; choose from {', '.join(LANGUAGES)}")
        if bool(self.keep) == bool(self.skip):
            raise KeyedError("keep", "name the languages to keep, or those to skip: one list of the two")
        return self

    def apply(self, chat: Chat) -> Chat | Drop:
        shares = languages_of([self._beginnings(chat, USER), self._beginnings(chat, ASSISTANT)])
        wanted = sum(share for code, share in shares.items() if (code in self.keep if self.keep else code not in self.skip))
        if wanted >= self.certainty:
            return chat
        code, share = max(shares.items(), key=lambda one: (one[1], one[0]), default=("", 0.0))
        # many languages with a little each are no evidence against any
        if wanted <= 1 - self.certainty and share >= _LEAST_SHARE:
            return chat.drop("other_language", f"it is in {code} ({share:.0%} sure)")
        if self.unknown == "drop":
            return chat.drop("language_unknown", "its language cannot be told; 'unknown: keep' would keep it")
        return chat

    def _beginnings(self, chat: Chat, role: str) -> str:
        """The prose at the beginnings of a side's turns, until there is enough."""
        found, most = "", 2 * self.characters
        for message in chat.messages:
            if message.role == role and len(found) < most:
                found += f" {prose(message.text[: 2 * self.characters])[: self.characters]}"
        return found[:most]


def languages_of(texts: Sequence[str]) -> Mapping[str, float]:
    """The probability of each language for some texts of prose together, weighed by their bytes; empty where there is too little."""
    shares: Counter[str] = Counter()
    weights = 0
    for text in texts:
        bare = " ".join(text.split())
        if _letters(bare) < _LEAST_LETTERS:
            continue
        weight = len(bare.encode("utf-8", "surrogatepass"))
        for code, share in _identifier().rank(bare):
            shares[code] += weight * share
        weights += weight
    return {code: share / weights for code, share in shares.items()}


_LETTER = re.compile(r"[^\W\d_]")
_WIDE = re.compile("[\u2e80-\U0003ffff]")


def _letters(text: str) -> int:
    """Letters near the start of a text; a CJK one says as much as three."""
    start = text[:200]
    return len(_LETTER.findall(start)) + (0 if start.isascii() else 2 * len(_WIDE.findall(start)))


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    """The detector, loaded once per process (0.6 s): an instance of ours, so that nobody's settings are changed."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    # as the library leaves it, each score gathers scattered half floats; the same numbers, 1.6 times as fast
    identifier.nb_ptc = np.ascontiguousarray(identifier.nb_ptc, np.float32)
    return identifier
