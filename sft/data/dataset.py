"""All rows of a recipe, tokenised, verified, counted and kept on disk under the fingerprint of everything they depend on.

``prepare`` is the one entry: recipe + tokenizer -> training rows, held-out rows, and a report of what was left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sft.data import sources as source_files
from sft.data.collate import Row
from sft.data.conversation import Conversation, Drops
from sft.data.overflow import fit
from sft.data.tokenize import RowEncoder, Tokenized, fingerprint
from sft.errors import DataError
from sft.recipe import DataSection, Recipe, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

# Bump when the bytes that preparation writes would change for the same inputs.
CODE_VERSION = 3
_BATCH = 512


@dataclass(frozen=True, slots=True)
class RowStore:
    """Tokenised rows in flat arrays, memory-mapped when they come from disk.

    Attributes:
        ids: int32 ``[tokens]``, rows one behind the other.
        mask: bool ``[tokens]``.
        offsets: int64 ``[rows + 1]``.
        source_of: int32 ``[rows]``, index into ``labels``.
        labels: source labels.
        names: row ids.
    """

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    source_of: npt.NDArray[np.int32]
    labels: tuple[str, ...]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> Row:
        """``(ids [T], mask [T])`` of one row; views, not copies."""
        begin, end = self.offsets[index], self.offsets[index + 1]
        return self.ids[begin:end], self.mask[begin:end]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    @property
    def trained(self) -> npt.NDArray[np.int64]:
        """Learnt tokens of each row."""
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.mask, dtype=np.int64)])
        counts: npt.NDArray[np.int64] = np.diff(sums[self.offsets])
        return counts

    def select(self, rows: npt.NDArray[np.int64]) -> RowStore:
        """A store of some rows, in the given order."""
        parts = [self.row(int(r)) for r in rows]
        offsets = np.concatenate([[0], np.cumsum([len(p[0]) for p in parts])]).astype(np.int64)
        ids = np.concatenate([p[0] for p in parts]) if parts else np.zeros(0, np.int32)
        mask = np.concatenate([p[1] for p in parts]) if parts else np.zeros(0, np.bool_)
        names = [self.names[int(r)] for r in rows]
        return RowStore(ids, mask, offsets, self.source_of[rows], self.labels, names)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for name in ("ids", "mask", "offsets", "source_of"):
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        (folder / "names.json").write_text(json.dumps({"labels": self.labels, "names": list(self.names)}), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> RowStore:
        arrays = [
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("ids", "mask", "offsets", "source_of")
        ]
        names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        return RowStore(arrays[0], arrays[1], arrays[2], arrays[3], tuple(names["labels"]), names["names"])


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run trains and evaluates on.

    Attributes:
        train: training rows.
        holdout: held-out rows; may be empty.
        report: counts and examples of drops, rows read, fingerprints; goes into run.json.
        key: fingerprint of all inputs; names the cache folder and guards resumption.
        cached: whether the rows came from the cache.
    """

    train: RowStore
    holdout: RowStore
    report: dict[str, Any]
    key: str
    cached: bool


def data_key(recipe: Recipe, encoder: RowEncoder, tokenizer: PreTrainedTokenizerBase) -> tuple[str, dict[str, Any]]:
    """Fingerprint of everything that the rows depend on: file bytes, tokenizer, template, data options, code version."""
    data = recipe.data.model_dump(mode="json", exclude={"cache_dir"})
    parts: dict[str, Any] = {
        "code": CODE_VERSION,
        "tokenizer": fingerprint(tokenizer),
        "template": encoder.template.fingerprint,
        "tokens": dataclasses.asdict(encoder.renderer.tokens),  # names that a tokenizer's own file does not hold
        "train_on": recipe.template.train_on,
        "data": data,
        "seed": recipe.train.seed,
        "files": [source_files.fingerprint(s) for s in (*recipe.data.sources, *recipe.data.holdout_sources)],
    }
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32], json.loads(text)  # as the cache will give it back


def cache_root(data: DataSection) -> Path:
    """Folder of prepared data."""
    return Path(data.cache_dir or os.environ.get("VICUGNA_CACHE") or Path.home() / ".cache" / "vicugna")


def prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, encoder: RowEncoder, *, progress: bool = True) -> Prepared:
    """Read, tokenise, verify and split off the held-out rows, or load all that from the cache.

    Raises:
        DataError: unreadable sources, too many unusable rows, or nothing left.
    """
    key, parts = data_key(recipe, encoder, tokenizer)
    folder = cache_root(recipe.data) / key
    if (found := _read_cache(folder, key)) is not None:
        return found
    data = recipe.data
    train, train_marks, drops, rows_in = _encode_sources(data.sources, data, encoder, progress)
    check_drops(drops, rows_in, data, _rows_by_source(train))
    extra_drops = Drops()
    if data.holdout_sources:
        holdout, _, extra_drops, extra_in = _encode_sources(data.holdout_sources, data, encoder, progress)
        check_drops(extra_drops, extra_in, data, _rows_by_source(holdout))
    else:
        held = choose_holdout(train_marks, data.holdout, recipe.train.seed)
        holdout, train = train.select(np.flatnonzero(held)), train.select(np.flatnonzero(~held))
    if len(train) == 0:
        raise DataError(
            f"no rows are left to train on: {rows_in} read, {drops.total} dropped ({_reasons(drops)}), {len(holdout)} held out"
        )
    report = {
        "rows_in": rows_in,
        "train_rows": len(train),
        "holdout_rows": len(holdout),
        "train_tokens": int(train.offsets[-1]),
        "trained_tokens": int(train.trained.sum()),
        "drops": drops.to_json(),
        "holdout_drops": extra_drops.to_json(),
        "encoded": encoder.texts.how(),
        "inputs": parts,
    }
    _write_cache(folder, train, holdout, report)
    return Prepared(train, holdout, report, key, False)


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every data file of a cache folder."""
    out = {}
    for path in sorted(folder.glob("*/*")):
        with path.open("rb") as file:
            out[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return out


def _read_cache(folder: Path, key: str) -> Prepared | None:
    """What a cache folder holds; None if there is none, or not the whole of what was written."""
    # Written last, so without it the folder is not finished.
    if not (folder / "report.json").is_file():
        return None
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if report.pop("digests") == _digests(folder):
            return Prepared(RowStore.load(folder / "train"), RowStore.load(folder / "holdout"), report, key, True)
    except (OSError, ValueError, LookupError, AttributeError):
        pass  # cut short, or not ours
    _log.warning("%s: this prepared data is damaged; it is made again", folder)
    return None


def _write_cache(folder: Path, train: RowStore, holdout: RowStore, report: dict[str, Any]) -> None:
    """Write beside the final place and rename: a killed run leaves no half-written cache, and two runs cannot mix."""
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    partial, damaged = folder.with_name(f".partial-{token}"), folder.with_name(f".damaged-{token}")
    try:
        train.save(partial / "train")
        holdout.save(partial / "holdout")
        text = json.dumps({**report, "digests": _digests(partial)}, indent=1)
        (partial / "report.json").write_text(text, encoding="utf-8")
        for _ in range(3):
            with contextlib.suppress(OSError):
                partial.rename(folder)
                return
            # Two processes may have prepared the same data at once: either copy is right, the first one stays.
            if _read_cache(folder, "") is not None:
                return
            # What stands there is no whole copy and makes way; a process that maps its files keeps them.
            with contextlib.suppress(FileNotFoundError):
                folder.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        _log.warning("%s: cannot be written, so this data will be prepared again next time", folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def iterate_sources(sources: Sequence[Source], drops: Drops, progress: bool) -> Iterator[tuple[int, Conversation]]:
    """``(source index, conversation)`` of every source in order, with a progress bar over rows."""
    from tqdm import tqdm

    with tqdm(desc="reading and tokenising", unit=" rows", disable=not progress, leave=False) as bar:
        for index, source in enumerate(sources):
            for conversation in source_files.read_source(source, drops):
                bar.update()
                yield index, conversation


def _batched(items: Iterable[tuple[int, Conversation]], size: int) -> Iterator[list[tuple[int, Conversation]]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _encode_sources(
    sources: Sequence[Source], data: DataSection, encoder: RowEncoder, progress: bool
) -> tuple[RowStore, npt.NDArray[np.uint64], Drops, int]:
    """Rows of some sources, a content mark per row (equal for equal conversations), the drops, and the rows read."""
    read, drops = Drops(), Drops()
    rows: list[Tokenized] = []
    marks: list[int] = []
    source_of: list[int] = []
    seen = 0
    for batch in _batched(iterate_sources(sources, read, progress), _BATCH):
        seen += len(batch)
        conversations = [conversation for _, conversation in batch]
        fitted = fit(encoder.trace(conversations), conversations, encoder, data.max_length, data.overflow, drops)
        for (source, conversation), parts in zip(batch, fitted, strict=True):
            rows += [part.row for part in parts]
            source_of += [source] * len(parts)
            marks += [int(conversation.fingerprint()[:16], 16)] * len(parts)
    offsets = np.concatenate([[0], np.cumsum([len(r.ids) for r in rows])]).astype(np.int64)
    store = RowStore(
        np.concatenate([r.ids for r in rows]) if rows else np.zeros(0, np.int32),
        np.concatenate([r.mask for r in rows]) if rows else np.zeros(0, np.bool_),
        offsets,
        np.asarray(source_of, dtype=np.int32),
        tuple(source.label for source in sources),
        [r.id for r in rows],
    )
    rows_in = seen + read.total
    return store, np.asarray(marks, dtype=np.uint64), read.merged(drops), rows_in


def _reasons(drops: Drops) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in drops.counts.most_common()) or "none"


def _rows_by_source(store: RowStore) -> list[tuple[str, int]]:
    counts = np.bincount(store.source_of, minlength=len(store.labels))
    return list(zip(store.labels, counts.tolist(), strict=True))


def check_drops(drops: Drops, rows_in: int, data: DataSection, by_source: Iterable[tuple[str, int]]) -> None:
    """Refuse data of which too much was lost.

    Args:
        drops: of all sources.
        rows_in: rows read, dropped ones included.
        data: its ``max_drop_share`` and ``overflow``. Rows that ``overflow: drop`` leaves out were asked for.
        by_source: label of each source and the training rows that came out of it.

    Raises:
        DataError: no rows; a file that broke off, so that nobody knows how many rows were behind; a source that gives no
            training row at all, however small its share; or more unusable rows than allowed.
    """
    if rows_in == 0:
        raise DataError("the data sources hold no rows")
    if drops.counts["broken_file"]:
        lines = [f"{drop.id}: {drop.detail}" for drop in drops.examples["broken_file"]]
        raise DataError(
            "\n".join(["The rows behind a broken one are lost, and nobody knows how many:", *lines, "Mend the file."])
        )
    unusable = drops.total - (drops.counts["too_long"] if data.overflow == "drop" else 0)
    empty = [label for label, rows in by_source if rows == 0]
    if unusable > data.max_drop_share * rows_in:
        limit = f"data.max_drop_share allows {data.max_drop_share:.1%}"
        lines = [f"{unusable} of {rows_in} rows ({unusable / rows_in:.1%}) cannot be used; {limit}.", *_examples(drops)]
        raise DataError("\n".join([*lines, "Mend the rows, or raise data.max_drop_share."]))
    if empty:
        lines = [f"{', '.join(empty)}: this source gives no rows to train on. Left out of all sources:", *_examples(drops)]
        raise DataError("\n".join([*lines, "Mend its rows, or take the source out of the recipe."]))


def _examples(drops: Drops) -> list[str]:
    return [
        f"  {reason}: {drops.counts[reason]}, such as {examples[0].id}: {examples[0].detail}"
        for reason, examples in sorted(drops.examples.items())
    ]


def choose_holdout(marks: npt.NDArray[np.uint64], wanted: int | float, seed: int) -> npt.NDArray[np.bool_]:
    """Pick held-out rows by content: equal conversations, and all parts of a split one, fall on the same side.

    Args:
        marks: content mark of each row.
        wanted: rows, or a share of them below 1. At least this many are taken (a group of equal rows is not divided).
        seed: of the recipe.

    Raises:
        DataError: more held-out rows than rows.
    """
    count = round(wanted * len(marks)) if isinstance(wanted, float) else wanted
    if count == 0:
        return np.zeros(len(marks), dtype=np.bool_)
    if count >= len(marks):
        raise DataError(f"data.holdout asks for {count} rows, there are only {len(marks)}")
    unique, sizes = np.unique(marks, return_counts=True)
    keys = b"".join(hashlib.sha256(f"{seed}:{mark}".encode()).digest()[:8] for mark in unique.tolist())
    ranked = np.argsort(np.frombuffer(keys, dtype=">u8"), kind="stable")
    enough = int(np.searchsorted(np.cumsum(sizes[ranked]), count)) + 1
    return np.isin(marks, unique[ranked[:enough]])


def running_numbers(count: int) -> Any:
    """A ``datasets.Dataset`` with one column ``number`` of 0 ... count - 1, for trainers that insist on that type."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    # A name given is not computed: datasets would pickle the table for it, which not every release of its libraries can.
    return Dataset(InMemoryTable.from_pydict({"number": np.arange(count)}), fingerprint=f"running-numbers-{count}")
