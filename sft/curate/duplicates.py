"""Leaving out duplicates in parts: signatures by the workers, one decision over all of them, then the parts without what it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.curate import statistics
from sft.curate.chat import read_chat
from sft.curate.dedup import Decision, Deduplicator, DedupSection, signature
from sft.curate.parts import Batch, PartReport, Work, beginning, digest, part_path, read_part
from sft.data.conversation import Drop

STRIDE = 1 << 32  # a row's index is its part's number times this, and its place in the part


def make_signatures(settings: Mapping[str, Any]) -> Work:
    """The work of a worker: for each row of a part its id and its signature in hexadecimal."""
    section = DedupSection.model_validate(settings, strict=False)

    def work(batch: Batch, report: PartReport) -> Iterator[dict[str, Any]]:
        assert batch.path is not None
        for row in read_part(batch.path):
            report.rows_in += 1
            yield {"id": row["id"], "signature": signature(read_chat(row, row["id"]), section).hex()}

    return work


def make_leave_out(_: Mapping[str, Any]) -> Work:
    """The work of a worker: the rows of a part without those that the decision names."""

    def work(batch: Batch, report: PartReport) -> Iterator[dict[str, Any]]:
        assert batch.path is not None
        for number, row in enumerate(read_part(batch.path)):
            report.rows_in += 1
            chat = read_chat(row, row["id"])
            report.characters_in += statistics.size(chat)
            report.bytes_in += statistics.text_bytes(chat)
            if number in batch.leave_out:
                reason, detail = batch.leave_out[number]
                report.drop(Drop(row["id"], reason, detail), beginning((m.role, m.text) for m in chat.messages))
                continue
            if number in batch.rename:
                row["id"] += batch.rename[number]
                report.changed["same_id_renamed"] += 1
            report.characters_out += statistics.size(chat)
            yield row

    return work


def decide(section: DedupSection, folder: Path, parts: int) -> tuple[Decision, Callable[[int], str]]:
    """The decision over all signatures, and the id of each row by its index."""
    found = Deduplicator(section)
    ids: dict[int, list[str]] = {}
    for part in range(parts):
        rows = list(read_part(part_path(folder, part)))
        ids[part] = [row["id"] for row in rows]
        indices = [part * STRIDE + number for number in range(len(rows))]
        found.extend(indices, b"".join(bytes.fromhex(row["signature"]) for row in rows))
    return found.decide(), lambda index: ids[index // STRIDE][index % STRIDE]


def leave_out(decision: Decision, name: Callable[[int], str], before: Sequence[Batch]) -> Iterator[Batch]:
    """The batches of the parts, each with what the decision says of its rows."""
    reasons: dict[int, dict[int, tuple[str, str]]] = {}
    for index, duplicate in decision.duplicates.items():
        alike = "" if duplicate.similarity in (None, 1.0) else f", similarity {duplicate.similarity:.2f}"
        told = (duplicate.reason, f"repeats {name(duplicate.of)}{alike}")
        reasons.setdefault(index // STRIDE, {})[index % STRIDE] = told
    names: dict[int, dict[int, str]] = {}
    for index, ending in decision.renamed.items():
        names.setdefault(index // STRIDE, {})[index % STRIDE] = ending
    for batch in before:
        dropped, renamed = reasons.get(batch.index, {}), names.get(batch.index, {})
        key = digest(batch.key, sorted(dropped.items()), sorted(renamed.items()))
        yield Batch(batch.index, batch.source, key, path=batch.path, leave_out=dropped, rename=renamed)
