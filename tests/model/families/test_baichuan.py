"""A converted Baichuan computes what Baichuan's own formulas say, and what is slightly wrong is seen."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sft.errors import ModelError
from sft.model.attention import check_isolation, register
from sft.model.families import baichuan, convert
from sft.model.families.convert import _write_weights, native_config, native_shapes
from sft.model.families.family import Family
from sft.model.families.legacy import open_legacy
from sft.model.families.registry import family_of
from sft.model.native import AutoConfig, AutoModelForCausalLM
from tests.builders import sentencepiece_like
from tests.model.families import reference_baichuan as reference

VARIANTS = sorted(reference.VARIANTS)
TIGHT, LONG = 2e-5, 1e-4
Ready = tuple[str, dict[str, Tensor], PreTrainedModel]


def _kind(variant: str) -> Family:
    return next(
        family for family in baichuan.FAMILIES if family.name == ("baichuan2" if variant.startswith("2") else "baichuan")
    )


def _converted(folder: Path, variant: str, layout: str = "bin", seed: int = 0) -> tuple[dict[str, Tensor], Path]:
    """Weights of a legacy checkpoint and the folder that the driver makes of it, without a tokenizer."""
    weights = reference.write_legacy(folder / "legacy", variant, layout, seed)
    kind, legacy, out = _kind(variant), open_legacy(folder / "legacy"), folder / "native"
    config = native_config(kind, legacy.config)
    out.mkdir()
    _write_weights(kind, legacy, out, native_shapes(config), None)
    config.dtype = "float32"
    config.save_pretrained(out)
    return weights, out


def _load(folder: Path, attention: str = "sdpa") -> PreTrainedModel:
    register()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()


@pytest.fixture(params=VARIANTS)
def ready(request: pytest.FixtureRequest, tmp_path: Path) -> Ready:
    weights, folder = _converted(tmp_path, request.param)
    return request.param, weights, _load(folder)


def _ids(length: int, seed: int = 0) -> Tensor:
    """No id 0: it is the padding row."""
    return torch.randint(1, reference.VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _off(model: PreTrainedModel, weights: dict[str, Tensor], variant: str, length: int = 41) -> float:
    ids = _ids(length)
    return float((model(ids[None]).logits[0] - reference.of_ids(weights, variant, ids)).abs().max())


# -- equal to the original ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["bin", "safetensors"])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "vicugna_sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_original(tmp_path: Path, variant: str, layout: str, attention: str) -> None:
    weights, folder = _converted(tmp_path, variant, layout, seed=7 if layout == "bin" else 0)
    assert _off(_load(folder, attention), weights, variant) < TIGHT


def test_logits_of_long_texts(ready: Ready) -> None:
    variant, weights, model = ready
    assert _off(model, weights, variant, 700) < LONG


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(ready: Ready, side: str) -> None:
    variant, weights, model = ready
    texts = [_ids(37, 1), _ids(23, 2)]
    batch, mask = torch.zeros(2, 37, dtype=torch.long), torch.zeros(2, 37, dtype=torch.long)
    for row, ids in enumerate(texts):
        place = slice(37 - len(ids), 37) if side == "left" else slice(0, len(ids))
        batch[row, place], mask[row, place] = ids, 1
    with torch.no_grad():
        found = model(batch, attention_mask=mask).logits
    for row, ids in enumerate(texts):
        wanted = reference.of_ids(weights, variant, ids)
        assert float((found[row][mask[row].bool()] - wanted).abs().max()) < TIGHT


@pytest.mark.parametrize("attention", ["eager", "sdpa", "vicugna_sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_documents_of_a_flat_row_are_as_alone(tmp_path: Path, variant: str, attention: str) -> None:
    weights, folder = _converted(tmp_path, variant)
    model = _load(folder, attention)
    texts = [_ids(length, length) for length in (31, 1, 150, 18)]
    positions = torch.cat([torch.arange(len(ids)) for ids in texts])[None]
    ends = torch.tensor([0, *(len(ids) for ids in texts)]).cumsum(0).int()
    borders = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 150, "max_length_k": 150}
    extra = borders if attention == "vicugna_sdpa" else {}
    with torch.no_grad():
        found = model(torch.cat(texts)[None], position_ids=positions, use_cache=False, **extra).logits[0]
    wanted = torch.cat([reference.of_ids(weights, variant, ids) for ids in texts])
    assert float((found - wanted).abs().max()) < TIGHT
    if attention == "vicugna_sdpa":
        assert check_isolation(model, reference.VOCABULARY, tolerance=1e-4)["leak"] == 0


def test_greedy_decoding_with_the_cache(ready: Ready) -> None:
    variant, weights, model = ready
    ids = _ids(9, 3)
    made = model.generate(ids[None], max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert made[0, 9:].tolist() == reference.greedy(weights, variant, ids, 24)


def test_gradient_at_the_embeddings_with_checkpointing(ready: Ready) -> None:
    variant, weights, model = ready
    ids = _ids(41, 4)
    wanted = weights["model.embed_tokens.weight"][ids].requires_grad_()
    torch.nn.functional.cross_entropy(reference.logits(weights, variant, wanted)[:-1], ids[1:]).backward()
    model.train()
    model.gradient_checkpointing_enable()
    found = wanted.detach().clone()[None].requires_grad_()
    model(inputs_embeds=found, labels=ids[None], use_cache=False).loss.backward()
    assert found.grad is not None
    assert wanted.grad is not None
    assert float((found.grad[0] - wanted.grad).norm() / wanted.grad.norm()) < 1e-5


def test_lora_on_all_linear_layers_merges(ready: Ready) -> None:
    from peft import LoraConfig, get_peft_model

    _, _, model = ready
    torch.manual_seed(0)
    adapted: Any = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    touched = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert touched == set(_kind("7B").facts.lora)
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.05)
    ids = _ids(41, 5)[None]
    adapted(ids, labels=ids).loss.backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for n, value in adapted.named_parameters() if "lora_" in n)
    with torch.no_grad():
        before, merged = adapted(ids).logits, adapted.merge_and_unload()(ids).logits
    assert float((before - merged).abs().max()) < TIGHT


def test_saved_and_loaded_again(ready: Ready, tmp_path: Path) -> None:
    variant, weights, model = ready
    model.save_pretrained(tmp_path / "again")
    assert list((tmp_path / "again").glob("*.py")) == []
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    again = _load(tmp_path / "again")
    assert type(again) is type(model)
    assert _off(again, weights, variant) < TIGHT


@pytest.mark.parametrize("variant", ["7B", "2-13B"])
def test_the_whole_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    """With a tokenizer of ours: the folder loads by the Auto classes, and the record says what it has become."""
    monkeypatch.setattr(reference, "VOCABULARY", 900)
    weights = reference.write_legacy(tmp_path / "legacy", variant, "bin")
    kind = dataclasses.replace(_kind(variant), tokenizer=lambda legacy: sentencepiece_like(900))
    monkeypatch.setattr(convert, "family_of", lambda config, named: kind)
    about = convert.convert(tmp_path / "legacy", tmp_path / "native", template="vicuna_v1.1")
    assert (about["family"], about["native"]) == (kind.name, "llama" if variant.endswith("7B") else baichuan.ALIBI)
    assert about["dtype"] == "float32"
    assert _off(_load(tmp_path / "native"), weights, variant) < TIGHT


# -- the comparison has power ---------------------------------------------------------------------------------------


def _swap(first: str, second: str) -> Callable[[str], str]:
    return lambda name: name.replace(first, "?").replace(second, first).replace("?", second)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("first", "second"), [("q_proj", "v_proj"), ("q_proj", "k_proj"), ("gate_proj", "up_proj")])
def test_swapped_matrices_are_caught(tmp_path: Path, variant: str, first: str, second: str) -> None:
    weights, folder = _converted(tmp_path, variant)
    model, rename = _load(folder), _swap(first, second)
    model.load_state_dict({rename(name): value.clone() for name, value in model.state_dict().items()})
    assert _off(model, weights, variant) > 1e-2


@pytest.mark.parametrize("variant", ["2-7B", "2-13B"])
def test_a_head_without_its_norm_is_caught(tmp_path: Path, variant: str) -> None:
    weights, folder = _converted(tmp_path, variant)
    model = _load(folder)
    model.load_state_dict({"lm_head.weight": weights["lm_head.weight"]}, strict=False)
    assert _off(model, weights, variant) > 1e-2


@pytest.mark.parametrize("variant", ["13B", "2-13B"])
def test_a_13b_with_rotary_positions_is_caught(tmp_path: Path, variant: str) -> None:
    weights, folder = _converted(tmp_path, variant)
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert fields["model_type"] == baichuan.ALIBI
    changed = {**fields, "model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    assert _off(_load(folder), weights, variant) > 1e-2


# -- which is which -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "family", "native"),
    [
        ({"hidden_size": 4096, "vocab_size": 64000, "max_position_embeddings": 4096}, "baichuan", "llama"),
        ({"hidden_size": 5120, "vocab_size": 64000, "model_max_length": 4096}, "baichuan", baichuan.ALIBI),
        (
            {"hidden_size": 4096, "vocab_size": 125696, "max_position_embeddings": 4096, "model_max_length": 4096},
            "baichuan2",
            "llama",
        ),
        ({"hidden_size": 5120, "vocab_size": 125696, "model_max_length": 4096}, "baichuan2", baichuan.ALIBI),
    ],
)
def test_the_released_sizes_are_recognised(config: dict[str, Any], family: str, native: str) -> None:
    heads = config["hidden_size"] // 128
    config = {**config, "model_type": "baichuan", "num_attention_heads": heads, "num_hidden_layers": 1, "intermediate_size": 8}
    kind = family_of(config)
    assert (kind.name, kind.template) == (family, family)
    fields = kind.config(config)
    assert fields["model_type"] == native
    shapes = native_shapes(AutoConfig.for_model(fields.pop("model_type"), **fields))
    assert shapes["lm_head.weight"] == (config["vocab_size"], config["hidden_size"])
    assert not [name for name in shapes if name.endswith("bias")]


def test_an_enlarged_vocabulary_needs_a_name() -> None:
    config = reference.legacy_config("7B")
    with pytest.raises(ModelError, match=r"this may be baichuan or baichuan2: say which with --family"):
        family_of(config)
    assert family_of(config, "baichuan2").name == "baichuan2"
    with pytest.raises(ModelError, match=r"this is no checkpoint of baichuan2"):
        family_of({**config, "vocab_size": 64000}, "baichuan2")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 4096, "max_position_embeddings": None}, r"hidden_size = 4096, .* have rotary positions"),
        ({"hidden_size": 5120}, r"hidden_size = 5120, .* have ALiBi and no max_position_embeddings"),
        ({"hidden_act": "gelu"}, r"hidden_act = 'gelu', and only 'silu' is known"),
        ({"rope_scaling": {"type": "dynamic"}}, r"rope_scaling = .* and only None is known"),
        ({"num_key_value_heads": 1}, r"num_key_value_heads = 1, and only 5 is known"),
        ({"intermediate_size": None}, r"intermediate_size missing"),
    ],
)
def test_other_variants_are_refused(change: dict[str, Any], said: str) -> None:
    config = {key: value for key, value in reference.legacy_config("7B", **change).items() if value is not None}
    with pytest.raises(ModelError, match=said):
        baichuan.config_of(config)


def test_another_w_pack_is_refused() -> None:
    with pytest.raises(ModelError, match=r"W_pack\.weight has the shape \(60, 40\), and only q, k and v of 40 rows each"):
        list(
            baichuan.tensors_of("model.layers.0.self_attn.W_pack.weight", torch.zeros(60, 40), reference.SIZES, norm_head=False)
        )


def test_a_row_of_zeros_in_the_head_stays_one() -> None:
    ((_, head),) = baichuan.tensors_of(
        "lm_head.weight", torch.tensor([[0.0, 0.0], [3.0, 4.0]]), reference.SIZES, norm_head=True
    )
    assert torch.allclose(head, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


# -- the way back ---------------------------------------------------------------------------------------------------


def test_the_way_back_gives_the_same_model(ready: Ready) -> None:
    variant, weights, model = ready
    norm_head = variant.startswith("2")
    old = dict(baichuan.legacy_tensors(model.state_dict().items(), norm_head=norm_head))
    kept = {name for name in weights if not name.endswith(("inv_freq", "future_mask"))}
    assert set(old) == kept
    for name in kept - {"lm_head.weight"}:
        assert torch.equal(old[name], weights[name])
    ids = _ids(41)
    before, after = reference.of_ids(weights, variant, ids), reference.of_ids(old, variant, ids)
    assert float((before - after).abs().max()) < TIGHT
    config = baichuan.legacy_config(model.config.to_dict(), norm_head=norm_head)
    native = baichuan.config_of(config)
    wrote = baichuan.config_of(reference.legacy_config(variant))
    assert native == wrote
    assert config["architectures"] == reference.VARIANTS[variant][0]["architectures"]
    assert "auto_map" not in config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_freely_trained_head_is_refused(dtype: torch.dtype) -> None:
    rows = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    ((_, folded),) = baichuan.tensors_of("lm_head.weight", rows, reference.SIZES, norm_head=True)
    assert [name for name, _ in baichuan.legacy_tensors([("lm_head.weight", folded)], norm_head=True)] == ["lm_head.weight"]
    folded[3] *= 1.02
    with pytest.raises(ModelError, match=r"the head was trained freely, .* scale its rows again"):
        list(baichuan.legacy_tensors([("lm_head.weight", folded)], norm_head=True))
    list(baichuan.legacy_tensors([("lm_head.weight", folded)], norm_head=False))


def test_what_the_old_code_cannot_hold_is_refused() -> None:
    native = baichuan.config_of(reference.legacy_config("7B"))
    for change, said in (
        ({"model_type": "mistral"}, r"model_type 'mistral': only a converted Baichuan"),
        ({"attention_bias": True}, r"attention_bias = True"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            r"rope_parameters = .* unscaled positions of base 10000 only",
        ),
    ):
        with pytest.raises(ModelError, match=said):
            baichuan.legacy_config({**native, **change}, norm_head=False)
    part = [("model.layers.0.self_attn.q_proj.weight", torch.zeros(4, 4))]
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn: only q_proj are there; W_pack needs all of"):
        list(baichuan.legacy_tensors(part, norm_head=False))
