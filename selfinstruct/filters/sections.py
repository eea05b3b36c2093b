"""The filters of a recipe that look at a candidate alone (:mod:`selfinstruct.filters.measures` has the others).

Each is a frozen section with ``kind`` and ``check``.

``of_instruction`` says that a filter looks at the instruction alone: it can judge before input and output exist. ``check`` never changes
anything; ``measure`` gives what is worth keeping about an accepted row.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal

import pydantic
from pydantic import Field

from selfinstruct.filters.languages import LANGUAGES, foreign, language
from selfinstruct.filters.lists import (
    BLACKLIST,
    EVENTS,
    PLACEHOLDERS,
    PROGRAM,
    PROGRAM_COMPOUNDS,
    REFUSAL_OPENINGS,
    REFUSALS,
)
from selfinstruct.filters.pool import Pool, Refusal
from selfinstruct.records import Candidate
from sft.config import KeyedError, Section
from sft.text.model_speech import speaks_as_model
from sft.text.tokens import WORD_LEFT, WORD_RIGHT, is_cjk, length, normal, tokens

TextField = Literal["instruction", "input", "output"]
Scores = Mapping[str, Any]


class Filter(Section):
    """Base of the filters."""

    instruction_only: ClassVar[bool] = False

    @property
    def of_instruction(self) -> bool:
        """Whether it can judge before input and output exist."""
        return self.instruction_only

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        """The refusal, or None. ``scores``: given from outside, such as the critic's."""
        raise NotImplementedError

    def measure(self, candidate: Candidate, pool: Pool, scores: Scores) -> dict[str, Any]:
        """Scores of a candidate that every filter accepts, before it joins the pool."""
        return {}


class LengthFilter(Filter):
    """``too_short``, ``too_long``: of the instruction, in words, or in characters where it is mostly CJK."""

    instruction_only = True
    kind: Literal["length"] = "length"
    min_words: int = Field(default=4, ge=0)
    """Fewest words; the originals drop three and fewer."""
    max_words: int = Field(default=150, ge=1)
    """Most words."""
    min_characters: int = Field(default=4, ge=0)
    """Fewest characters of a CJK instruction."""
    max_characters: int = Field(default=300, ge=1)
    """Most characters of a CJK instruction."""

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> LengthFilter:
        for unit in ("words", "characters"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if least > most:
                raise KeyedError(f"min_{unit}", f"{least} is above max_{unit} = {most}: nothing would pass; lower it")
        return self

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        found, unit = length(candidate.instruction)
        least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
        if found < least:
            return Refusal("too_short", {unit: found, "least": least})
        return Refusal("too_long", {unit: found, "most": most}) if found > most else None


class OutputLengthFilter(Filter):
    """``output_too_short``, ``output_too_long``: of the output, in words, or in characters where it is mostly CJK."""

    kind: Literal["output_length"] = "output_length"
    min_length: int = Field(default=1, ge=0)
    """Fewest words or characters."""
    max_length: int = Field(default=1000, ge=1)
    """Most words or characters."""

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        found, unit = length(candidate.output)
        if found < self.min_length:
            return Refusal("output_too_short", {unit: found, "least": self.min_length})
        return Refusal("output_too_long", {unit: found, "most": self.max_length}) if found > self.max_length else None


@lru_cache(maxsize=32)
def _words_pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Any of some words in lower-case text: whole ones, or anywhere for CJK words, which no space sets apart."""
    lowered = sorted({word.lower() for word in words}, key=lambda word: (-len(word), word))
    cjk = [re.escape(word) for word in lowered if is_cjk(word)]
    whole = "|".join(re.escape(word) for word in lowered if not is_cjk(word))
    return re.compile("|".join([*cjk, *([rf"{WORD_LEFT}(?:{whole}){WORD_RIGHT}"] if whole else [])]))


@lru_cache(maxsize=32)
def _normals(phrases: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(normal, phrases))


class BlacklistFilter(Filter):
    """``blacklisted_word``: the instruction holds one of the words; whole words, and CJK ones anywhere; case does not matter."""

    instruction_only = True
    kind: Literal["blacklist"] = "blacklist"
    words: tuple[str, ...] = BLACKLIST
    """Words and phrases. The default is the originals' list and a Chinese one; it also refuses "file system" and "concept map"."""
    also: tuple[str, ...] = ()
    """Further ones, on top of ``words``."""
    allowed: tuple[str, ...] = ()
    """Phrases that may hold one of the words, such as "concept map": they are blanked out first."""

    @pydantic.model_validator(mode="after")
    def _no_blanks(self) -> BlacklistFilter:
        for name in ("words", "also", "allowed"):
            if any(not word.strip() for word in getattr(self, name)):
                raise KeyedError(name, "an empty word would match everywhere; remove it")
        return self

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        words = (*self.words, *self.also)
        text = candidate.instruction.lower()
        if self.allowed:
            text = _words_pattern(self.allowed).sub(" ", text)
        found = _words_pattern(words).search(text) if words else None
        return Refusal("blacklisted_word", {"word": found[0]}) if found else None


# "for our spring concert", at the end or before what tells more of the evening; "for the concert hall" is of software
_EVENT = re.compile(
    rf" for (?:an?|the|our|my|your|this|his|her|their) (?:[\w'-]+ ){{0,3}}?(?:{'|'.join(EVENTS)})(?![\w-])(?! \w+ing\b)"
)
_CODE = re.compile(r"\b(?:that|which|algorithm|api|app|booking|code|hall|input|java|python|system|tickets?)\b")


class ProgramFilter(Filter):
    """``asks_for_a_program``: the instruction begins with one of the phrases, in whole words; case does not matter.

    A program note, a program for a concert and 程序员 are no program of this kind.
    """

    instruction_only = True
    kind: Literal["write_a_program"] = "write_a_program"
    openings: tuple[str, ...] = PROGRAM
    """Phrases that an instruction may not begin with."""

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        text = normal(candidate.instruction)
        found = _words_pattern(_normals(self.openings)).match(text) if self.openings else None
        if not found:
            return None
        behind = text[found.end() :]
        compound = _words_pattern(PROGRAM_COMPOUNDS).match(behind.lstrip())
        event = _EVENT.match(behind) and not _CODE.search(behind)
        return None if compound or event else Refusal("asks_for_a_program", {"opening": found[0]})


class FirstCharacterFilter(Filter):
    """``starts_with_punctuation``, ``starts_with_non_ascii``: of the instruction. Opening brackets and quotes beyond ASCII (《 「 “) pass."""

    instruction_only = True
    kind: Literal["first_character"] = "first_character"
    ascii_only: bool = False
    """Refuse what does not begin with an ASCII character, as the originals do."""

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        first = candidate.instruction.lstrip()[:1]
        if self.ascii_only and not first.isascii():
            return Refusal("starts_with_non_ascii", {"character": first})
        category = unicodedata.category(first) if first else ""
        if first in string.punctuation or (category[:1] == "P" and category not in ("Ps", "Pi")):
            return Refusal("starts_with_punctuation", {"character": first}) if first else None
        return None


class LanguageFilter(Filter):
    """``other_language``, ``language_unknown``: by script, and by function words within Latin script. No model; in doubt it keeps."""

    kind: Literal["language"] = "language"
    keep: tuple[str, ...] = Field(min_length=1)
    """ISO 639-1 codes."""
    fields: tuple[TextField, ...] = Field(default=("instruction",), min_length=1)
    """Texts that must be in one of the languages; empty ones pass. A translation's output may rightly be in another."""
    unknown: Literal["keep", "refuse"] = "keep"
    """What to do where a text is too short, or of symbols only, to tell."""

    @pydantic.model_validator(mode="after")
    def _known(self) -> LanguageFilter:
        strange = [code for code in self.keep if code not in LANGUAGES]
        if strange:
            raise KeyedError("keep", f"{', '.join(strange)} cannot be recognised; choose from {', '.join(LANGUAGES)}")
        return self

    @property
    def of_instruction(self) -> bool:
        return self.fields == ("instruction",)

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        for name in self.fields:
            text = getattr(candidate, name)
            if not text.strip():
                continue
            found = foreign(text, self.keep)
            if found is not None:
                return Refusal("other_language", {"field": name, "language": found})
            if self.unknown == "refuse" and language(text) == "und":
                return Refusal("language_unknown", {"field": name})
        return None


class EmptyOutputFilter(Filter):
    """``empty_output``, ``placeholder_output``."""

    kind: Literal["empty_output"] = "empty_output"
    placeholders: tuple[str, ...] = PLACEHOLDERS
    """Outputs that say that there is none; the whole output, case does not matter."""

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        found = normal(candidate.output)
        if not found:
            return Refusal("empty_output")
        return Refusal("placeholder_output", {"output": candidate.output}) if found in _normals(self.placeholders) else None


class EchoFilter(Filter):
    """``echoes_instruction``, ``echoes_task``: the output is the instruction, or instruction and input, word for word."""

    kind: Literal["echo"] = "echo"

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        said, asked = tokens(candidate.output), tokens(candidate.instruction)
        if said and said == asked:
            return Refusal("echoes_instruction", {"output": candidate.output[:200]})
        if said and said == asked + tokens(candidate.input):
            return Refusal("echoes_task", {"output": candidate.output[:200]})
        return None


class InputIsOutputFilter(Filter):
    """``input_is_output``: input and output are the same (Self-Instruct). It also refuses a correction that had nothing to correct."""

    kind: Literal["input_is_output"] = "input_is_output"

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        if candidate.input.strip() and " ".join(candidate.input.split()) == " ".join(candidate.output.split()):
            return Refusal("input_is_output", {"output": candidate.output[:200]})
        return None


class RefusalFilter(Filter):
    """``teacher_refused``: the output speaks as an AI model, or begins with an apology for not answering. One about AI passes."""

    kind: Literal["refusal"] = "refusal"
    as_a_model: bool = True
    """Refuse "As an AI, I ..." and its kin, English and Chinese, in the first person and outside quotes and dialogues."""
    phrases: tuple[str, ...] = REFUSALS
    """Refused wherever they stand; case, quotes and white space do not matter."""
    openings: tuple[str, ...] = REFUSAL_OPENINGS
    """Refused where the output begins with them."""

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        text = normal(candidate.output)
        said = speaks_as_model(candidate.output) if self.as_a_model else None
        if said is None:
            said = next((phrase for phrase in _normals(self.phrases) if phrase in text), None)
        if said is None:
            said = next((opening for opening in _normals(self.openings) if text.startswith(opening)), None)
        return None if said is None else Refusal("teacher_refused", {"phrase": said})


class TrailingColonFilter(Filter):
    """``ends_with_colon``: input or output ends with a colon, so what it announces is missing (Self-Instruct)."""

    kind: Literal["trailing_colon"] = "trailing_colon"

    def check(self, candidate: Candidate, pool: Pool, scores: Scores) -> Refusal | None:
        for name in ("input", "output"):
            text = getattr(candidate, name).rstrip()
            if text.endswith((":", "：")):
                return Refusal("ends_with_colon", {"field": name, "end": text[-60:]})
        return None
