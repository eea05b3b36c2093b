"""Shards on disk: what each process of a sharded run holds, written by it as safetensors and read by any number of processes.

::

    checkpoint-200/
        weights/shard-00001-model-0000?-of-0000N.safetensors      rows 0 .. of every matrix, from the first process
        weights/shard-00002-model-0000?-of-0000N.safetensors      the rows behind them, from the second
        optimizer/shard-0000K-model-...                           ``<parameter>.exp_avg`` and so on, likewise

Every tensor's place in the whole stands in the header of its file, so 4 processes read what 2 wrote, and one reads what 8 wrote. Reading
and writing are those of torch.distributed.checkpoint in the format of safetensors: its own format keeps an index as a pickle. No process
ever holds more than its shards. :func:`export_weights` makes an ordinary model folder of them, file by file.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from sft.errors import ResumeError, VerificationError

WEIGHTS, OPTIMIZER = "weights", "optimizer"
FILE_BYTES = 4 << 30
"""Most bytes of one file of an export, which the main process holds in main memory until it is full (a larger tensor has its own)."""
SHARD_BYTES = 1 << 30
"""About the bytes of one file of shards; each process holds one twice, as tensors and as bytes, while it writes it."""


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that belong into a file, by name; what is tied stands once. They share memory with the model."""
    buffers = {name for name, _ in model.named_buffers()} & set(model.state_dict())
    found = dict(model.named_parameters())
    return found | {name: buffer for name, buffer in model.named_buffers() if name in buffers}


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on the CPU. Collective if it is sharded."""
    if hasattr(tensor, "ds_tensor"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().cpu().clone()
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):  # offloaded shards travel over the GPUs too
        tensor = cast(DTensor, tensor.to(tensor.device_mesh.device_type)).full_tensor()
    return tensor.cpu()


def write(folder: Path, tensors: dict[str, Tensor], file_bytes: int = SHARD_BYTES) -> None:
    """Write the shards of all processes; each writes its own, into files of about ``file_bytes``. Collective."""
    folder.mkdir(parents=True, exist_ok=True)
    file_of, file, filled = {}, 1, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        size //= tensor.device_mesh.size() if isinstance(tensor, DTensor) else 1
        if filled and filled + size > file_bytes:
            file, filled = file + 1, 0
        file_of[name] = file
        filled += size
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=file_of, save_distributed=True)
    with _alone() as alone:
        save({name: tensor.detach() for name, tensor in tensors.items()}, storage_writer=writer, no_dist=alone)


def read(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors in place from the shards of any number of processes, or from an ordinary model folder. Collective.

    Raises:
        ResumeError: a tensor that is not there, not whole, or has another shape.
    """
    targets = {name: tensor.detach() for name, tensor in tensors.items()}
    found: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    for name in targets:  # else what lies in a lost file would stay as it was, without a word
        if name in found and sum(piece.sizes.numel() for piece in found[name].chunks) != found[name].size.numel():
            raise ResumeError(f"{folder}: pieces of {name} are missing; a file was lost, or is there twice")
    try:
        with _alone() as alone:
            load(targets, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
        raise ResumeError(f"{folder}: cannot be read into this model: {str(error).strip().splitlines()[-1]}") from error


@contextmanager
def _alone() -> Iterator[bool]:
    """Whether this process is the only one: then torch would warn that it is."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    with warnings.catch_warnings():
        if alone:
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield alone


# -- optimiser states ---------------------------------------------------------------------------------------------


def optimizer_states(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parameter name and state of every parameter that the optimiser moves, in the order of its groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[id(parameter)], optimizer.state[parameter]


def make_states(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make the states of an optimiser that has taken no step, by one with a learning rate of zero: no weight moves."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    get_optimizer_state_dict(model, optimizer)


def _flat(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], list[tuple[dict[str, Any], str, str]]]:
    """States as tensors by name, and where the plain numbers among them (a count of steps) came from. Scalars have one entry."""
    tensors: dict[str, Tensor] = {}
    numbers: list[tuple[dict[str, Any], str, str]] = []
    for name, state in optimizer_states(model, optimizer):
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{name}.{key}"] = value.view(1) if value.dim() == 0 else value
            else:
                tensors[f"{name}.{key}"] = torch.tensor([value], dtype=torch.int64 if isinstance(value, int) else torch.float64)
                numbers.append((state, key, f"{name}.{key}"))
    return tensors, numbers


def write_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the states of all processes. Groups are not written: they follow from recipe and schedule. Collective."""
    write(folder, _flat(model, optimizer)[0])


def read_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill the states of an optimiser in place, exactly as they were written. Collective.

    Raises:
        ResumeError: states of another model or optimiser.
    """
    make_states(model, optimizer)
    tensors, numbers = _flat(model, optimizer)
    read(folder, tensors)
    for state, key, name in numbers:
        state[key] = tensors[name].item()


def spread_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill the states of a sharded optimiser from the ``optimizer.pt`` of a run without shards; each process takes its part.

    Raises:
        ResumeError: states of another number of parameters.
    """
    make_states(model, optimizer)
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state"]
    states = list(optimizer_states(model, optimizer))
    if len(saved) != len(states):
        raise ResumeError(f"{path}: holds the states of {len(saved)} parameters, this run moves {len(states)}")
    for index, (_, state) in enumerate(states):
        for key, value in saved[index].items():
            target = state[key]
            if isinstance(target, DTensor):
                mesh = target.device_mesh
                spread = distribute_tensor(value.to(mesh.device_type), mesh, target.placements, src_data_rank=None)
                target.to_local().copy_(spread.to_local())
            elif isinstance(target, Tensor):
                target.copy_(value)
            else:
                state[key] = value


# -- an ordinary model folder -------------------------------------------------------------------------------------


def export_weights(model: Any, folder: Path, *, main: bool, most_bytes: int = FILE_BYTES) -> int:
    """Write a sharded model as transformers would: ``config.json`` and safetensors of at most ``most_bytes`` with their index.

    Tensors are gathered one by one and kept, by the main process alone and in main memory, until their file is full. So a GPU holds
    one whole tensor beside its shards, and the host one file. Collective.

    Returns:
        Bytes of the largest file: what the main process held at most.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    tensors = named_weights(model)
    shapes = {name: torch.empty(getattr(t, "ds_shape", t.shape), dtype=t.dtype, device="meta") for name, t in tensors.items()}
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=most_bytes)
    most = 0
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        _write_config(model, folder)
    for file, names in split.filename_to_tensors.items():
        held: dict[str, Tensor] = {}
        for name in names:
            tensor = whole(tensors[name])
            if main:
                held[name] = tensor.contiguous()
            del tensor
        most = max(most, sum(t.numel() * t.element_size() for t in (shapes[name] for name in names)))
        if main:
            save_file(held, folder / file, metadata={"format": "pt"})
    if main and split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
    return most


def _write_config(model: Any, folder: Path) -> None:
    config = model.config
    config.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__.removeprefix("FSDP")]  # fully_shard puts a class of its own before the model's
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def verify_gathered(model: Any, folder: Path, *, main: bool) -> int:
    """Read an export back and compare it, tensor by tensor, with what is gathered for it (ZeRO-3). Collective.

    Returns:
        Tensors compared.

    Raises:
        VerificationError: as :func:`verify_export`, on the main process.
    """
    from safetensors import safe_open

    tensors = named_weights(model)
    files = {name: path for path in folder.glob("*.safetensors") for name in _names(path)}
    if set(files) != set(tensors):
        raise VerificationError(f"{folder}: holds {len(files)} tensors, the model {len(tensors)}, or others")
    for name, tensor in tensors.items():
        live = whole(tensor)
        if main:
            with safe_open(files[name], framework="pt") as file:
                if not torch.equal(live, file.get_tensor(name)):
                    raise VerificationError(f"{files[name]}: {name} differs from the model's")
    return len(tensors)


def verify_export(model: Any, folder: Path) -> int:
    """Read an export back and compare it with the live shards, each process its own, file by file. Collective.

    Returns:
        Tensors compared.

    Raises:
        VerificationError: a tensor that is missing, or differs.
    """
    tensors, count = named_weights(model), 0
    for path in sorted(folder.glob("*.safetensors")):
        names = _names(path)
        foreign = [name for name in names if name not in tensors]
        if foreign:
            raise VerificationError(f"{path}: {foreign[0]} is not a tensor of the model")
        fresh = {name: torch.empty_like(tensors[name].detach()) for name in names}
        try:
            read(folder, fresh)
        except ResumeError as error:
            raise VerificationError(str(error)) from error
        for name, tensor in fresh.items():
            if not torch.equal(_local(tensor), _local(tensors[name].detach())):
                raise VerificationError(f"{path}: {name} differs from the model's")
        count += len(names)
    if count != len(tensors):
        raise VerificationError(f"{folder}: holds {count} tensors, the model {len(tensors)}")
    return count


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
