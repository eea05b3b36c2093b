"""HTML of shared conversations to the Markdown that it was rendered from.

::

    <div class="markdown prose"><p>Try <strong>this</strong>:</p>            Try **this**:
    <pre><div class="bg-black rounded-md"><div class="flex">
    <span>python</span><button>Copy code</button></div><div>                 ```python
    <code class="!whitespace-pre hljs language-python">                      if a < b:
    <span class="hljs-keyword">if</span> a &lt; b:                              pass
        <span class="hljs-keyword">pass</span>                               ```
    </code></div></div></pre></div>

Left out are the site's widgets (:mod:`sft.curate.html.widgets`): buttons, what stands between a pager's (``1 / 2``), the counter behind a copy
button (``123 chars / 45 words``); and what no browser shows (scripts, styles, titles, comments). All other text stays, in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from sft.curate.html.blocks import code_span, link
from sft.curate.html.tags import (
    BLOCKS,
    ELEMENTS,
    TAG,
    attributes,
    bare,
    end_near,
    evidence,
    is_html,
    is_paragraph,
    pairs,
    without_comments,
)
from sft.curate.html.widgets import code_of, counter_before, formulas_of, is_counter, is_widget, text_of_drawing
from sft.curate.html.writer import Writer

__all__ = ["is_html", "to_markdown"]

_UNSEEN: Final = ("head", "script", "style", "template", "title")
_ALIGN = re.compile(r"text-align:\s*(left|center|right)")


def to_markdown(html: str) -> str:
    """The Markdown of a piece of HTML, without white space around it. It is no HTML itself, even where it shows some."""
    text = _Reader(without_comments(html.replace("\r\n", "\n").replace("\r", "\n"))).read()
    while (place := 0 if is_paragraph(text) else evidence(text)) is not None:
        place = text.index("<", place)
        text = f"{text[:place]}\\{text[place:]}"
    return text


class _Reader:
    """Goes over the tags of a text and tells a writer what it meets.

    Attributes:
        pos: where it stands; a method that reads a whole element moves it behind the element.
    """

    __slots__ = ("ends", "html", "out", "pos")

    def __init__(self, html: str) -> None:
        self.html, self.out = html, Writer()
        self.ends: dict[str, dict[int, tuple[int, int]]] = {}
        self.pos = counter_before(html)

    def read(self) -> str:
        """All of it as Markdown."""
        pos: int | None = self.pos
        while pos is not None:
            pos = self._tags(pos)
        return self.out.result().strip("\n").rstrip()

    def _tags(self, pos: int) -> int | None:
        """Go on from a place, tag by tag; the place behind an element that was read whole, or None at the end."""
        html, out = self.html, self.out
        for m in TAG.finditer(html, pos):
            start = m.start()
            if start > pos:
                piece = html[pos:start]
                if (piece != "\n" or out.line) and (" / " not in piece or not is_counter(html, pos, start)):
                    out.text(piece)
            pos = m.end()
            slash, name, attrs = m.groups()
            action = (_CLOSE if slash else _OPEN).get(name)
            if action is None and name is not None and name not in ELEMENTS:
                name = name.lower()
                action = (_CLOSE if slash else _OPEN).get(name)
                if name not in ELEMENTS:
                    out.text(m[0])
            if action is not None:
                self.pos = pos
                action(self, name, attrs)
                if self.pos != pos:
                    return self.pos
        if " / " not in html[pos:] or not is_counter(html, pos, len(html)):
            out.text(html[pos:])
        return None

    def _end(self, name: str) -> tuple[int, int] | None:
        """Where the element ends whose opening tag was just read: (its closing tag begins, ends); None if it never closes."""
        html, start = self.html, self.pos
        stop = html.find(f"</{name}>", start)
        if stop >= 0 and html.find(f"<{name}", start, stop) < 0:  # it holds none of its own
            return stop, stop + len(name) + 3
        if name not in self.ends:
            near = end_near(html, name, start)
            if near is not None:
                return near
            self.ends[name] = pairs(html, name)
        return self.ends[name].get(start)

    def _element(self, name: str) -> str | None:
        """What the element holds whose opening tag was just read, which is then behind us; None, and nothing moved, if it never closes."""
        end = self._end(name)
        if end is None:
            return None
        inner = self.html[self.pos : end[0]]
        self.pos = end[1]
        return inner

    # Lines

    def _open_mark(self, name: str, attrs: str) -> None:
        self.out.open_mark(_ALIKE.get(name, name))

    def _close_mark(self, name: str, attrs: str) -> None:
        self.out.close_mark(_ALIKE.get(name, name))

    def _open_link(self, name: str, attrs: str) -> None:
        found = attributes(attrs)
        href = found.get("href", "").strip()
        self.out.open_mark("a", "" if href.lower().startswith("javascript:") else href, found.get("title", ""))

    def _image(self, name: str, attrs: str) -> None:
        found = attributes(attrs)
        source, alt = found.get("src", "").strip(), " ".join(found.get("alt", "").split())
        if source.startswith("data:"):
            source = ""  # an icon within the page: its letters are no text
        if source or alt:
            self.out.piece("!" + alt.join(link("", source, found.get("title", ""))) if source else f"![{alt}]()")

    def _code_span(self, name: str, attrs: str) -> None:
        end = self._end(name)
        if end is None:
            return
        inner = self.html[self.pos : end[0]]
        found = attributes(attrs).get("class", "") if attrs else ""
        if "!whitespace-pre" in found or ("hljs" in found and "\n" in inner):
            self._code_block(f"<{name}{attrs}>{inner}</{name}>", end)
        elif "<img" not in inner and "<br" not in inner:  # else it is no mere code
            self.out.piece(code_span(bare(inner)))
            self.pos = end[1]

    def _box(self, name: str, attrs: str) -> None:
        found = attributes(attrs)
        if found.get("type", "").lower() == "checkbox":
            self.out.text("[x] " if "checked" in found else "[ ] ")

    def _quote_sign(self, name: str, attrs: str) -> None:
        self.out.text('"')

    def _break(self, name: str, attrs: str) -> None:
        self.out.line_break()

    def _apart(self, name: str, attrs: str) -> None:
        self.out.space()

    # Blocks

    def _paragraph(self, name: str, attrs: str) -> None:
        out = self.out
        if out.line:
            out.flush()
        if out.kind[0] != "h":
            out.kind = "p"

    def _end_paragraph(self, name: str, attrs: str) -> None:
        out = self.out
        if out.line:
            out.flush()
        if out.kind == "p":
            out.kind = "text"

    def _heading(self, name: str, attrs: str) -> None:
        self.out.flush()
        self.out.kind = name

    def _line(self, name: str, attrs: str) -> None:
        """A block that is no more than its own line, opened or closed."""
        out = self.out
        if out.line:
            out.flush()
        out.kind = "text"

    def _div(self, name: str, attrs: str) -> None:
        self._line(name, attrs)
        if "katex" in attrs and self._math(name, attrs):
            return
        if "rounded-md" not in attrs and "whitespace-pre-wrap" not in attrs:
            return
        end = self._end(name)
        inner = self.html[self.pos : end[0]] if end else ""
        if "rounded-md" in attrs:
            if "hljs" in inner and inner.count("<code") == 1:
                self._code_block(inner, end)
        elif end and all((m[2] or "").lower() not in BLOCKS for m in TAG.finditer(inner)):
            self.out.block("raw", bare(inner).strip("\n"))  # what a user wrote, as it was written
            self.pos = end[1]

    def _pre(self, name: str, attrs: str) -> None:
        end = self._end(name)
        self._code_block(self.html[self.pos : end[0]] if end else self.html[self.pos :], end)

    def _code_block(self, inner: str, end: tuple[int, int] | None) -> None:
        """The code of an element with its language; what else the element says stays as text around it."""
        self.pos = end[1] if end else len(self.html)
        before, language, code, behind = code_of(inner)
        self.out.block("p", before)
        self.out.code(language, code)
        self.out.block("p", behind)

    def _span(self, name: str, attrs: str) -> None:
        if "katex" in attrs:
            self._math(name, attrs)

    def _math(self, name: str, attrs: str) -> bool:
        """A formula by the TeX that KaTeX keeps beside what it draws; False, and nothing moved, where there is none."""
        found = attributes(attrs)
        classes = found.get("class", "").split()
        if name != "math" and "katex" not in classes and "katex-display" not in classes:
            return False
        place = self.pos
        inner = self._element(name)
        formulas = formulas_of(inner) if inner is not None else []
        if not formulas:
            self.pos = place
        for tex in formulas:
            self.out.math(tex, display="katex-display" in classes or found.get("display") == "block")
        return bool(formulas)

    def _formula(self, name: str, attrs: str) -> None:
        self._math(name, attrs)

    def _button(self, name: str, attrs: str) -> None:
        place = self.pos
        inner = self._element(name)
        if inner is None or not is_widget(inner):
            self.pos = place
            self.out.space()

    def _drawing(self, name: str, attrs: str) -> None:
        inner = self._element(name)
        if inner:
            self.out.space()
            self.out.text(text_of_drawing(inner))

    def _unseen(self, name: str, attrs: str) -> None:
        self._element(name)

    def _rule(self, name: str, attrs: str) -> None:
        self.out.rule()

    # Lists, quotes, tables

    def _list(self, name: str, attrs: str) -> None:
        start = attributes(attrs).get("start", "") if attrs else ""
        self.out.push("ol" if name == "ol" else "ul", number=int(start) if re.fullmatch(r"[0-9]{1,9}", start) else 1)

    def _end_list(self, name: str, attrs: str) -> None:
        self.out.pop("ol" if name == "ol" else "ul")

    def _item(self, name: str, attrs: str) -> None:
        self.out.item()

    def _quote(self, name: str, attrs: str) -> None:
        self.out.push("blockquote")

    def _table(self, name: str, attrs: str) -> None:
        self.out.push("table")

    def _caption(self, name: str, attrs: str) -> None:
        inner = self._element(name)
        if inner:
            self.out.caption(" ".join(bare(inner).split()))

    def _row(self, name: str, attrs: str) -> None:
        if self.out.pop("table", keep=True):
            self.out.push("tr")

    def _data(self, name: str, attrs: str) -> None:
        if not self.out.pop("tr", keep=True):
            if not self.out.pop("table", keep=True):
                return
            self.out.push("tr")
        found = attributes(attrs) if attrs else {}
        align = _ALIGN.match(found.get("style", "").strip())
        self.out.push("td", align=align[1] if align else found.get("align", ""))

    def _end_data(self, name: str, attrs: str) -> None:
        self.out.pop("td")

    def _close_frame(self, name: str, attrs: str) -> None:
        self.out.pop(name)


Action = Callable[[_Reader, str, str], None]
_ALIKE: Final = {"b": "strong", "i": "em", "strike": "del", "s": "del"}
_INLINE: Final = ("strong", "b", "em", "i", "del", "s", "strike", "sub", "sup")
_SET_APART: Final = ("option", "select", "textarea", "input", "label", "legend", "rt", "rp", "text", "mtd")
_LINES: Final = (
    *sorted(BLOCKS - {"p", "ul", "ol", "menu", "dir", "blockquote", "table", "tr", "td", "th", "pre", "div"}),
    "tbody",
)
_OPEN: Final[Mapping[str, Action]] = {
    **dict.fromkeys(_LINES, _Reader._line),
    **dict.fromkeys(_SET_APART, _Reader._apart),
    **dict.fromkeys(_INLINE, _Reader._open_mark),
    **dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), _Reader._heading),
    **dict.fromkeys(("code", "kbd", "samp", "tt"), _Reader._code_span),
    **dict.fromkeys(("ul", "ol", "menu", "dir"), _Reader._list),
    **dict.fromkeys(_UNSEEN, _Reader._unseen),
    "p": _Reader._paragraph,
    "div": _Reader._div,
    "pre": _Reader._pre,
    "hr": _Reader._rule,
    "br": _Reader._break,
    "a": _Reader._open_link,
    "img": _Reader._image,
    "input": _Reader._box,
    "q": _Reader._quote_sign,
    "span": _Reader._span,
    "math": _Reader._formula,
    "button": _Reader._button,
    "svg": _Reader._drawing,
    "li": _Reader._item,
    "blockquote": _Reader._quote,
    "table": _Reader._table,
    "caption": _Reader._caption,
    "tr": _Reader._row,
    "td": _Reader._data,
    "th": _Reader._data,
}
_CLOSE: Final[Mapping[str, Action]] = {
    **dict.fromkeys((*_LINES, "div", "pre", "hr"), _Reader._line),
    **dict.fromkeys((*_SET_APART, "button"), _Reader._apart),
    **dict.fromkeys((*_INLINE, "a"), _Reader._close_mark),
    **dict.fromkeys(("ul", "ol", "menu", "dir"), _Reader._end_list),
    **dict.fromkeys(("td", "th"), _Reader._end_data),
    **dict.fromkeys(("blockquote", "table", "tr"), _Reader._close_frame),
    "p": _Reader._end_paragraph,
    "q": _Reader._quote_sign,
    "br": _Reader._break,
}
