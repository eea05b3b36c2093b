"""A legacy checkpoint folder, read as data: JSON, tensors, token lists. No file of it is executed.

Weights come one tensor at a time, from safetensors or from pickles that torch opens with ``weights_only`` and maps into memory.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sft.errors import ModelError

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, slots=True)
class Legacy:
    """The folder.

    Attributes:
        path: of the folder.
        config: its ``config.json``.
        shards: weight files, in the order of their names.
        names: where an index says it: tensors that the files must hold; else None.
    """

    path: Path
    config: dict[str, Any]
    shards: tuple[Path, ...]
    names: frozenset[str] | None

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder; empty if it is not there.

        Raises:
            ModelError: no JSON object.
        """
        return _read_json(self.path / name) if (self.path / name).is_file() else {}

    def file(self, *names: str) -> Path:
        """The first of these files that is there.

        Raises:
            ModelError: none is.
        """
        for name in names:
            if (self.path / name).is_file():
                return self.path / name
        raise ModelError(f"{self.path}: no {' or '.join(names)} here; fetch the whole checkpoint")

    def tensors(self, shard: Path) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of one weight file, by name.

        Raises:
            ModelError: damaged, or a pickle that holds more than tensors.
        """
        if shard.suffix == ".safetensors":
            yield from _safetensors(shard)
        else:
            yield from _pickled(shard)


def open_legacy(path: Path) -> Legacy:
    """Look at a folder.

    Raises:
        ModelError: no configuration, no weights, or an index that names what is not there.
    """
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: no config.json here; give the folder of a checkpoint")
    config = _read_json(path / "config.json")
    for name in _INDICES:
        if (path / name).is_file():
            return Legacy(path, config, *_indexed(path / name))
    for name in _SINGLE:
        if (path / name).is_file():
            return Legacy(path, config, (path / name,), None)
    raise ModelError(f"{path}: no weights here ({', '.join((*_INDICES, *_SINGLE))}); fetch the whole checkpoint")


def _indexed(index: Path) -> tuple[tuple[Path, ...], frozenset[str]]:
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{index}: no weight_map in it; fetch it again")
    files = sorted(set(map(str, places.values())))
    for file in files:
        if Path(file).name != file:
            raise ModelError(f"{index}: names a file outside of its folder: {file!r}")
        if not (index.parent / file).is_file():
            raise ModelError(f"{index}: names {file}, which is not there; fetch the whole checkpoint")
    return tuple(index.parent / file for file in files), frozenset(places)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: no JSON: {error}; fetch it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: a JSON object was expected; fetch it again")
    return value


def _safetensors(shard: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="pt") as opened:
            for name in sorted(opened.keys()):
                yield name, opened.get_tensor(name)
    except SafetensorError as error:
        raise ModelError(f"{shard}: damaged: {error}; fetch it again") from None


def _pickled(shard: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        # the format of torch before 1.6 cannot be mapped into memory
        held = torch.load(shard, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(shard))
    except Exception as error:  # pickle's, torch's and zip's own kinds have no common parent
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{shard}: not read: {what}. Only a file of plain tensors is opened (torch's weights_only): whatever else a pickle holds could run"
        ) from None
    if not isinstance(held, dict) or not all(isinstance(name, str) and _plain(value) for name, value in held.items()):
        raise ModelError(f"{shard}: a table of names and tensors was expected")
    for name in sorted(held):
        yield name, held[name].detach()


def _plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
