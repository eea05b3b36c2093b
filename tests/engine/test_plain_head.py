"""The loss is made in the head only where the head is the last word on the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sft.engine import loss
from sft.engine.loss import plain_head

SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model_of(kind: str, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZE, **options))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("training", [True, False])
def test_a_plain_head_is_found_and_nothing_moves(kind: str, training: bool) -> None:
    model = model_of(kind).train(training)
    before = torch.get_rng_state()
    assert plain_head(model, torch.float32) is model.get_output_embeddings()
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training is training
    assert not model.get_output_embeddings()._forward_hooks


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gemma2", {"final_logit_softcapping": 1.0}),
        ("granite", {"logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 0.25}),
    ],
)
def test_logits_that_are_changed_behind_the_head_are_noticed(kind: str, options: dict[str, float]) -> None:
    assert plain_head(model_of(kind, **options), torch.float32) is None


def test_a_head_with_an_adapter_is_not_plain() -> None:
    config = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    assert plain_head(get_peft_model(model_of("llama"), config), torch.float32) is None
    others = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert plain_head(get_peft_model(model_of("llama"), others), torch.float32) is not None


def test_float16_makes_logits() -> None:
    """Its gradients would be made before the loss is scaled, and one that is infinite stays so whatever the scale."""
    torch.manual_seed(0)
    head = nn.Linear(8, 20, bias=False)
    hidden, targets = torch.randn(1, 6, 8).half(), torch.tensor([1, 2, 3, 4, -100, 5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "head_loss", lambda *_: pytest.fail("no gradients before the scale"))
        with loss._losses_for_logits(head, targets):
            made = head(hidden)
    logits = F.linear(hidden[0], head.weight.half()).float()
    assert made.item() == F.cross_entropy(logits, targets, reduction="sum", ignore_index=-100).item()
