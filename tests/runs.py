"""Small recipes over small files, for tests that train for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sft.config import Document, build
from sft.recipe import Recipe
from tests.builders import byte_level, save_tiny

ROWS = 24


def write_rows(path: Path, count: int = ROWS) -> Path:
    """Alpaca rows of different lengths, every one of them different."""
    with path.open("w", encoding="utf-8") as handle:
        for i in range(count):
            row = {"instruction": f"Say the number {i}.", "input": "", "output": " ".join(["yes"] * (1 + i % 7)) + f" {i}"}
            handle.write(json.dumps(row) + "\n")
    return path


def tiny_recipe(folder: Path, base: Path | None = None, lora: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """A recipe of 6 steps of 8 rows on a tiny local model; ``changes`` are ``section__key=value``."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder.parent / "rows.jsonl"
    if not data.exists():
        write_rows(data)
    if base is None:
        base = folder.parent / "base"
        if not base.exists():
            save_tiny(base, byte_level())
    value: dict[str, Any] = {
        "model": {"name_or_path": str(base), "dtype": "float32"},
        "template": {"name": "alpaca_short"},
        "data": {
            "sources": [{"path": str(data), "format": "alpaca", "name": "rows"}],
            "max_length": 64,
            "cache_dir": str(folder.parent / "cache"),
        },
        "train": {
            "epochs": 2,
            "examples_per_step": 8,
            "tokens_per_device": 256,
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "seed": 3,
        },
        "output": {"dir": str(folder), "merge": False},
    }
    if lora is not None:
        value["lora"] = lora
    for key, change in changes.items():
        section, _, name = key.partition("__")
        value[section][name] = change
    return build(Recipe, Document(value, {}, "test.yaml"))
