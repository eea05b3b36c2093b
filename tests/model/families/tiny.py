"""Tiny random checkpoints in legacy layouts, and what the driver makes of them without a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sft.model.families.convert import _write_weights, native_config, native_shapes
from sft.model.families.family import Family
from sft.model.families.legacy import open_legacy

State = dict[str, Tensor]
VOCABULARY = 320


@dataclass(frozen=True)
class Case:
    """A family with a tiny legacy checkpoint and the formula of the original.

    Attributes:
        kind: the family.
        config: legacy ``config.json``.
        state: legacy tensors.
        embed: ids ``[T]`` -> ``[T, H]``, on legacy tensors.
        logits: embeddings of one document -> ``[T, V]``, on legacy tensors.
    """

    kind: Family
    config: dict[str, Any]
    state: State
    embed: Callable[[State, Tensor], Tensor]
    logits: Callable[[State, Mapping[str, Any], Tensor], Tensor]

    def exact(self) -> State:
        """The legacy tensors in float64: what differs from the formula is then the rounding of the converted model alone."""
        return {name: value.double() for name, value in self.state.items()}

    def reference(self, ids: Tensor) -> Tensor:
        """Logits ``[T, V]`` of the original formula."""
        state = self.exact()
        with torch.no_grad():
            return self.logits(state, self.config, self.embed(state, ids))


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> State:
    """Weights large enough for logits of several units, so that every mistake is seen.

    Variances stay as they are from layer to layer: larger weights make attention so sharp that it multiplies float32's rounding.
    """
    torch.manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("causal_mask"):
            state[name] = torch.ones(shape, dtype=torch.bool).tril()
        elif name.endswith(".bias"):
            state[name] = 0.3 * torch.randn(shape)
        elif len(shape) == 1:
            state[name] = 1 + 0.2 * torch.randn(shape)
        else:
            looked_up, head = "embed" in name or "wte" in name, "lm_head" in name or "output_layer" in name
            state[name] = (1.0 if looked_up else (2.0 if head else 1.0) * shape[1] ** -0.5) * torch.randn(shape)
    return state


def write_legacy(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], files: int = 1, suffix: str = "bin"
) -> Path:
    """Write a folder; with several files, an index too."""
    folder.mkdir()
    write_files(folder, config, state, files, suffix)
    return folder


def write_files(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], files: int = 1, suffix: str = "bin"
) -> None:
    """Configuration and weights into a folder that is there."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    stem = "pytorch_model" if suffix == "bin" else "model"
    names = sorted(state)
    places: dict[str, str] = {}
    for number in range(files):
        file = f"{stem}.{suffix}" if files == 1 else f"{stem}-{number + 1:05d}-of-{files:05d}.{suffix}"
        part = {name: state[name] for name in names[number::files]}
        places |= dict.fromkeys(part, file)
        write_tensors(folder / file, part)
    if files > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """One weight file."""
    if path.suffix == ".bin":
        torch.save(dict(state), path)
    else:
        save_file({name: value.contiguous() for name, value in state.items()}, path)


def converted(kind: Family, source: Path, out: Path) -> Path:
    """The driver's work without the tokenizer: configuration and weights."""
    legacy = open_legacy(source)
    config = native_config(kind, legacy.config)
    out.mkdir()
    _write_weights(kind, legacy, out, native_shapes(config), None)
    config.save_pretrained(out)
    return out


def loaded(folder: Path, attention: str = "sdpa") -> Any:
    """The folder as transformers loads it, every weight accounted for."""
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    assert not any(told.values()), told
    return model.eval()


def native_of(case: Case, folder: Path, *, files: int = 1, suffix: str = "bin") -> Path:
    """Write a case's checkpoint, convert it, give the native folder."""
    return converted(case.kind, write_legacy(folder / "legacy", case.config, case.state, files, suffix), folder / "native")


def meta_names(case_shapes: Mapping[str, tuple[int, ...]], kind: Family, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a family makes of legacy tensors that are never allocated; each new name once."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in case_shapes.items():
        for new, value in kind.tensors(name, torch.empty(shape, device="meta", dtype=torch.float16), config):
            assert new not in found
            assert value.dtype == torch.float16
            found[new] = tuple(value.shape)
    return found


def native_names(kind: Family, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the native model of a legacy configuration."""
    return native_shapes(native_config(kind, config))
