"""The Auto classes of transformers, with the model types of our own known to them. All of ``sft`` takes them from here."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM

from sft.model import alibi  # registers itself

OWN_MODEL_TYPES = (alibi.MODEL_TYPE,)

__all__ = ["OWN_MODEL_TYPES", "AutoConfig", "AutoModelForCausalLM"]
