"""Files that are whole or not there: written beside their place, synced, then renamed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PARTIAL = ".partial-"
"""Prefix of what is being written; a run removes what an earlier one left under it."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, final: Path) -> None:
    """Sync every file of a finished folder, then rename it into place; a folder already there is replaced."""
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            _sync(path)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _sync(final.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write whole, sync, rename: a reader sees the old file or the new one, never half of it.

    Text stays readable unless it holds half a surrogate pair, which UTF-8 cannot carry: then all of it is escaped.
    """
    text = json.dumps(value, ensure_ascii=False, indent=1)
    if _SURROGATE.search(text):
        text = json.dumps(value, indent=1)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)


def append_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON objects, one a line, and sync them: they are there whole or, after an error, not at all.

    Processes that append to the same file wait for each other. A line that a power cut left without its end keeps to itself.
    """
    data = "".join(_line(value) for value in values).encode()
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if new:
        _sync(path.parent)


def _line(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return (json.dumps(value) if _SURROGATE.search(text) else text) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that :func:`write_json` wrote."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def remove_drafts(folder: Path) -> None:
    """Remove files that killed processes had not finished, by the names that they have until they are whole."""
    for path in (*folder.glob(".*.tmp"), *folder.glob(".*.partial")):
        path.unlink(missing_ok=True)


def user_cache() -> Path:
    """Folder for what is kept between runs: ``VICUGNA_CACHE``, else ``~/.cache/vicugna``."""
    return Path(os.environ.get("VICUGNA_CACHE") or Path.home() / ".cache" / "vicugna")


def free_bytes(folder: Path) -> int:
    """Free disk space where a folder lives."""
    return shutil.disk_usage(folder).free
