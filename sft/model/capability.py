"""What a GPU can do, by its compute capability, and the refusal of a recipe that asks it for more.

A capability is ``(major, minor)`` as CUDA counts it. The CPU has none: nothing is refused there by this table.
Sources of the bounds stand beside them; where a library would go on in silence, slower by far (bfloat16 is emulated on Turing and
Volta, and torch says that it is there), the recipe is refused all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from sft.errors import ModelError
from sft.model import cudnn_attention
from sft.recipe import Recipe

Capability = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that a recipe may ask of a card.

    Attributes:
        name: as the table of the documentation has it.
        least: compute capability from which on cards have it.
        why: what is missing below, in one clause.
        asked: the key with its value if a recipe asks for it, else None.
        instead: what to change in that recipe.
    """

    name: str
    least: Capability
    why: str
    asked: Callable[[Recipe], str | None]
    instead: Callable[[Recipe], str]


def _bfloat16_products(recipe: Recipe) -> str | None:
    model = recipe.model
    if (model.compute_dtype or model.dtype) != "bfloat16":
        return None
    return "model.compute_dtype: bfloat16" if model.compute_dtype else "model.dtype: bfloat16"


def _instead_of_bfloat16(recipe: Recipe) -> str:
    if recipe.lora is None and recipe.model.dtype != "float32":
        return "set model.dtype: float32 and model.compute_dtype: float16"
    return "set model.compute_dtype: float16"


def _attention(*kernels: str) -> Callable[[Recipe], str | None]:
    return lambda recipe: f"model.attention: {recipe.model.attention}" if recipe.model.attention in kernels else None


def _bitsandbytes(recipe: Recipe) -> str | None:
    if recipe.model.quantization in ("int8", "nf4", "fp4"):
        return f"model.quantization: {recipe.model.quantization}"
    return (
        f"train.optimizer: {recipe.train.optimizer}" if recipe.train.optimizer in ("adamw_8bit", "paged_adamw_8bit") else None
    )


def _compiled(recipe: Recipe) -> str | None:
    if recipe.train.compile == "on":
        return "train.compile: on"
    return f"train.optimizer: {recipe.train.optimizer}" if "stochastic" in recipe.train.optimizer else None


# The bound of the kernels is also what attention: auto goes by (sft.model.attention).
VARLEN: Final[Capability] = (8, 0)
"""flash-attn 2 and torch's varlen kernel, which is made of it: Ampere and newer."""

FEATURES: Final = (
    Feature(  # bitsandbytes' own table of platforms; its int8 products have tensor cores from 7.5 on and are slow below
        "bitsandbytes (int8, nf4, fp4, 8-bit AdamW)",
        (6, 0),
        "bitsandbytes has no kernels for it",
        _bitsandbytes,
        lambda recipe: "set model.quantization: none" if recipe.model.quantization != "none" else "set train.optimizer: adamw",
    ),
    Feature(  # torch's own refusal, raised by inductor
        "compiled layers, stochastic AdamW",
        (7, 0),
        "Triton makes no code for it",
        _compiled,
        lambda recipe: "set train.compile: off" if recipe.train.compile == "on" else "set train.optimizer: adamw",
    ),
    Feature(
        "bfloat16 products",
        (8, 0),
        "it has no bfloat16 and would emulate it",
        _bfloat16_products,
        _instead_of_bfloat16,
    ),
    Feature(
        "flash and varlen attention",
        VARLEN,
        "these kernels are made for Ampere and newer",
        _attention("flash", "varlen"),
        lambda recipe: "set model.attention: auto, which takes SDPA there",
    ),
    Feature(
        "float8 base (model.quantization)",
        (8, 9),
        "it has no float8 products",
        lambda recipe: "model.quantization: float8" if recipe.model.quantization == "float8" else None,
        lambda recipe: "set int8 or nf4",
    ),
    Feature(
        "float8 products (train.float8)",
        (8, 9),
        "it has no float8 products",
        lambda recipe: "train.float8: true" if recipe.train.float8 else None,
        lambda recipe: "set train.float8: false",
    ),
    Feature(
        "cuDNN attention",
        cudnn_attention.MINOR,
        "it is used only where it was measured, on Hopper",
        _attention("cudnn"),
        lambda recipe: "set model.attention: auto",
    ),
)

CARDS: Final[tuple[tuple[str, Capability], ...]] = (
    ("V100", (7, 0)),
    ("RTX 2080 Ti", (7, 5)),
    ("T4", (7, 5)),
    ("A100", (8, 0)),
    ("RTX 3090", (8, 6)),
    ("RTX 4090", (8, 9)),
    ("H100, H200", (9, 0)),
)
"""Cards and their compute capabilities, by NVIDIA's list."""


def of(device: torch.device) -> Capability | None:
    """Compute capability of a device; None for one that is no GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def require(recipe: Recipe, device: torch.device, capability: Capability | None = None) -> None:
    """Refuse a recipe that needs what the card has not.

    Args:
        recipe: checked.
        device: of this process. The CPU takes every recipe, as far as this table goes.
        capability: instead of the device's own.

    Raises:
        ModelError: everything that is missing, a line each, with its key and what to change.
    """
    have = of(device) if capability is None else capability
    if have is None:
        return
    missing = [
        f"{key} needs compute capability {_dotted(feature.least)}, and {device} has {_dotted(have)}: {feature.why}; "
        f"{feature.instead(recipe)}"
        for feature in FEATURES
        if have < feature.least and (key := feature.asked(recipe)) is not None
    ]
    if missing:
        raise ModelError("\n".join(missing))


def table() -> str:
    """Cards against features in Markdown, as ``docs/cards.md`` shows it."""
    lines = [f"| needs | least | {' | '.join(f'{card} ({_dotted(have)})' for card, have in CARDS)} |"]
    lines.append("|---|---|" + "---|" * len(CARDS))
    for feature in FEATURES:
        cells = " | ".join("yes" if have >= feature.least else "–" for _, have in CARDS)
        lines.append(f"| {feature.name} | {_dotted(feature.least)} | {cells} |")
    return "\n".join(lines)


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))
