"""What ShareGPT's page puts around an answer: the bar above code, buttons, pagers and counters, formulas drawn by KaTeX, drawings.

::

    <div class="flex ..."><span>python</span><button>Copy code</button></div><div><code class="!whitespace-pre hljs language-python">...
    <button>‹</button><span>1 / 2</span><button>›</button>            <div><button>Copy</button>123 chars / 45 words</div>
    <span class="katex"><span class="katex-mathml"><math>...<annotation encoding="application/x-tex">E=mc^2</annotation>...
"""

from __future__ import annotations

import re
from typing import Final

from sft.curate.html.tags import CONTAINER, COUNTER, TAG, attributes, bare

WIDGETS: Final = frozenset(
    (
        *("", "Copy", "Copied!", "Copy code", "Edit", "Share"),
        *("Regenerate response", "Regenerate", "Stop generating", "Continue generating", "Save & Submit", "Cancel"),
        *("复制", "复制代码", "已复制", "编辑", "分享", "重新生成", "停止生成", "继续生成"),
    )
)
"""Labels of the site's buttons. A button that says anything else is kept as text."""

# (?!...) within keeps each of these from running to the end of a text over and over
_BUTTON = re.compile(r"<(button|svg)\b(?:(?!<\1\b).)*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_SVG_NOTES = re.compile(r"<(title|desc|defs)\b(?:(?!<\1\b).)*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_CODE = re.compile(r"<code\b([^<>]*)>", re.IGNORECASE)
_CODE_END = re.compile(r".*(?P<end></code\s*>)", re.DOTALL | re.IGNORECASE)
_LANGUAGE = re.compile(r"(?:^|\s)lang(?:uage)?-([^\s`]+)")
_LABEL = re.compile(r"[\w#+./-]{1,40}")
_TEX = re.compile(
    r"""<annotation\b[^<>]*\bencoding=["']application/x-tex["'][^<>]*>((?:(?!</?annotation).)*)</annotation\s*>""", re.DOTALL
)
_CHARACTERS = re.compile(r"\s*(Copy)?\d+ chars / \d+ words\s*")
_AFTER_BUTTON = re.compile(r"</button\s*>(?:\s|</?(?:span|div)\b[^<>]*>)*\Z", re.IGNORECASE)
_BEFORE_BUTTON = re.compile(r"(?:\s|</?(?:span|div)\b[^<>]*>)*<button\b", re.IGNORECASE)
_LONGEST: Final = 60
"""More characters than any counter has, with the spaces around it."""
_NEAR: Final = 300
"""How many characters before a counter its button is looked for."""


def counter_before(html: str) -> int:
    """Where the answer begins behind a bare ``1 / 2`` that stands before its container; 0 where there is none."""
    counter = COUNTER.match(html)
    return counter.end() if counter and CONTAINER.match(html, counter.end()) else 0


def is_counter(html: str, start: int, end: int) -> bool:
    """Whether a text between tags is the site's: of a pager, beside its buttons; of the counter of characters, behind its copy button."""
    if end - start > _LONGEST:
        return False
    piece = html[start:end]
    beside = bool(_AFTER_BUTTON.search(html, max(0, start - _NEAR), start))
    characters = _CHARACTERS.fullmatch(piece)
    if characters:
        return beside or characters[1] is not None
    return bool(COUNTER.fullmatch(piece)) and (beside or bool(_BEFORE_BUTTON.match(html, end)))


def is_widget(button: str) -> bool:
    """Whether what a button holds is one of the site's labels, or a drawing alone."""
    return without_buttons(button) in WIDGETS


def without_buttons(html: str) -> str:
    """The text of a bar, a label or the like."""
    return bare(_BUTTON.sub("", html)).strip()


def code_of(inner: str) -> tuple[str, str, str, str]:
    """What a ``<pre>`` or the box around it says: (text before, language, code, text behind).

    The language is what the bar above the code says, else what the class of the code says. Text that is neither is before or behind.
    """
    opening = _CODE.search(inner)
    if not opening:
        return "", "", bare(_BUTTON.sub("", inner.removeprefix("\n"))), ""
    closing = _CODE_END.match(inner)
    stop = closing.start("end") if closing and closing.start("end") >= opening.end() else len(inner)
    label = without_buttons(inner[: opening.start()]).removesuffix("Copy code").strip()
    named = _LANGUAGE.search(attributes(opening[1]).get("class", ""))
    code, behind = bare(inner[opening.end() : stop]), without_buttons(inner[stop:])
    if _LABEL.fullmatch(label):
        return "", label, code, behind
    return label, named[1] if named else "", code, behind


def formulas_of(inner: str) -> list[str]:
    """The TeX of each formula."""
    return [bare(tex).strip() for tex in _TEX.findall(inner)]


def text_of_drawing(inner: str) -> str:
    """The words that stand in a drawing, without its notes for those who cannot see it."""
    return " ".join(TAG.sub(" ", _SVG_NOTES.sub("", inner)).split())
