"""Packages that only some recipes need: asked for before a run begins, not when it first calls them."""

from __future__ import annotations

import importlib.util
from typing import Final

from sft.errors import InputError
from sft.recipe import Recipe

_BNB_OPTIMIZERS: Final = ("adamw_8bit", "paged_adamw_8bit")


def refuse_missing_packages(recipe: Recipe) -> None:
    """Refuse a recipe whose optimiser or trackers are not installed.

    Raises:
        InputError: all that is missing, each with its key and the command that mends it.
    """
    needed = [("train.optimizer", recipe.train.optimizer, "bitsandbytes", "'vicugna[bnb]'")] if _needs_bnb(recipe) else []
    needed += [("output.report_to", tracker, tracker, tracker) for tracker in recipe.output.report_to]
    missing = [
        f"{key}: {value} needs {package}: pip install {wanted}"
        for key, value, package, wanted in needed
        if importlib.util.find_spec(package) is None
    ]
    if missing:
        raise InputError("\n".join(missing))


def _needs_bnb(recipe: Recipe) -> bool:
    return recipe.train.optimizer in _BNB_OPTIMIZERS
