"""Attention that keeps the documents of one flat row apart, on every device, and the proof that it does.

Four backends take ``cu_seq_lens_q`` (document borders) and no mask:

=================  ==========================================================  ==========================
``vicugna_cudnn``  cuDNN, if nvidia-cudnn-frontend is installed                 Hopper, bfloat16 and float16
``vicugna_flash``  flash-attn 2, 3 or 4, if installed                           CUDA, bfloat16 and float16
``vicugna_varlen`` ``torch.nn.attention.varlen.varlen_attn`` (torch >= 2.10)     CUDA, bfloat16 and float16
``vicugna_sdpa``   one causal SDPA per document                                 everything else
=================  ==========================================================  ==========================

They are registered under their own names by the public interface of transformers and no mask function with them, so none is built:
transformers' own packed masks hold only while position ids restart, no mask is given and no cache is made, leak silently otherwise, and
are looked for with a host sync in every forward pass. :func:`check_isolation` runs two documents through the real model before training
and refuses to go on if they interact.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sft.data.collate import flat_batch
from sft.errors import IsolationError, ModelError
from sft.model import capability, cudnn_attention, flash_kernels

FLAT_BACKENDS = ("vicugna_cudnn", "vicugna_flash", "vicugna_varlen", "vicugna_sdpa")


_last_lengths: tuple[weakref.ref[Tensor], int, list[int]] | None = None
"""Of the borders that were read last, and which state of them: every layer gets the same tensor, and each look at it waits for the GPU."""


def _lengths(cu_seq_lens: Tensor) -> list[int]:
    """Tokens of each document; empty ones, which fill up a compiled row's borders, are left out."""
    global _last_lengths  # of one entry
    state = -1 if cu_seq_lens.is_inference() else cu_seq_lens._version  # such tensors count no changes
    if _last_lengths is not None and state >= 0 and _last_lengths[0]() is cu_seq_lens and _last_lengths[1] == state:
        return _last_lengths[2]
    lengths = [b - a for a, b in itertools.pairwise(cu_seq_lens.tolist()) if b > a]
    _last_lengths = (weakref.ref(cu_seq_lens), state, lengths)
    return lengths


def _refuse_extras(name: str, dropout: float, extras: dict[str, Any]) -> None:
    if extras.get("softcap"):
        raise ModelError(f"{name}: this model caps its attention scores; set train.batching: padded and model.attention: eager")
    if extras.get("s_aux") is not None:
        raise ModelError(f"{name}: this model uses attention sinks; set train.batching: padded and model.attention: eager")
    if dropout and name != "vicugna_sdpa":
        raise ModelError(f"{name}: no attention dropout in this kernel; set attention_dropout to 0 or model.attention: sdpa")


def _repeat_heads(states: Tensor, heads: int) -> Tensor:
    return states if states.shape[1] == heads else states.repeat_interleave(heads // states.shape[1], dim=1)


def _causal_piece(q: Tensor, k: Tensor, v: Tensor, scale: float | None, dropout: float, window: int | None) -> Tensor:
    """Causal attention of one document, ``[B, H, T, D]``; ``window`` is the number of visible tokens, itself included."""
    queries, keys = q.shape[2], k.shape[2]
    mask = None
    causal = queries == keys and queries > 1
    if (window is not None and keys > window) or (queries != keys and queries > 1):
        row = torch.arange(keys - queries, keys, device=q.device)[:, None]
        column = torch.arange(keys, device=q.device)[None]
        mask = (column <= row) & (column > row - (window or keys))
        causal = False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it reads the borders, of which every row has others
def block_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """One causal SDPA per document. Query ``[1, H, N, D]``, key and value ``[1, Hkv, N, D]`` -> ``[1, N, H, D]``.

    Without borders the whole row is one document, as in generation of a single prompt.
    """
    _refuse_extras("vicugna_sdpa", dropout, extras)
    heads = query.shape[1]
    key, value = _repeat_heads(key, heads), _repeat_heads(value, heads)
    lengths = [key.shape[2]] if cu_seq_lens_q is None else _lengths(cu_seq_lens_q)
    if len(lengths) == 1:
        out = _causal_piece(query, key, value, scaling, dropout, sliding_window)
    else:  # split, not sliced: the gradient of a slice is a tensor of the whole row, one for each document
        documents = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
        out = torch.cat([_causal_piece(q, k, v, scaling, dropout, sliding_window) for q, k, v in documents], dim=2)
    return out.transpose(1, 2).contiguous(), None


_kernels: dict[str, Callable[..., Tensor]] = {}
"""The varlen kernels, once asked for: compiled layers must find them ready, for a signature or a package cannot be looked up in them."""


def _varlen_call() -> Callable[..., Tensor]:
    """torch's varlen kernel behind one signature; the library's own moved with every release (2.10, 2.11, 2.12)."""
    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters

    def call(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int, scale: float | None, window: int | None) -> Tensor:
        options: dict[str, Any] = {"scale": scale}
        if "window_size" in names:
            options["window_size"] = (-1 if window is None else window - 1, 0)
        elif window is None:
            options["is_causal"] = True
        else:
            raise ModelError("vicugna_varlen: sliding windows need torch 2.11 or newer; set model.attention: sdpa")
        if k.shape[1] != q.shape[1]:
            if "enable_gqa" in names:
                options["enable_gqa"] = True
            else:
                k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        out = varlen_attn(q, k, v, cu, cu, longest, longest, **options)
        return out[0] if isinstance(out, tuple) else out

    return call


def _for_kernel(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``[1, H, N, D]`` -> ``[N, H, D]`` in the type of the products.

    Under autocast RoPE promotes queries and keys to float32 and quantised bases return float32; SDPA would cast by itself, the
    varlen kernels do not.
    """
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    q, k, v = (states.squeeze(0).transpose(0, 1).to(dtype) for states in (query, key, value))
    return q, k, v


def varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """torch's varlen kernel. Shapes as :func:`block_sdpa`; bfloat16 or float16 on CUDA."""
    if cu_seq_lens_q is None:
        return block_sdpa(module, query, key, value, None, dropout, scaling, sliding_window, **extras)
    _refuse_extras("vicugna_varlen", dropout, extras)
    q, k, v = _for_kernel(query, key, value)
    longest = max_length_q or q.shape[0]
    if "varlen" not in _kernels:
        _kernels["varlen"] = _varlen_call()
    out = _kernels["varlen"](q, k, v, cu_seq_lens_q, longest, scaling, sliding_window)
    return out.unsqueeze(0), None


def flash(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """flash-attn's varlen kernel (:mod:`sft.model.flash_kernels`). Shapes as :func:`block_sdpa`."""
    if cu_seq_lens_q is None:
        return block_sdpa(module, query, key, value, None, dropout, scaling, sliding_window, **extras)
    _refuse_extras("vicugna_flash", dropout, extras)
    q, k, v = _for_kernel(query, key, value)
    if "flash" not in _kernels:
        _kernels["flash"] = flash_kernels.kernel(torch.cuda.get_device_capability(q.device))
    out = _kernels["flash"](q, k, v, cu_seq_lens_q, max_length_q or q.shape[0], scaling, sliding_window)
    return out.unsqueeze(0), None


def cudnn(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """cuDNN's kernel (:mod:`sft.model.cudnn_attention`), torch's where there is a window or a head of more than 128 numbers, which was
    not measured on cuDNN (ALiBi: 136). Shapes as :func:`block_sdpa`.
    """
    if cu_seq_lens_q is None:
        return block_sdpa(module, query, key, value, None, dropout, scaling, sliding_window, **extras)
    if sliding_window is not None or query.shape[-1] > 128:
        return varlen(module, query, key, value, None, dropout, scaling, sliding_window, cu_seq_lens_q, max_length_q, **extras)
    _refuse_extras("vicugna_cudnn", dropout, extras)
    q, k, v = _for_kernel(query, key, value)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    out, _ = cudnn_attention.cudnn_attention(q, k, v, cu_seq_lens_q, max_length_q or q.shape[0], scale)
    return out.unsqueeze(0), None


def register() -> None:
    """Make the backends known to transformers, and keep torch's SDPA off cuDNN. Safe to call again.

    On Hopper SDPA prefers cuDNN, whose graphs are built anew for every length of a document, for tenths of a second each.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    torch.backends.cuda.enable_cudnn_sdp(False)

    backends = {"vicugna_sdpa": block_sdpa, "vicugna_varlen": varlen, "vicugna_flash": flash, "vicugna_cudnn": cudnn}
    for name, function in backends.items():
        ALL_ATTENTION_FUNCTIONS.register(name, function)


def choose(wanted: str, flat: bool, dtype: torch.dtype, device: torch.device) -> str:
    """The attention implementation to load a model with.

    Args:
        wanted: ``model.attention`` of the recipe.
        flat: flat rows, or padded rectangles (which take transformers' own ``sdpa`` and ``eager``).
        dtype: of the products.
        device: where the model runs.

    Raises:
        ModelError: a kernel that this machine or type cannot run.
    """
    if not flat:
        return "eager" if wanted == "eager" else "sdpa"
    kernel_ready = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    card = torch.cuda.get_device_capability(device) if kernel_ready else (0, 0)
    kernel_ready = card >= capability.VARLEN
    have_flash = flash_kernels.newest(card) is not None
    have_varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    if wanted == "flash" and not (have_flash and kernel_ready):
        raise ModelError(
            "model.attention: flash needs flash-attn (2, 3 or 4, as the card can run), a CUDA device and bfloat16 or float16; try auto"
        )
    if wanted == "varlen" and not (have_varlen and kernel_ready):
        raise ModelError("model.attention: varlen needs torch 2.10, a CUDA device and bfloat16 or float16; try auto")
    have_cudnn = cudnn_attention.installed()
    if wanted == "cudnn" and not (have_cudnn and kernel_ready):
        raise ModelError("model.attention: cudnn needs nvidia-cudnn-frontend, a CUDA device and bfloat16 or float16; try auto")
    if wanted == "cudnn" or (wanted == "auto" and have_cudnn and kernel_ready and _ahead(device)):
        return "vicugna_cudnn"
    if wanted == "flash" or (wanted == "auto" and have_flash and kernel_ready):
        return "vicugna_flash"
    if wanted == "varlen" or (wanted == "auto" and have_varlen and kernel_ready):
        return "vicugna_varlen"
    return "vicugna_sdpa"


def _ahead(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= cudnn_attention.MINOR


@torch.no_grad()
def check_isolation(model: nn.Module, vocab_size: int, *, tolerance: float, seed: int = 0) -> dict[str, float]:
    """Prove on the real model and backend that documents of a flat row cannot see each other.

    Two documents run in one row. Changing every token of the first must not change the second (``leak``), and the second must come
    out as it does alone (``alone``: restarted positions, right borders). A leaking backend gives errors near 1.

    Equal shapes take equal kernels, so ``leak`` is 0 wherever running the same row twice gives the same bits: it is held to twice
    that difference, in every type. Only ``alone`` compares rows of different lengths, which round differently.

    bitsandbytes' int8 layers have a path of their own between rows: an outlier in one row moves its column out of int8 for all
    rows of the batch. It is shut while the backend is measured, and then measured by itself (``int8_outliers``): a rounding
    that depends on what else is in the batch, padded or flat, and no sight of other documents.

    Args:
        model: in the state and on the device that training will use.
        vocab_size: tokens are drawn below this.
        tolerance: largest allowed ``alone``, relative to the largest logit.
        seed: draws the tokens.

    Returns:
        ``{"leak": ..., "alone": ...}`` and, for an int8 base, ``int8_outliers``, relative to the largest logit.

    Raises:
        IsolationError: with both figures and what to change.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    first, other, second = (rng.integers(0, vocab_size, n).astype(np.int32) for n in (13, 13, 19))
    training = model.training
    model.eval()
    try:
        with _without_outliers(model) as quantised:
            here, again = (_last_logits(model, (first, second)) for _ in range(2))
            changed, alone = _last_logits(model, (other, second)), _last_logits(model, (second,))
        scale = float(here.abs().max().clamp(min=1e-6))
        noise = float((here - again).abs().max()) / scale
        found = {"leak": float((here - changed).abs().max()) / scale, "alone": float((here - alone).abs().max()) / scale}
        if quantised:
            mixed = _last_logits(model, (first, second)) - _last_logits(model, (other, second))
            found["int8_outliers"] = float(mixed.abs().max()) / scale
    finally:
        model.train(training)
    if not (found["leak"] <= 2 * noise and found["alone"] <= tolerance):
        raise IsolationError(
            f"documents of one flat row see each other (leak {found['leak']:.1e}, allowed {2 * noise:.0e}; against alone "
            f"{found['alone']:.1e}, allowed {tolerance:.0e} of the largest logit): {type(model).__name__} ignores the document "
            "borders; set train.batching: padded"
        )
    return found


def _last_logits(model: nn.Module, documents: Sequence[Any]) -> Tensor:
    """Float32 logits of the last document of one flat row, ``[T, V]``."""
    device = next(model.parameters()).device
    batch = flat_batch([(ids, np.ones(len(ids), dtype=np.bool_)) for ids in documents], 1, documents=3)
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    for key in ("predict_at", "targets", "step_tokens"):
        inputs.pop(key)
    return model(**inputs, use_cache=False).logits[0, -len(documents[-1]) :].float()


@contextmanager
def _without_outliers(model: nn.Module) -> Iterator[bool]:
    """bitsandbytes' int8 layers without outlier detection (``llm_int8_threshold``) for a while. Yields whether there are any."""
    states: list[Any] = [m.state for m in model.modules() if hasattr(getattr(m, "state", None), "threshold")]
    before = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield bool(states)
    finally:
        for state, threshold in zip(states, before, strict=True):
            state.threshold = threshold


def isolation_tolerance(dtype: torch.dtype, quantization: str) -> float:
    """How far rounding alone may move a logit between rows of different lengths, relative to the largest one.

    An int8 layer turns the last bit of a float into a step of 1/127 of the row's largest value, now and then.
    """
    least = 3e-2 if quantization == "int8" else 0.0
    return max({torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype], least)
