"""Blocks of Markdown: code, lists, quotes, tables, and how they stand below one another."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

Block = tuple[str, str]
"""(kind, text). Kinds: ``text`` of no paragraph, ``p``, ``h``, ``code``, ``math``, ``quote``, ``table``, ``hr``, ``raw``; ``list`` with its
mark; of a list's items ``tight`` and ``loose``; of a row's cells their alignment."""

BREAK: Final = "  \n"
"""A hard line break."""
_BEHIND_TEXT: Final = ("list", "code", "quote", "h")
"""What may follow the text of a tight list item in the next line."""


@dataclass(slots=True)
class Frame:
    """A block that holds blocks, while it is open.

    Attributes:
        name: ``root``, ``ul``, ``ol``, ``li``, ``blockquote``, ``table``, ``tr`` or ``td``.
        marks: how many marks were open around it.
        sign: of a list: its bullet, or what stands behind its numbers.
        number: of an ordered list: of the next item.
        align: of a cell; rows and aligns: of a table.
    """

    name: str
    marks: int
    sign: str = ""
    number: int = 1
    align: str = ""
    blocks: list[Block] = field(default_factory=list)
    rows: list[list[Block]] | None = None


def fenced(language: str, code: str) -> str:
    """A fenced block of code; its fence is longer than any run of backticks within."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}{'' if code.endswith(chr(10)) or not code else chr(10)}{fence}"


def code_span(code: str) -> str:
    """Code within a line, byte for byte but for line breaks, which a span cannot hold."""
    code = code.replace("\n", " ")
    if not code.strip(" "):
        return code
    runs = set(map(len, re.findall("`+", code)))
    fence = "`" * next(n for n in range(1, len(runs) + 2) if n not in runs)
    pad = " " if code[0] == "`" or code[-1] == "`" or (code[0] == " " == code[-1]) else ""
    return f"{fence}{pad}{code}{pad}{fence}"


def link(text: str, href: str, title: str) -> tuple[str, str]:
    """What stands before and behind the text of a link; an address that is its own text stands in angle brackets."""
    if href in (text, f"mailto:{text}") and re.match(r"[a-z][a-z0-9+.-]*:[^\s<>]*$|mailto:[^\s<>]+$", href, re.IGNORECASE):
        return "<", ">"
    if re.search(r"[\s<>]", href) or href.count("(") != href.count(")") or not href:
        href = "<" + re.sub(r"[<>\n]", lambda m: f"%{ord(m[0]):02X}", href) + ">"
    quoted = " ".join(title.split()).replace('"', '\\"')
    return "[", f"]({href}" + (f' "{quoted}")' if quoted else ")")


def joined(blocks: list[Block], *, tight: bool = False) -> str:
    """Blocks one below the other, with an empty line between them; in a tight list item without, where that reads the same."""
    if len(blocks) < 2:
        return blocks[0][1] if blocks else ""
    parts = [blocks[0][1]]
    for (before, _), (kind, text) in pairwise(blocks):
        ends = before in ("code", "h") or (before[:4] == "list" and kind == "code")
        follows = before == "text" and kind.startswith(_BEHIND_TEXT) and not re.match(r"(?!1[.)])\d", text)
        parts.append("\n" if tight and (follows or (ends and kind != "hr")) else "\n\n")
        parts.append(text)
    return "".join(parts)


def item(frame: Frame, around: Frame) -> Block:
    """A list item with its mark, its further lines under the first."""
    tight = all(kind != "p" for kind, _ in frame.blocks)
    mark = around.sign
    if around.name == "ol":
        mark = f"{around.number}{around.sign}"
        around.number += 1
    text = joined(frame.blocks, tight=tight)
    if "\n" in text:
        pad = " " * (len(mark) + 1)
        text = "\n".join([f"{pad}{line}" if line else "" for line in text.split("\n")])[len(pad) :]
    return "tight" if tight else "loose", f"{mark} {text}" if text else mark


def cell(blocks: list[Block]) -> str:
    """A cell in one line."""
    lines = []
    for kind, text in blocks:
        if kind[:4] == "list" or kind == "raw":
            lines.append(re.sub(r"\s*\n\s*", "<br>", text))
        else:
            lines.append(text.replace(BREAK, "<br>").replace("\n", " "))
    return "<br>".join(lines)


def flat(rows: list[list[Block]]) -> str:
    """A table within a cell."""
    return "<br>".join(" ".join(text for _, text in row) for row in rows)


def table(rows: list[list[Block]]) -> str:
    """A table; its first row is the header."""
    width = max(map(len, rows))
    aligns = [align for align, _ in rows[0]] + [""] * (width - len(rows[0]))
    signs = {"left": ":---", "center": ":---:", "right": "---:"}
    lines = ["| " + " | ".join(text.replace("|", "\\|") for _, text in row) + " |" + "  |" * (width - len(row)) for row in rows]
    return "\n".join([lines[0], "| " + " | ".join(signs.get(align, "---") for align in aligns) + " |", *lines[1:]])
