"""The one loss: the sum over learnt tokens, divided by their number over the whole optimiser step.

Because the divisor is a property of the step and not of the micro-batch, the gradient of a step is the same however the step is cut
into micro-batches, padded, packed or spread over ranks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sft.engine.head_loss import head_loss

_LOSS_KEYS = ("predict_at", "targets", "step_tokens")
# Settings of models that change their logits behind the head: Gemma, Granite, Cohere, Falcon-H1, MiniCPM.
_CHANGES_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier", "dim_model_base")


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


def _learnt(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    at, targets = batch["predict_at"], batch["targets"]
    if len(targets) == 0:  # one ignored position keeps every parameter in the graph
        return at.new_zeros(1), targets.new_full((1,), -100)
    return at, targets


def token_losses(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy of each learnt token, float32 ``[M]``, in the order of ``batch["targets"]``.

    Only the learnt positions are projected onto the vocabulary where the model can (``logits_to_keep``): at 2048 tokens and a
    vocabulary of 32,000 that is most of the memory of a step.
    """
    inputs = {key: value for key, value in batch.items() if key not in _LOSS_KEYS}
    at, targets = _learnt(batch)
    flat = inputs["input_ids"].shape[0] == 1
    if flat and _keeps_logits(type(_causal_lm(model))):
        logits = model(**inputs, logits_to_keep=at, use_cache=False).logits[0]
    else:
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[at]
    return F.cross_entropy(logits.float(), targets, reduction="none", ignore_index=-100)


@contextmanager
def _losses_for_logits(head: nn.Linear, targets: Tensor) -> Iterator[None]:
    """Meanwhile the head answers hidden states with their summed loss in place of logits: inside the model, where its weights are whole."""

    def forward(hidden: Tensor) -> Tensor:
        # Under autocast the head's weights are cast, as its own forward would; the gradient is cast back behind them.
        weight = head.weight.to(hidden.dtype)
        bias = None if head.bias is None else head.bias.to(hidden.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            return head_loss(hidden.flatten(0, -2), weight, bias, targets).reshape(1, 1, 1)

    head.forward = forward  # type: ignore[method-assign, assignment]  # in this instance, for this call
    try:
        yield
    finally:
        del head.forward


def fused_head(model: nn.Module) -> nn.Linear | None:
    """The head of a model whose logits are its products with the last hidden states, and nothing else; None if not surely so."""
    base = _causal_lm(model)
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    changes = [name for name in _CHANGES_LOGITS if getattr(base.config, name, None) not in (None, 1, 1.0)]
    return head if type(head) is nn.Linear and _keeps_logits(type(base)) and not changes else None


def _fused_loss(model: nn.Module, head: nn.Linear, batch: Mapping[str, Any]) -> Tensor:
    inputs = {key: value for key, value in batch.items() if key not in _LOSS_KEYS}
    at, targets = _learnt(batch)
    with _losses_for_logits(head, targets):
        out: Tensor = model(**inputs, logits_to_keep=at, use_cache=False).logits
    return out.sum()


def step_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """This micro-batch's part of the step's mean loss, a float32 scalar. The parts of a step add up to its loss."""
    head = fused_head(model) if batch["input_ids"].shape[0] == 1 else None
    total = token_losses(model, batch).sum() if head is None else _fused_loss(model, head, batch)
    return total / max(batch["step_tokens"], 1)


@torch.no_grad()
def sum_losses(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Sum of the losses of a batch, for evaluation."""
    return token_losses(model, batch).sum()
