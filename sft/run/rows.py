"""A dialogue as a training row, in ShareGPT's shape, and back.

::

    {"id": "chat-3f...", "conversations": [{"from": "system", "value": "..."}, {"from": "human", "value": "..."},
     {"from": "gpt", "value": "...", "train": false}]}

An answer that did not come to its end carries ``train: false``: it is context there, and never learnt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.data.conversation import Conversation, Turn, fold_inputs
from sft.data.fields import RowFault
from sft.data.formats import FORMATS, detect_format
from sft.data.jsonl import ending, read_rows
from sft.errors import DataError, InputError
from sft.files import append_lines

_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
_TAIL = 1 << 16


def row_of(turns: Sequence[Turn]) -> dict[str, Any]:
    """The row of a dialogue of system, user and assistant turns.

    Raises:
        InputError: there is no whole answer in it, so there would be nothing to learn.
    """
    if not any(turn.role == "assistant" and turn.train is not False for turn in turns):
        raise InputError("there is no whole answer to save yet")
    said = [
        {"from": _NAMES[turn.role], "value": turn.content, **({"train": turn.train} if turn.train is not None else {})}
        for turn in turns
    ]
    name = Conversation("", tuple(turns), "").fingerprint()[:16]
    return {"id": f"chat-{name}", "conversations": said}


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a .jsonl file of such rows, which is made where there is none.

    Raises:
        InputError: another ending, a file that holds anything else, or one that cannot be written. It is left as it was.
    """
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: rows are added to a .jsonl file; give such a name")
    try:
        if path.exists():
            _refuse_others(path)
        append_lines(path, [row])
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def _refuse_others(path: Path) -> None:
    """The first row of the file must be a dialogue, and its last line whole."""
    if not path.is_file():
        raise InputError(f"{path}: not a file; give another name")
    if not path.stat().st_size:
        return
    try:
        first = next(iter(read_rows(path)), None)
        known = first is not None and first.error is None and detect_format(first.value) == "sharegpt"
        before, _, last = _tail(path).rstrip(b"\n").rpartition(b"\n")
        if before or path.stat().st_size <= _TAIL:
            json.loads(last)
    except (DataError, ValueError):
        known = False
    if not known:
        raise InputError(f"{path}: holds other things than rows of ShareGPT's shape; it is left as it is, give another name")


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read()


def read_turns(path: Path, number: int | None = None) -> tuple[Turn, ...]:
    """The turns of a row, of any shape that training reads: system first if there is one, then user and assistant in turn.

    Args:
        path: a file of rows.
        number: which row, from 1; None for the last.

    Raises:
        InputError: no such file or row, or one that is no such dialogue.
    """
    if ending(path) is None or not path.is_file():
        raise InputError(f"{path}: no such file of rows; give a .json, .jsonl or .parquet file")
    count, found = 0, None
    for row in read_rows(path):
        count += 1
        found = row
        if count == number:
            break
    if found is None or (number is not None and count != number):
        raise InputError(f"{path}: there {'is' if count == 1 else 'are'} {count} row{'s' * (count != 1)} in it")
    if found.error is not None:
        raise InputError(f"{found.where}: {found.error}")
    name = detect_format(found.value)
    if name is None:
        raise InputError(f"{found.where}: the shape of this row is not known")
    try:
        turns = fold_inputs(Conversation("", FORMATS[name](found.value, {}).conversations[0], "")).turns
    except RowFault as fault:
        raise InputError(f"{found.where}: {fault.detail}") from None
    said = turns[1:] if turns[0].role == "system" else turns
    wanted = ("user", "assistant") * (len(said) // 2)
    if tuple(turn.role for turn in said) != wanted:
        raise InputError(
            f"{found.where}: a dialogue here is user and assistant in turn; this row has {', '.join(t.role for t in turns)}"
        )
    return turns
