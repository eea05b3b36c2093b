"""What a judge decided, read off its text: the last verdict in its form, and nothing else.

::

    "... so [[A]] seems right at first. But B is correct. [[B]]"        B       a verdict in the reasoning is not the verdict
    "Rating: [[7.5]]"                                                    7.5
    "I prefer the first."                                                none    counted as a failure to parse, never guessed
    {"verdict": "[[A]]", "reasons": "B wrote [[B]]"}                     A       of a JSON object its ``verdict`` alone counts

FastChat looks for ``[[A]]`` anywhere first, then for ``[[B]]``: the first text above is read as A there.
"""

from __future__ import annotations

import json
import re

PAIR = {"A": "first", "B": "second", "C": "tie"}
_PAIR = re.compile(r"\[\[\s*([ABC])\s*\]\]", re.IGNORECASE)
_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*(?:/\s*10\s*)?\]\]")
_PLAIN_RATING = re.compile(r"(?:rating|score)\W{0,4}\[(\d+(?:\.\d+)?)\]\W*$", re.IGNORECASE)
LEAST, MOST = 1.0, 10.0


def pair_verdict(text: str) -> str | None:
    """``first``, ``second`` or ``tie`` by the last ``[[A]]``, ``[[B]]`` or ``[[C]]``; None if there is none.

    Small letters count. Two verdicts side by side (``[[A]][[B]]``, ``[[A]] or [[B]]``) at the end are none.
    """
    found = list(_PAIR.finditer(_deciding(text)))
    if not found:
        return None
    last = found[-1]
    if len(found) > 1 and found[-2][1].upper() != last[1].upper():
        between = last.string[found[-2].end() : last.start()]
        if re.fullmatch(r"[\s,/|]*(?:or|and|oder|或)?[\s,/|]*", between, re.IGNORECASE):
            return None
    return PAIR[last[1].upper()]


def rating(text: str) -> float | None:
    """A rating from 1 to 10 by the last ``[[n]]``, or ``Rating: [n]`` at the end of the text; None if there is none in that range."""
    text = _deciding(text)
    found = _RATING.findall(text)
    if not found:
        found = _PLAIN_RATING.findall(text.rstrip())
    value = float(found[-1]) if found else None
    return value if value is not None and LEAST <= value <= MOST else None


def _deciding(text: str) -> str:
    """The part that holds the verdict: of a JSON object with ``verdict`` (structured output) that, else everything."""
    body = text.strip().removeprefix("```json").removesuffix("```").strip()
    if body.startswith("{"):
        try:
            value = json.loads(body)
        except ValueError:
            return text
        if isinstance(value, dict) and isinstance(value.get("verdict"), str):
            return str(value["verdict"])
    return text
