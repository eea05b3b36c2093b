"""The ledger: every reply that was paid for, on disk before it is used.

::

    {"crc":"1c291ca3","id":"9b2f…","request":{…},"completion":{…}}\\n      one line per reply, in the order of arrival
    {"crc":"55bc801d","id":"07aa…","request":{…},"failure":{…}}\\n         or per request that was given up for good

``crc`` is the CRC-32 of the rest of the line, from ``"id"`` to the last brace, so that a damaged line is found before it is used.
A kill can leave part of a last line: it is cut off on opening, and its bytes are kept in ``ledger.jsonl.torn``. Damage anywhere else
is an error with file and line, never a repair. In memory is one number per request; texts are read back from the file.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from selfinstruct.records import Completion, Failure, Request
from sft.errors import DataError, InputError, RunError

log = logging.getLogger(__name__)

_HEAD = b'{"crc":"'
_BODY = len(_HEAD) + 8 + len(b'",')
_LENGTH_BITS = 28
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1


class LedgerError(DataError):
    """A line of the ledger is damaged, or another program wrote it."""


class LedgerLocked(InputError):
    """Another process writes this ledger."""


class LedgerBroken(RunError):
    """The disk did not take a line: nothing after it can be kept. What was there before is whole."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: the request, and either a completion or a failure."""

    request: Request
    completion: Completion | None
    failure: Failure | None = None


def encode(entry: Entry) -> bytes:
    """The line of an entry, newline included."""
    value: dict[str, Any] = {"id": entry.request.id, "request": entry.request.to_json()}
    if entry.completion is not None:
        value["completion"] = entry.completion.to_json()
    else:
        assert entry.failure is not None
        value["failure"] = asdict(entry.failure)
    # ASCII only: no text, not even a lone surrogate, can fail to encode or hold a line break.
    body = json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")[1:]
    line = _HEAD + b'%08x",' % zlib.crc32(body) + body + b"\n"
    assert len(line) <= _LENGTH_MASK, "a reply of a quarter of a gigabyte"
    return line


def decode(line: bytes, where: str) -> Entry:
    """The entry of a line.

    Raises:
        LedgerError: the line is damaged, or its request is not the one that its id names.
    """
    value = _parse(line, where)
    try:
        request = Request.from_json(value["request"])
        failure = Failure(**value["failure"]) if "failure" in value else None
        completion = None if failure else Completion.from_json(value["completion"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LedgerError(
            f"{where}: not a ledger line ({type(error).__name__}: {error}); restore the file from a copy"
        ) from None
    if request.id != value["id"]:
        raise LedgerError(f"{where}: the request is not the one that its id {value['id']!r} was made from; the line was edited")
    return Entry(request, completion, failure)


def _parse(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object of a line whose checksum is right (a line without one is taken as it is)."""
    if line.startswith(_HEAD):
        body = line[_BODY:].rstrip(b"\n")
        if line[len(_HEAD) : len(_HEAD) + 8] != b"%08x" % zlib.crc32(body):
            raise LedgerError(
                f"{where}: the line is damaged (its checksum is wrong); restore the file from a copy, or delete this line: "
                f"the reply that it held is then asked and paid for again"
            )
    try:
        value = json.loads(line)
        if not isinstance(value, dict) or not isinstance(value["id"], str):
            raise TypeError("no object with an id")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LedgerError(
            f"{where}: not a ledger line ({type(error).__name__}: {error}); restore the file from a copy"
        ) from None
    return value


@dataclass(slots=True)
class Totals:
    """What the ledger holds. ``cost`` in the currency of the recipe's prices, per line, to be added exactly by the reader."""

    completions: int = 0
    failures: int = 0
    tokens: int = 0
    money: int = 0  # 1e-12 of the currency, as in budget.py
    estimated: int = 0
    repaired_bytes: int = 0


class Ledger:
    """Open with :meth:`open`; used by one event loop, or from plain code.

    Attributes:
        path: the file.
        totals: sums over its lines.
    """

    def __init__(self, path: Path, fd: int, *, read_only: bool) -> None:
        self.path, self.read_only = path, read_only
        self.totals = Totals()
        self._fd = fd
        self._end = 0
        self._lines = 0
        self._at: dict[bytes, int] = {}  # id -> offset << _LENGTH_BITS | length: one small number per request
        self._broken: str | None = None
        self._writing = threading.Lock()
        self._pending: list[tuple[Entry, bytes, asyncio.Future[None]]] = []
        self._committer: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None

    @staticmethod
    def open(path: str | Path, *, read_only: bool = False) -> Ledger:
        """Open or create a ledger; unless ``read_only``, lock it and cut a torn last line off.

        Raises:
            LedgerLocked: another process has it open for writing.
            LedgerError: a line other than a torn last one is damaged.
            InputError: the file cannot be opened (absent and ``read_only``, no permission, read-only disk).
        """
        path = Path(path)
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
        except OSError as error:
            use = "read" if read_only else "written"
            raise InputError(
                f"{path}: the ledger cannot be {use}: {error.strerror}; nothing was asked, nothing is lost"
            ) from None
        ledger = Ledger(path, fd, read_only=read_only)
        try:
            if not read_only:
                ledger._lock()
                _sync_folder(path.parent)
            ledger._scan()
        except BaseException:
            os.close(fd)
            raise
        return ledger

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise InputError(
                    f"{self.path}: the file system cannot lock the ledger ({error.strerror}); use a local disk"
                ) from None
            raise LedgerLocked(
                f"{self.path}: another process is writing this ledger; wait for it, or choose another output.dir"
            ) from None

    def _scan(self) -> None:
        """Check every line and index it; repair a torn last one."""
        with open(self.path, "rb", buffering=1 << 20) as file:
            for line in file:
                if not line.endswith(b"\n"):
                    self._torn(line)
                    break
                where = f"{self.path}:{self._lines + 1}"
                value = _parse(line, where)
                if not line.startswith(_HEAD):
                    decode(line, where)
                self._index(value["id"], len(line), value, where)

    def _index(self, id_: str, length: int, value: dict[str, Any], where: str) -> None:
        try:
            key = bytes.fromhex(id_)
            completion = value.get("completion")
            if key not in self._at:  # the first line of a request is the one that counts, whatever follows
                self._at[key] = self._end << _LENGTH_BITS | length
            self._lines += 1
            self._end += length
            if completion is None:
                self.totals.failures += 1
                return
            self.totals.completions += 1
            self.totals.tokens += completion["usage"]["prompt_tokens"] + completion["usage"]["completion_tokens"]
            self.totals.money += round(completion.get("cost", 0.0) * 1e12)
            self.totals.estimated += bool(completion.get("usage_estimated", False))
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerError(
                f"{where}: not a ledger line ({type(error).__name__}: {error}); restore the file from a copy"
            ) from None

    def _torn(self, tail: bytes) -> None:
        if self.read_only:
            log.warning("%s:%d: the last line is cut and is not read", self.path, self._lines + 1)
            return
        side = self.path.with_name(self.path.name + ".torn")
        try:
            with open(side, "ab") as file:
                file.write(b"%d bytes from offset %d:\n" % (len(tail), self._end) + tail + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)
        except OSError as error:
            raise InputError(
                f"{self.path}: the cut last line cannot be repaired: {error.strerror}; nothing was changed"
            ) from None
        self.totals.repaired_bytes = len(tail)
        log.warning("%s:%d: a kill cut the last line; %d bytes moved to %s", self.path, self._lines + 1, len(tail), side)

    # --- reading

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, request_id: str) -> bool:
        return bytes.fromhex(request_id) in self._at

    def entry(self, request_id: str) -> Entry | None:
        """The line of a request, read back from the file; None if it was never answered."""
        found = self._at.get(bytes.fromhex(request_id))
        return None if found is None else self._read(found)

    def get(self, request_id: str) -> Completion | None:
        """The completion of a request; None if it was never answered, or given up."""
        entry = self.entry(request_id)
        return None if entry is None else entry.completion

    def _read(self, at: int) -> Entry:
        offset, length = at >> _LENGTH_BITS, at & _LENGTH_MASK
        return decode(os.pread(self._fd, length, offset), f"{self.path}: byte {offset}")

    def iterate(self) -> Iterator[Entry]:
        """Every entry, in the order of the file, the first line of each request only."""
        for at in list(self._at.values()):
            yield self._read(at)

    # --- writing

    def put(self, completion: Completion, request: Request) -> None:
        """Write one completion; it is on disk when this returns. A request that has one already keeps it.

        Raises:
            LedgerBroken: the disk did not take it (full, file too large, gone).
        """
        self.put_many([Entry(request, completion)])

    def put_many(self, entries: Sequence[Entry]) -> None:
        """Write several entries with one sync."""
        with self._writing:
            fresh: dict[str, tuple[Entry, bytes]] = {}
            for entry in entries:
                if entry.request.id not in self and entry.request.id not in fresh:
                    fresh[entry.request.id] = (entry, encode(entry))
            self._append([line for _, line in fresh.values()])
            for entry, line in fresh.values():
                self._added(entry, len(line))

    async def put_soon(self, entry: Entry) -> None:
        """Write one entry; it is on disk when this returns. Entries that wait at the same time share one sync."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((entry, encode(entry), future))
        if self._committer is None or self._committer.done():
            self._committer = asyncio.get_running_loop().create_task(self._commit())
        await asyncio.shield(future)

    async def _commit(self) -> None:
        loop = asyncio.get_running_loop()
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="ledger")
        while self._pending:
            batch, self._pending = self._pending, []
            fresh = [item for item in batch if item[0].request.id not in self]
            try:
                await loop.run_in_executor(self._thread, self._append, [line for _, line, _ in fresh])
            except LedgerBroken as error:
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(LedgerBroken(str(error)))
                        future.exception()  # a waiter may have been cancelled: the error is then nobody's
                continue
            for entry, line, _ in fresh:
                self._added(entry, len(line))
            for _, _, future in batch:
                if not future.done():
                    future.set_result(None)

    def _append(self, lines: Sequence[bytes]) -> None:
        """Write whole lines at the end and sync; on a fault cut the file back to where it was, and refuse from then on."""
        if self.read_only:
            raise InputError(f"{self.path}: the ledger was opened for reading only")
        if self._broken is not None:
            raise LedgerBroken(self._broken)
        data = memoryview(b"".join(lines))
        end = self._end
        try:
            while data:
                written = os.pwrite(self._fd, data, end)
                data, end = data[written:], end + written
            os.fdatasync(self._fd)
        except OSError as error:
            self._broken = (
                f"{self.path}: the ledger cannot grow: {error.strerror}; it is whole up to line {self._lines}. "
                f"Make room and run again: what is in it is not paid for twice"
            )
            os.ftruncate(self._fd, self._end)
            raise LedgerBroken(self._broken) from None

    def _added(self, entry: Entry, length: int) -> None:
        completion = entry.completion
        value = {"completion": completion.to_json()} if completion is not None else {}
        self._index(entry.request.id, length, value, f"{self.path}:{self._lines + 1}")

    # --- closing

    def close(self) -> None:
        """Write what still waits (after a cancelled round), release lock and file."""
        if self._fd >= 0:
            if self._thread is not None:
                self._thread.shutdown()
            pending, self._pending = self._pending, []
            if pending and self._broken is None:
                # A write that the thread has just done is not indexed yet: the end of the file, not ours, is the truth.
                self._end = os.fstat(self._fd).st_size
                self.put_many([entry for entry, _, _ in pending])
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _sync_folder(folder: Path) -> None:
    """Make the name of a new file durable too."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:
        log.warning("%s: the file system does not sync folders", folder)
    finally:
        os.close(fd)
