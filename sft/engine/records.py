"""What a run leaves behind of its steps: a line of metrics.jsonl for each record, with the speeds since the last one, and evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Trainer

from sft.data.packing import StepPlan
from sft.engine.loss_scale import LossScale
from sft.engine.metrics import FlopModel, MetricsFile, peak_memory


@dataclass(slots=True)
class Record:
    """What the trainer writes besides weights.

    Attributes:
        metrics: the open record; None on ranks other than 0.
        flops: FLOP model of a step.
        rate: FLOP/s that utilisation refers to.
        manifest: goes into every checkpoint as vicugna.json.
        evaluate: called at the recipe's evaluation steps; returns what is recorded.
        on_record: called with every record, for the screen.
    """

    metrics: MetricsFile | None
    flops: FlopModel
    rate: float
    manifest: dict[str, Any]
    evaluate: Callable[[int], dict[str, Any] | None]
    on_record: Callable[[dict[str, Any]], None]
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)
    last_step: int = 0


class Recorded:
    """How a trainer writes its records. Goes before the trainer's class."""

    plan: StepPlan
    record: Record
    scale: LossScale | None
    args: Any
    state: Any

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write one line of metrics.jsonl from the trainer's own figures and the plan."""
        if "loss" in logs:
            logs.update(self._speeds() | (self.scale.figures() if self.scale is not None else {}))
        Trainer.log(self, logs, start_time)  # past trl's, whose averages need host syncs that we do not make
        if "loss" not in logs:
            return
        record = {"step": self.state.global_step, **logs, "epoch": self.plan.epoch_at(self.state.global_step)}
        if self.record.metrics is not None:
            self.record.metrics.write(record)
        self.record.on_record(record)

    def _speeds(self) -> dict[str, float]:
        now, step = time.perf_counter(), self.state.global_step
        if self.args.device.type == "cuda":
            torch.cuda.synchronize(self.args.device)
            now = time.perf_counter()
        done = range(self.record.last_step, step)
        seconds = max(now - self.record.since, 1e-9)
        tokens = sum(self.plan.total_tokens(s) for s in done)
        trained = sum(self.plan.trained_tokens(s) for s in done)
        flops = sum(self.record.flops.step(self.plan, s) for s in done)
        out = {
            "tokens_per_second": tokens / seconds,
            "trained_tokens_per_second": trained / seconds,
            "utilisation": flops / seconds / (self.record.rate * self.plan.world),
            "data_wait": self.record.waited / seconds,
            "seconds": seconds,
            "memory_gib": peak_memory(self.args.device),
        }
        self.restart_clock()
        return out

    def restart_clock(self) -> None:
        """Leave evaluation and saving out of the speeds."""
        self.record.since, self.record.waited, self.record.last_step = time.perf_counter(), 0.0, self.state.global_step

    def evaluate_now(self) -> dict[str, Any] | None:
        """Evaluate on the held-out rows and record the result."""
        result = self.record.evaluate(self.state.global_step)
        if result is not None:
            record = {"step": self.state.global_step, "epoch": self.plan.epoch_at(self.state.global_step), "eval": result}
            if self.record.metrics is not None:
                self.record.metrics.write(record)
            self.record.on_record(record)
        self.restart_clock()
        return result
