"""Which part of a message is prose: what rules about words and numbers must leave alone is blanked out, length and line breaks kept.

::

    "Call `f(13800138000)` or see https://a.b/c, says Bob."
    "Call                   or see               , says Bob."

Offsets into the blanked text are offsets into the text. Code is a fenced block (one that is never closed reaches to the end), inline
code, and lines that can only be code (``import openai``). Fences longer than three and fences of tildes count.
"""

from __future__ import annotations

import re

# what runs of blanks and of ticks match is never given back (*+): nothing else could match it
_FENCE = re.compile(
    r"^[ \t]*+(?:[-*+>]|\d+[.)])?[ \t]*+(?P<fence>`{3,}+|~{3,}+)[^\n]*\n(?:.*?^[ \t>]*(?P=fence)[`~]*[ \t]*$|.*\Z)", re.M | re.S
)
_INLINE = re.compile(r"(?<!`)``(?!`)[^\n]{1,400}?(?<!`)``(?!`)|(?<!`)`(?!`)[^`\n]{1,400}`(?!`)")
_COMMANDS = (
    r"(?:sudo )?(?:pip3? (?:un)?install|(?:npm|yarn|pnpm) (?:i|install|add|run)|conda (?:install|create|activate)|brew install|"
    r"(?:apt|apt-get) (?:install|update)|docker (?:run|pull|build|compose)|git (?:clone|add|commit|push|pull|checkout)|curl|wget|cargo add)"
)
_LINE = re.compile(
    r"^[ \t]*(?:>>> ?|[$>] )?(?:import [\w.]+(?: as \w+)?(?:, ?[\w.]+)*;?|from [\w.]+ import .+|#include .+|"
    rf"(?:const|let|var) \w+ ?=.+|export \w+=.+|{_COMMANDS} .*)[ \t]*$",
    re.M,
)
URL = re.compile(r"\b(?:https?|ftp|file)://[^\s<>\"'，。；：！？、（）【】《》「」]+|\bwww\.[^\s<>\"'，。；：！？、（）]+")
_KEEP = re.compile(r"[^\n]")


def without_code(text: str) -> str:
    """The text with code blanked out."""
    if "`" in text or "~~~" in text:
        text = _INLINE.sub(_blank, _FENCE.sub(_blank, text))
    return _LINE.sub(_blank, text)


def prose(text: str) -> str:
    """The text with code and addresses blanked out."""
    text = without_code(text)
    return URL.sub(_blank, text) if "://" in text or "www." in text else text


def _blank(found: re.Match[str]) -> str:
    return _KEEP.sub(" ", found[0])
