"""``metrics.jsonl``: one line per logged step. Everything on the screen and in report.html is derived from it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sft.data.packing import StepPlan

UTILISATION = (
    "utilisation = model FLOP/s over this device's own matmul rate, measured at the start; model FLOP of a step = "
    "k x (body parameters x tokens + head parameters x learnt tokens) + 6 x layers x width x sum of squared row lengths, "
    "k = 6 for full tuning, 4 under a frozen base"
)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product on this device, best of five: the physical limit that utilisation refers to."""
    # half types are emulated on most CPUs, a hundred times slower: a small product tells as much there
    size = 8192 if device.type == "cuda" else 1024 if dtype == torch.float32 else 256
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def peak_memory(device: torch.device) -> float:
    """Peak memory in GiB: allocated on a GPU, resident of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@dataclass(frozen=True, slots=True)
class FlopModel:
    """FLOP of a step, by the formula in :data:`UTILISATION`."""

    body: int
    head: int
    layers: int
    width: int
    factor: int

    @staticmethod
    def of(model: Any, config: Any, trainable_base: bool) -> FlopModel:
        """Count parameters that multiply: every linear layer (quantised ones by shape), the head apart."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        head = base.get_output_embeddings()
        inside_head = tuple(name for name, module in base.named_modules() if module is head) or ("(no head)",)
        body = sum(
            int(m.in_features) * int(m.out_features)
            for name, m in base.named_modules()
            if _is_linear(m) and "lora_" not in name and not name.startswith(inside_head)
        )
        text = config.get_text_config()
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        layers, width = int(text.num_hidden_layers), int(text.num_attention_heads * head_dim)
        head_size = int(text.vocab_size) * int(text.hidden_size) if head is not None else 0
        return FlopModel(body, head_size, layers, width, 6 if trainable_base else 4)

    def step(self, plan: StepPlan, step: int) -> float:
        """FLOP of one optimiser step over all ranks."""
        lengths = plan.lengths[plan.steps[step]].astype(float)
        linear = self.factor * (self.body * lengths.sum() + self.head * plan.trained_tokens(step))
        return float(linear + 6.0 * self.layers * self.width * (lengths**2).sum())


def _is_linear(module: nn.Module) -> bool:
    """A plain or bitsandbytes linear layer; peft's wrapper around one has ``base_layer`` and would count it twice."""
    return isinstance(module, nn.Linear) and not hasattr(module, "base_layer")


class MetricsFile:
    """Append-only record of a run; lines behind a resumed checkpoint are removed, so each step stands once."""

    def __init__(self, path: Path, resume_step: int | None) -> None:
        self.path = path
        if resume_step is None:
            path.write_text("", encoding="utf-8")
        elif path.is_file():
            kept = [line for line in read_metrics(path) if line["step"] <= resume_step]
            path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a line cut off by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    out = []
    for i, line in enumerate(lines):
        try:
            out.append(json.loads(line))
        except json.JSONDecodeError:
            if i != len(lines) - 1:
                raise
    return out
