"""ALiBi inside of the dot product is ALiBi added to the scores, in every kernel, type and layout of a row."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from sft.model import attention, cudnn_attention
from sft.model.alibi import COLUMNS, MODEL_TYPE, AlibiColumns, AlibiConfig, AlibiForCausalLM, slopes
from sft.model.attention import check_isolation, isolation_tolerance, register
from sft.model.native import OWN_MODEL_TYPES, AutoConfig, AutoModelForCausalLM
from sft.train import run
from tests.builders import byte_level, save_tiny, tiny_model
from tests.model.families.reference_baichuan import additive_bias, slopes_by_the_paper
from tests.runs import tiny_recipe

ROOT = Path(__file__).resolve().parents[2]
ALIBI: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "max_position_embeddings": 4096,
}
VOCAB = 200
BACKENDS = ("eager", "sdpa", "vicugna_sdpa")


def _model(backend: str = "sdpa", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    register()
    model = tiny_model(VOCAB, ALIBI).to(dtype).eval()
    model.set_attn_implementation(backend)
    return model


def _ids(*shape: int) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(sum(shape)))


def _columns(heads: int, size: int, length: int, start: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    config = AlibiConfig(hidden_size=heads * size, num_attention_heads=heads)
    at = torch.arange(start, start + length)[None]
    query, key = AlibiColumns(config)(torch.zeros(1, length, heads * size), at)
    return query.to(dtype), key.to(dtype)


# -- the formula ----------------------------------------------------------------------------------------------------


def test_slopes_of_forty_heads() -> None:
    found = slopes(40)
    assert found[:3] == [2**-0.25, 2**-0.5, 2**-0.75]
    assert found[31:34] == [2**-8, 2**-0.125, 2**-0.375]
    assert found[39] == 2**-1.875


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12, 20, 32, 40])
def test_slopes_are_those_of_the_paper(heads: int) -> None:
    config = AlibiConfig(hidden_size=heads * 8, num_attention_heads=heads)
    assert slopes(heads) == pytest.approx(slopes_by_the_paper(heads), rel=1e-14)
    assert AlibiColumns(config)._slopes(torch.device("cpu")).tolist() == pytest.approx(slopes_by_the_paper(heads), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("start", [0, 3500, 32_000])
def test_the_columns_are_the_bias(dtype: torch.dtype, start: int) -> None:
    """But for what is the same for all keys of a query, which the softmax does not see. Every key stands where it did for the next one."""
    heads, size = 40, 128
    query, key = (x.double() for x in _columns(heads, size, 600, start, dtype))
    found = (query @ key.transpose(-1, -2))[0] * size**-0.5
    causal = torch.ones(600, 600).tril().bool()
    off = torch.where(causal, found - additive_bias(heads, 600, torch.float64), 0.0)
    middle = off.sum(-1, keepdim=True) / causal.sum(-1, keepdim=True)
    assert float(torch.where(causal, off - middle, 0.0).abs().max()) < (3e-3 if dtype == torch.float16 else 2e-5)
    assert float(middle.abs().max()) < 2**-16 * (start + 600)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_type_rounds_the_columns(dtype: torch.dtype) -> None:
    query, key = _columns(40, 128, 4096)
    assert query.shape[-1] == COLUMNS
    assert torch.equal(key.to(dtype).float(), key)
    assert float((query.to(dtype).float() - query).abs().max()) <= (2**-25 if dtype == torch.float16 else 0.0)
    assert float(query.abs().max()) < 65504


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_attention_with_columns_is_attention_with_the_bias(dtype: torch.dtype, most: float) -> None:
    """Exact but for the order of sums: the single sums of a kernel run in lanes, and those that hold large terms round in float32."""
    heads, size, length = 5, 64, 1500
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, size, generator=draw).to(dtype) for _ in range(3))
    bias = additive_bias(heads, length, torch.float64)[None]
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=bias)
    wide_q, wide_k = (torch.cat(pair, dim=-1) for pair in zip(_columns(heads, size, length, 0, dtype), (q, k), strict=True))
    found = F.scaled_dot_product_attention(wide_q, wide_k, v, is_causal=True, scale=size**-0.5)
    assert float((found.double() - exact).square().mean().sqrt()) < most


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eager", [False, True])
def test_no_further_from_float64_than_the_bias_that_is_added(dtype: torch.dtype, eager: bool) -> None:
    """Against ``softmax(q k + bias) v`` in float64: by columns, and with the bias added in the type of the model."""
    heads, size, length = 5, 64, 1500
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, size, generator=draw).to(dtype) for _ in range(3))
    bias = additive_bias(heads, length, torch.float64)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=bias[None])
    added = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(dtype)[None])
    wide_q, wide_k = (torch.cat(pair, dim=-1) for pair in zip(_columns(heads, size, length, 0, dtype), (q, k), strict=True))
    if eager:
        scores = (wide_q @ wide_k.transpose(-1, -2)) * size**-0.5 + additive_bias(1, length, dtype).mul(0).nan_to_num(
            neginf=0.0
        )
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), torch.finfo(dtype).min)
        found = scores.softmax(-1, dtype=torch.float32).to(dtype) @ v
        plain = (q @ k.transpose(-1, -2)) * size**-0.5 + bias.to(dtype)[None]
        added = plain.softmax(-1, dtype=torch.float32).to(dtype) @ v
    else:
        found = F.scaled_dot_product_attention(wide_q, wide_k, v, is_causal=True, scale=size**-0.5)
    ours, theirs = (float((x.double() - exact).square().mean().sqrt()) for x in (found, added))
    assert ours < 1.1 * theirs, (ours, theirs)


# -- the model ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_backends_agree() -> None:
    ids = _ids(1, 300)
    first, *others = (_model(name)(ids).logits for name in BACKENDS)
    for other in others:
        assert float((first - other).abs().max()) < 1e-5


@pytest.mark.parametrize(("size", "taken"), [(136, "varlen"), (128, "cudnn")])
def test_heads_that_cudnn_was_not_measured_with_take_torchs_kernel(
    monkeypatch: pytest.MonkeyPatch, size: int, taken: str
) -> None:
    called: list[str] = []
    monkeypatch.setattr(attention, "varlen", lambda *args: called.append("varlen"))

    def kernel(*args: Any) -> tuple[Tensor, None]:
        called.append("cudnn")
        return torch.zeros(4), None

    monkeypatch.setattr(cudnn_attention, "cudnn_attention", kernel)
    states = torch.zeros(1, 2, 4, size)
    attention.cudnn(torch.nn.Module(), states, states, states, None, cu_seq_lens_q=torch.tensor([0, 4]))
    assert called == [taken]


@torch.no_grad()
def test_positions_matter() -> None:
    """Without its columns the model would be one that knows no order but the causal one."""
    model, ids = _model(), _ids(1, 40)
    there = model(ids).logits
    still = model(ids, position_ids=torch.zeros(1, 40, dtype=torch.long), attention_mask=torch.ones(1, 40)).logits
    moved = model(ids, position_ids=torch.arange(40)[None] + 1000, attention_mask=torch.ones(1, 40)).logits
    assert float((there - still).abs().max()) > 1e-2
    assert float((there - moved).abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_documents_of_a_flat_row_do_not_see_each_other(dtype: torch.dtype) -> None:
    found = check_isolation(_model("vicugna_sdpa", dtype), VOCAB, tolerance=isolation_tolerance(dtype, "none"))
    assert found["leak"] == 0


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_restarted_positions_are_separate_rows(backend: str) -> None:
    model, texts = _model(backend), [_ids(1, length) for length in (140, 1, 33)]
    at = torch.cat([torch.arange(ids.shape[1]) for ids in texts])[None]
    found = model(torch.cat(texts, dim=1), position_ids=at, use_cache=False).logits
    wanted = torch.cat([model(ids, use_cache=False).logits for ids in texts], dim=1)
    assert float((found - wanted).abs().max()) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-13), (torch.float32, 5e-5)])
def test_the_cache_changes_nothing(backend: str, dtype: torch.dtype, most: float) -> None:
    """A single query takes another kernel than many, whose sums run in another order: float64 shows that there is no more to it."""
    model, ids = _model(backend, dtype), _ids(1, 150)
    whole = model(ids, use_cache=False).logits
    first = model(ids[:, :120], use_cache=True)
    rest, cache = [first.logits], first.past_key_values
    for place in range(120, 150):
        step = model(ids[:, place : place + 1], past_key_values=cache, use_cache=True)
        rest.append(step.logits)
    assert float((torch.cat(rest, dim=1) - whole).abs().max()) < most
    assert (cache.layers[0].keys.shape[-1], cache.layers[0].values.shape[-1]) == (8 + COLUMNS, 8)


@torch.no_grad()
def test_a_static_cache_and_left_padding_generate_the_same() -> None:
    model, ids = _model(), _ids(1, 12)
    options: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = model.generate(ids, **options)[0, 12:].tolist()
    held = StaticCache(config=model.config, max_cache_len=40)
    assert model.generate(ids, past_key_values=held, **options)[0, 12:].tolist() == wanted
    padded = torch.cat((torch.zeros(1, 9, dtype=torch.long), ids), dim=1)
    mask = (torch.arange(21)[None] >= 9).long()
    assert model.generate(padded, attention_mask=mask, **options)[0, 21:].tolist() == wanted


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_as_near_as_the_type(dtype: torch.dtype, backend: str) -> None:
    model, ids = _model(backend), _ids(1, 700)
    exact = model(ids).logits
    with torch.autocast("cpu", dtype=dtype):
        found = model(ids).logits
    assert found.dtype == dtype
    error = float((found.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert error < (2e-2 if dtype == torch.bfloat16 else 3e-3)


@torch.no_grad()
def test_a_model_cast_to_bfloat16_keeps_its_slopes() -> None:
    """A buffer of slopes would be rounded by ``.to``, and late keys shifted."""
    cast = _model().to(torch.bfloat16)
    wanted = AlibiColumns(cast.config)(torch.zeros(1, 50, 40), torch.arange(50)[None])
    found = cast.model.rotary_emb(torch.zeros(1, 50, 40, dtype=torch.bfloat16), torch.arange(50)[None])
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert list(cast.model.rotary_emb.buffers()) == []


def test_checkpointing_changes_no_gradient() -> None:
    ids, gradients = _ids(1, 60), []
    for checkpointing in (False, True):
        model = _model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_attention_weights_and_hidden_states_are_recorded() -> None:
    out = _model("eager")(_ids(1, 9), output_attentions=True, output_hidden_states=True)
    assert [tuple(x.shape) for x in out.attentions] == [(1, 5, 9, 9)] * 2
    assert len(out.hidden_states) == 3


# -- as files -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_saved_and_loaded_by_the_auto_classes(tmp_path: Path) -> None:
    model, ids = _model(), _ids(1, 50)
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert fields["model_type"] == MODEL_TYPE
    assert fields["architectures"] == ["AlibiForCausalLM"]
    assert fields.get("rope_parameters") is None
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(again) is AlibiForCausalLM
    assert isinstance(AutoConfig.from_pretrained(tmp_path), AlibiConfig)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert set(again._no_split_modules) == {"AlibiDecoderLayer"}


def test_a_recipe_trains_and_merges_it(tmp_path: Path) -> None:
    """Flat rows, LoRA on all linear layers, checkpointing: all that a run does with a model, the merge and its comparison too."""
    save_tiny(tmp_path / "base", byte_level(), ALIBI)
    recipe = tiny_recipe(tmp_path / "run", lora={"rank": 4, "alpha": 8}, output__merge=True, train__gradient_checkpointing=True)
    run(recipe)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged", dtype=torch.float32)
    assert type(merged) is AlibiForCausalLM
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = [row["loss"] for row in losses if "loss" in row]
    assert seen[-1] < seen[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_position_embeddings": 40_000}, r"max_position_embeddings = 40000: ALiBi is exact up to 32768 positions"),
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, r"num_key_value_heads: every head has its own slope"),
    ],
)
def test_what_it_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(StrictDataclassError, match=said):
        AlibiConfig(**{**{k: v for k, v in ALIBI.items() if k != "model_type"}, **change})


def test_auto_classes_come_from_one_place() -> None:
    """``sft`` that took them from transformers would not know our model types, unless something else had been imported before."""
    taken = []
    for path in sorted((ROOT / "sft").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "transformers":
                names = {alias.name for alias in node.names} & {"AutoConfig", "AutoModelForCausalLM"}
                taken += [path.name] * bool(names)
    assert sorted(taken) == ["alibi.py", "native.py"]
    assert MODEL_TYPE in OWN_MODEL_TYPES
