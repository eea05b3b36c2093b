"""Tags, attributes and elements of HTML, and where a message is truly HTML.

::

    <p>Use <code>a &lt; b</code>.</p><pre>...</pre>     HTML: two blocks of prose, nothing outside them
    <div class="markdown prose">...</div>               HTML: the site's own container
    <ul>\\n  <li>Tea</li>\\n</ul>                         no: indented by hand, an answer that *is* source code
    <h1>Hello</h1>                                      no: one element alone may be the answer to "write a heading"
    vector<int> v; a < b                                no

A browser's copy of an answer has no indentation, no blank lines between its tags and no attributes but those of prose; and it stands
wholly inside elements. The site's class names are proof by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from html import unescape
from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTS: Final = _words(
    """a abbr acronym address annotation area article aside audio b base bdi bdo big blockquote body br button canvas caption center
    circle cite clippath code col colgroup data datalist dd defs del desc details dfn dialog dir div dl dt ellipse em embed fieldset
    figcaption figure font footer form g h1 h2 h3 h4 h5 h6 head header hgroup hr html i iframe img input ins kbd label legend li line
    lineargradient link main map mark math menclose menu meta meter mfrac mi mn mo mover mpadded mphantom mroot mrow mspace msqrt mstyle
    msub msubsup msup mtable mtd mtext mtr munder munderover nav nobr noscript object ol optgroup option output p param path picture
    polygon polyline pre progress q rect rp rt ruby s samp script search section select semantics slot small source span stop strike
    strong style sub summary sup svg table tbody td template textarea tfoot th thead time title tr track tspan tt u ul use var video
    wbr"""
)
"""What HTML, SVG and MathML know. A "tag" of any other name, such as the ``<int>`` of ``vector<int>``, is text."""
VOID: Final = _words("area base br col embed hr img input link meta param source track wbr")
BLOCKS: Final = _words(
    """address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure footer form h1 h2
    h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol optgroup p pre section summary table tbody td tfoot th thead tr
    ul"""
)
"""Elements that begin and end a line of their own."""

_ATTRIBUTES: Final = r"""((?:[^<>"'=]++|=\s*+(?:"[^"]*+"|'[^']*+')?)*+)"""
TAG: Final = re.compile(rf"<(?:(/?)([A-Za-z][A-Za-z0-9]*+)(?![\w:.@-]){_ATTRIBUTES}>|![Dd][^<>]*>)")
"""A tag (groups: slash, name, attributes), or a document type (no groups)."""
_SOON: Final = 20_000
"""Characters; a formula that KaTeX drew rarely has more."""
_SPAN = re.compile(rf"</?span(?![\w:.@-]){_ATTRIBUTES}>")
_ATTRIBUTE = re.compile(r"""([^\s"'<>/=]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'<>=`]+)))?""")

COUNTER: Final = re.compile(r"\s*\d+ / \d+\s*")
"""What a pager shows: ``1 / 2``."""
_ANSWER: Final = r"""(?:\bmarkdown\b[^"<>]*\bprose\b|\bprose\b[^"<>]*\bmarkdown\b)"""
_QUESTION: Final = r"""(?:\bmin-h-\[20px\][^"<>]*\bwhitespace-pre-wrap\b)"""
CONTAINER = re.compile(
    rf"""(?:<div\b[^<>]*\bflex-grow flex-col\b[^<>]*>\s*)?<div\b[^<>]*\bclass="[^"<>]*(?:{_ANSWER}|{_QUESTION})[^<>]*>(?!\s*\n[ \t]+<)"""
)
"""The opening tag of the site's own container of a message. Source code that has such classes goes on in an indented line."""
_SITE = re.compile(rf"""<\w[^<>]*\bclass="(?:[^"<>]*{_ANSWER}|[^"<>]*(?<![\w!-])!whitespace-pre\b|[^"<>]*\bkatex-mathml\b)""")
_TOOLBAR = re.compile(r"""(?<!\\)<pre\b[^<>]*>\s*<div\b[^<>]*\bclass="[^"<>]*\brounded-md\b[^<>]*>""")
_MARKDOWN_CODE = re.compile(
    r"^[ \t>*+\-\d.)]*(?P<fence>`{3,}+|~{3,}+).*?(?:^[ \t>]*(?P=fence)[`~]*[ \t]*$|\Z)|(?P<ticks>(?<!`)`+(?!`)).+?(?<!`)(?P=ticks)(?!`)",
    re.DOTALL | re.MULTILINE,
)
_PROSE: Final = _words(
    """a b blockquote br code del div em h1 h2 h3 h4 h5 h6 hr i img input li ol p pre s span strong sub sup table tbody td th thead tr
    u ul"""
)
_PROSE_ATTRIBUTES: Final[Mapping[str, re.Pattern[str]]] = {
    **dict.fromkeys(_words("href title src alt target rel start align colspan rowspan type checked disabled"), re.compile("")),
    "class": re.compile(r"$|language-|lang-|hljs\b|contains-task-list|task-list-item"),
    "style": re.compile(r"text-align:"),
}
"""What prose says of its elements; ``class`` and ``style`` only so."""
_TOP: Final = _words("p ol ul pre h1 h2 h3 h4 h5 h6 table blockquote div hr")
_CODED = re.compile(r"^[ \t]+<(?:/?[a-z])|\n[ \t]*\n", re.MULTILINE)


def attributes(text: str) -> dict[str, str]:
    """Attributes of a tag by lower-case name, entities decoded; the first of a name counts."""
    found: dict[str, str] = {}
    for m in _ATTRIBUTE.finditer(text):
        found.setdefault(m[1].lower(), decoded(m[2] or m[3] or m[4] or ""))
    return found


@lru_cache(maxsize=256)
def _tags_of(name: str) -> re.Pattern[str]:
    return re.compile(rf"<(/?){name}(?![\w:.@-]){_ATTRIBUTES}>", re.IGNORECASE)


def pairs(html: str, name: str) -> dict[int, tuple[int, int]]:
    """Of all elements of a name that are closed: where the opening tag ends -> (where the closing tag begins, ends)."""
    found: dict[int, tuple[int, int]] = {}
    opened: list[int] = []
    for m in _tags_of(name).finditer(html):
        if not m[1]:
            opened.append(m.end())
        elif opened:
            found[opened.pop()] = m.span()
    return found


def end_near(html: str, name: str, start: int) -> tuple[int, int] | None:
    """What :func:`pairs` says of the element whose opening tag ends at ``start``; None also where it does not end soon."""
    depth = 1
    for m in _tags_of(name).finditer(html, start, start + _SOON):
        depth += -1 if m[1] else 1
        if depth == 0:
            return m.span()
    return None


def without_comments(html: str) -> str:
    """Markup without its comments; one that never ends is none."""
    parts, pos = [], 0
    while (start := html.find("<!--", pos)) >= 0 and (end := html.find("-->", start + 4)) >= 0:
        parts.append(html[pos:start])
        pos = end + 3
    return "".join([*parts, html[pos:]]) if parts else html


def decoded(text: str) -> str:
    """Text with its entities decoded, as ``html.unescape`` does it; sooner where there are only those that every page has."""
    if "&" not in text:
        return text
    usual = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&#x27;", "'").replace("&#39;", "'")
    if usual.count("&") == usual.count("&amp;"):
        return usual.replace("&amp;", "&")
    return unescape(text)


def bare(html: str) -> str:
    """The text of markup with its spaces and lines as they stand; tags that begin or end a line break it."""
    text = _SPAN.sub("", html)
    return decoded(TAG.sub(_break, text) if "<" in text else text)


def _break(m: re.Match[str]) -> str:
    name = (m[2] or "").lower()
    if name not in ELEMENTS:
        return m[0] if name else ""
    if (name not in BLOCKS and name != "br") or m.start() == 0:
        return ""
    before = m.string[m.start() - 1]
    return "\n" if name == "br" or before not in ("\n" if m[1] else "\n>") else ""


def is_html(text: str) -> bool:
    """Whether a message is a browser's markup: prose in elements, or the site's own widgets. Markdown that shows HTML is not."""
    return evidence(text) is not None


def evidence(text: str) -> int | None:
    """Place of the tag that makes a message HTML."""
    first = text.find("<")
    if first < 0:
        return None
    lead = text[:first]
    if (not lead.strip() or COUNTER.fullmatch(lead)) and (CONTAINER.match(text, first) or _is_prose(text, first)):
        return first
    if "hljs" in text and "</pre" in text:
        return _toolbar(_MARKDOWN_CODE.sub(lambda m: " " * len(m[0]), text))
    return None


def _toolbar(text: str) -> int | None:
    """Place of the first ``<pre>`` that has the site's bar above its code."""
    place = 0
    for block in text.split("</pre")[:-1]:
        opened = block.rfind("<pre")
        if opened >= 0 and "hljs" in block[opened:] and _TOOLBAR.match(text, place + opened):
            return place + opened
        place += len(block) + len("</pre")
    return None


def is_page(text: str) -> bool:
    """Whether a message stands wholly inside one of the site's own containers: HTML whoever wrote it."""
    first = text.find("<")
    if first < 0 or text[:first].strip():
        return False
    container = CONTAINER.match(text, first)
    end = pairs(text, "div").get(container.end()) if container else None
    return end is not None and not text[end[1] :].strip()


def is_paragraph(text: str) -> bool:
    """Whether a message is one ``<p>`` of prose: HTML in a conversation that is, but too little to tell by itself."""
    first = text.find("<")
    return first >= 0 and not text[:first].strip() and text[first + 1 : first + 2] in "pP" and _is_prose(text, first, least=1)


def _is_prose(text: str, first: int, least: int = 2) -> bool:
    """Whether from a place on there are only whole blocks of prose: at least so many, a paragraph among them, or the site's own."""
    opening = TAG.match(text, first)
    if not opening or (opening[2] or "").lower() not in _TOP or not text.endswith(">", 0, len(text.rstrip())):
        return False
    ours = bool(_SITE.search(text, first))
    tops, paragraphs = 0, 0
    for name, top in _outline(text, first, strict=not ours):
        if name == "":
            return False
        tops += top
        paragraphs += name == "p"
    return ours or (tops >= least and paragraphs > 0 and not _CODED.search(_without_pre(text[first:])))


def _without_pre(text: str) -> str:
    return re.sub(r"<pre\b.*?</pre\s*>", "<pre>", text, flags=re.DOTALL)


def _of_prose(name: str, attrs: str) -> bool:
    if name not in _PROSE:
        return False
    return not attrs.strip(" /") or all(
        key in _PROSE_ATTRIBUTES and _PROSE_ATTRIBUTES[key].match(value) for key, value in attributes(attrs).items()
    )


def _outline(text: str, first: int, *, strict: bool) -> Iterator[tuple[str, bool]]:
    """(name, whether it stands in no other) of every element; an empty name where it is not well made: text outside, wrong nesting.

    ``strict``: only elements and attributes of prose.
    """
    depth: list[str] = []
    last = first
    for m in TAG.finditer(text, first):
        name = (m[2] or "").lower()
        if name not in ELEMENTS:
            continue
        outside = not depth and text[last : m.start()].strip()
        last = m.end()
        if outside or (strict and not _of_prose(name, m[3])):
            yield "", False
            return
        if m[1]:
            if not depth or depth.pop() != name:
                yield "", False
                return
        else:
            yield name, not depth
            if name not in VOID and not m[3].endswith("/"):
                depth.append(name)
    if depth or text[last:].strip():
        yield "", False
