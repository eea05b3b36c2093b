"""The mixed rows on disk: lines are copied from the parts in the order of the plan, byte for byte."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sft.curate.chat import read_chat
from sft.curate.mix import MixedRows, MixPlan, MixSource, content_mark, plan_mix
from sft.curate.recipe import IDENTITY, CurateRecipe


class _Lines:
    """The lines of some parts, found by number."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        places: list[tuple[int, int]] = []
        self.marks: list[int] = []
        self.groups: list[int] = []
        for number, file in enumerate(self._files):
            at = 0
            for line in file:
                chat = read_chat(json.loads(line), "")
                whole = chat.id.partition("#")[0]
                places.append((number, at))
                self.marks.append(content_mark(chat))
                # parts of a split conversation have one id with different endings; where ids are missing the content decides
                self.groups.append(_text_mark(whole) if whole != chat.id else self.marks[-1])
                at += len(line)
        self._places = places

    def __getitem__(self, row: int) -> bytes:
        number, at = self._places[row]
        self._files[number].seek(at)
        return self._files[number].readline()

    def id(self, row: int) -> str:
        """The id of a row."""
        return str(json.loads(self[row])["id"])

    def close(self) -> None:
        for file in self._files:
            file.close()


def _text_mark(text: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def write_mix(
    recipe: CurateRecipe, folder: Path, parts: Sequence[tuple[Path, str]]
) -> tuple[dict[str, dict[str, int]], list[list[str]]]:
    """Write ``train.jsonl`` and, if rows are held out, ``holdout.jsonl``.

    Args:
        recipe: its sources' weights, ``mix`` and ``identity``.
        folder: the run directory.
        parts: files of the last stage with the label of their source, in order.

    Returns:
        Label -> counts, as in :class:`sft.curate.mix.MixPlan`; and the rows that limits and weights left out, as
        ``[place, reason, detail]``.

    Raises:
        DataError: a holdout that leaves nothing to train on.
    """
    labels = [source.label for source in recipe.sources]
    weights = [source.weight for source in recipe.sources]
    if recipe.identity is not None:
        labels.append(IDENTITY)
        weights.append(recipe.identity.weight)
    paths = [[path for path, label in parts if label == wanted] for wanted in labels]
    lines = [_Lines(own) for own in paths]
    try:
        sources = [
            MixSource(label, np.array(own.marks, np.uint64), weight, np.array(own.groups, np.uint64))
            for label, own, weight in zip(labels, lines, weights, strict=True)
        ]
        plan = plan_mix(recipe.mix, sources)
        _write(folder / "train.jsonl", lines, plan.train)
        if len(plan.holdout):
            _write(folder / "holdout.jsonl", lines, plan.holdout)
        else:
            (folder / "holdout.jsonl").unlink(missing_ok=True)
        return plan.counts, _left_out(recipe, lines, plan, sources)
    finally:
        for own in lines:
            own.close()


def _left_out(recipe: CurateRecipe, lines: Sequence[_Lines], plan: MixPlan, sources: Sequence[MixSource]) -> list[list[str]]:
    found = []
    for own, source, beyond, thinned in zip(lines, sources, plan.beyond, plan.thinned, strict=True):
        limit = f"mix.limits: {recipe.mix.limits.get(source.label)} rows of {source.label}"
        found += [[own.id(row), "limit", limit] for row in beyond.tolist()]
        found += [[own.id(row), "weight", f"weight {source.weight:g} of {source.label}"] for row in thinned.tolist()]
    return found


def _write(path: Path, lines: Sequence[_Lines], rows: MixedRows) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("xb") as file:
            file.writelines(_in_order(lines, rows))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _in_order(lines: Sequence[_Lines], rows: MixedRows) -> Iterable[bytes]:
    for source, row in zip(rows.source.tolist(), rows.row.tolist(), strict=True):
        yield lines[source][row]
