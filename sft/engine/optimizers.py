"""Which optimiser a recipe means, and what it keeps per parameter.

::

    bytes per parameter       weight   gradient   states                                        together
    adamw, float32            4        4          4 + 4                                         16
    adamw_8bit, float32       4        4          1 + 1, a float32 for 256 of each              10.03
    paged_adamw_8bit          4        4          the same, in main memory where it is short    8 to 10.03
    sgd, float32              4        4          none                                          8
    adamw_stochastic          2        2          2 + 2 (bfloat16)                              8
    adamw_8bit_stochastic     2        2          1 + 1, a float32 for 256 of each              6.03

Under adapters this is per parameter of the adapters, which are float32. 8-bit states: Dettmers et al. 2022.
"""

from __future__ import annotations

from typing import Any

from sft.engine.stochastic_adamw import StochasticAdamW
from sft.recipe import Recipe


def innermost(optimizer: Any) -> Any:
    """The optimiser inside of accelerate's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def trainer_name(optimizer: str, *, fused: bool) -> str:
    """The trainer's name of an optimiser; of one that it does not know, any, since :func:`own` replaces it."""
    if optimizer in ("adamw_8bit", "paged_adamw_8bit", "sgd"):
        return optimizer
    return "adamw_torch_fused" if fused and optimizer == "adamw" else "adamw_torch"


def own(recipe: Recipe) -> tuple[type[Any], dict[str, Any]] | None:
    """Class and arguments of an optimiser that the trainer does not know."""
    train = recipe.train
    options: dict[str, Any] = {"lr": train.learning_rate, "betas": (train.beta1, train.beta2), "eps": train.epsilon}
    if train.optimizer == "adamw_stochastic":
        return StochasticAdamW, {**options, "seed": train.seed}
    if train.optimizer == "adamw_8bit_stochastic":
        from torchao.optim import AdamW8bit

        return AdamW8bit, {**options, "bf16_stochastic_round": True}
    return None
