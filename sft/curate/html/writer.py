"""Markdown written from what a reader of HTML meets: blocks within lists and quotes, marks within lines, no text left out.

::

    push("ul") push("li") text("one") code("py", "x = 1\\\\n") pop...      - one
                                                                        ```py
                                                                        x = 1
                                                                        ```

A line is built of pieces; ``flush`` makes it a block of the innermost frame; a frame that closes becomes a block of the frame around it.
Prose gets no escapes but where its first characters would begin another block (``2. May`` as ``2\\\\. May``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sft.curate.html.blocks import BREAK, Frame, cell, code_span, fenced, flat, item, joined, link, table
from sft.curate.html.tags import decoded

_LINE_BREAK = re.compile(r"(?<![ \t\r\f])[ \t\r\f]*\n[ \t\r\n\f]*")
_SPACES = re.compile(r"[\t\r\f ]{2,}|[\t\r\f]")
_FIRST = re.compile(
    r"(?P<number>\d{1,9})(?=[.)](?:\s|$))|[-+*](?=\s|$)|\#{1,6}(?=\s|$)|>|`{3,}(?=[^`\n]*(?:\n|$))|~{3,}|(?:[-*_][ ]*){3,}(?=\n|$)"
    r"|\[[^\]\n]+\]:\s*\S+[ ]*(?:[\"'(][^\n]*)?(?=\n|$)"
)
# possessive, so that a long line of dashes and bars is gone over once
_NEXT = re.compile(
    r"\n(?=[-+*] +\S|1[.)] +\S|\#{1,6}(?: |$)|>|`{3,}[^`\n]*$|~{3,}|(?:[-*_] *+){3,}+$|=+ *$|-+ *$"
    r"|(?=[ |:-]++$)[ |:]*+-[ :-]*+\||\|(?=[ :-]++$)[ :]*+-)",
    re.MULTILINE,
)
_BACKSLASH = re.compile(r"(?<!\\)\\(?:\\\\)*(?=\n)")
_DEEPEST: Final = 60
_MARKS: Final = {
    "strong": ("**", "**"),
    "em": ("*", "*"),
    "del": ("~~", "~~"),
    "sub": ("<sub>", "</sub>"),
    "sup": ("<sup>", "</sup>"),
}
_INNER: Final = {"strong": ("__", "__"), "em": ("_", "_")}


@dataclass(slots=True)
class _Mark:
    name: str
    start: int
    opening: str
    closing: str


class Writer:
    """Builds Markdown; see the module."""

    __slots__ = ("frames", "kind", "line", "marks")

    def __init__(self) -> None:
        self.frames = [Frame("root", 0)]
        self.line: list[str] = []
        self.marks: list[_Mark] = []
        self.kind = "text"
        """What the line becomes: ``text``, ``p``, or ``h1`` to ``h6``."""

    # Lines

    def text(self, piece: str) -> None:
        """Text of markup: entities are decoded, runs of white space are one space or one line break."""
        if "&" in piece:
            piece = decoded(piece)
        if "\n" in piece:
            piece = _LINE_BREAK.sub("\n", piece)
        if "  " in piece or "\t" in piece:
            piece = _SPACES.sub(" ", piece)
        line = self.line
        if not line or line[-1][-1] in " \n":
            piece = piece.lstrip(" \n")
        if piece:
            if not line:
                self._home()
            line.append(piece)

    def piece(self, piece: str) -> None:
        """Something within a line, as it stands."""
        if piece:
            if not self.line:
                self._home()
            self.line.append(piece)

    def line_break(self) -> None:
        """A hard line break; the second in a row ends the block."""
        if self.line and self.line[-1] == BREAK:
            self.flush()
        elif self.line:
            self.line[-1] = self.line[-1].rstrip(" ") or self.line[-1]
            self.line.append(BREAK)

    def space(self) -> None:
        """Sets apart what a browser shows apart."""
        if self.line and self.line[-1][-1] not in " \n":
            self.line.append(" ")

    def open_mark(self, name: str, opening: str = "", closing: str = "") -> None:
        """Begin emphasis or a link. Emphasis within its like has the other sign, as in ``**the __init__ method**``; deeper it has none."""
        if not opening and name in _MARKS:
            depth = sum(mark.name == name for mark in self.marks)
            opening, closing = _MARKS[name] if depth == 0 else _INNER.get(name, ("", "")) if depth == 1 else ("", "")
        if len(self.marks) < _DEEPEST:
            self.marks.append(_Mark(name, len(self.line), opening, closing))

    def close_mark(self, name: str) -> None:
        """End the innermost mark of a name; those that were opened within it go on behind it."""
        marks = self.marks
        if marks and marks[-1].name == name:
            self._wrap(marks.pop())
            return
        at = next((i for i in range(len(marks) - 1, -1, -1) if marks[i].name == name), None)
        if at is None:
            return
        for mark in reversed(marks[at:]):
            self._wrap(mark)
        del marks[at]
        for mark in marks[at:]:
            mark.start = len(self.line)

    def _wrap(self, mark: _Mark) -> None:
        """Replace the pieces within a mark by one in its signs, spaces outside."""
        line = self.line
        content = "".join(line[mark.start :])
        core = content.strip(" \n")
        del line[mark.start :]
        if not core or not mark.opening:
            if content:
                line.append(content)
            return
        opening, closing = link(core, mark.opening, mark.closing) if mark.name == "a" else (mark.opening, mark.closing)
        at = content.index(core)
        last = line[-1] if line and not at else ""
        if opening in ("*", "**") and _is_marked(last, opening):  # two in a row are one: "**a****b**" is none
            line[-1] = f"{last[: -len(closing)]}{core}{closing}"
        else:
            line += [content[:at]] if at else []
            line.append(f"{opening}{core}{closing}")
        if at + len(core) < len(content):
            line.append(content[at + len(core) :])

    # Blocks

    def flush(self) -> None:
        """End the line: it becomes a block. Open marks go on in the next."""
        line = self.line
        if not line:
            return
        if self.marks:
            for mark in reversed(self.marks):
                self._wrap(mark)
            for mark in self.marks:
                mark.start = 0
        text = "".join(line).strip(" \n")
        line.clear()
        if not text:
            return
        kind = self.kind
        if kind[0] == "h":
            text = re.sub(r"\s*\n", " ", text)
            if text[-1] == "#":
                text = re.sub(r"(?<= )(?=#+$)", r"\\", text)
            text = f"{'#' * int(kind[1])} {text}" if not self.within("td") else text
            kind = "h"
        else:
            text = self._as_prose(text)
        self.frames[-1].blocks.append((kind, text))

    def _as_prose(self, text: str) -> str:
        """The lines of a paragraph so that none of them begins another block, or ends in a backslash that breaks it."""
        first = _FIRST.match(text)
        if (first or "\n" in text) and not self.within("td"):
            if first:
                text = f"{text[: first.end('number')]}\\{text[first.end('number') :]}" if first["number"] else f"\\{text}"
            text = _BACKSLASH.sub(r"\g<0>\\", _NEXT.sub("\n    ", text))
        return text

    def block(self, kind: str, text: str) -> None:
        """A block that is already Markdown."""
        self.flush()
        if text:
            self._home()
            self.frames[-1].blocks.append((kind, text))

    def caption(self, text: str) -> None:
        """What a table is called: it stands before the table."""
        if text and self.frames[-1].name == "table" and not self.frames[-1].rows:
            self.frames[-2].blocks.append(("p", text))
        else:
            self.text(text)

    def code(self, language: str, code: str) -> None:
        """A block of code; within a cell, spans line by line."""
        self.flush()
        if self.within("td"):
            self.block("text", "<br>".join(filter(None, map(code_span, code.split("\n")))))
        else:
            self.block("code", fenced(language, code))

    def math(self, tex: str, *, display: bool) -> None:
        """A formula in TeX: a block where it may stand alone, else within the line."""
        if display and self.kind[0] != "h" and not self.marks and not self.within("td"):
            self.block("math", f"$$\n{tex}\n$$")
        else:
            sign = "$$" if display else "$"
            self.piece(f"{sign}{' '.join(tex.split(chr(10)))}{sign}")

    def rule(self) -> None:
        """A line across."""
        self.flush()
        if not self.within("td"):
            self.block("hr", "***" if self.within("li") else "---")

    # Frames

    def within(self, name: str) -> bool:
        """Whether a frame of this name is open."""
        return len(self.frames) > 1 and any(frame.name == name for frame in self.frames)

    def push(self, name: str, *, number: int = 1, align: str = "") -> None:
        """Open a frame; too deep a one, and a quote in a cell, is none."""
        self.flush()
        self.kind = "text"
        if len(self.frames) > _DEEPEST or (name == "blockquote" and self.within("td")):
            return
        sign = ""
        if name in ("ul", "ol"):
            self._home()
            before = self.frames[-1].blocks[-1][0] if self.frames[-1].blocks else ""
            usual, other = "-*" if name == "ul" else ".)"
            sign = other if before == f"list{usual}" else usual
        elif name in ("blockquote", "table"):
            self._home()
        self.frames.append(Frame(name, len(self.marks), sign, number, align))

    def pop(self, *names: str, keep: bool = False) -> bool:
        """Close all frames up to the innermost one of these names (with ``keep`` without it); False where none is open.

        What stands in a cell closes nothing around the cell's table, unless it names table, row or cell.
        """
        self.flush()
        self.kind = "text"
        at = len(self.frames) - 1
        while at and self.frames[at].name not in names:
            if self.frames[at].name == "table" or (self.frames[at].name == "td" and names[0] not in ("table", "tr")):
                return False
            at -= 1
        if at == 0:
            return False
        while len(self.frames) > at + keep:
            self._close(self.frames.pop())
        return True

    def item(self) -> None:
        """Open an item of the list around; of a new one where there is none."""
        self.flush()
        self.kind = "text"
        frames = self.frames
        if frames[-1].name == "li":  # its list is the frame below it
            self._close(frames.pop())
        elif frames[-1].name not in ("ul", "ol") and not self.pop("ul", "ol", keep=True):
            self.push("ul")
        frames.append(Frame("li", len(self.marks)))

    def _home(self) -> None:
        """Stand where a block may stand: in an item of a list, in a cell of a table."""
        name = self.frames[-1].name
        if name in ("ul", "ol"):
            self.frames.append(Frame("li", len(self.marks)))
        elif name in ("table", "tr"):
            self.frames += [Frame("tr", len(self.marks))] if name == "table" else []
            self.frames.append(Frame("td", len(self.marks)))

    def _close(self, frame: Frame) -> None:
        del self.marks[frame.marks :]
        around = self.frames[-1]
        if frame.name == "li":
            around.blocks.append(item(frame, around))
        elif frame.name in ("ul", "ol"):
            loose = any(kind == "loose" for kind, _ in frame.blocks)
            if frame.blocks:
                around.blocks.append((f"list{frame.sign}", ("\n\n" if loose else "\n").join(text for _, text in frame.blocks)))
        elif frame.name == "blockquote":
            lines = joined(frame.blocks).split("\n")
            if frame.blocks:
                around.blocks.append(("quote", "\n".join(f"> {line}" if line else ">" for line in lines)))
        elif frame.name == "td":
            around.blocks.append((frame.align, cell(frame.blocks)))
        elif frame.name == "tr":
            if frame.blocks:
                around.rows = [*(around.rows or ()), frame.blocks]
        elif frame.rows:
            nested = self.within("td")
            around.blocks.append(("text", flat(frame.rows)) if nested else ("table", table(frame.rows)))

    def result(self) -> str:
        """All of it."""
        self.flush()
        while len(self.frames) > 1:
            self._close(self.frames.pop())
        return joined(self.frames[0].blocks)


def _is_marked(piece: str, sign: str) -> bool:
    return len(piece) > 2 * len(sign) and piece.startswith(sign) and piece.endswith(sign) and ("**" in piece) == (sign == "**")
