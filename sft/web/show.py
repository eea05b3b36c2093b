"""Dialogues as the chat boxes of the page take them."""

from __future__ import annotations

import re
from typing import Any

from sft.web.talk import Talk

_TAG = re.compile(r"</?([a-zA-Z][^\s/<>]*)")
_CURSOR = "▌"
# What the browser's own rendering of Markdown, code and formulas is made of: it cannot be told from the same tag in an answer.
_RENDERED = """
    a annotation blockquote br button code del div em g h1 h2 h3 h4 h5 h6 hr img input li line math mfrac mi mn mo mover mrow msqrt
    mstyle msub msubsup msup mtable mtd mtext mtr munder ol p path polyline pre rect s semantics span strong svg table tbody td tfoot
    th thead tr ul
"""
_OF_MARKDOWN = frozenset(_RENDERED.split())


def box(talk: Talk, side: int, *, plain: bool = False) -> dict[str, Any]:
    """Properties of the chat box of one side. ``plain`` shows the letters as they were written.

    The text goes out as it is: as a string it would lose its indentation on the way. Tags that an answer writes, ``<script>`` for one,
    are shown as text where the browser can tell them from the page's own; the rest are sanitised there.
    """
    messages = []
    tags: set[str] = set()
    for exchange in talk.exchanges:
        answer = exchange.answers[side]
        texts = [("user", exchange.question)]
        if answer.text or answer.state == "writing" or answer.finished:
            texts.append(("assistant", answer.text + (_CURSOR if answer.state == "writing" else "")))
        for role, text in texts:
            tags.update(_TAG.findall(text))
            messages.append({"role": role, "content": [{"type": "text", "text": fenced(text) if plain else text}]})
    shown = sorted({tag.lower() for tag in tags} - _OF_MARKDOWN)
    return {"value": messages, "allow_tags": shown or True}


def fenced(text: str) -> str:
    """A text as a block of code that nothing in it can close."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
