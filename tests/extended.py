"""Recipes that extend a vocabulary, over a few Chinese rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sft.recipe import Recipe
from tests.builders import save_tiny, sentencepiece_like
from tests.runs import tiny_recipe

CHINESE = [
    "人工智能正在改变世界，机器学习是人工智能的一部分。",
    "学习机器学习需要数学，数学是世界的语言。",
    "请写一首关于人工智能的诗，再写一首关于数学的诗。",
    "鑫鑫在学习数学，龘龘在学习语言。",
]


def extension_recipe(tmp_path: Path, make: Any = sentencepiece_like, lora: bool = True, **changes: Any) -> Recipe:
    tmp_path.mkdir(parents=True, exist_ok=True)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"instruction": f"{text}{i}", "input": "", "output": CHINESE[i % 4][: 5 + i % 9]}, ensure_ascii=False)
            + "\n"
            for i, text in enumerate(CHINESE * 6)
        ),
        encoding="utf-8",
    )
    if not (base := tmp_path / "base").exists():
        save_tiny(base, make())
    recipe = tiny_recipe(
        tmp_path / "run",
        base,
        lora={"rank": 2, "alpha": 4} if lora else None,
        **{"data__max_length": 256, "train__tokens_per_device": 512, "train__max_steps": 2, **changes},
    )
    return Recipe.model_validate({**recipe.model_dump(), "tokenizer": {"extend": {"size": 30, "min_count": 2}}})


def with_extend(recipe: Recipe, **extend: Any) -> Recipe:
    return Recipe.model_validate({**recipe.model_dump(), "tokenizer": {"extend": extend}})
