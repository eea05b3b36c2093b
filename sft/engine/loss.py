"""The one loss: the sum over learnt tokens, divided by their number over the whole optimiser step.

Because the divisor is a property of the step and not of the micro-batch, the gradient of a step is the same however the step is cut
into micro-batches, padded, packed or spread over ranks.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LOSS_KEYS = ("predict_at", "targets", "step_tokens")


def _keeps_logits(model_class: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model_class.forward).parameters


def _causal_lm(model: Any) -> Any:
    """The transformers model inside DDP, FSDP, compile and PEFT wrappers."""
    while True:
        if hasattr(model, "module"):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def token_losses(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy of each learnt token, float32 ``[M]``, in the order of ``batch["targets"]``.

    Only the learnt positions are projected onto the vocabulary where the model can (``logits_to_keep``): at 2048 tokens and a
    vocabulary of 32,000 that is most of the memory of a step.
    """
    inputs = {key: value for key, value in batch.items() if key not in _LOSS_KEYS}
    at, targets = batch["predict_at"], batch["targets"]
    if len(targets) == 0:  # one ignored position keeps every parameter in the graph
        at, targets = at.new_zeros(1), targets.new_full((1,), -100)
    flat = inputs["input_ids"].shape[0] == 1
    if flat and _keeps_logits(type(_causal_lm(model))):
        logits = model(**inputs, logits_to_keep=at, use_cache=False).logits[0]
    else:
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[at]
    return F.cross_entropy(logits.float(), targets, reduction="none", ignore_index=-100)


def step_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """This micro-batch's part of the step's mean loss, a float32 scalar. The parts of a step add up to its loss."""
    return token_losses(model, batch).sum() / max(batch["step_tokens"], 1)


@torch.no_grad()
def sum_losses(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Sum of the losses of a batch, for evaluation."""
    return token_losses(model, batch).sum()
