"""Checkpoints that are complete or not there: written beside their place, synced, then renamed.

::

    .partial-checkpoint-200/   being written; removed by the next start
    checkpoint-200/            complete, always: the rename is the last thing that happens
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from sft.errors import ResumeError

_NAME = re.compile(r"checkpoint-(\d+)")
PARTIAL = ".partial-"


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest step first."""
    found = [(int(match[1]), path) for path in run_dir.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def last_checkpoint(run_dir: Path) -> Path:
    """The checkpoint to resume from.

    Raises:
        ResumeError: there is none.
    """
    found = complete_checkpoints(run_dir)
    if not found:
        raise ResumeError(f"{run_dir}: no complete checkpoint to resume from; start without --resume")
    return found[-1]


def step_of(checkpoint: Path) -> int:
    """Optimiser steps done at a checkpoint."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def remove_partial(run_dir: Path) -> None:
    """Remove what a killed run left half written."""
    for path in run_dir.glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def publish(partial: Path, final: Path) -> None:
    """Sync every file of a finished folder, then rename it into place."""
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def rotate(run_dir: Path, keep: int) -> None:
    """Remove the oldest complete checkpoints beyond ``keep``. Called only after a newer one is in place."""
    for path in complete_checkpoints(run_dir)[:-keep]:
        doomed = path.with_name(f"{PARTIAL}{path.name}")
        path.rename(doomed)  # a kill while deleting must not leave a half checkpoint under a complete name
        shutil.rmtree(doomed)


def free_bytes(folder: Path) -> int:
    """Free disk space where a folder lives."""
    return shutil.disk_usage(folder).free
