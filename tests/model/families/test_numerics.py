"""A converted checkpoint computes what the original's formula computes; a converter with a mistake in it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from sft.data.collate import flat_batch
from sft.model.attention import check_isolation, register
from sft.model.families import moss as moss_module
from sft.model.families.convert import _write_weights, native_config, native_shapes
from sft.model.families.family import Config, Family, Renamed
from sft.model.families.legacy import open_legacy
from sft.model.families.registry import FAMILIES
from tests.model.families import originals
from tests.model.families.checkpoints import BAICHUAN, BAICHUAN2, CHATGLM2, CHATGLM3, MOSS, random_weights, write_checkpoint

BOUND = 5e-4
CAUGHT = 1e-2
ALIBI = {"max_position_embeddings": None, "model_max_length": 1024}
Weights = dict[str, Tensor]


def family(name: str) -> Family:
    return next(one for one in FAMILIES if one.name == name)


def without(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (config | changes).items() if value is not None}


@dataclass(frozen=True)
class Case:
    """A checkpoint and its formula; ``ids`` are drawn below ``vocabulary``."""

    family: str
    config: dict[str, Any]
    formula: Callable[[Tensor, Weights], Tensor]
    vocabulary: int = 700


def _baichuan(name: str, config: dict[str, Any], *, alibi: bool) -> Case:
    config = without(config, **(ALIBI if alibi else {}))

    def formula(ids: Tensor, w: Weights) -> Tensor:
        return originals.baichuan(ids, w, config, alibi=alibi, norm_head=name == "baichuan2")

    return Case(name, config, formula, config["vocab_size"])


def _chatglm(config: dict[str, Any], version: int, **changes: Any) -> Case:
    config = config | changes
    return Case(f"chatglm{version}", config, lambda ids, w: originals.chatglm(ids, w, config, version))


CASES = {
    "baichuan-7b": _baichuan("baichuan", BAICHUAN, alibi=False),
    "baichuan2-7b": _baichuan("baichuan2", BAICHUAN2, alibi=False),
    "baichuan-13b": _baichuan("baichuan", BAICHUAN | {"num_attention_heads": 8}, alibi=True),
    "baichuan-13b, 5 heads": _baichuan("baichuan", BAICHUAN | {"num_attention_heads": 5, "hidden_size": 80}, alibi=True),
    "baichuan2-13b": _baichuan("baichuan2", BAICHUAN2, alibi=True),
    "chatglm2": _chatglm(CHATGLM2, 2),
    "chatglm2-32k": _chatglm(CHATGLM2, 2, rope_ratio=8),
    "chatglm3": _chatglm(CHATGLM3, 3),
    "chatglm3-32k": _chatglm(CHATGLM3, 3, rope_ratio=50),
    "moss": Case("moss", MOSS, lambda ids, w: originals.moss(ids, w, MOSS)),
}
each = pytest.mark.parametrize("name", CASES)


def converted(kind: Family, config: dict[str, Any], weights: Weights, folder: Path) -> PreTrainedModel:
    """The native model, loaded from what the driver wrote."""
    legacy = open_legacy(write_checkpoint(folder / "legacy", config, weights))
    native = native_config(kind, config)
    native.dtype = "float32"
    (folder / "native").mkdir()
    _write_weights(kind, legacy, folder / "native", native_shapes(native), None)
    native.save_pretrained(folder / "native")
    return AutoModelForCausalLM.from_pretrained(folder / "native", dtype=torch.float32).eval()


def made(name: str, folder: Path) -> tuple[Case, Weights, PreTrainedModel]:
    case = CASES[name]
    weights = random_weights(case.config)
    return case, weights, converted(family(case.family), case.config, weights, folder)


def tokens(case: Case, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, case.vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@each
@torch.no_grad()
def test_logits_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    case, weights, model = made(name, tmp_path)
    register()
    for length, bound in ((41, 5e-5), (700, BOUND)):
        ids = tokens(case, 2 if length == 41 else 1, length)
        expected = case.formula(ids, weights)
        assert expected.abs().max() > 1
        for attention in ("eager", "sdpa"):
            model.set_attn_implementation(attention)
            assert (model(input_ids=ids, use_cache=False).logits - expected).abs().max() < bound


@each
@torch.no_grad()
def test_padded_and_flat_rows_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    case, weights, model = made(name, tmp_path)
    short, long = tokens(case, 1, 13, seed=1), tokens(case, 1, 29, seed=2)
    wanted = [case.formula(ids, weights)[0] for ids in (short, long)]
    gap = torch.full((1, 16), 3)
    for left in (True, False):
        row = torch.cat([gap, short] if left else [short, gap], dim=1)
        mask = torch.ones(2, 29, dtype=torch.long)
        mask[0, slice(0, 16) if left else slice(13, 29)] = 0
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=torch.cat([row, long]), attention_mask=mask, position_ids=places, use_cache=False).logits
        assert (logits[0, mask[0].bool()] - wanted[0]).abs().max() < BOUND
        assert (logits[1] - wanted[1]).abs().max() < BOUND
    register()
    model.set_attn_implementation("vicugna_sdpa")
    batch = flat_batch([(ids[0].numpy(), ids[0].numpy() >= 0) for ids in (short, long)], 1, documents=3)
    inputs = {k: v for k, v in batch.items() if k not in ("predict_at", "targets", "step_tokens")}
    logits = model(**inputs, use_cache=False).logits[0]
    assert (logits[:13] - wanted[0]).abs().max() < BOUND
    assert (logits[13:42] - wanted[1]).abs().max() < BOUND
    check_isolation(model, case.vocabulary, tolerance=1e-4)


@each
@torch.no_grad()
def test_greedy_answers_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    case, weights, model = made(name, tmp_path)
    ids = tokens(case, 1, 9, seed=3)
    found = model.generate(ids, max_new_tokens=24, min_new_tokens=24, do_sample=False, eos_token_id=[], pad_token_id=0)
    for _ in range(24):
        ids = torch.cat([ids, case.formula(ids, weights)[:, -1:].argmax(-1)], dim=1)
    assert found.tolist() == ids.tolist()


@each
def test_gradients_through_recomputed_layers_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    from sft.engine.checkpointing import checkpoint_first, decoder_layers

    case, weights, model = made(name, tmp_path)
    ids = tokens(case, 1, 23, seed=4)
    embedding = next(key for key in weights if key.endswith(("embed_tokens.weight", "word_embeddings.weight", "wte.weight")))
    weights[embedding].requires_grad_()
    loss = torch.nn.functional.cross_entropy(case.formula(ids, weights)[0, :-1], ids[0, 1:])
    loss.backward()
    checkpoint_first(model.train(), len(decoder_layers(model)))
    mine = torch.nn.functional.cross_entropy(model(input_ids=ids, use_cache=False).logits[0, :-1], ids[0, 1:])
    mine.backward()
    assert mine.item() == pytest.approx(loss.item(), rel=1e-5)
    gradient, expected = model.get_input_embeddings().weight.grad, weights[embedding].grad
    assert gradient is not None
    assert expected is not None
    rows = ids.unique()
    rows = rows[rows != 0]  # a padding row gets none
    assert (gradient[rows] - expected[rows]).norm() < 1e-4 * expected[rows].norm()


# -- converters with a mistake ---------------------------------------------------------------------------------------------


def edited(kind: Family, change: Callable[[str, Tensor], tuple[str, Tensor]]) -> Family:
    def tensors(name: str, value: Tensor, config: Config) -> Renamed:
        for new, tensor in kind.tensors(name, value, config):
            yield change(new, tensor)

    return replace(kind, tensors=tensors)


def swapped(one: str, other: str) -> Callable[[str, Tensor], tuple[str, Tensor]]:
    """Two weights under each other's names."""

    def change(name: str, value: Tensor) -> tuple[str, Tensor]:
        names = {one: other, other: one}
        found = next((part for part in names if part in name), None)
        return (name, value) if found is None else (name.replace(found, names[found]), value)

    return change


def halves_swapped(name: str, value: Tensor) -> tuple[str, Tensor]:
    return (name, torch.cat(value.chunk(2)[::-1])) if "gate_up_proj" in name else (name, value)


def with_config(kind: Family, **changes: Any) -> Family:
    return replace(kind, config=lambda config: kind.config(config) | changes)


def head_not_scaled(kind: Family) -> Family:
    return replace(
        kind,
        tensors=lambda name, value, config: (
            iter([(name, value)]) if name == "lm_head.weight" else kind.tensors(name, value, config)
        ),
    )


ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
MISTAKES: dict[str, tuple[str, Callable[[Family], Family]]] = {
    "q and v swapped": ("baichuan-7b", lambda kind: edited(kind, swapped("q_proj", "v_proj"))),
    "gate and up swapped": ("baichuan2-7b", lambda kind: edited(kind, swapped("gate_proj", "up_proj"))),
    "no norm of the head": ("baichuan2-7b", head_not_scaled),
    "rotary for ALiBi": ("baichuan-13b", lambda kind: with_config(kind, model_type="llama", rope_parameters=ROPE)),
    "rotary over the whole head": (
        "chatglm2",
        lambda kind: with_config(kind, rope_parameters=ROPE | {"partial_rotary_factor": 1.0}),
    ),
    "gate and up of Glm swapped": ("chatglm3", lambda kind: edited(kind, halves_swapped)),
    "positions not divided": (
        "chatglm2-32k",
        lambda kind: with_config(kind, rope_parameters=ROPE | {"partial_rotary_factor": 0.5}),
    ),
    "q, k, v for q, v, k": ("moss", lambda kind: edited(kind, swapped("k_proj", "v_proj"))),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@torch.no_grad()
def test_a_mistake_in_the_converter_is_seen(mistake: str, tmp_path: Path) -> None:
    name, spoil = MISTAKES[mistake]
    assert _largest(name, spoil(family(CASES[name].family)), tmp_path) > CAUGHT


@pytest.mark.parametrize("mistake", ["rows not sorted", "one shard"])
@torch.no_grad()
def test_a_mistake_in_what_is_moss_s_own_is_seen(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if mistake == "one shard":
        monkeypatch.setattr(moss_module, "SHARDS", 1)
    else:
        monkeypatch.setattr(moss_module, "sort_pairs", lambda rows, heads, rotary: rows)
    assert _largest("moss", family("moss"), tmp_path) > CAUGHT


def _largest(name: str, kind: Family, folder: Path) -> float:
    """Largest difference of a logit over 41 tokens."""
    case = CASES[name]
    weights = random_weights(case.config)
    ids = tokens(case, 1, 41)
    found = converted(kind, case.config, weights, folder)(input_ids=ids, use_cache=False).logits
    return float((found - case.formula(ids, weights)).abs().max())
