"""Adapters go where the recipe says, scaled as it says, in float32; what would train nothing or the wrong thing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from sft.errors import ModelError
from sft.model import adapters, fast_lora
from sft.model.load import load_model
from sft.model.tokenizer import tokenizer_for
from sft.recipe import LoraSection
from sft.train import run
from tests.builders import LLAMA, OPT, byte_level, save_tiny, sentencepiece_like, tiny_model
from tests.runs import tiny_recipe

CPU = torch.device("cpu")
SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def attach(model: Any, new_rows: tuple[int, ...] = (), seed: int = 0, **section: Any) -> Any:
    options = LoraSection.model_validate({"rank": 4, "alpha": 8.0, **section})
    return adapters.attach(model, options, new_rows, seed=seed)


def adapted(model: nn.Module) -> set[str]:
    return {name.rsplit(".", 2)[-2] for name, _ in model.named_modules() if name.endswith(".lora_A")}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [(LLAMA, SEVEN), (OPT, {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"})],
    ids=["llama", "opt"],
)
def test_all_linear_is_every_layer_but_the_head(config: dict[str, Any], wanted: set[str]) -> None:
    model = attach(tiny_model(300, config))
    assert adapted(model) == wanted
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_a_list_is_taken_word_by_word() -> None:
    assert adapted(attach(tiny_model(300), targets=("q_proj", "v_proj"))) == {"q_proj", "v_proj"}


def test_unknown_targets_are_named_with_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"no module 'query_key_value'; its linear layers are .*down_proj, .*q_proj"):
        attach(tiny_model(300), targets=("q_proj", "query_key_value"))


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / 4**0.5)])
def test_the_update_is_scaled_as_published(rslora: bool, scale: float) -> None:
    """W x + scale B A x, with scale alpha / r, or alpha / sqrt(r)."""
    model = attach(tiny_model(300), rslora=rslora)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        b.normal_()
        x = torch.randn(3, 32)
        assert torch.allclose(layer(x), x @ (layer.base_layer.weight + scale * b @ a).T, atol=1e-4)


def test_dora_keeps_the_norm_of_each_row_apart() -> None:
    """m (W + s B A) / |W + s B A| by output row, with m = |W| at the start (Liu et al. 2024, equation 5)."""
    model = attach(tiny_model(300), dora=True).eval()
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight = layer.base_layer.weight
    with torch.no_grad():
        b.normal_()
        moved = weight + 2 * b @ a
        wanted = moved * (weight.norm(dim=1) / moved.norm(dim=1))[:, None]
        x = torch.randn(3, 32)
        assert torch.allclose(layer(x), x @ wanted.T, atol=1e-4)


def test_an_adapter_changes_nothing_before_training() -> None:
    ids = torch.arange(30)[None]
    base = tiny_model(300).eval()
    before = base(input_ids=ids).logits
    assert torch.equal(attach(base).eval()(input_ids=ids).logits, before)


def test_equal_seeds_draw_equal_adapters() -> None:
    first, second, third = (adapters.adapter_state(attach(tiny_model(300), seed=s)) for s in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], third[key]) for key in first)


@pytest.mark.parametrize("quantization", ["none", "float8", "int8", "nf4", "fp4"])
def test_adapters_are_float32_on_every_base(tmp_path: Path, quantization: str) -> None:
    base = save_tiny(tmp_path / "base", sentencepiece_like())
    changes = {"model__quantization": quantization, "model__dtype": "bfloat16"}
    recipe = tiny_recipe(tmp_path / "run", base, lora={"rank": 4, "alpha": 8}, **changes)
    tokenizer, _, _ = tokenizer_for(recipe)
    assert recipe.lora is not None
    model = adapters.attach(load_model(recipe, tokenizer, CPU).model, recipe.lora, (), seed=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert {p.dtype for p in trained} == {torch.float32}


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_train_their_rows_and_no_other(tied: bool) -> None:
    model = attach(tiny_model(300, LLAMA | {"tie_word_embeddings": tied}), new_rows=(298, 299))
    names = sorted(name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name)
    assert len(names) == (1 if tied else 2)
    assert all("trainable_tokens_delta" in name for name in names)
    assert [tuple(p.shape) for name, p in model.named_parameters() if name in names] == [(2, 32)] * len(names)


def test_new_tokens_that_would_stay_untrained_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"adds 2 tokens whose embedding would stay untrained; set lora\.train_new_tokens: true"
    ):
        attach(tiny_model(300), new_rows=(298, 299), train_new_tokens=False)


def test_neftune_is_noise_while_training_only(tmp_path: Path) -> None:
    """Uniform noise of at most alpha / sqrt(T d) on the embeddings (Jain et al. 2023), gone in eval mode and in the saved model."""
    plain = tiny_recipe(tmp_path / "plain", train__max_steps=1)
    noisy = tiny_recipe(tmp_path / "noisy", train__max_steps=1, train__neftune_alpha=50.0, data__holdout=0)
    losses = []
    for recipe in (plain, noisy):
        run(recipe)
        from sft.engine.metrics import read_metrics

        lines = read_metrics(Path(recipe.output.dir) / "metrics.jsonl")
        losses.append(next(line["loss"] for line in lines if "loss" in line))
    assert losses[0] != losses[1]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "noisy" / "model")
    ids = torch.arange(20)[None]
    model.train()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)  # no hook came along


def test_dropout_is_before_a_and_off_when_evaluating() -> None:
    model = attach(tiny_model(300), dropout=0.5)
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    assert isinstance(layer.lora_dropout["default"], nn.Dropout)
    assert layer.lora_dropout["default"].p == 0.5
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        x = torch.randn(3, 32)
        model.train()
        assert not torch.equal(layer(x), layer(x))
        model.eval()
        assert torch.equal(layer(x), layer(x))


def test_opening_gives_back_what_was_saved(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", byte_level())
    model = attach(AutoModelForCausalLM.from_pretrained(base))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapter")
    again = adapters.open_adapter(AutoModelForCausalLM.from_pretrained(base), byte_level(), tmp_path / "adapter").eval()
    ids = torch.arange(30)[None]
    fast_lora.speed_up(again)  # as what is trained; against peft's own forward: test_fast_lora
    assert torch.equal(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors here \(pickled adapters are not read\)"):
        adapters.open_adapter(AutoModelForCausalLM.from_pretrained(base), byte_level(), tmp_path / "adapter")
