"""Checkpoints that are complete or not there: written beside their place, synced, then renamed.

::

    .partial-checkpoint-200/   being written; removed by the next start
    checkpoint-200/            complete, always: the rename is the last thing that happens
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sft.errors import ResumeError, VerificationError
from sft.files import PARTIAL

if TYPE_CHECKING:
    from torch import nn

_NAME = re.compile(r"checkpoint-(\d+)")


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


def world_of(checkpoint: Path) -> int:
    """Processes that wrote a checkpoint: each leaves the state of its random numbers."""
    return max(1, len(list(checkpoint.glob("rng_state_*.pth"))))


def remove_partial(run_dir: Path) -> None:
    """Remove what a killed run left half written."""
    for path in run_dir.glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def rotate(run_dir: Path, keep: int) -> None:
    """Remove the oldest complete checkpoints beyond ``keep``. Called only after a newer one is in place."""
    for path in complete_checkpoints(run_dir)[:-keep]:
        doomed = path.with_name(f"{PARTIAL}{path.name}")
        path.rename(doomed)  # a kill while deleting must not leave a half checkpoint under a complete name
        shutil.rmtree(doomed)


def verify_weights(folder: Path, model: nn.Module) -> int:
    """Re-open a saved full model and compare it with the live one, tensor by tensor.

    Returns:
        Tensors compared. Tied ones are saved once; sharded (FSDP) ones are compared by shape.

    Raises:
        VerificationError: a tensor that is missing, or differs.
    """
    import torch
    from safetensors import safe_open
    from torch.distributed.tensor import DTensor

    live = dict(model.state_dict())
    saved: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                saved.add(key)
                tensor, own = file.get_tensor(key), live.get(key)
                if own is None or own.shape != tensor.shape:
                    raise VerificationError(f"{path}: {key} is not a tensor of the model, or has another shape")
                if not isinstance(own, DTensor) and not torch.equal(own.detach().cpu(), tensor):
                    raise VerificationError(f"{path}: {key} differs from the model's")
    tied = {p.data_ptr() for k, p in live.items() if k in saved}
    missing = [k for k, p in live.items() if k not in saved and p.data_ptr() not in tied]
    if missing:
        raise VerificationError(f"{folder}: {len(missing)} tensors were not saved, such as {missing[0]}")
    return len(saved)
