"""From a recipe's source to conversations: which files, in which order, read as what, and every unusable row counted.

::

    Source ── resolve_files ──> [a.jsonl, b.json] ── read_rows ──> RawRow ── FORMATS[...] ──> Conversation
                                                                     │             │
                                                                     └── Drop ─────┘

With :mod:`sft.data.dataset` this is the only module that may import ``datasets``, and it does so only for a Hub source.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from array import array
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import xxhash

from sft.data.conversation import Conversation, Drop, Drops
from sft.data.fields import Row, RowFault
from sft.data.formats import FORMATS, check_columns, detect_format, own_id
from sft.data.jsonl import ENDINGS, RawRow, ending, read_rows
from sft.errors import DataError
from sft.recipe import Source

_log = logging.getLogger(__name__)
_DETECT_ROWS = 100  # rows that ``auto`` looks at before it gives up
_RUN_MARKS = ("run.json", "ledger.jsonl")  # beside recipe.yaml, they make a folder that of a run
_RUN_ROWS = ("train.jsonl", "holdout.jsonl", "dataset.jsonl")  # what a run is made for


class NoFilesError(DataError):
    """Nothing is where a source should be: it may come yet, so a check of the recipe alone only says so."""


def resolve_files(source: Source) -> list[Path]:
    """The files of a local source, sorted by path.

    A file is itself. A folder is every file in it and below with a known ending, hidden ones left out. Anything else is a glob
    (``**`` crosses folders), all of whose files must have a known ending.

    Raises:
        NoFilesError: nothing matches.
        DataError: an unknown ending, the same rows twice (one file under two names, or beside its own compressed copy), or what a
            run wrote besides its rows.
    """
    assert source.path is not None, "a Hub source has no files"
    root = Path(source.path).expanduser()
    if root.is_dir():
        found = [path for path in root.rglob("*") if ending(path) and not _hidden(path.relative_to(root))]
    elif root.exists():
        found = [root]
    else:
        found = [Path(name) for name in glob.glob(str(root), recursive=True)]
    files = sorted(path for path in found if path.is_file())
    if not files:
        what = f"a folder without {', '.join(ENDINGS)} files" if root.is_dir() else "no such file, and no file matches it"
        raise NoFilesError(f"{source.path}: {what} (looked from {Path.cwd()})")
    for path in files:
        if ending(path) is None:
            raise DataError(f"{path}: the ending of this file is not known ({', '.join(ENDINGS)}); narrow {source.path!r}")
    if files != [root]:
        _refuse_runs(files, source.path)
    _refuse_twins(files, source.path)
    return files


def _refuse_runs(files: list[Path], pattern: str) -> None:
    """A run directory holds its rows several times over, before and behind each stage, and the held-out ones among them."""
    seen: set[Path] = set()
    for path in files:
        folder = path.parent
        if path.stem.isdigit() and folder not in seen and _is_part(path):
            folder = folder.parent
        elif path.name in _RUN_ROWS or not _is_run(folder):
            seen.add(folder)
            continue
        rows = next((folder / name for name in _RUN_ROWS if (folder / name).is_file()), folder / _RUN_ROWS[0])
        raise DataError(
            f"{pattern}: {folder} is what a run wrote, its rows several times over; name the file of its rows: {rows}"
        )


def _is_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file() and any((folder / name).is_file() for name in _RUN_MARKS)


def _is_part(path: Path) -> bool:
    """Whether a file is a part of a stage of a curation, or the report of one."""
    try:
        with path.with_suffix(".json").open(encoding="utf-8") as file:
            return file.read(200).lstrip("{ \n").startswith('"key": "')
    except (OSError, UnicodeDecodeError):
        return False


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _refuse_twins(files: list[Path], pattern: str) -> None:
    """Rows that come in twice would silently weigh double."""
    seen: dict[object, Path] = {}
    for path in files:
        status = path.stat()
        for key in ((status.st_dev, status.st_ino), str(path).removesuffix(".gz").removesuffix(".zst")):
            if key in seen:
                raise DataError(f"{pattern}: {seen[key]} and {path} are the same file; remove one or narrow the pattern")
            seen[key] = path


def fingerprint(source: Source) -> dict[str, Any]:
    """What a source consisted of when it was read, as plain data for run.json.

    Returns:
        For files: label, and per file its name (below the folder that all share), bytes and sha256. They do not change when
        the folder moves. For the Hub: label, name, subset, revision (None if not pinned) and split.

    Raises:
        DataError: as :func:`resolve_files`.
    """
    if source.hub is not None:
        place = {"hub": source.hub, "subset": source.subset, "revision": source.revision, "split": source.split}
        return {"label": source.label, **place}
    files = resolve_files(source)
    shared = os.path.commonpath([path.parent for path in files])
    entries = []
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            entries.append({"name": Path(os.path.relpath(path, shared)).as_posix(), "bytes": file.tell(), "sha256": digest})
    return {"label": source.label, "files": entries}


def read_source(source: Source, drops: Drops) -> Iterator[Conversation]:
    """Read every row of a source, in file order.

    Each row read is either yielded (once; a seed task once per instance) or added to ``drops``, never both and never neither.
    A conversation carries its row's own id. Where there is none, or another row of the source has it already (counted in
    ``drops.changed["repeated_id"]``), it is named by its place. The conversations of a row with several get ``/0``, ``/1``, ...

    Args:
        source: the recipe's entry; ``limit`` counts rows read, not rows kept.
        drops: gets the unusable rows.

    Yields:
        The conversation, which knows its place.

    Raises:
        DataError: no files, an unreadable file, a Hub data set that cannot be had, or no one format that fits.
    """
    name, rows = with_format(source, islice(raw_rows(source), source.limit))
    ids = _Ids()
    label = source.label
    for raw in rows:
        try:
            parsed = FORMATS[name](sound(raw), source.columns)
        except RowFault as fault:
            drops.add(Drop(_drop_id(raw, source.columns), fault.reason, fault.detail))
            continue
        base = parsed.id or raw.where
        if not ids.add(base):
            base = raw.where
            drops.changed["repeated_id"] += 1
            ids.add(base)
        for number, turns in enumerate(parsed.conversations):
            full = base if len(parsed.conversations) == 1 else f"{base}/{number}"
            yield Conversation(full, turns, label, raw.where)


class _Ids:
    """Which ids were met, in 12 to 24 bytes for each whatever its length: 64 bits of a hash, in a table of open addresses.

    That two ids of a million are taken for one has a chance of 3e-8; a row would be known by its place then.
    """

    def __init__(self) -> None:
        self._slots, self._count = array("Q", bytes(8 << 10)), 0

    def add(self, text: str) -> bool:
        """Note an id; whether it is new."""
        new = self._enter(xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) or 1)
        self._count += new
        if 3 * self._count > 2 * len(self._slots):
            old, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
            for value in filter(None, old):
                self._enter(value)
        return new

    def _enter(self, value: int) -> bool:
        slots = self._slots
        at = value % len(slots)
        while slots[at]:
            if slots[at] == value:
                return False
            at = (at + 1) % len(slots)
        slots[at] = value
        return True


def refuse_broken(raw: RawRow) -> None:
    """Stop at a row behind which the file cannot be read.

    Raises:
        DataError: in the words of a training (:func:`sft.data.dataset.check_drops`), whatever reads the file.
    """
    reason, _, detail = (raw.error or "").partition(": ")
    if reason == "broken_file":
        lines = [
            "The rows behind a broken one are lost, and nobody knows how many:",
            f"{raw.where}: {detail}",
            "Mend the file.",
        ]
        raise DataError("\n".join(lines))


def sound(raw: RawRow) -> Any:
    """The value of a row that could be read."""
    if raw.error is not None:
        reason, _, detail = raw.error.partition(": ")
        raise RowFault(reason, detail)
    return raw.value


def _drop_id(raw: RawRow, columns: Mapping[str, str]) -> str:
    own = own_id(Row(raw.value, columns)) if isinstance(raw.value, Mapping) else None
    return raw.where if own is None else f"{raw.where} ({own})"


def with_format(source: Source, rows: Iterator[RawRow]) -> tuple[str, Iterator[RawRow]]:
    """The name of the source's format, and its rows with the ones put back that were looked at to tell it."""
    name, looked = _told(source, rows) if source.format == "auto" else (source.format, [])
    check_columns(name, source.columns)
    return name, chain(looked, rows)


def _told(source: Source, rows: Iterator[RawRow]) -> tuple[str, list[RawRow]]:
    """The format of the first row that has one, and the rows taken from the iterator to find it."""
    looked: list[RawRow] = []
    readable: list[RawRow] = []
    for raw in rows:
        looked.append(raw)
        if raw.error is not None:
            continue
        readable.append(raw)
        try:
            found = detect_format(raw.value, source.columns)
        except DataError as error:
            raise DataError(f"{raw.where}: {error}") from None
        if found is not None:
            _log.info("%s: rows are read as %s, told from %s", source.label, found, raw.where)
            return found, looked
        if len(readable) == _DETECT_ROWS:
            break
    if readable:
        first = readable[0].value
        keys = f"the keys {', '.join(first)}" if isinstance(first, Mapping) else "a row that is no object"
        cure = f"set 'format' ({', '.join(FORMATS)}) and map its fields in 'columns'"
        raise DataError(f"{readable[0].where}: no format fits {keys}; {cure}")
    # Nothing could be read, so the format does not matter: every row goes to the drops with the reader's reason.
    return next(iter(FORMATS)), looked


def raw_rows(source: Source) -> Iterator[RawRow]:
    if source.hub is not None:
        yield from _hub_rows(source, source.hub)
        return
    for path in resolve_files(source):
        yield from read_rows(path)


def _hub_rows(source: Source, hub: str) -> Iterator[RawRow]:
    import datasets  # only here: it takes a second to import, and most recipes name files

    try:
        rows = datasets.load_dataset(hub, name=source.subset, split=source.split, revision=source.revision)
    except Exception as error:  # the library and its network stack raise dozens of unrelated types
        asked = f"subset {source.subset or 'none'}, split {source.split}, revision {source.revision or 'none'}"
        cure = "check the name, the subset and split it has, your network, and `hf auth login` for a gated one"
        raise DataError(f"{hub}: cannot load this Hub data set ({asked}): {error}; {cure}") from error
    for index, row in enumerate(rows):
        yield RawRow(f"{hub}#{index}", row)
