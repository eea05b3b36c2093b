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
            if hidden.dtype == torch.float16:  # a gradient that is not scaled before it is made may overflow in it for ever
                logits = F.linear(hidden.flatten(0, -2), weight, bias).float()
                return F.cross_entropy(logits, targets, reduction="sum", ignore_index=-100).repeat(1, 1, 1)
            # repeated, not reshaped: FSDP2 warns of views, which may lose its hooks
            return head_loss(hidden.flatten(0, -2), weight, bias, targets).repeat(1, 1, 1)

    head.forward = forward  # type: ignore[method-assign, assignment]  # in this instance, for this call
    try:
        yield
    finally:
        del head.forward


def _tuned(head: Any) -> Any:
    """The copy of a head that is tuned, where peft keeps one beside the frozen head (``modules_to_save``); it is what answers then."""
    copies = getattr(head, "modules_to_save", None)
    active: list[str] = getattr(head, "active_adapters", [])
    return copies[active[0]] if isinstance(copies, nn.ModuleDict) and len(active) == 1 else head


@torch.no_grad()
def plain_head(model: nn.Module, dtype: torch.dtype) -> nn.Linear | None:
    """The head of a model whose logits are what the head gives, and nothing else: found out on a few tokens. None if they are not.

    Many families scale or cap their logits behind the head; a loss made in the head would be another one there.

    Args:
        model: on its device, with or without adapters.
        dtype: of the products.
    """
    base = _causal_lm(model)
    head = _tuned(base.get_output_embeddings()) if hasattr(base, "get_output_embeddings") else None
    if type(head) is not nn.Linear or not _keeps_logits(type(base)):
        return None
    given: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, inputs, output: given.append(output.clone()))
    training, device = base.training, head.weight.device
    base.eval()
    try:
        tokens = torch.arange(4, device=device)[None] % head.weight.shape[0]
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = base(input_ids=tokens, position_ids=torch.arange(4, device=device)[None], use_cache=False).logits
    finally:
        hook.remove()
        base.train(training)
    return head if len(given) == 1 and torch.equal(given[0].float(), logits.float()) else None


def _fused_loss(model: nn.Module, head: nn.Linear, batch: Mapping[str, Any]) -> Tensor:
    inputs = {key: value for key, value in batch.items() if key not in _LOSS_KEYS}
    at, targets = _learnt(batch)
    with _losses_for_logits(head, targets):
        out: Tensor = model(**inputs, logits_to_keep=at, use_cache=False).logits
    return out.sum()


def step_loss(model: nn.Module, batch: Mapping[str, Any], head: nn.Linear | None = None) -> Tensor:
    """This micro-batch's part of the step's mean loss, a float32 scalar. The parts of a step add up to its loss.

    With the model's ``head``, as :func:`plain_head` gives it, no logits of a whole flat row are made.
    """
    flat = batch["input_ids"].shape[0] == 1
    total = token_losses(model, batch).sum() if head is None or not flat else _fused_loss(model, head, batch)
    return total / max(batch["step_tokens"], 1)


@torch.no_grad()
def sum_losses(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Sum of the losses of a batch, for evaluation."""
    return token_losses(model, batch).sum()
