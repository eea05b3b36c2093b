"""What the fuzzer feeds: texts, markup, JSON values, rows and files, drawn from a seeded generator; all of it plain data.

Real-looking material (sentences, widgets, rows of every shape, phrases of the rules' own lists) is cut, repeated, swapped and mixed with
what breaks readers: controls, half surrogate pairs, joiners, unclosed tags, wrong types, deep nesting, huge numbers.
"""

from __future__ import annotations

import html
import json
import random
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sft.curate.html.tags import ELEMENTS, VOID
from sft.curate.rules.base import read_list

_PIECES: dict[str, list[str]] = json.loads((Path(__file__).parent / "fuzz_pieces.json").read_text(encoding="utf-8"))
"""What texts, markup and files are made of, by kind."""
SENTENCES = _PIECES["sentences"]
SPELT = _PIECES["spelt"]
JOINED = _PIECES["joined"]
BLANKS = _PIECES["blanks"]
ODD = _PIECES["odd"]
ENTITIES = _PIECES["entities"]
WIDGETS = _PIECES["widgets"]
_UNSEEN = {"script", "style", "template", "title", "head", "svg", "button", "math", "path"}
SHOWN = sorted(ELEMENTS - _UNSEEN - VOID)
_INLINE = ("b", "em", "code", "span", "del", "u", "i", "strong", "mark", "label", "small")
_BLOCK = (
    "blockquote",
    "dd",
    "details",
    "div",
    "dl",
    "h2",
    "h5",
    "li",
    "p",
    "pre",
    "section",
    "summary",
    "table",
    "td",
    "th",
    "tr",
    "ul",
)
_ATTRIBUTES = _PIECES["attributes"]
_FEW = (0, 1, 1, 2, 2, 3, 4, 6, 9)


@lru_cache(maxsize=1)
def phrases() -> tuple[str, ...]:
    """What the rules themselves look for."""
    return tuple(one for name in ("notices", "refusals", "vendors") for some in read_list(name).values() for one in some)


def piece(dice: random.Random) -> str:
    """A part of a text."""
    kind = dice.random()
    if kind < 0.42:
        text = dice.choice(SENTENCES)
        begin = dice.randrange(len(text)) if dice.random() < 0.5 else 0
        return text[begin : begin + dice.randint(1, 60)]
    if kind < 0.52:
        return dice.choice(BLANKS)
    if kind < 0.6:
        return dice.choice(phrases())
    if kind < 0.66:
        return dice.choice(SPELT)
    if kind < 0.71:
        return dice.choice(JOINED)
    if kind < 0.78:
        return dice.choice(WIDGETS)
    if kind < 0.82:
        return dice.choice(ENTITIES)
    if kind < 0.86:
        return "".join(dice.choices("0123456789٣Ⅷ½²１.-/", k=dice.randint(1, 12)))
    if kind < 0.9:
        return "".join(dice.choices("`*_#>|~-=+:.!$\\[]()<>\"'@ ", k=dice.randint(1, 6)))
    if kind < 0.96:
        return chr(dice.choice((dice.randrange(0x20, 0x7F), dice.randrange(0xA0, 0x3100), dice.randrange(0x3100, 0xD800))))
    if kind < 0.98:
        return dice.choice(SENTENCES + BLANKS + JOINED)[:2] * dice.randint(2, 40)
    return dice.choice(ODD)


def text(dice: random.Random, most: Sequence[int] = _FEW) -> str:
    """A text of a few pieces, sometimes mutated."""
    out = "".join([piece(dice) for _ in range(dice.choice(most))])
    while dice.random() < 0.15:
        out = mutated(dice, out)
    return out


def clean_text(dice: random.Random) -> str:
    """A text that a row may hold: no NUL, no half of a surrogate pair, and something to see."""
    found = "".join([char for char in text(dice) if char != "\0" and not "\ud800" <= char <= "\udfff"])
    return found if found.strip() else dice.choice(("x", "Hi.", "好"))


def mutated(dice: random.Random, out: str) -> str:
    """A text with a stretch of it taken out, repeated, moved, or turned round."""
    a, b = sorted((dice.randint(0, len(out)), dice.randint(0, len(out))))
    kind = dice.randrange(5)
    if kind == 0:
        return out[:a] + out[b:]
    if kind == 1:
        return out[:b] + out[a:b] * dice.choice((1, 1, 2, 7)) + out[b:]
    if kind == 2:
        return out[b:] + out[:a] + out[a:b]
    if kind == 3:
        return out[:a] + piece(dice) + out[a:]
    return out[:a] + out[a:b][::-1] + out[b:]


def stretched(dice: random.Random, size: int) -> str:
    """A long text of one or two short pieces over and over: what takes quadratic time shows on it."""
    unit = "".join([dice.choice((piece, tag))(dice) for _ in range(dice.choice((1, 1, 2, 3)))])[:200] or "<"
    if dice.random() < 0.4:
        unit = dice.choice(
            (*WIDGETS, *ENTITIES, *SPELT, "`", "*", "_", "<", "[", "(", " ", "\n", "1. a\n", "> ", "- ", "|", "a@", "1.", "0-")
        )
    return piece(dice) + unit * (size // len(unit)) + piece(dice)


# --- markup


def tag(dice: random.Random) -> str:
    """Something like a tag."""
    name = dice.choice(SHOWN) if dice.random() < 0.9 else dice.choice(("int", "P", "x-y", "script", "svg", "head", ""))
    if dice.random() < 0.35:
        return f"</{name}>"
    soup = "".join(
        [
            f" {dice.choice(_ATTRIBUTES)}{dice.choice(('=', '', ' = '))}{dice.choice(('', 'q', chr(34), chr(39)))}"
            + dice.choice(("", "a", "a b", "markdown prose", "katex", "rounded-md", "hljs", "x" * 20))
            + dice.choice(("", chr(34), chr(39)))
            for _ in range(dice.choice((0, 0, 0, 1, 2, 4)))
        ]
    )
    return f"<{name}{soup}{dice.choice(('>', '>', '>', '>', '/>', ''))}"


def page(dice: random.Random) -> str:
    """Widgets, tags and text in any order."""
    parts = []
    for _ in range(dice.choice((1, 2, 4, 8, 14))):
        kind = dice.random()
        parts.append(dice.choice(WIDGETS) if kind < 0.5 else tag(dice) if kind < 0.7 else piece(dice))
        if kind > 0.9:
            parts.append(html.escape(dice.choice(WIDGETS)))
    out = "".join(parts)
    out = f"<p>{out}</p><p>b</p>" if dice.random() < 0.25 else out
    return mutated(dice, out) if dice.random() < 0.3 else out


def soup(dice: random.Random) -> str:
    """Whole tags opened and closed in any order, between words that are numbered."""
    parts = []
    for number in range(dice.randint(1, 14)):
        kind = dice.randrange(6)
        name = dice.choice(SHOWN)
        if kind < 4:
            parts.append(f"<{name}>" if kind < 2 else f"</{name}>")
        elif kind == 4:
            parts.append(dice.choice(("<br>", "<hr>", "<input type=checkbox>", "<img src=a>", "<!-- z -->")))
        parts.append(
            f" q{number}z{dice.choice(('', '* ', '_', '# ', '1. ', '> ', '| ', '`', '&amp;', '- ', '  ', chr(10), '$', '[', ']: '))}"
        )
    return "".join(parts)


def tree(dice: random.Random, depth: int = 4) -> str:
    """Well-formed markup of prose."""
    if depth == 0 or dice.random() < 0.3:
        found = "".join([char for char in text(dice, (1, 1, 2)) if char.isprintable() and not "\ud800" <= char <= "\udfff"])
        return html.escape(found.replace("Copy code", "Copy")) + " "  # above code that would be a label of the site's
    body = "".join([tree(dice, depth - 1) for _ in range(dice.randint(0, 3))])
    if dice.random() < 0.4:
        name = dice.choice(_INLINE)
        return f" <{name}>{body}</{name}> "
    name = dice.choice(_BLOCK)
    return f"<{name}>{body}</{name}>"


_PARTS = re.compile(r"<(/?)([a-z][a-z0-9]*)>|&(?:amp|lt|gt|quot|#x27);|[^<>&]+")


def is_tree(page: str) -> bool:
    """Whether a page is one that :func:`tree` makes: every element closed in its place, every entity whole."""
    opened: list[str] = []
    at = 0
    while at < len(page):
        part = _PARTS.match(page, at)
        if part is None or (part[2] and part[2] not in _INLINE + _BLOCK):
            return False
        if part[2] and part[1]:
            if not opened or opened.pop() != part[2]:
                return False
        elif part[2]:
            opened.append(part[2])
        at = part.end()
    return not opened


# --- values, rows, files

_KEYS = _PIECES["keys"]
_ROLE_NAMES = ["human", "user", "gpt", "assistant", "system", "tool", "bing", "developer", "Human", "", "input"]


def value(dice: random.Random, depth: int = 3) -> Any:
    """Any JSON value."""
    kind = dice.randrange(11 if depth else 7)
    if kind == 0:
        return dice.choice((None, True, False))
    if kind == 1:
        return dice.choice((0, 1, -1, 7, 10**20, -(2**63), 1.0, 0.5, 1e308, -0.0))
    if kind < 7:
        return text(dice, (0, 1, 2)) if kind < 5 else dice.choice(_ROLE_NAMES)
    if kind < 9:
        return [value(dice, depth - 1) for _ in range(dice.randint(0, 3))]
    return {dice.choice(_KEYS): value(dice, depth - 1) for _ in range(dice.randint(0, 4))}


def talk(dice: random.Random, role: str, content: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Turns in the order that they should have, mostly."""
    turns = [{role: names[i % 2], content: text(dice)} for i in range(2 * dice.choice((1, 1, 2, 3)))]
    if dice.random() < 0.2:
        turns.insert(0, {role: "system", content: text(dice, (0, 1))})
    if dice.random() < 0.2:
        turns.insert(dice.randint(0, len(turns)), {role: dice.choice(_ROLE_NAMES), content: text(dice, (0, 1))})
    if dice.random() < 0.1:
        dice.choice(turns)[dice.choice(("train", "weight"))] = dice.choice((True, False, 0, 1, 2, "1", None))
    return turns


def sharegpt(dice: random.Random) -> dict[str, Any]:
    """A shared conversation; its texts are Markdown, HTML, or anything."""
    turns = talk(dice, "from", "value", ("human", "gpt"))
    if dice.random() < 0.4:
        for turn in turns:
            turn["value"] = page(dice) if dice.random() < 0.5 else turn["value"]
    row: dict[str, Any] = {"conversations": turns}
    if dice.random() < 0.5:
        row["id"] = dice.choice(("a", "b", 7, "", True, text(dice, (1,))))
    if dice.random() < 0.3:
        row[dice.choice(("model", "system", "lang", "plugins"))] = dice.choice(("gpt-4", "en", "", None, 3, text(dice, (1,))))
    return row


def _messages(dice: random.Random) -> dict[str, Any]:
    turns = talk(dice, "role", "content", ("user", "assistant"))
    if dice.random() < 0.2:
        dice.choice(turns)["content"] = [{"type": dice.choice(("text", "text", "image")), "text": text(dice)} for _ in range(2)]
    return {"messages": turns}


def _moss(dice: random.Random) -> dict[str, Any]:
    turns = {
        f"turn_{i + 1}": {
            "Human": f"<|Human|>: {text(dice)}<eoh>\n",
            "Inner Thoughts": dice.choice((None, "<|Inner Thoughts|>: None<eot>\n", text(dice))),
            "Commands": dice.choice(("<|Commands|>: None<eoc>\n", text(dice))),
            "Tool Responses": dice.choice((None, "<|Results|>: None<eor>\n", text(dice))),
            "MOSS": f"<|MOSS|>: {text(dice)}<eom>\n",
        }
        for i in range(dice.randint(1, 3))
    }
    return {"meta_instruction": text(dice, (0, 1)), "chat": turns}


_SHAPES: tuple[Callable[[random.Random], dict[str, Any]], ...] = (
    lambda dice: {"instruction": text(dice), "input": text(dice, (0, 1)), "output": text(dice)},
    lambda dice: {"instruction": text(dice), "output": text(dice), "history": [[text(dice), text(dice)]], "system": text(dice)},
    sharegpt,
    _messages,
    lambda dice: {"prompt": text(dice), "completion": text(dice)},
    lambda dice: {
        "prompt": talk(dice, "role", "content", ("user", "assistant"))[:-1],
        "completion": [{"role": "assistant", "content": text(dice)}],
    },
    lambda dice: {"input": [text(dice) for _ in range(2)], "output": [text(dice) for _ in range(dice.choice((2, 2, 3)))]},
    lambda dice: {"prompt": text(dice), "response": text(dice), "history": [[text(dice), text(dice)]]},
    _moss,
    lambda dice: {"src": text(dice), "tgt": text(dice)},
    lambda dice: {
        "id": text(dice, (1,)),
        "instruction": text(dice),
        "instances": [{"input": text(dice, (0, 1)), "output": text(dice)}] * 2,
    },
)


def row(dice: random.Random) -> Any:
    """A row of one of the shapes, often damaged; seldom anything at all."""
    made: Any = dice.choice(_SHAPES)(dice) if dice.random() < 0.97 else value(dice)
    while dice.random() < 0.4:
        made = shaken(dice, made)
    return made


def shaken(dice: random.Random, made: Any) -> Any:
    """A value with one thing changed somewhere in it."""
    if isinstance(made, dict) and made and dice.random() < 0.9:
        key = dice.choice(list(made))
        kind = dice.randrange(6)
        if kind == 0:
            return {name: item for name, item in made.items() if name != key}
        if kind == 1:
            return {dice.choice(_KEYS) if name == key else name: item for name, item in made.items()}
        if kind == 2:
            return {**made, dice.choice(_KEYS): value(dice, 2)}
        return {**made, key: shaken(dice, made[key])}
    if isinstance(made, list) and made and dice.random() < 0.9:
        at = dice.randrange(len(made))
        kind = dice.randrange(5)
        if kind == 0:
            return made[:at] + made[at + 1 :]
        if kind == 1:
            return [*made[:at], made[at], *made[at:]]
        if kind == 2:
            return made[::-1]
        return [*made[:at], shaken(dice, made[at]), *made[at + 1 :]]
    return dice.choice((value(dice, 2), [made], {"value": made}, None, text(dice)))


_RAW = _PIECES["raw"]


def file_text(dice: random.Random) -> bytes:
    """The bytes of a file of rows in one of its layouts, often damaged."""
    rows = [row(dice) if dice.random() < 0.8 else value(dice, 2) for _ in range(dice.choice((0, 1, 1, 2, 3, 5)))]
    plain = dice.random() < 0.5  # ASCII only; surrogates are then escapes
    kind = dice.randrange(5)
    if kind < 2:
        out = "".join([json.dumps(one, ensure_ascii=plain) + dice.choice(("\n", "\n", "\r\n", "\n\n", "")) for one in rows])
    elif kind == 2:
        out = json.dumps(rows, ensure_ascii=plain, indent=dice.choice((None, None, 0, 1)))
    else:
        around = {"v": value(dice, 1), "data": rows} if kind == 3 else {"data": rows, "w": "]}"}
        out = json.dumps(around, ensure_ascii=plain, indent=dice.choice((None, 1)))
    while dice.random() < 0.35:
        a = dice.randint(0, len(out))
        raw = (
            dice.choice(_RAW)
            if dice.random() < 0.98
            else dice.choice(("[" * 3_000, "9" * 4_400, "9" * 4_400 + ".5", '{"a":' * 2_000))
        )
        out = out[:a] + raw + out[a + dice.choice((0, 0, 1, 5)) :] if dice.random() < 0.7 else mutated(dice, out)
    data = out.encode("utf-8", "surrogatepass")
    while dice.random() < 0.15:
        a = dice.randint(0, len(data))
        data = data[:a] + bytes(dice.choices(range(256), k=dice.choice((0, 1, 1, 4)))) + data[a + dice.choice((0, 1, 3)) :]
    return dice.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\n")) + data if dice.random() < 0.04 else data
