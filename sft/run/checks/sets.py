"""Named sets of rows to measure a loss on: conversations (loss per token of the answers) or plain text (per token of all of it).

::

    qa=rows.jsonl    {"messages": [...]}, or any other shape of a recipe's sources    answers and their stops are learnt text
    wiki=text.jsonl  {"text": "..."} in .jsonl, .json, .parquet (.gz, .zst)            a document each
    notes.txt        plain text                                                        one document; its name is ``notes``

A document longer than the limit is cut into windows, none overlapping, each behind the BOS token where the tokenizer writes one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sft.data.conversation import Drop, Drops
from sft.data.dataset import iterate_sources
from sft.data.formats import detect_format
from sft.data.jsonl import read_rows
from sft.data.overflow import fit
from sft.data.sources import resolve_files
from sft.data.stand_in import writes_bos
from sft.data.store import RowStore, Shard
from sft.data.tokenize import RowEncoder
from sft.engine.evaluate import RowLosses
from sft.errors import DataError, InputError
from sft.recipe import Source
from sft.run.checks.estimates import Measured, Quantity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD_OUT = "held_out"
_NAMED = re.compile(r"([\w.-]+)=(.+)", re.S)
_BATCH = 512


@dataclass(frozen=True, slots=True, eq=False)
class NamedSet:
    """A set whose loss is measured.

    Attributes:
        name: of its figure, ``loss.NAME``.
        path: file, folder or glob.
        kind: ``text`` or ``conversations``.
    """

    name: str
    path: Path
    kind: str


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A set as token ids.

    Attributes:
        store: its rows.
        unit: int64 ``[rows]``, the document or conversation of each; they are independent, the windows of one document are not.
        drops: rows that were left out or cut, by reason.
    """

    store: RowStore
    unit: npt.NDArray[np.int64]
    drops: Drops

    def quantity(self, losses: RowLosses) -> Quantity:
        """The loss per token, unit by unit."""
        size = int(self.unit.max()) + 1
        sums, counts = (np.bincount(self.unit, values, size).astype(np.float64) for values in (losses.sums, losses.counts))
        return Quantity(sums, counts)


def named_sets(given: Sequence[str]) -> list[NamedSet]:
    """Sets by ``[NAME=]FILE``; a file without a name is called as it is, without its endings.

    Raises:
        InputError: two sets of one name, or the name of the recipe's held-out rows.
        DataError: nothing there, or rows of no known shape.
    """
    out: dict[str, NamedSet] = {}
    for text in given:
        match = None if Path(text).exists() else _NAMED.fullmatch(text)
        path = Path(match[2] if match else text)
        name = match[1] if match else path.name.split(".")[0]
        if name in out or name == HELD_OUT:
            taken = "that of the recipe's held-out rows" if name == HELD_OUT else f"that of {out[name].path} too"
            raise InputError(f"--on {text}: the name {name!r} is {taken}; write NAME={path}")
        out[name] = NamedSet(name, path, _kind(path))
    return list(out.values())


def _kind(path: Path) -> str:
    if path.suffix.lower() == ".txt":
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        return "text"
    for file in resolve_files(Source(path=str(path))):
        for row in islice(read_rows(file), 100):
            if row.error is None and isinstance(row.value, dict):
                text = isinstance(row.value.get("text"), str) and detect_format(row.value) is None
                return "text" if text else "conversations"
    raise DataError(f"{path}: there is no row in it that can be read")


def encode_set(named: NamedSet, tokenizer: PreTrainedTokenizerBase, encoder: RowEncoder | None, max_length: int) -> Rows:
    """Token ids of a set.

    Args:
        named: which.
        tokenizer: of the model.
        encoder: writes conversations; may be None for text.
        max_length: most tokens of a row.

    Raises:
        DataError: nothing in it can be used.
        InputError: conversations without a chat template.
    """
    if named.kind == "conversations" and encoder is None:
        raise InputError(f"--on {named.path}: its rows are conversations, and the model has no chat template; give plain text")
    drops = Drops()
    if named.kind == "text" or encoder is None:
        made = _encode_text(named, tokenizer, max_length, drops)
    else:
        made = _encode_conversations(named, tokenizer, encoder, max_length, drops)
    shard, unit = made
    if len(shard) == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in drops.counts.most_common()) or "it is empty"
        raise DataError(f"{named.path}: nothing in it can be used ({reasons})")
    if drops.counts["broken_file"]:
        broken = drops.examples["broken_file"][0]
        raise DataError(f"{broken.id}: {broken.detail}. The rows behind it are lost, and nobody knows how many; mend the file")
    return Rows(RowStore([shard], [named.name]), unit, drops)


def _encode_conversations(
    named: NamedSet, tokenizer: PreTrainedTokenizerBase, encoder: RowEncoder, max_length: int, drops: Drops
) -> tuple[Shard, npt.NDArray[np.int64]]:
    learning = RowEncoder(tokenizer, encoder.template, "last" if encoder.template.only_last else "assistant")
    source = Source(path=str(named.path), name=named.name)
    rows = (conversation for _, conversation in iterate_sources([source], drops, progress=True))
    parts = []
    while batch := list(islice(rows, _BATCH)):
        fitted = fit(learning.trace(batch), batch, learning, max_length, "truncate", drops)
        kept = [part.row for group in fitted for part in group]
        parts.append(Shard.of([(row.ids, row.mask) for row in kept], [0] * len(kept), [row.id for row in kept]))
    shard = Shard.joined(parts)
    return shard, np.arange(len(shard), dtype=np.int64)


def _encode_text(
    named: NamedSet, tokenizer: PreTrainedTokenizerBase, max_length: int, drops: Drops
) -> tuple[Shard, npt.NDArray[np.int64]]:
    """Special tokens that a text spells stay text."""
    head = [int(tokenizer.bos_token_id)] if writes_bos(tokenizer) else []
    rows: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]] = []
    unit: list[int] = []
    names: list[str] = []
    for number, (where, text) in enumerate(_documents(named.path, drops)):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for begin in range(0, len(ids), max_length - len(head)):
            row = np.asarray([*head, *ids[begin : begin + max_length - len(head)]], dtype=np.int32)
            if len(row) > 1:  # nothing predicts a lone token
                mask = np.ones(len(row), np.bool_)
                mask[0] = False
                rows.append((row, mask))
                unit.append(number)
                names.append(f"{where}+{begin}")
    known = sorted(set(unit))
    # Of a lone document the windows are all there is to tell a spread from.
    units = np.arange(len(rows)) if len(known) == 1 else np.searchsorted(known, unit)
    return Shard.of(rows, [0] * len(rows), names), units.astype(np.int64)


def _documents(path: Path, drops: Drops) -> Iterator[tuple[str, str]]:
    if path.suffix.lower() == ".txt":
        try:
            yield str(path), path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
        return
    for file in resolve_files(Source(path=str(path))):
        for row in read_rows(file):
            value: Any = row.value
            if row.error is not None:
                reason, _, detail = row.error.partition(": ")
                drops.add(Drop(row.where, reason, detail))
            elif not isinstance(value, dict) or not isinstance(value.get("text"), str):
                drops.add(Drop(row.where, "missing_field", "this row has no text; the rows of a set are of one shape"))
            elif not value["text"].strip():
                drops.add(Drop(row.where, "empty_text", "its text is empty"))
            elif re.search("[\ud800-\udfff]", value["text"]):
                drops.add(Drop(row.where, "unpaired_surrogate", "its text holds half a character"))
            else:
                yield row.where, value["text"]


def measure_held_out(store: RowStore, losses: RowLosses) -> Measured:
    """Losses of a recipe's held-out rows, all of them and by source; a row is a unit."""
    counts = losses.counts.astype(np.float64)
    found = {f"loss.{HELD_OUT}": Quantity(losses.sums, counts)}
    if len(store.labels) > 1:
        for i, label in enumerate(store.labels):
            if (of := store.source_of == i).any():
                found[f"loss.{HELD_OUT}.{label}"] = Quantity(losses.sums[of], counts[of])
    return Measured(found, {})
