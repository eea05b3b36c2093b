"""Full tuning with float8 products, by torchao."""

from __future__ import annotations

from typing import Any

from torch import nn

from sft.errors import ModelError

_MULTIPLE = 16
"""The kernels take matrices whose sides are multiples of this; rows are made so by their padding to 128."""


def convert(model: nn.Module) -> int:
    """Let the linear layers of a model, the head apart, multiply in float8 forward and backward. In place; names of weights stay.

    Scales are one per tensor and made anew for every product (dynamic, tensorwise: torchao's fastest).

    Returns:
        Layers converted.

    Raises:
        ModelError: there are none.
    """
    from torchao.float8 import convert_to_float8_training

    base: Any = model
    head = base.get_output_embeddings()

    def fits(module: nn.Module, name: str) -> bool:
        return (
            type(module) is nn.Linear
            and module is not head
            and module.in_features % _MULTIPLE == 0
            and module.out_features % _MULTIPLE == 0
        )

    count = sum(fits(module, name) for name, module in model.named_modules())
    if not count:
        raise ModelError(f"train.float8 found no linear layer in {type(model).__name__}; set it to false")
    convert_to_float8_training(model, module_filter_fn=fits)
    return count
