"""Small files, the recipe that reads them, and what it prepares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sft.data.dataset import Prepared, prepare
from sft.data.store import RowStore
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.recipe import Recipe
from tests.data.talks import letters


def alpaca(*answers: str) -> list[dict[str, Any]]:
    return [{"instruction": f"Say {answer}.", "input": "", "output": answer} for answer in answers]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(folder: Path, *sources: Path | dict[str, Any], **changes: Any) -> Recipe:
    """Alpaca rows in ChatML; ``changes`` are ``section__key=value``."""
    entries = [{"path": str(s)} if isinstance(s, Path) else {**s, "path": str(s["path"])} for s in sources]
    value: dict[str, Any] = {
        "model": {"name_or_path": "base"},
        "template": {"name": "chatml"},
        "data": {
            "sources": tuple({"format": "alpaca", **entry} for entry in entries),
            "max_length": 512,
            "cache_dir": str(folder / "cache"),
        },
        "train": {"epochs": 1.0, "examples_per_step": 2, "tokens_per_device": 512, "learning_rate": 1e-3},
        "output": {"dir": str(folder / "run")},
    }
    for key, change in changes.items():
        section, _, name = key.partition("__")
        value[section][name] = change
    return Recipe.model_validate(value)


def encoder_of(made: Recipe, tokenizer: Any = None) -> RowEncoder:
    template = load_template(made.template.name, system=made.template.system)
    return RowEncoder(tokenizer or letters(), template, made.template.train_on)


def run(made: Recipe) -> Prepared:
    return prepare(made, letters(), encoder_of(made), progress=False)


def equal(one: RowStore, two: RowStore) -> bool:
    pairs: list[tuple[Any, Any]] = [*zip(one.flat(), two.flat(), strict=True)]
    pairs += [(getattr(one, name), getattr(two, name)) for name in ("lengths", "trained", "source_of")]
    same = all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)
    return same and (one.labels, list(one.names)) == (two.labels, list(two.names))
