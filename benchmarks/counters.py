"""Counts what a steady run must not have: compilations after its first steps, and host syncs between records.

Compilations are frames that dynamo translates. A backward is compiled for each of them once, when first called, and is not counted by itself.
Host syncs are the calls that ``torch.cuda.set_sync_debug_mode`` warns of, by place; writing a record may wait, so its syncs do not count.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

WARM_UP = 2
"""Steps after which nothing may be compiled and syncs are counted."""


def compilations() -> int:
    """Frames translated in this process since the start or the last reset of dynamo's counters."""
    return int(counters["frames"]["total"])


class Watch:
    """Counts in a run of ``sft train``. Installed on the trainer's class before the run starts.

    Attributes:
        compiled: compilations after the warm-up.
        syncs: host syncs after the warm-up outside of records, by ``file:line``. Always empty without a GPU.
        steps: steps after the warm-up, which the two are counted over.
    """

    def __init__(self) -> None:
        self.compiled, self.steps = 0, 0
        self.syncs: Counter[str] = Counter()
        self._warm: int | None = None
        self._on = False

    def install(self, trainer: type[Any]) -> None:
        """Wrap the method that ends a step."""
        ended, show = trainer._maybe_log_save_evaluate, warnings.showwarning

        def end_step(this: Any, *args: Any, **kwargs: Any) -> None:
            due, self._on = this.control.should_log, False
            if not due:
                self._on = self._warm is not None
            ended(this, *args, **kwargs)
            self.after_step(this.state.global_step)

        def seen(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
            if "synchronizing CUDA" not in str(message):
                show(message, category, filename, lineno, *rest)
            elif self._on:
                self.syncs[f"{'/'.join(Path(filename).parts[-3:])}:{lineno}"] += 1

        warnings.showwarning = seen  # type: ignore[assignment]  # the same call
        warnings.filterwarnings("always", message=".*synchronizing CUDA")
        trainer._maybe_log_save_evaluate = end_step

    def after_step(self, step: int) -> None:
        """Take the figures behind a step (counted from 1)."""
        if step < WARM_UP:
            return
        if self._warm is None:
            self._warm = compilations()
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("warn")
        else:
            self.steps += 1
        self.compiled, self._on = compilations() - self._warm, True

    def line(self) -> str:
        """The figures in one line."""
        places = ", ".join(f"{place} {count}x" for place, count in self.syncs.most_common())
        return f"{self.compiled} compilations, {self.syncs.total()} host syncs in {self.steps} steps" + (
            f" ({places})" if places else ""
        )
