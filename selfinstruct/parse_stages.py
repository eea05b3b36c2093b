"""Replies to the stages of classic Self-Instruct: numbered instructions, yes or no, worked examples. See :mod:`selfinstruct.parse`.

The lists have no mark around each item; an item is whole when the header of the next one, or a line ``<<<END>>>``, is read::

    9. Name three rivers.                 Example 1                     Class label: Spam
    10. Translate the proverb.            Input: tin                    Input: You have won!
    <<<END>>>                             Output: pin, win, bin         <<<END>>>
                                          <<<END>>>

Without the end mark the last item may be cut, whatever finish_reason says, and is a failure.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from selfinstruct.records import Candidate, Instance, ParseFailure, Request

_END = re.compile(r"^[ \t]*<<<[ ]?END[ ]?>>>", re.MULTILINE)
_NUMBER = re.compile(r"^[ \t]*(\d{1,4})[ ]?(?:[.．)](?=[ \t\n])|、)", re.MULTILINE)
_EXAMPLE = re.compile(r"^[ \t]*(?:Example|示例)[ ]?(\d{1,3})[ ]?[.:：]?[ \t]*\n", re.MULTILINE | re.IGNORECASE)
_LABEL = re.compile(r"^[ \t]*(?:Class label|类别标签)[ ]?[:：]", re.MULTILINE | re.IGNORECASE)
_OUTPUT = re.compile(r"^[ \t]*(?:Output|输出)[ ]?\d*[ ]?[:：]", re.MULTILINE | re.IGNORECASE)
_INPUT = re.compile(r"^[ \t]*(?:Input|输入)[ ]?\d*[ ]?[:：]", re.IGNORECASE)
_NO_INPUT = re.compile(r"<\s*no[ _-]?input\s*>", re.IGNORECASE)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ANSWER = re.compile(r"\W*(?:(yes|是的|是|对)|(no|不是|否|不))(?!\w)", re.IGNORECASE)
_SHOWN = 200  # characters of a failure's evidence


class _Piece(NamedTuple):
    text: str
    whole: bool  # what follows shows that it was not cut


def parse_instructions(text: str, finish_reason: str, request: Request) -> tuple[list[Candidate], list[ParseFailure]]:
    """Read a numbered list of instructions; white space is collapsed, the first letter raised, the rest of the case kept.

    Items are told apart by lines that start with the number after the last one, so that other numbers in them do no harm. A legacy
    completion starts with the text of the first item, whose number the prompt wrote.

    Returns:
        Candidates without input and output, and failures: ``empty_reply``, ``truncated``, ``empty_instruction``, ``lone_surrogate``,
        ``outside_text`` (a chat reply's text before the first number).
    """
    candidates: list[Candidate] = []
    failures: list[ParseFailure] = []
    before, pieces = _numbered(text.replace("\r\n", "\n"))
    if before.text.strip() and request.kind == "completion":
        pieces = [before, *pieces]
    elif before.text.strip():
        failures.append(_failure(request, 0, "outside_text", finish_reason, before.text))
    for item, piece in enumerate(pieces):
        found = " ".join(piece.text.split())
        code = "truncated" if not piece.whole else "empty_instruction" if not found else _spoilt(found)
        if code:
            failures.append(_failure(request, item, code, finish_reason, found))
            continue
        made = Candidate(
            id=f"{request.round}-{request.index}-{item}",
            request_id=request.id,
            instruction=found[0].upper() + found[1:],
            input="",
            output="",
            round=request.round,
            item=item,
            demonstrations=request.demonstrations,
            prompt_fingerprint=request.prompt_fingerprint,
        )
        candidates.append(made)
    if not candidates and not failures:
        failures.append(_failure(request, 0, "empty_reply", finish_reason, text))
    return candidates, failures


def parse_classification(text: str) -> bool | None:
    """Whether an answer begins with a yes (是) or a no (否); None for anything else."""
    found = _ANSWER.match(text)
    return None if found is None else found[1] is not None


def parse_instances(
    text: str, finish_reason: str, request: Request, *, is_classification: bool
) -> tuple[list[Instance], list[ParseFailure]]:
    """Read worked examples, input first or, for a classification, label first.

    Returns:
        Instances in the order of the reply, and failures: ``empty_reply``, ``truncated``, ``repeated_field`` (two outputs in one example:
        where the answer starts is not known), ``empty_output``, ``outside_text`` (before the first header), ``lone_surrogate``.
    """
    text = text.replace("\r\n", "\n")
    instances: list[Instance] = []
    failures: list[ParseFailure] = []
    header = _LABEL if is_classification else _EXAMPLE
    before, pieces = _headed(text, header)
    if before.text.strip() and not is_classification and not pieces:
        before, pieces = _Piece("", True), [before]  # one example, without a header
    if before.text.strip():
        failures.append(_failure(request, 0, "outside_text" if before.whole else "truncated", finish_reason, before.text))
    for item, piece in enumerate(pieces):
        found = _labelled(piece.text) if is_classification else _input_first(piece.text)
        code = "truncated" if not piece.whole else "repeated_field" if found is None else ""
        if found is not None and not code:
            code = "empty_output" if not found.output else _spoilt(found.input + found.output)
        if code or found is None:
            failures.append(_failure(request, item, code, finish_reason, piece.text))
        else:
            instances.append(found)
    if not instances and not failures:
        failures.append(_failure(request, 0, "empty_reply", finish_reason, text))
    return instances, failures


def _failure(request: Request, item: int, code: str, finish_reason: str, text: str) -> ParseFailure:
    text = _SURROGATE.sub("\ufffd", text.strip())
    shown = (
        f"finish_reason {finish_reason}: ...{text[-_SHOWN // 2 :]}" if code in ("truncated", "empty_reply") else text[:_SHOWN]
    )
    return ParseFailure(request.id, item, code, shown)


def _spoilt(text: str) -> str:
    return "lone_surrogate" if _SURROGATE.search(text) else ""


def _until_end(text: str) -> tuple[str, bool]:
    """The text before the end mark, and whether there is one."""
    end = _END.search(text)
    return (text, False) if end is None else (text[: end.start()], True)


def _numbered(text: str) -> tuple[_Piece, list[_Piece]]:
    """The text before the first number, and what each number in sequence heads."""
    text, ended = _until_end(text)
    marks: list[re.Match[str]] = []
    for mark in _NUMBER.finditer(text):
        if not marks or int(mark[1]) == int(marks[-1][1]) + 1:
            marks.append(mark)
    return _cut(text, marks, ended)


def _headed(text: str, header: re.Pattern[str]) -> tuple[_Piece, list[_Piece]]:
    """The text before the first header, and what each header heads. Numbered headers count only in sequence."""
    text, ended = _until_end(text)
    marks: list[re.Match[str]] = []
    for mark in header.finditer(text):
        if not mark.re.groups or not marks or int(mark[1]) == int(marks[-1][1]) + 1:
            marks.append(mark)
    return _cut(text, marks, ended)


def _cut(text: str, marks: list[re.Match[str]], ended: bool) -> tuple[_Piece, list[_Piece]]:
    """The text before the first mark, and the text behind each."""
    starts = [mark.start() for mark in marks] + [len(text)]
    pieces = [
        _Piece(text[mark.end() : stop], ended or i + 1 < len(marks))
        for i, (mark, stop) in enumerate(zip(marks, starts[1:], strict=True))
    ]
    return _Piece(text[: starts[0]], ended or bool(marks)), pieces


def _labelled(text: str) -> Instance:
    """First line the label, the rest the input."""
    label, _, rest = text.strip().partition("\n")
    return Instance(_without_name(rest), label.strip())


def _input_first(text: str) -> Instance | None:
    """Input, then output; no ``Output:`` at all means that everything is output. None if there are several."""
    parts = _OUTPUT.split(text)
    if len(parts) > 2:
        return None
    if len(parts) == 1:
        return Instance("", text.strip())
    return Instance(_without_name(parts[0]), parts[1].strip())


def _without_name(text: str) -> str:
    text = _INPUT.sub("", text.strip(), count=1).strip()
    return "" if _NO_INPUT.fullmatch(text) else text
