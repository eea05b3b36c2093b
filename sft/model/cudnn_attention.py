"""cuDNN's attention over the documents of a flat row: on Hopper well ahead of the kernel that torch brings, forward and backward.

torch can call it too, but builds its plan anew at every call, which costs 50 ms each. Here a plan is built once for a shape: the documents
lie as ragged rows in one buffer (their starts are data), so the length of the row is not part of it, and the number of documents and
the longest of them are fixed for a run (:class:`sft.engine.batches.PlannedBatches`).

Needs the package ``nvidia-cudnn-frontend`` (the extra ``cudnn``) and the cuDNN that torch brings.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

MINOR = (9, 0)
"""Least compute capability at which it was measured to be ahead."""


def installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("cudnn") is not None


@dataclass(frozen=True, slots=True)
class Shape:
    """What a plan depends on: documents, heads of queries and of keys, head size, longest document, type, device, scale."""

    documents: int
    heads: int
    kv_heads: int
    size: int
    longest: int
    dtype: torch.dtype
    device: int
    scale: float
    deterministic: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """A built graph, its tensors by name, and the bytes that it works in."""

    graph: Any
    tensors: dict[str, Any]
    workspace: int


@lru_cache
def _handle(device: int) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()


def _begin(shape: Shape) -> tuple[Any, dict[str, Any]]:
    """A graph with the tensors that both directions read."""
    import cudnn

    kind = cudnn.data_type.BFLOAT16 if shape.dtype == torch.bfloat16 else cudnn.data_type.HALF
    wide = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=kind, intermediate_data_type=wide, compute_data_type=wide, handle=_handle(shape.device))
    found: dict[str, Any] = {}
    for name, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
        found[name] = graph.tensor(name=name, dim=_dims(shape, heads), stride=_strides(shape, heads), data_type=kind)
    for name in ("q_start", "kv_start", "stats_start"):
        found[name] = graph.tensor(
            name=name, dim=(shape.documents + 1, 1, 1, 1), stride=(1, 1, 1, 1), data_type=cudnn.data_type.INT32
        )
    found["lengths"] = graph.tensor(
        name="lengths", dim=(shape.documents, 1, 1, 1), stride=(1, 1, 1, 1), data_type=cudnn.data_type.INT32
    )
    found["q"].set_ragged_offset(found["q_start"])
    found["k"].set_ragged_offset(found["kv_start"])
    found["v"].set_ragged_offset(found["kv_start"])
    return graph, found


def _dims(shape: Shape, heads: int) -> tuple[int, ...]:
    return (shape.documents, heads, shape.longest, shape.size)


def _strides(shape: Shape, heads: int) -> tuple[int, ...]:
    return (shape.longest * heads * shape.size, shape.size, heads * shape.size, 1)


def _stats_layout(shape: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (shape.documents, shape.heads, shape.longest, 1), (shape.longest * shape.heads, 1, shape.heads, 1)


def _finish(shape: Shape, graph: Any, tensors: dict[str, Any]) -> Plan:
    import cudnn

    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    return Plan(graph, tensors, int(graph.get_workspace_size()))


@lru_cache
def _forward_plan(shape: Shape) -> Plan:
    import cudnn

    graph, t = _begin(shape)
    out, stats = graph.sdpa(
        name="forward",
        q=t["q"],
        k=t["k"],
        v=t["v"],
        generate_stats=True,
        attn_scale=shape.scale,
        use_padding_mask=True,
        seq_len_q=t["lengths"],
        seq_len_kv=t["lengths"],
        diagonal_alignment=cudnn.diagonal_alignment.TOP_LEFT,
        diagonal_band_right_bound=0,
    )
    out.set_output(True).set_dim(_dims(shape, shape.heads)).set_stride(_strides(shape, shape.heads))
    out.set_ragged_offset(t["q_start"])
    dims, strides = _stats_layout(shape)
    stats.set_output(True).set_data_type(cudnn.data_type.FLOAT).set_dim(dims).set_stride(strides)
    stats.set_ragged_offset(t["stats_start"])
    return _finish(shape, graph, {**t, "out": out, "stats": stats})


@lru_cache
def _backward_plan(shape: Shape) -> Plan:
    import cudnn

    graph, t = _begin(shape)
    for name in ("out", "d_out"):
        t[name] = graph.tensor(name=name, dim=_dims(shape, shape.heads), stride=_strides(shape, shape.heads))
        t[name].set_ragged_offset(t["q_start"])
    dims, strides = _stats_layout(shape)
    t["stats"] = graph.tensor(name="stats", dim=dims, stride=strides, data_type=cudnn.data_type.FLOAT)
    t["stats"].set_ragged_offset(t["stats_start"])
    made = graph.sdpa_backward(
        name="backward",
        q=t["q"],
        k=t["k"],
        v=t["v"],
        o=t["out"],
        dO=t["d_out"],
        stats=t["stats"],
        attn_scale=shape.scale,
        use_padding_mask=True,
        seq_len_q=t["lengths"],
        seq_len_kv=t["lengths"],
        diagonal_alignment=cudnn.diagonal_alignment.TOP_LEFT,
        diagonal_band_right_bound=0,
        use_deterministic_algorithm=shape.deterministic,
    )
    for name, tensor in zip(("dq", "dk", "dv"), made, strict=True):
        heads = shape.heads if name == "dq" else shape.kv_heads
        tensor.set_output(True).set_dim(_dims(shape, heads)).set_stride(_strides(shape, heads))
        tensor.set_ragged_offset(t["q_start" if name == "dq" else "kv_start"])
        t[name] = tensor
    return _finish(shape, graph, t)


def _shape(q: Tensor, k: Tensor, borders: Tensor, longest: int, scale: float) -> Shape:
    deterministic = torch.are_deterministic_algorithms_enabled()
    return Shape(
        borders.shape[0] - 1, q.shape[1], k.shape[1], q.shape[2], longest, q.dtype, q.device.index, scale, deterministic
    )


def _run(plan: Plan, shape: Shape, borders: Tensor, given: dict[str, Tensor]) -> None:
    import cudnn

    handle = _handle(shape.device)
    cudnn.set_stream(handle, torch.cuda.current_stream(shape.device).cuda_stream)
    borders = borders.to(torch.int32)
    starts = {
        "q_start": borders * (shape.heads * shape.size),
        "kv_start": borders * (shape.kv_heads * shape.size),
        "stats_start": borders * shape.heads,
        "lengths": borders.diff(),
    }
    space = torch.empty(plan.workspace, dtype=torch.uint8, device=borders.device)
    plan.graph.execute({plan.tensors[name]: tensor for name, tensor in (given | starts).items()}, space, handle=handle)


@torch.library.custom_op("vicugna::cudnn_attention", mutates_args=(), device_types="cuda")
def cudnn_attention(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention inside each document.

    Args:
        q: bfloat16 or float16 ``[N, H, D]``.
        k, v: the same type, ``[N, Hkv, D]``.
        borders: int32 ``[documents + 1]``, where documents begin, and N; equal neighbours are empty documents.
        longest: at least the length of the longest document.
        scale: of the scores.

    Returns:
        ``[N, H, D]``, and the float32 log-sum-exp ``[N, H]`` of the scores.
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    shape = _shape(q, k, borders, longest, scale)
    out, stats = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    _run(_forward_plan(shape), shape, borders, {"q": q, "k": k, "v": v, "out": out, "stats": stats})
    return out, stats


@cudnn_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int, scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op("vicugna::cudnn_attention_backward", mutates_args=(), device_types="cuda")
def cudnn_attention_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, stats: Tensor, borders: Tensor, longest: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, in their shapes and types."""
    q, k, v, d_out = q.contiguous(), k.contiguous(), v.contiguous(), d_out.contiguous()
    shape = _shape(q, k, borders, longest, scale)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    given = {"q": q, "k": k, "v": v, "out": out, "d_out": d_out, "stats": stats, "dq": dq, "dk": dk, "dv": dv}
    _run(_backward_plan(shape), shape, borders, given)
    return dq, dk, dv


@cudnn_attention_backward.register_fake
def _(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, stats: Tensor, borders: Tensor, longest: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, borders, ctx.longest, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, borders, *output)


def _backward(ctx: Any, *upstream: Tensor) -> Any:
    q, k, v, borders, out, stats = ctx.saved_tensors
    made = cudnn_attention_backward(upstream[0], q, k, v, out, stats, borders, ctx.longest, ctx.scale)
    return (*made, None, None, None)


cudnn_attention.register_autograd(_backward, setup_context=_save)
