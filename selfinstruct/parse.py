"""From a reply to candidates: every piece of it becomes a candidate or a failure with a code.

The numbered format, one block per task, each mark at the start of a line::

    <<<TASK 4>>>
    <<<INSTRUCTION>>>
    Name the capital.
    <<<INPUT>>>
    Peru                    (or <noinput>)
    <<<OUTPUT>>>
    Lima.
    <<<END 4>>>

The law of this module: whatever byte a reply is cut at, and whatever finish_reason says, the cut reply yields no candidate that the whole
one does not yield. Reading goes forward only, and a block is taken when its end mark is read, never because the text ends. (The originals
trust finish_reason, which also reads ``stop`` where a stop string such as ``20.`` cut an answer that mentions 2020.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from selfinstruct.parse_stages import parse_classification, parse_instances, parse_instructions
from selfinstruct.records import Candidate, ParseFailure, Request

__all__ = ["TASKS_SCHEMA", "parse_classification", "parse_instances", "parse_instructions", "parse_tasks"]

_FIELDS = ("instruction", "input", "output")
TASKS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "tasks": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in _FIELDS},
                "required": list(_FIELDS),
                "additionalProperties": False,
            },
        }
    },
    "required": ["tasks"],
    "additionalProperties": False,
}
"""JSON schema of the ``json`` format."""

_MARK = re.compile(r"^[ \t]*<<<[ ]?(?:(TASK|END)[ ]+(\d{1,9})|(INSTRUCTION|INPUT|OUTPUT))[ ]?>>>", re.MULTILINE)
_NO_INPUT = re.compile(r"<\s*no[ _-]?input\s*>", re.IGNORECASE)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SPACE = re.compile(r"[ \t\r\n]*")
_START = re.compile(r'\{(?=\s*")|\[(?=\s*[{\]])')
_SHOWN = 200  # characters of a failure's evidence


def parse_tasks(
    text: str, finish_reason: str, request: Request, *, format: Literal["numbered", "json"]
) -> tuple[list[Candidate], list[ParseFailure]]:
    """Read a reply to the one-call prompt.

    Args:
        text: the reply as received.
        finish_reason: as received; it is evidence for a failure and decides nothing.
        request: what was asked; candidates take its round, place, demonstrations and prompt.
        format: marks, or JSON by :data:`TASKS_SCHEMA`.

    Returns:
        Candidates and failures, each in the order of the reply; ``item`` counts tasks, sound or not, from 0. Codes of failures:

        - both: ``empty_reply``, ``no_tasks``, ``truncated`` (what follows the last whole task), ``empty_instruction``,
          ``lone_surrogate`` (text that cannot be written as UTF-8);
        - numbered: ``unclosed`` (the next task began first), ``stray_mark``, ``missing_field``, ``repeated_field``, ``wrong_order``,
          ``outside_text`` (text between two tasks or after the last);
        - json: ``invalid_json`` (the rest cannot be read), ``not_an_object``, ``missing_field``, ``unknown_field``, ``repeated_field``,
          ``not_text``.
    """
    reader = _Reader(request, finish_reason)
    if not text.strip():
        reader.fail("empty_reply", f"finish_reason {finish_reason}")
    elif format == "json":
        _read_json(text, reader)
    else:
        _read_numbered(text.replace("\r\n", "\n"), reader)
        if not reader.candidates and not reader.failures:
            reader.fail("no_tasks", text.strip())
    return reader.candidates, reader.failures


@dataclass(slots=True)
class _Reader:
    """Where candidates and failures of one reply gather."""

    request: Request
    finish_reason: str
    item: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    failures: list[ParseFailure] = field(default_factory=list)

    def fail(self, reason: str, detail: str, *, counts: bool = True) -> None:
        """Record a failure; ``counts`` says whether it stands for a task."""
        shown = _SURROGATE.sub("\ufffd", detail.strip())
        self.failures.append(ParseFailure(self.request.id, self.item, reason, shown[:_SHOWN]))
        self.item += counts

    def truncated(self, rest: str) -> None:
        self.fail("truncated", f"finish_reason {self.finish_reason}: ...{rest.strip()[-_SHOWN // 2 :]}")

    def take(self, instruction: str, given: str, output: str) -> None:
        """Record a whole task."""
        instruction, given, output = instruction.strip(), given.strip(), output.strip()
        if not instruction:
            return self.fail("empty_instruction", output)
        if _SURROGATE.search(instruction + given + output):
            return self.fail("lone_surrogate", instruction)
        asked = self.request
        made = Candidate(
            id=f"{asked.round}-{asked.index}-{self.item}",
            request_id=asked.id,
            instruction=instruction,
            input="" if _NO_INPUT.fullmatch(given) else given,
            output=output,
            round=asked.round,
            item=self.item,
            demonstrations=asked.demonstrations,
            prompt_fingerprint=asked.prompt_fingerprint,
        )
        self.candidates.append(made)
        self.item += 1
        return None


@dataclass(slots=True)
class _Block:
    """A task whose end mark has not been read.

    Attributes:
        number: None if the prompt wrote the task mark itself.
        start: where its text starts.
        fields: name, start of the mark, end of the mark.
        stray: the first mark that has no place in it.
    """

    number: int | None
    start: int
    fields: list[tuple[str, int, int]] = field(default_factory=list)
    stray: str = ""


def _read_numbered(text: str, reader: _Reader) -> None:
    block: _Block | None = None
    outside, first = 0, True  # where the text after the last block starts
    for mark in _MARK.finditer(text):
        kind, number = mark[1] or "FIELD", int(mark[2] or 0)
        if block is None:
            if not first and text[outside : mark.start()].strip():
                reader.fail("outside_text", text[outside : mark.start()], counts=False)
            outside = mark.end()
            if kind == "TASK":
                block = _Block(number, mark.end())
            elif kind == "FIELD" and first:
                block = _Block(None, mark.start(), [(mark[3].lower(), mark.start(), mark.end())])
            else:
                reader.fail("stray_mark", mark[0], counts=False)
        elif kind == "FIELD":
            block.fields.append((mark[3].lower(), mark.start(), mark.end()))
        elif kind == "END" and block.number in (number, None):
            _close(text, block, mark.start(), reader)
            block, outside = None, mark.end()
        elif kind == "TASK" and block.number is not None and number == block.number + 1:
            if block.stray:
                reader.fail("stray_mark", block.stray)
            else:
                reader.fail("unclosed", text[block.start : mark.start()])
            block = _Block(number, mark.end())
        else:  # an answer that quotes marks, or wrong numbers: where this block ends is not known until its own end mark
            block.stray = block.stray or mark[0]
        first = False
    if block is not None:
        reader.truncated(text[block.start :])
    elif not first and text[outside:].strip():
        reader.fail("outside_text", text[outside:], counts=False)


def _close(text: str, block: _Block, end: int, reader: _Reader) -> None:
    """Take a block whose end mark starts at ``end``, or say what is wrong with it."""
    names = [name for name, _, _ in block.fields]
    whole = text[block.start : end]
    if block.stray:
        return reader.fail("stray_mark", block.stray)
    for name in _FIELDS:
        if names.count(name) != 1:
            code = "repeated_field" if name in names else "missing_field"
            return reader.fail(code, f"{name}: {whole.strip()}")
    if tuple(names) != _FIELDS:
        return reader.fail("wrong_order", ", ".join(names))
    if text[block.start : block.fields[0][1]].strip():
        return reader.fail("outside_text", whole)
    stops = [start for _, start, _ in block.fields[1:]] + [end]
    return reader.take(*(text[begin:stop] for (_, _, begin), stop in zip(block.fields, stops, strict=True)))


_RAW = json.JSONDecoder(object_pairs_hook=lambda pairs: pairs)


def _read_json(text: str, reader: _Reader) -> None:
    """Item by item, so that the items before a cut are found. Text before the first bracket (a code fence) is passed over."""
    start = _START.search(text)
    if start is None:
        return reader.fail("no_tasks", text)
    try:
        at = _skip(text, start.end()) if start[0] == "[" else _list_of_tasks(text, start.end())
        for value, end in _items(text, at):
            _item(value, reader)
            at = end
    except json.JSONDecodeError as error:
        if error.msg.startswith("Unterminated") or not text[error.pos :].strip():
            return reader.truncated(text)
        return reader.fail("invalid_json", f"{error} in: {text[max(0, error.pos - 80) : error.pos + 80]}")
    except (RecursionError, ValueError) as error:  # nested too deeply, or a whole number of over 4300 digits
        return reader.fail("invalid_json", str(error))
    if not reader.item:
        reader.fail("no_tasks", text)
    return None


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _expect(text: str, at: int, marks: str) -> int:
    """Behind the next character that is not white space, which must be one of ``marks``."""
    at = _skip(text, at)
    if at >= len(text) or text[at] not in marks:
        raise json.JSONDecodeError(f"Expecting one of {marks}", text, at)
    return at + 1


def _list_of_tasks(text: str, at: int) -> int:
    """Behind the bracket that opens the list of the key ``tasks``; keys before it are passed over."""
    while True:
        key, at = _RAW.raw_decode(text, _skip(text, at))
        at = _expect(text, at, ":")
        if key == "tasks":
            return _skip(text, _expect(text, at, "["))
        _, at = _RAW.raw_decode(text, _skip(text, at))
        at = _expect(text, at, ",")


def _items(text: str, at: int) -> Iterator[tuple[Any, int]]:
    """The items of a list as lists of pairs where they are objects, each with where it ends."""
    if text[at : at + 1] == "]":
        return
    while True:
        at = _skip(text, at)
        value, end = _RAW.raw_decode(text, at)
        yield (value if text[at] == "{" else _NotAnObject(text[at:end])), end
        at = _expect(text, end, ",]")
        if text[at - 1] == "]":
            return


@dataclass(frozen=True, slots=True)
class _NotAnObject:
    text: str


def _item(value: Any, reader: _Reader) -> None:
    """One item of the list: pairs of key and value."""
    if isinstance(value, _NotAnObject):
        return reader.fail("not_an_object", value.text)
    keys = [key for key, _ in value]
    fields = dict(value)
    for code, wrong in (
        ("repeated_field", [key for key in fields if keys.count(key) > 1]),
        ("unknown_field", [key for key in keys if key not in _FIELDS]),
        ("missing_field", [key for key in ("instruction", "output") if key not in fields]),
        ("not_text", [k for k, v in value if not (isinstance(v, str) or (k == "input" and v is None))]),
    ):
        if wrong:
            return reader.fail(code, f"{', '.join(wrong)}: {value!r}")
    return reader.take(fields["instruction"], fields.get("input") or "", fields["output"])
