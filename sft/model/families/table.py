"""The table of ``sft families``: what is converted, and what transformers runs as it is."""

from __future__ import annotations

from sft.model.families.registry import FAMILIES

_LLAMA_TARGETS = "q k v o gate up down"
_AS_IT_IS = (
    (
        "llama, llama2, vicuna, alpaca",
        "llama",
        "vicuna_v1.1, alpaca, llama2",
        _LLAMA_TARGETS,
        "2,048 / 4,096",
        "flat",
        "as it is",
    ),
    ("openbuddy (LLaMA-2)", "llama", "openbuddy", _LLAMA_TARGETS, "4,096", "flat", "as it is"),
    ("opt", "opt", "plain, alpaca", "q k v out fc1 fc2", "2,048", "flat", "as it is"),
)


VERIFIED = (
    "\nverified: largest difference of a float32 logit from the original's own formula, tiny random weights, 700 tokens.\n"
    "as it is: no conversion, transformers' own class. Flat: documents lie one behind the other and cannot see each other."
)


def rows() -> list[tuple[str, ...]]:
    """Family, native model type, template, LoRA targets (without ``_proj``), context, packing, what was verified."""
    found = []
    for family in FAMILIES:
        facts = family.facts
        targets = " ".join(name.removesuffix("_proj") for name in facts.lora)
        found.append((family.name, family.native, family.template, targets, facts.context, facts.packing, facts.verified))
    return [*found, *_AS_IT_IS]
