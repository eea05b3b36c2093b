"""The backend that is chosen keeps documents apart; one that leaks, however little, is refused before training."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sft.errors import IsolationError, ModelError
from sft.model import attention, flash_kernels
from sft.model.attention import block_sdpa, check_isolation, choose, isolation_tolerance, register
from sft.train import run
from tests.builders import LLAMA, OPT, byte_level, save_tiny, tiny_model
from tests.runs import tiny_recipe

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HALF, FULL = torch.bfloat16, torch.float32
VOCAB = 300


# -- the choice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packages", "capability", "dtype", "device", "chosen"),
    [
        ("cudnn flash-attn varlen", (9, 0), HALF, CUDA, "vicugna_cudnn"),
        ("cudnn flash-attn varlen", (8, 0), HALF, CUDA, "vicugna_flash"),
        ("cudnn varlen", (8, 0), HALF, CUDA, "vicugna_varlen"),
        ("flash-attn varlen", (9, 0), HALF, CUDA, "vicugna_flash"),
        ("varlen", (9, 0), HALF, CUDA, "vicugna_varlen"),
        ("varlen", (9, 0), torch.float16, CUDA, "vicugna_varlen"),
        ("", (9, 0), HALF, CUDA, "vicugna_sdpa"),
        ("cudnn flash-attn varlen", (9, 0), FULL, CUDA, "vicugna_sdpa"),
        ("cudnn flash-attn varlen", (9, 0), HALF, CPU, "vicugna_sdpa"),
    ],
)
def test_auto_takes_the_best_kernel_there_is(
    monkeypatch: pytest.MonkeyPatch,
    packages: str,
    capability: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    chosen: str,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: find("torch") if name.split(".")[-1] in packages.split() else None
    )
    monkeypatch.setattr(flash_kernels, "_is_installed", lambda version: version.distribution in packages.split())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose("auto", True, dtype, device) == chosen


@pytest.mark.parametrize("wanted", ["flash", "varlen", "cudnn"])
def test_a_kernel_that_cannot_run_is_refused(wanted: str) -> None:
    for dtype, device in ((HALF, CPU), (FULL, CUDA)):
        with pytest.raises(
            ModelError, match=rf"model\.attention: {wanted} needs .* CUDA device and bfloat16 or float16; try auto"
        ):
            choose(wanted, True, dtype, device)


@pytest.mark.parametrize(("wanted", "chosen"), [("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")])
def test_padded_rectangles_take_the_librarys_own(wanted: str, chosen: str) -> None:
    assert choose(wanted, False, HALF, CUDA) == chosen


@pytest.mark.parametrize("name", ["vicugna_sdpa", "vicugna_varlen", "vicugna_flash"])
@pytest.mark.parametrize(
    ("extra", "said"), [({"softcap": 30.0}, "caps its attention scores"), ({"s_aux": 1}, "attention sinks")]
)
def test_models_with_extras_are_refused(name: str, extra: dict[str, Any], said: str) -> None:
    q = torch.zeros(1, 2, 4, 8)
    function = {"vicugna_sdpa": block_sdpa, "vicugna_varlen": attention.varlen, "vicugna_flash": attention.flash}[name]
    cu = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ModelError, match=rf"{name}: this model .*{said}; set train\.batching: padded"):
        function(torch.nn.Module(), q, q, q, None, cu_seq_lens_q=cu, **extra)


@pytest.mark.parametrize("function", [attention.varlen, attention.flash])
def test_kernels_without_dropout_refuse_it(function: Any) -> None:
    q, cu = torch.zeros(1, 2, 4, 8), torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ModelError, match=r"no attention dropout in this kernel; set attention_dropout to 0"):
        function(torch.nn.Module(), q, q, q, None, dropout=0.1, cu_seq_lens_q=cu)


# -- the reference kernel -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 3])
def test_block_sdpa_is_masked_attention(heads: int, window: int | None) -> None:
    """Against one dense attention under the mask written out: same document, not later, at most ``window`` back."""
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 12, 8), torch.randn(1, heads, 12, 8), torch.randn(1, heads, 12, 8)
    cu = torch.tensor([0, 5, 6, 12, 12], dtype=torch.int32)  # padded with an empty document
    document = torch.tensor([0] * 5 + [1] + [2] * 6)
    at = torch.arange(12)
    seen = (document[:, None] == document[None]) & (at[:, None] >= at[None])
    if window is not None:
        seen &= at[:, None] - at[None] < window
    wide_k, wide_v = (x.repeat_interleave(4 // heads, dim=1) for x in (k, v))
    wanted = F.scaled_dot_product_attention(q, wide_k, wide_v, attn_mask=seen, scale=0.3).transpose(1, 2)
    found, _ = block_sdpa(torch.nn.Module(), q, k, v, None, scaling=0.3, sliding_window=window, cu_seq_lens_q=cu)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_borders_are_read_once_and_again_when_they_change() -> None:
    """Each look at a tensor on the GPU waits for it; a borders tensor that was filled anew must not be taken for the old one."""
    cu = torch.tensor([0, 5, 6, 12, 12], dtype=torch.int32)
    first = attention._lengths(cu)
    assert first == [5, 1, 6]
    assert attention._lengths(cu) is first
    cu[1] = 4
    assert attention._lengths(cu) == [4, 2, 6]
    assert attention._lengths(torch.tensor([0, 12], dtype=torch.int32)) == [12]
    with torch.inference_mode():
        uncounted = torch.tensor([0, 3, 12], dtype=torch.int32)
        assert attention._lengths(uncounted) == [3, 9]
        uncounted[1] = 2
        assert attention._lengths(uncounted) == [2, 10]


def test_sdpa_is_kept_off_cudnn() -> None:
    """It would build a graph for every length of a document: one layer took over a second on an H200."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    register()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


# -- the proof ------------------------------------------------------------------------------------------------------


def _leaking(strength: float) -> Any:
    """A backend that mixes ``strength`` of attention over the whole row into attention by document."""

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        apart, _ = block_sdpa(module, query, key, value, mask, **options)
        together, _ = block_sdpa(module, query, key, value, mask, **(options | {"cu_seq_lens_q": None}))
        return (1 - strength) * apart + strength * together, None

    return attend


@pytest.fixture
def leaking(request: pytest.FixtureRequest) -> Iterator[str]:
    register()
    name = "leaking_in_tests"
    ALL_ATTENTION_FUNCTIONS.register(name, _leaking(request.param))
    yield name
    ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name)


@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
@pytest.mark.parametrize("dtype", [FULL, HALF])
def test_our_backend_isolates_to_the_bit(config: dict[str, Any], dtype: torch.dtype) -> None:
    register()
    model = tiny_model(VOCAB, config).to(dtype)
    model.set_attn_implementation("vicugna_sdpa")
    model.train()
    found = check_isolation(model, VOCAB, tolerance=isolation_tolerance(dtype, "none"))
    assert found["leak"] == 0.0
    assert found.keys() == {"leak", "alone"}
    assert model.training


def test_no_mask_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for packed documents in position ids reads a number from the GPU, in every forward pass."""
    register()
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda *_: pytest.fail("looked"))
    model = tiny_model(VOCAB, LLAMA)
    ids = torch.arange(8)[None]
    positions = torch.arange(4).repeat(2)[None]
    model.set_attn_implementation("sdpa")
    with pytest.raises(pytest.fail.Exception, match="looked"):
        model(input_ids=ids, position_ids=positions, use_cache=False)
    model.set_attn_implementation("vicugna_sdpa")
    model(input_ids=ids, position_ids=positions, use_cache=False, cu_seq_lens_q=torch.tensor([0, 4, 8], dtype=torch.int32))


@pytest.mark.parametrize("leaking", [1.0, 1e-2, 1e-3], indirect=True)
@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
@pytest.mark.parametrize("dtype", [FULL, HALF])
def test_a_leak_below_any_rounding_bound_is_found(leaking: str, config: dict[str, Any], dtype: torch.dtype) -> None:
    """bfloat16 rounds logits by percents; what another document changes is still not rounding."""
    model = tiny_model(VOCAB, config)
    model.set_attn_implementation(leaking)
    with (
        torch.autocast("cpu", dtype=HALF, enabled=dtype == HALF),
        pytest.raises(
            IsolationError,
            match=r"see each other \(leak .*, allowed 0e\+00; .*ForCausalLM ignores .* set train\.batching: padded",
        ),
    ):
        check_isolation(model, VOCAB, tolerance=isolation_tolerance(dtype, "none"))


def test_positions_that_run_on_are_found() -> None:
    """Nothing leaks, but the second document stands elsewhere than alone: a model that ignores position_ids."""
    register()
    model = tiny_model(VOCAB, OPT)
    model.set_attn_implementation("vicugna_sdpa")
    positions = model.model.decoder.embed_positions
    original = positions.forward

    def running_on(mask: torch.Tensor, *args: Any, position_ids: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        length = mask.shape[-1] if position_ids is None else position_ids.shape[-1]
        return original(mask, *args, position_ids=torch.arange(length)[None], **options)

    positions.forward = running_on
    with pytest.raises(IsolationError, match=r"leak 0\.0e\+00, .*against alone [1-9]"):
        check_isolation(model, VOCAB, tolerance=1e-4)


@pytest.mark.parametrize("leaking", [1.0], indirect=True)
def test_a_run_stops_before_its_first_step(leaking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft.model.load.choose", lambda *_: leaking)
    recipe = tiny_recipe(tmp_path / "run")
    with pytest.raises(IsolationError, match="documents of one flat row see each other"):
        run(recipe)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# -- int8 -----------------------------------------------------------------------------------------------------------


def int8_model(folder: Path, attention_name: str, dtype: torch.dtype) -> Any:
    """Wide enough that activations pass bitsandbytes' outlier threshold of 6."""
    register()
    wide = LLAMA | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    base = save_tiny(folder, byte_level(), wide)
    config = BitsAndBytesConfig(load_in_8bit=True)
    options: dict[str, Any] = {"quantization_config": config, "device_map": {"": "cpu"}, "dtype": dtype}
    return AutoModelForCausalLM.from_pretrained(base, attn_implementation=attention_name, **options)


@pytest.mark.parametrize("dtype", [FULL, HALF])
def test_int8_outliers_are_told_from_a_leak(tmp_path: Path, dtype: torch.dtype) -> None:
    """An outlier in one document moves its column out of int8 for the whole batch: measured apart, and put back."""
    model = int8_model(tmp_path / "base", "vicugna_sdpa", dtype)
    with torch.autocast("cpu", dtype=HALF, enabled=dtype == HALF):
        found = check_isolation(model, len(byte_level()), tolerance=isolation_tolerance(dtype, "int8"))
    assert found["leak"] == 0.0
    assert found["int8_outliers"] > 1e-3
    thresholds = {m.state.threshold for m in model.modules() if hasattr(getattr(m, "state", None), "threshold")}
    assert thresholds == {6.0}


@pytest.mark.parametrize("leaking", [1e-3], indirect=True)
def test_a_leak_in_int8_is_found(leaking: str, tmp_path: Path) -> None:
    model = int8_model(tmp_path / "base", leaking, FULL)
    with pytest.raises(IsolationError, match="documents of one flat row see each other"):
        check_isolation(model, len(byte_level()), tolerance=isolation_tolerance(FULL, "int8"))
