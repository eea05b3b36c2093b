"""A two-layer Llama, recipes and rows for planning, with parameters that can be counted by hand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from rich.console import Console
from transformers import LlamaConfig

from sft import plan as planner
from sft.data.dataset import Prepared
from sft.data.store import RowStore
from sft.plan_memory import MemoryPlan
from sft.plan_report import print_plan
from sft.recipe import Recipe

GIB = 2**30
H, F, V, L = 32, 64, 100, 2
TINY = LlamaConfig(
    hidden_size=H,
    intermediate_size=F,
    num_hidden_layers=L,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=V,
    tie_word_embeddings=False,
)
# per layer: q and o 32x32, k and v 16x32, three 32x64; two norms
LINEAR = L * (2 * H * H + 2 * (H // 2) * H + 3 * H * F)
NORMS = L * 2 * H + H
TOTAL = 2 * V * H + LINEAR + NORMS


def llama_7b() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
        tie_word_embeddings=False,
    )


def recipe(*, lora: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """A small sound recipe; ``changes`` are ``section__key=value``."""
    data: dict[str, Any] = {
        "model": {"name_or_path": "base"},
        "template": {"name": "alpaca"},
        "data": {"sources": ({"path": "rows.jsonl"},), "max_length": 8},
        "train": {"epochs": 1.0, "examples_per_step": 4, "tokens_per_device": 64, "learning_rate": 1e-4},
        "output": {"dir": "run"},
        "plan": {},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        data[section][name] = value
    if lora is not None:
        data["lora"] = {"rank": 2, "alpha": 4.0, **lora}
    return Recipe.model_validate(data)


def store(lengths: list[int]) -> RowStore:
    """Rows of the given lengths, the second half of each learnt (rounded down)."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    mask = np.concatenate([np.arange(n) >= n - n // 2 for n in lengths]) if lengths else np.zeros(0, dtype=np.bool_)
    ids, source = np.zeros(int(offsets[-1]), dtype=np.int32), np.zeros(len(lengths), dtype=np.int32)
    return RowStore.of(ids, mask, offsets, source, ("rows.jsonl",), [str(i) for i in range(len(lengths))])


def prepared(lengths: list[int], held: int = 0, rows_in: int | None = None, **drops: dict[str, int]) -> Prepared:
    report = {
        "rows_in": len(lengths) + held if rows_in is None else rows_in,
        "drops": {"counts": drops.get("counts", {}), "changed": drops.get("changed", {}), "examples": {}},
    }
    return Prepared(store(lengths), store([4] * held), report, "key", False)


def part(memory: MemoryPlan, name: str) -> float:
    """Bytes of one part."""
    found = [p.gib for p in memory.parts if p.name == name]
    assert len(found) == 1, [p.name for p in memory.parts]
    return found[0] * GIB


def shown(plan: planner.Plan) -> str:
    console = Console(file=io.StringIO(), width=220)
    print_plan(console, plan)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
