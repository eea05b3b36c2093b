"""How candidates are shown: what a verdict was based on, and a sample of many."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sft.text.display import shown

__all__ = ["evidence", "sample", "shown"]

T = TypeVar("T")


def evidence(values: Mapping[str, Any], limit: int = 300) -> str:
    """What a verdict was based on, as ``key value, key value``."""
    return ", ".join(f"{shown(str(key), 60)} {shown(_plain(value), limit)}" for key, value in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return f"“{value}”"
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False)


def sample(items: Sequence[T], count: int, seed: int) -> list[T]:
    """At most ``count`` items, drawn without replacement and in their own order; equal seeds draw equally."""
    chosen = random.Random(seed).sample(range(len(items)), min(count, len(items)))
    return [items[index] for index in sorted(chosen)]
