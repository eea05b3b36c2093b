"""MOSS becomes Phi: equal to its formula, and every wrong reading of its sharded tensors is caught."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sft.errors import ModelError
from sft.model.families import moss
from sft.model.families.family import Config
from sft.model.families.registry import family_of
from tests.model.families import equal, reference_moss
from tests.model.families.tiny import VOCABULARY, Case, meta_names, native_names, native_of, random_state

(MOSS,) = moss.FAMILIES
SWITCHES: dict[str, Any] = {
    "model_type": "moss",
    "architectures": ["MossForCausalLM"],
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "n_inner": None,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
    "bos_token_id": 106028,
    "eos_token_id": 106068,
    "wbits": 32,
    "groupsize": 128,
}
TINY: dict[str, Any] = SWITCHES | {
    "n_embd": 128,
    "n_head": 8,
    "n_layer": 3,
    "n_positions": 1024,
    "rotary_dim": 8,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
REAL: dict[str, Any] = SWITCHES | {
    "n_embd": 6144,
    "n_head": 24,
    "n_layer": 34,
    "n_positions": 2048,
    "rotary_dim": 64,
    "vocab_size": 107008,
}
CASES = {
    "moss": Case(MOSS, TINY, random_state(reference_moss.shapes(TINY), seed=3), reference_moss.embed, reference_moss.logits)
}
CASE = CASES["moss"]
BOUND = 2e-5
_unshard = moss.unshard


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_of(CASE, tmp_path_factory.mktemp("moss"), files=3)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_are_those_of_the_formula(native: Path, attention: str) -> None:
    assert equal.alone(CASE, native, (41, 2, 1), attention) < BOUND


def test_long_documents_too(native: Path) -> None:
    assert equal.alone(CASE, native, (700,), "sdpa") < BOUND


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(native: Path, side: str) -> None:
    assert equal.padded(CASE, native, side, "sdpa") < BOUND


def test_flat_rows_are_separate_documents(native: Path) -> None:
    assert equal.flat(CASE, native) < BOUND


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_greedy_text_with_the_cache_is_the_formulas(native: Path, attention: str) -> None:
    found, wanted = equal.greedy(CASE, native, attention)
    assert found == wanted


def test_gradients_are_those_of_the_formula(native: Path) -> None:
    assert equal.gradient(CASE, native) < 1e-5


def test_adapters_on_all_linear_layers_are_merged(native: Path) -> None:
    targets, untouched, difference = equal.adapted(native)
    assert targets == set(MOSS.facts.lora)
    assert untouched == []
    assert difference < BOUND


# -- mistakes that must be seen -------------------------------------------------------------------------------------


def _in_pairs(rows: Tensor, heads: int, rotary: int) -> Tensor:
    return rows


def _query_key_value(fused: Tensor, name: str) -> dict[str, Tensor]:
    right = _unshard(fused, name)
    return {"q_proj": right["q_proj"], "k_proj": right["v_proj"], "v_proj": right["k_proj"]}


def _one_shard(fused: Tensor, name: str) -> dict[str, Tensor]:
    return dict(zip(("q_proj", "v_proj", "k_proj"), fused.chunk(3), strict=True))


@pytest.mark.parametrize(
    ("function", "wrong"), [("sort_pairs", _in_pairs), ("unshard", _query_key_value), ("unshard", _one_shard)]
)
def test_another_order_of_rows_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, wrong: Callable[..., Any]
) -> None:
    monkeypatch.setattr(moss, function, wrong)
    assert equal.alone(CASE, native_of(CASE, tmp_path), (41,), "sdpa") > 1e-2


def test_a_lost_bias_of_the_head_would_be_seen(tmp_path: Path) -> None:
    def without(name: str, value: Tensor, config: Config) -> Iterator[tuple[str, Tensor]]:
        yield from moss.tensors_of(name, torch.zeros_like(value) if name == "lm_head.bias" else value, config)

    wrong = dataclasses.replace(CASE, kind=dataclasses.replace(MOSS, tensors=without))
    assert equal.alone(CASE, native_of(wrong, tmp_path), (41,), "sdpa") > 1e-2


# -- tensors and configurations -------------------------------------------------------------------------------------


def test_rows_are_unsharded_as_drawn() -> None:
    """Eight rows of q, v and k in four shards, numbered by head and marked by part."""
    q, v, k = (torch.arange(8) + start for start in (100, 200, 300))
    shards = [part[2 * shard : 2 * shard + 2] for shard in range(4) for part in (q, v, k)]
    found = moss.unshard(torch.cat(shards)[:, None].expand(24, 8), "qkv")
    assert {part: rows[:, 0].tolist() for part, rows in found.items()} == {
        "q_proj": q.tolist(),
        "v_proj": v.tolist(),
        "k_proj": k.tolist(),
    }


def test_even_rows_come_first_in_every_head() -> None:
    found = moss.sort_pairs(torch.arange(16)[:, None].expand(16, 16), 2, 6)
    assert found[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 7, 8, 10, 12, 9, 11, 13, 14, 15]


def test_biases_that_phi_has_and_moss_has_not_are_zeros() -> None:
    names = ("attn.qkv_proj.weight", "attn.out_proj.weight")
    found = [
        pair
        for name in names
        for pair in moss.tensors_of(f"transformer.h.0.{name}", CASE.state[f"transformer.h.0.{name}"], TINY)
    ]
    biases = {name: value for name, value in found if name.endswith("bias")}
    assert sorted(biases) == [f"model.layers.0.self_attn.{part}.bias" for part in ("dense", "k_proj", "q_proj", "v_proj")]
    assert all(value.shape == (128,) and not value.any() for value in biases.values())


def test_the_real_shapes_are_the_native_ones() -> None:
    found = meta_names(reference_moss.shapes(REAL), MOSS, REAL)
    assert found == native_names(MOSS, REAL)
    biases = 34 * 4 * 6144
    plain = {name: shape for name, shape in reference_moss.shapes(REAL).items() if "causal_mask" not in name}
    assert sum(torch.Size(s).numel() for s in found.values()) == sum(torch.Size(s).numel() for s in plain.values()) + biases


def test_the_configuration_is_phis() -> None:
    fields = MOSS.config(REAL)
    assert fields["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    assert (fields["hidden_act"], fields["layer_norm_eps"], fields["intermediate_size"]) == ("gelu_new", 1e-5, 24576)
    assert (fields["max_position_embeddings"], fields["vocab_size"]) == (2048, 107008)
    assert (fields["bos_token_id"], fields["eos_token_id"], fields["pad_token_id"]) == (106028, 106068, None)


def test_it_is_known_by_its_type() -> None:
    assert family_of(REAL) is MOSS
    assert not moss.recognises({"model_type": "phi"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"activation_function": "relu"}, r"activation_function = 'relu', and only 'gelu_new' is known: this variant"),
        ({"scale_attn_weights": False}, r"scale_attn_weights = False"),
        ({"tie_word_embeddings": True}, r"tie_word_embeddings = True"),
        ({"n_head": 6, "n_embd": 96}, r"n_head = 6, n_embd = 96: MOSS writes its heads in 4 shards of equal size"),
        ({"n_embd": 130}, r"n_head = 24, n_embd = 130: MOSS writes"),
        ({"rotary_dim": None}, r"rotary_dim = None: an even number up to 256, the size of a head"),
        ({"rotary_dim": 63}, r"rotary_dim = 63: an even number"),
        ({"rotary_dim": 512}, r"rotary_dim = 512: an even number up to 256"),
    ],
)
def test_other_variants_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        MOSS.config(REAL | change)


def test_another_number_of_rows_is_refused() -> None:
    with pytest.raises(ModelError, match=r"qkv_proj\.weight has 256 rows of 128; 384 were expected: q, v and k"):
        list(moss.tensors_of("transformer.h.0.attn.qkv_proj.weight", torch.zeros(256, 128), TINY))
