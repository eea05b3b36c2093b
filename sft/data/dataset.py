"""All rows of a recipe, tokenised, verified, counted and kept on disk under the fingerprint of everything they depend on.

``prepare`` is the one entry: recipe + tokenizer -> training rows, held-out rows, and a report of what was left out.

::

    conversations ──SHARD of them──> encode ──> rows-00000 ──┐                        ┌── train    an index into the shards
                  ──the next ones──> encode ──> rows-00001 ──┼── choose_holdout ──────┤
                                                             ┘                        └── holdout  another index
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from sft import files
from sft.data import sources as source_files
from sft.data.cache import CacheFolder, Made
from sft.data.conversation import Conversation, Drops
from sft.data.overflow import fit
from sft.data.store import RowStore, Shard
from sft.data.tokenize import RowEncoder, fingerprint
from sft.errors import DataError, TemplateError
from sft.recipe import DataSection, Recipe, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

# Bump when the bytes that preparation writes would change for the same inputs.
CODE_VERSION = 4
SHARD = 1 << 14
"""Conversations that are kept in memory, written and gone on from together."""
_BATCH = 512


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
    return Path(data.cache_dir or files.user_cache())


def prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, encoder: RowEncoder, *, progress: bool = True) -> Prepared:
    """Read, tokenise, verify and split off the held-out rows, or map all that from the cache.

    Rows are written shard by shard, so memory does not grow with their tokens, and a stopped preparation goes on: shards that are
    whole are taken as they stand, their rows read again but not tokenised again. The result is that of an undisturbed one, to the
    byte. Of several ranks, the main one calls this first; the others wait, then call it and map what it wrote.

    Raises:
        DataError: unreadable sources, too many unusable rows, or nothing left. Nothing of such data stays in the cache.
    """
    key, parts = data_key(recipe, encoder, tokenizer)
    folder = CacheFolder(cache_root(recipe.data) / key, key)
    told = learnt_as(recipe, encoder, tokenizer)
    if (found := folder.load()) is not None:
        train, holdout = _divided(recipe.data, found.shards, found.held, told)
        return Prepared(train, holdout, found.report, key, True)
    try:
        return _make(recipe, encoder, folder, parts, progress, told)
    except DataError:
        folder.discard()
        raise


def learnt_as(recipe: Recipe, encoder: RowEncoder, tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """Ids that are learnt as others: under ``template.end_label: eos`` the first tokens of a next turn, where they end an answer.

    Raises:
        TemplateError: a template whose answers end with a token of their own.
    """
    if recipe.template.end_label == "token":
        return {}
    if not encoder.end_ids or encoder.inner_ids:  # MOSS's <eoc> ends commands, and is no turn's first token
        raise TemplateError(
            f"template.end_label: the answers of {encoder.template.name} end with a token of their own, which is learnt; remove end_label"
        )
    return dict.fromkeys(encoder.end_ids, tokenizer.eos_token_id)


def _make(
    recipe: Recipe, encoder: RowEncoder, folder: CacheFolder, inputs: dict[str, Any], progress: bool, told: Mapping[int, int]
) -> Prepared:
    """What :func:`prepare` does without a finished cache."""
    data, held, extra_drops = recipe.data, None, Drops()
    rows = _encode_sources("rows", data.sources, data, encoder, folder, progress)
    shards, contents = {"rows": rows.shards}, {"rows": rows.contents}
    check_drops(rows.drops, rows.rows_in, data, _rows_by_source(rows.shards, data.sources))
    if data.holdout_sources:
        extra = _encode_sources("holdout", data.holdout_sources, data, encoder, folder, progress)
        shards["holdout"], contents["holdout"], extra_drops = extra.shards, extra.contents, extra.drops
        check_drops(extra.drops, extra.rows_in, data, _rows_by_source(extra.shards, data.holdout_sources))
    elif data.holdout:
        held = choose_holdout(rows.marks, data.holdout, recipe.train.seed)
    train, holdout = _divided(data, shards, held, told)
    if len(train) == 0:
        left_out = f"{rows.drops.total} dropped ({_reasons(rows.drops)}), {len(holdout)} held out"
        raise DataError(f"no rows are left to train on: {rows.rows_in} read, {left_out}")
    report = {
        "rows_in": rows.rows_in,
        "train_rows": len(train),
        "holdout_rows": len(holdout),
        "train_tokens": int(train.lengths.sum()),
        "trained_tokens": int(train.trained.sum()),
        "drops": rows.drops.to_json(),
        "holdout_drops": extra_drops.to_json(),
        "encoded": encoder.texts.how(),
        "inputs": inputs,
    }
    folder.finish(report, contents, held)
    return Prepared(train, holdout, report, folder.key, False)


def _divided(
    data: DataSection, shards: Mapping[str, Sequence[Shard]], held: npt.NDArray[np.bool_] | None, told: Mapping[int, int]
) -> tuple[RowStore, RowStore]:
    """Training rows and held-out rows: two indices into the same shards, unless the held-out ones have sources of their own."""
    rows = RowStore(shards["rows"], [source.label for source in data.sources], learnt_as=told)
    if "holdout" in shards:
        return rows, RowStore(shards["holdout"], [source.label for source in data.holdout_sources], learnt_as=told)
    if held is None:
        return rows, rows.select(np.zeros(0, np.int64))
    return rows.select(np.flatnonzero(~held)), rows.select(np.flatnonzero(held))


def iterate_sources(sources: Sequence[Source], drops: Drops, progress: bool) -> Iterator[tuple[int, Conversation]]:
    """``(source index, conversation)`` of every source in order, with a progress bar over rows."""
    from tqdm import tqdm

    with tqdm(desc="reading and tokenising", unit=" rows", disable=not progress, leave=False) as bar:
        for index, source in enumerate(sources):
            for conversation in source_files.read_source(source, drops):
                bar.update()
                yield index, conversation


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@dataclass(frozen=True, slots=True, eq=False)
class _Encoded:
    """Rows of some sources.

    Attributes:
        shards: of rows, in order.
        contents: of each, a digest of the conversations it was made of.
        marks: uint64 ``[rows]``, equal for equal conversations.
        drops: of reading, then of all that comes behind it.
        rows_in: rows read, dropped ones included.
    """

    shards: list[Shard]
    contents: list[str]
    marks: npt.NDArray[np.uint64]
    drops: Drops
    rows_in: int


def _encode_sources(
    part: str, sources: Sequence[Source], data: DataSection, encoder: RowEncoder, folder: CacheFolder, progress: bool
) -> _Encoded:
    """Take the shards that stand in the cache, make the others, and keep them there."""
    read, drops, seen = Drops(), Drops(), 0
    shards: list[Shard] = []
    contents: list[str] = []
    marks = [np.zeros(0, np.uint64)]
    conversations = iterate_sources(sources, read, progress)
    while True:
        made = folder.take(part, len(shards))
        group: Iterable[tuple[int, Conversation]] = islice(conversations, SHARD)
        if made is not None:
            # Held until it is known whether the shard was made of these very ones: a set on the Hub can change under its name.
            group = list(group)
            made = made if _content(group) == made.content else None
        if made is None:
            made = _encode(group, data, encoder)
            if made.read:
                made = folder.keep(part, len(shards), made)
        if made.read == 0:
            break
        encoder.texts.go_on(made.progress)
        shards.append(made.shard)
        contents.append(made.content)
        marks.append(made.marks)
        drops, seen = drops.merged(made.drops), seen + made.read
    return _Encoded(shards, contents, np.concatenate(marks), read.merged(drops), seen + read.total)


def _encode(group: Iterable[tuple[int, Conversation]], data: DataSection, encoder: RowEncoder) -> Made:
    """One shard of the conversations given."""
    drops, content = Drops(), xxhash.xxh3_128()
    rows: list[Shard] = []
    marks: list[int] = []
    read = 0
    for batch in _batched(group, _BATCH):
        conversations = [conversation for _, conversation in batch]
        fitted = fit(encoder.trace(conversations), conversations, encoder, data.max_length, data.overflow, drops)
        source_of: list[int] = []
        for (source, conversation), parts in zip(batch, fitted, strict=True):
            print_of = conversation.fingerprint()
            content.update(_line(source, conversation, print_of))
            marks += [int(print_of[:16], 16)] * len(parts)
            source_of += [source] * len(parts)
        tokenized = [part.row for parts in fitted for part in parts]
        rows.append(Shard.of([(row.ids, row.mask) for row in tokenized], source_of, [row.id for row in tokenized]))
        read += len(batch)
    shard, progress = Shard.joined(rows), encoder.texts.progress
    return Made(shard, np.asarray(marks, dtype=np.uint64), read, content.hexdigest(), drops, progress)


def _content(group: Iterable[tuple[int, Conversation]]) -> str:
    """Digest of conversations, their names and sources in their order, as :func:`_encode` makes it on the way."""
    content = xxhash.xxh3_128()
    for source, conversation in group:
        content.update(_line(source, conversation, conversation.fingerprint()))
    return content.hexdigest()


def _line(source: int, conversation: Conversation, print_of: str) -> bytes:
    return json.dumps([source, conversation.id, conversation.place, print_of]).encode()


def _reasons(drops: Drops) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in drops.counts.most_common()) or "none"


def _rows_by_source(shards: Iterable[Shard], sources: Sequence[Source]) -> list[tuple[str, int]]:
    counts = np.zeros(len(sources), np.int64)
    for shard in shards:
        counts += np.bincount(shard.source_of, minlength=len(sources))
    return list(zip([source.label for source in sources], counts.tolist(), strict=True))


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
    keys = bytearray()
    for begin in range(0, len(unique), _BATCH):
        for mark in unique[begin : begin + _BATCH].tolist():
            keys += hashlib.sha256(f"{seed}:{mark}".encode()).digest()[:8]
    ranked = np.argsort(np.frombuffer(keys, dtype=">u8"), kind="stable")
    enough = int(np.searchsorted(np.cumsum(sizes[ranked]), count)) + 1
    chosen = np.sort(unique[ranked[:enough]])
    del unique, sizes, keys, ranked  # all of them per row, as is what comes now
    held: npt.NDArray[np.bool_] = chosen[np.minimum(np.searchsorted(chosen, marks), len(chosen) - 1)] == marks
    return held


def running_numbers(count: int) -> Any:
    """A ``datasets.Dataset`` with one column ``number`` of 0 ... count - 1, for trainers that insist on that type."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    # A name given is not computed: datasets would pickle the table for it, which not every release of its libraries can.
    return Dataset(InMemoryTable.from_pydict({"number": np.arange(count)}), fingerprint=f"running-numbers-{count}")
