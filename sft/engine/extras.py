"""Packages that only some recipes need: asked for before a run begins, not when it first calls them."""

from __future__ import annotations

import importlib.util
from typing import Final

from sft.errors import InputError
from sft.recipe import Recipe

_OPTIMIZERS: Final = {
    "adamw_8bit": ("bitsandbytes", "'vicugna[bnb]'"),
    "paged_adamw_8bit": ("bitsandbytes", "'vicugna[bnb]'"),
    "adamw_8bit_stochastic": ("torchao", "'vicugna[torchao]'"),
}


def refuse_missing_packages(recipe: Recipe) -> None:
    """Refuse a recipe whose optimiser, way of sharding or trackers are not installed.

    Raises:
        InputError: all that is missing, each with its key and the command that mends it.
    """
    needed: list[tuple[str, str, str, str]] = []
    if recipe.train.optimizer in _OPTIMIZERS:
        needed.append(("train.optimizer", recipe.train.optimizer, *_OPTIMIZERS[recipe.train.optimizer]))
    if recipe.train.sharding == "deepspeed":
        needed.append(("train.sharding", "deepspeed", "deepspeed", "'vicugna[deepspeed]'"))
    needed += [("output.report_to", tracker, tracker, tracker) for tracker in recipe.output.report_to]
    missing = [
        f"{key}: {value} needs {package}: pip install {wanted}"
        for key, value, package, wanted in needed
        if importlib.util.find_spec(package) is None
    ]
    if missing:
        raise InputError("\n".join(missing))
