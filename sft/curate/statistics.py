"""What is counted of conversations while they pass through the workers: whole numbers in histograms, so that the sum over the parts of
a stage is the same for any number of workers and any size of part.

::

    turns                   {"2": 410, "4": 77}         conversations by their number of messages
    characters before       {"1536": 12, "2048": 9}     conversations by all their characters as they were read; after: as they are kept
    characters user         {"48": 300, "64": 120}      messages by their characters; also assistant, system
    languages               {"en": 460, "?": 27}        conversations by the language of the first question
    tokens                  {"384": 80, "512": 61}      training rows by length
    learnt share            {"60": 15, "70": 90}        training rows by what they learn, in percent rounded down to tens
    language tokens         {"en": 90410, "zh": 8700}   tokens of answers by language, and language characters: their characters
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final

from sft.curate.chat import ASSISTANT, USER, Chat
from sft.curate.parts import PartReport

UNKNOWN: Final = "?"
"""In the place of a language where there is too little prose to tell, or none is likelier than all others together."""

_ENDS: Final = (0, 1, *sorted(width << k for k in range(40) for width in (2, 3)))
_LANGUAGE_OF = 200  # characters of the first question that are looked at
_LEAST_SHARE = 0.5


def bucket(number: int) -> str:
    """The upper end of the range that holds a number: 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    return str(_ENDS[bisect_left(_ENDS, number)])


def lower_end(upper: int) -> int:
    """The least number in the range with this upper end."""
    at = bisect_left(_ENDS, upper)
    return _ENDS[at - 1] + 1 if at else 0


def size(chat: Chat) -> int:
    """Characters of all messages."""
    return sum(len(message.text) for message in chat.messages)


def text_bytes(chat: Chat) -> int:
    """Bytes of all messages as UTF-8."""
    return sum(len(m.text) if m.text.isascii() else len(m.text.encode("utf-8", "surrogatepass")) for m in chat.messages)


def language(chat: Chat) -> str:
    """ISO 639-1 code of the first question's language, or :data:`UNKNOWN`."""
    from sft.curate.rules.language import languages_of

    asked = next((message.text for message in chat.messages if message.role == USER), "")
    shares = languages_of((asked[:_LANGUAGE_OF],))
    if not shares:
        return UNKNOWN
    code, share = max(shares.items(), key=lambda one: (one[1], one[0]))
    return code if share > _LEAST_SHARE else UNKNOWN


def count_read(report: PartReport, chat: Chat) -> None:
    """Count a conversation as it came."""
    characters = size(chat)
    report.characters_in += characters
    report.bytes_in += text_bytes(chat)
    report.count("characters before", bucket(characters))


def count_kept(report: PartReport, chat: Chat) -> None:
    """Count a conversation as it stays."""
    characters = size(chat)
    report.characters_out += characters
    report.count("characters after", bucket(characters))
    report.count("turns", str(len(chat.messages)))
    report.count("languages", language(chat))
    for message in chat.messages:
        report.count(f"characters {message.role}", bucket(len(message.text)))


def count_row(report: PartReport, chat: Chat, tokens: int, learnt: int) -> None:
    """Count a training row.

    Args:
        report: of the part.
        chat: what the row says.
        tokens: of the row, template and special tokens included.
        learnt: how many of them are.
    """
    report.characters_out += size(chat)
    report.count("turns", str(len(chat.messages)))
    report.count("tokens", bucket(tokens))
    report.count("totals", "tokens", tokens)
    report.count("totals", "learnt tokens", learnt)
    report.count("learnt share", str(10 * (10 * learnt // tokens)))


def count_answers(report: PartReport, code: str, chat: Chat, tokens: int) -> None:
    """Count what the answers of a row cost in a language: their tokens, each with its stop, and their characters."""
    report.count("language tokens", code, tokens)
    report.count("language characters", code, sum(len(m.text) for m in chat.messages if m.role == ASSISTANT))


def ordered(buckets: Mapping[str, int]) -> list[tuple[int, int]]:
    """A histogram over numbers in their order."""
    return sorted((int(name), count) for name, count in buckets.items())


def quantile(buckets: Mapping[str, int], share: float) -> int:
    """The bucket (named by its upper end) that holds the entry below which this share of the entries lies; 0 of nothing."""
    entries = ordered(buckets)
    wanted = share * sum(count for _, count in entries)
    seen = 0
    for upper, count in entries:
        seen += count
        if seen >= wanted:
            return upper
    return 0


def mean(buckets: Mapping[str, int]) -> float:
    """Mean of a histogram over exact numbers; 0 of nothing."""
    entries = ordered(buckets)
    total = sum(count for _, count in entries)
    return sum(number * count for number, count in entries) / total if total else 0.0
