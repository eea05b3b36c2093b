"""Small recipes as text, for tests of how a file is read and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft.errors import RecipeError
from sft.recipe import Recipe, load_recipe

SMALL = """\
model: {name_or_path: m, dtype: float32}
template: {name: alpaca}
data: {sources: [{path: rows.jsonl}], max_length: 64}
train: {epochs: 1, examples_per_step: 2, tokens_per_device: 64, learning_rate: 2e-5}
output: {dir: runs/x}
"""
RECIPE = """\
model:
  name_or_path: m
template:
  name: alpaca
data:
  sources:
    - path: rows.jsonl
  max_length: 64
train:
  epochs: 1
  examples_per_step: 2
  tokens_per_device: 64
  learning_rate: 2e-5
output:
  dir: runs/x
"""


def write(text: str | bytes) -> str:
    Path("bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return "bad.yaml"


def edited(*pairs: tuple[str, str]) -> str:
    """The sound recipe with some of its lines replaced."""
    text = RECIPE
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def load(text: str | bytes, *overrides: str) -> Recipe:
    return load_recipe(write(text), overrides)[0]


def faults(text: str | bytes, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    assert str(caught.value) == "\n".join(str(fault) for fault in caught.value.faults)
    assert caught.value.exit_code == 2
    return [str(fault) for fault in caught.value.faults]
