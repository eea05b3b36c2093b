"""Markdown to the HTML that ShareGPT's page made of it: bar and colours over code, KaTeX's two drawings of a formula, buttons, pagers.

``page(markdown)`` gives the answer alone, ``shared(markdown, dice)`` with what stood around it on the page, drawn by chance.
markdown-it-py renders; formulas (``$...$``, ``$$...$$``) and bars are rules added to it. Raw HTML in the Markdown is shown, not obeyed,
as the site did.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

_CODE = re.compile(
    r"(?P<string>&quot;(?:\\.|(?!&quot;).)*?&quot;|&#x27;[^\n]*?&#x27;)|(?P<comment>(?:#|//)[^\n]*)"
    r"|(?P<keyword>\b(?:def|return|if|elif|else|for|while|in|import|from|class|int|void|const|let|var|function|public|new|fn|SELECT|FROM)\b)"
    r"|(?P<number>\b\d+(?:\.\d+)?\b)|(?P<built_in>\b(?:print|len|range|printf|echo|std|console)\b)"
)
_TEX_TOKEN = re.compile(r"\\[A-Za-z]+|\d+|[A-Za-z]|[=+\-<>^_{}()&\\]|\S")
_BAR = (
    '<pre><div class="bg-black mb-4 rounded-md"><div class="flex items-center relative text-gray-200 bg-gray-800 px-4 py-2 text-xs '
    'font-sans justify-between rounded-t-md"><span>{label}</span><button class="flex ml-auto gap-2"><svg stroke="currentColor" '
    'fill="none" stroke-width="2" viewBox="0 0 24 24" stroke-linecap="round" class="h-4 w-4" height="1em" width="1em" '
    'xmlns="http://www.w3.org/2000/svg"><path d="M16 4h2a2 2 0 0 1 2 2v14a2 2 0 0 1-2 2H6a2 2 0 0 1-2-2V6a2 2 0 0 1 2-2h2"></path>'
    '<rect x="8" y="2" width="8" height="4" rx="1" ry="1"></rect></svg>Copy code</button></div><div class="p-4 overflow-y-auto">'
    '<code class="!whitespace-pre hljs{language}">{code}</code></div></div></pre>'
)
_ARROW = (
    '<svg stroke="currentColor" fill="none" stroke-width="1.5" viewBox="0 0 24 24" class="h-3 w-3"><polyline points="{0}"></polyline>'
    "</svg>"
)
_PAGER = (
    '<div class="text-xs flex items-center justify-center gap-1 self-center pt-2 visible"><button class="dark:text-white '
    'disabled:text-gray-300" disabled="">'
    + _ARROW.format("15 18 9 12 15 6")
    + '</button><span class="flex-grow flex-shrink-0">'
    '{0} / {1}</span><button class="dark:text-white">' + _ARROW.format("9 18 15 12 9 6") + "</button></div>"
)
_COPY = (
    '<div class="flex items-center text-xs"><button class="flex ml-auto gap-2"><svg viewBox="0 0 24 24"><path d="M8 4"></path></svg>'
    "Copy</button>{0} chars / {1} words</div>"
)
_THUMBS = (
    '<div class="text-gray-400 flex self-end"><button class="p-1 rounded-md"><svg viewBox="0 0 24 24"><path d="M14 9"></path></svg>'
    "</button></div>"
)
_SPACE_AT_TAGS = re.compile(
    r"\s*(</?(?:p|li|ul|ol|div|pre|h\d|blockquote|table|thead|tbody|tr|td|th|hr|br)\b[^>]*>)\s*", re.IGNORECASE
)
_LINES_AT_TAGS = re.compile(r"\n*(</?(?:p|li|ul|ol|div|h\d|blockquote|table|thead|tbody|tr|td|th|hr)\b[^>]*>)\n*")


def coloured(code: str) -> str:
    """Code as hljs shows it."""

    def span(m: re.Match[str]) -> str:
        return f'<span class="hljs-{m.lastgroup}">{m[0]}</span>'

    return _CODE.sub(span, escape(code))


def fence(self: Any, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
    words = tokens[idx].info.split()
    label = escape(words[0]) if words else ""
    return _BAR.format(label=label, language=f" language-{label}" if label else "", code=coloured(tokens[idx].content))


def katex(tex: str, *, display: bool) -> str:
    """A formula as KaTeX leaves it in a page: in MathML with its TeX beside it, and drawn."""
    mathml, drawn = [], []
    for token in _TEX_TOKEN.findall(tex):
        shown = escape(token.removeprefix("\\"))
        kind = "mn" if token.isdigit() else "mi" if token[-1].isalpha() else "mo"
        mathml.append(f"<{kind}>{shown}</{kind}>")
        drawn.append(f'<span class="mord mathnormal" style="margin-right:0.05764em;">{shown}</span>')
    inner = (
        '<span class="katex"><span class="katex-mathml"><math xmlns="http://www.w3.org/1998/Math/MathML"><semantics><mrow>'
        f'{"".join(mathml)}</mrow><annotation encoding="application/x-tex">{escape(tex, quote=False)}</annotation></semantics></math></span>'
        '<span class="katex-html" aria-hidden="true"><span class="base"><span class="strut" style="height:0.6833em;"></span>'
        f"{''.join(drawn)}</span></span></span>"
    )
    if display:
        return f'<div class="math math-display"><span class="katex-display">{inner}</span></div>'
    return f'<span class="math math-inline">{inner}</span>'


def _math_inline(state: StateInline, silent: bool) -> bool:
    src, start = state.src, state.pos
    if src[start] != "$" or src[start : start + 2] == "$$":
        return False
    end = src.find("$", start + 1)
    tex = src[start + 1 : end]
    if end < 0 or not tex or tex != tex.strip() or "\n" in tex or src[end + 1 : end + 2].isdigit():
        return False
    if not silent:
        state.push("math_inline", "", 0).content = tex
    state.pos = end + 1
    return True


def _math_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    def line(number: int) -> str:
        return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]].strip()

    if line(start) != "$$" or state.is_code_block(start):
        return False
    last = next((i for i in range(start + 1, end) if line(i) == "$$" and state.sCount[i] >= state.blkIndent), None)
    if last is None:
        return False
    if not silent:
        token = state.push("math_block", "", 0)
        token.content = state.getLines(start + 1, last, state.sCount[start], False).strip()
        token.map = [start, last + 1]
        state.line = last + 1
    return True


def _renderer() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    made.inline.ruler.before("escape", "math_inline", _math_inline)
    made.block.ruler.before("fence", "math_block", _math_block, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    made.add_render_rule("fence", fence)
    made.add_render_rule("code_block", fence)
    made.add_render_rule("math_inline", lambda self, tokens, idx, options, env: katex(tokens[idx].content, display=False))
    made.add_render_rule("math_block", lambda self, tokens, idx, options, env: katex(tokens[idx].content, display=True))
    return made


MARKDOWN = _renderer()


def page(markdown: str) -> str:
    """An answer in the container that the page put it in."""
    return f'<div class="markdown prose w-full break-words dark:prose-invert dark">{MARKDOWN.render(markdown)}</div>'


def shared(markdown: str, dice: random.Random) -> str:
    """An answer as it was shared, with buttons, pagers and counters around it."""
    html = page(markdown)
    if dice.random() < 0.3:
        inner = '<div class="min-h-[20px] flex flex-col items-start gap-4 whitespace-pre-wrap break-words">'
        html = f'<div class="flex flex-grow flex-col gap-3">{inner}{html}</div></div>'
    if dice.random() < 0.15:
        pages = dice.randint(2, 5)
        pager = _PAGER.format(dice.randint(1, pages), pages)
        html = html + pager if dice.random() < 0.7 else pager + html
    elif dice.random() < 0.05:
        html = f"{dice.randint(1, 3)} / 3{html}"
    if dice.random() < 0.1:
        html += _COPY.format(len(markdown), len(markdown.split()))
    if dice.random() < 0.3:
        html += _THUMBS
    return html


def compact(html: str) -> str:
    """A page without the line breaks between its blocks; those in code stay."""
    parts = re.split(r"(<pre>.*?</pre>)", html, flags=re.DOTALL)
    return "".join(part if part.startswith("<pre>") else _LINES_AT_TAGS.sub(r"\1", part) for part in parts)


def either(rendered: str) -> str:
    """What :func:`normal` gives, without the difference between loose and tight lists."""
    return re.sub(r"<li><p>(.*?)</p>", r"<li>\1", rendered)


def normal(markdown: str) -> str:
    """What a text renders as, up to white space: runs are one space, none stands beside the tags of blocks."""
    return " ".join(_SPACE_AT_TAGS.sub(r"\1", re.sub(r"\s+</code>", "</code>", MARKDOWN.render(markdown))).split())


def code_blocks(markdown: str) -> list[tuple[str, str]]:
    """(language, code) of every block of code; a line break at the end, which a fence cannot lack, does not count."""
    tokens = MARKDOWN.parse(markdown)
    return [((t.info.split() or [""])[0], t.content.removesuffix("\n")) for t in tokens if t.type in ("fence", "code_block")]
