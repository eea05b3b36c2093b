"""Files that are whole or not there: written beside their place, synced, then renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
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
