"""Prepared rows on disk: written shard by shard, verified whenever they are opened, never taken for other data.

::

    <key>/rows-00000/{ids,mask,offsets,...}.npy   shard.json     conversations 0 ... SHARD - 1 of the sources
         /rows-00001/...                                         the next ones
         /holdout-00000/...                                      of sources that are held out as a whole
         /held.npy                                               which rows are held out by content
         /report.json                                            written last: all of it is there

A shard is made beside its place, its ``shard.json`` behind its arrays, and then renamed, so it is whole or not there: a killed
preparation goes on behind the last one. The JSON files hold digests of the arrays and of themselves. Equal data gives equal bytes, so
processes that prepare the same at once may take each other's shards, and whoever comes second leaves what stands.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from sft.data.conversation import Drop, Drops
from sft.data.store import Shard
from sft.data.text_encoder import Progress

_log = logging.getLogger(__name__)

_ARRAYS = tuple(field.name for field in fields(Shard))
_MAPPED = ("ids", "mask", "offsets", "names", "name_offsets")  # the others are small and wanted as a whole
_FAULTS = (OSError, ValueError, LookupError, TypeError, AttributeError)  # what files that are cut short, or not ours, raise
_THREADS = min(8, os.cpu_count() or 1)  # hashing lets go of the interpreter


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A shard, and what is known of it.

    Attributes:
        shard: the rows.
        marks: uint64 ``[rows]``, equal for rows of equal conversations.
        read: conversations that it was made of.
        content: digest of these conversations in their order.
        drops: of them, what was left out or changed after reading.
        progress: of the encoder behind them.
    """

    shard: Shard
    marks: npt.NDArray[np.uint64]
    read: int
    content: str
    drops: Drops
    progress: Progress


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A finished preparation.

    Attributes:
        report: as given to :meth:`CacheFolder.finish`.
        shards: by part.
        held: bool ``[rows]`` of the part ``rows``; None if nothing is held out by content.
    """

    report: dict[str, Any]
    shards: dict[str, list[Shard]]
    held: npt.NDArray[np.bool_] | None


def digest(path: Path) -> str:
    """xxh3 (128 bits) of a file: finds every accident, at the speed of memory; no defence against someone who forges.

    Raises:
        ValueError: the file is empty.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return xxhash.xxh3_128_hexdigest(data)


class CacheFolder:
    """The folder of one key.

    Args:
        path: its place; it need not be there.
        key: fingerprint of everything the rows depend on.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._writable = True
        self._told: set[Path] = set()

    def load(self) -> Found | None:
        """The finished preparation, every byte of it verified; None if there is none, or not the whole of what was written."""
        if not self._is_finished() or (value := self._report()) is None:
            return None
        held = None
        try:
            if value["held"] is not None:
                held = self._held(value["held"])
        except _FAULTS:
            self._tell(self.path / "held.npy")
            return None
        shards: dict[str, list[Shard]] = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            for part, contents in value["shards"].items():
                opened = list(pool.map(lambda number, part=part: self.take(part, number), range(len(contents))))
                shards[part] = [made.shard for made in opened if made is not None]
                for number, (made, content) in enumerate(zip(opened, contents, strict=True)):
                    if made is None or made.content != content:
                        self._tell(self._place(part, number))
                        return None
        return Found(value["report"], shards, held)

    def take(self, part: str, number: int) -> Made | None:
        """A shard, every byte of it verified; None if it is not there, or not as it was written."""
        place = self._place(part, number)
        if not place.is_dir():
            return None
        try:
            return self._open(place, verify=True)
        except _FAULTS:
            self._tell(place)
            return None

    def keep(self, part: str, number: int, made: Made) -> Made:
        """Write a shard and map it. If that cannot be, it stays in memory, and so do all behind it."""
        if not self._writable:
            return made
        place, partial, damaged = self._place(part, number), self._beside(".partial"), self._beside(".damaged")
        try:
            partial.mkdir(parents=True)
            self._write(partial, made)
            for _ in range(3):
                with contextlib.suppress(OSError):
                    partial.rename(place)
                    return self._open(place, verify=False)
                # Two processes may have prepared the same data at once: either copy is right, the first one stays.
                if (found := self.take(part, number)) is not None and found.content == made.content:
                    return found
                # What stands there is no whole copy and makes way; a process that maps its files keeps them.
                with contextlib.suppress(FileNotFoundError):
                    place.rename(damaged)
                shutil.rmtree(damaged, ignore_errors=True)
        except OSError:
            # Another process that has finished meanwhile removes what is left lying about.
            if (found := self.take(part, number)) is not None and found.content == made.content:
                return found
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._give_up()
        return made

    def finish(
        self, report: Mapping[str, Any], shards: Mapping[str, Sequence[str]], held: npt.NDArray[np.bool_] | None
    ) -> None:
        """Write what says that everything is there.

        Args:
            report: plain data.
            shards: the ``content`` of each, by part.
            held: bool ``[rows]`` of the part ``rows``, or None.
        """
        if not self._writable:
            return
        partial, mark = self._beside(".partial"), None
        try:
            partial.mkdir(parents=True)
            if held is not None:
                np.save(partial / "held.npy", held, allow_pickle=False)
                mark = digest(partial / "held.npy")
            text = _sealed({"key": self.key, "shards": {**shards}, "held": mark, "report": dict(report)})
            (partial / "report.json").write_text(text, encoding="utf-8")
            for name in ("held.npy",) * (held is not None) + ("report.json",):
                if not _same_bytes(partial / name, self.path / name):
                    (partial / name).replace(self.path / name)
            # Whoever is still writing finds every shard in its place.
            for left in (*self.path.glob(".partial-*"), *self.path.glob(".damaged-*")):
                shutil.rmtree(left, ignore_errors=True)
            return
        except OSError:
            if self._is_finished() and self._report() is not None:
                return
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._give_up()

    def discard(self) -> None:
        """Remove the folder: nothing can be made of this data."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _place(self, part: str, number: int) -> Path:
        return self.path / f"{part}-{number:05d}"

    def _is_finished(self) -> bool:
        return (self.path / "report.json").is_file()  # written last

    def _report(self) -> dict[str, Any] | None:
        """What ``report.json`` holds, if it is whole."""
        try:
            value = _unsealed(self.path / "report.json")
            if value["key"] == self.key:
                return value
        except _FAULTS:
            pass
        self._tell(self.path / "report.json")
        return None

    def _held(self, wanted: str) -> npt.NDArray[np.bool_]:
        """``held.npy``, or one of :data:`_FAULTS`."""
        if digest(self.path / "held.npy") != wanted:
            raise ValueError("not the bytes that were written")
        held: npt.NDArray[np.bool_] = np.load(self.path / "held.npy", allow_pickle=False)
        return held

    def _write(self, folder: Path, made: Made) -> None:
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(made.shard, name), allow_pickle=False)
        np.save(folder / "marks.npy", made.marks, allow_pickle=False)
        record = {
            "key": self.key,
            "read": made.read,
            "content": made.content,
            # in the order in which they came, which the sorted form of a report has lost
            "counts": dict(made.drops.counts),
            "changed": dict(made.drops.changed),
            "examples": {reason: [[drop.id, drop.detail] for drop in some] for reason, some in made.drops.examples.items()},
            "progress": made.progress._asdict(),
            "digests": {f"{name}.npy": digest(folder / f"{name}.npy") for name in (*_ARRAYS, "marks")},
        }
        (folder / "shard.json").write_text(_sealed(record), encoding="utf-8")

    def _open(self, place: Path, verify: bool) -> Made:
        """Map a shard.

        Raises:
            One of :data:`_FAULTS`: it is not what was written.
        """
        record = _unsealed(place / "shard.json")
        if record["key"] != self.key or set(record["digests"]) != {f"{name}.npy" for name in (*_ARRAYS, "marks")}:
            raise ValueError("the shard of another key")
        if verify and any(digest(place / name) != wanted for name, wanted in record["digests"].items()):
            raise ValueError("not the bytes that were written")
        arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _MAPPED}
        # A view of a plain type: numpy's class of mapped arrays takes ten times as long to cut a row out.
        mapped = {name: array.view(np.ndarray) for name, array in arrays.items()}
        read = {name: np.load(place / f"{name}.npy", allow_pickle=False) for name in _ARRAYS if name not in _MAPPED}
        drops = Drops(Counter(record["counts"]), Counter(record["changed"]))
        for reason, some in record["examples"].items():
            drops.examples[reason] = [Drop(who, reason, detail) for who, detail in some]
        marks = np.load(place / "marks.npy", allow_pickle=False)
        progress = Progress(**record["progress"])
        return Made(Shard(**mapped, **read), marks, record["read"], record["content"], drops, progress)

    def _beside(self, prefix: str) -> Path:
        return self.path / f"{prefix}-{os.getpid()}-{secrets.token_hex(4)}"

    def _tell(self, place: Path) -> None:
        if place not in self._told:
            self._told.add(place)
            _log.warning("%s: this prepared data is damaged; it is made again", place)

    def _give_up(self) -> None:
        self._writable = False
        _log.warning("%s: cannot be written, so this data will be prepared again next time", self.path)
        with contextlib.suppress(OSError):
            self.path.rmdir()


def _same_bytes(one: Path, two: Path) -> bool:
    return two.is_file() and one.read_bytes() == two.read_bytes()


def _sealed(value: Mapping[str, Any]) -> str:
    """JSON that holds the digest of itself."""
    return json.dumps({**value, "seal": xxhash.xxh3_128_hexdigest(json.dumps(value).encode())}, indent=1)


def _unsealed(path: Path) -> dict[str, Any]:
    """What :func:`_sealed` wrote.

    Raises:
        ValueError, KeyError, AttributeError: anything else.
    """
    text = path.read_bytes()
    value: dict[str, Any] = json.loads(text)
    del value["seal"]
    if _sealed(value).encode() != text:
        raise ValueError("not the text that was written")
    return value
