"""A legacy checkpoint becomes a native folder: config, safetensors, tokenizer.json, chat template, stops. Shard by shard.

::

    LEGACY/config.json            plain JSON         -> config.json of a class that transformers has (ours for ALiBi)
    LEGACY/*.bin, *.safetensors   tensor by tensor   -> model-00001-of-0000N.safetensors and their index
    LEGACY/tokenizer.model, ...   built, ids checked -> tokenizer.json, with the family's chat template
    LEGACY/*.py, auto_map         never read

What is written is read back before it gets its name, and names and shapes are held to those of the native model.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sft import files
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.errors import InputError, ModelError, VerificationError
from sft.model import servable
from sft.model.families.family import Config, Family, refuse_quantised
from sft.model.families.legacy import Legacy, open_legacy
from sft.model.families.registry import family_of
from sft.model.load import DTYPES
from sft.model.tokenizer import repair_tokens

_MOST_BYTES = 5_000_000_000
_FULL = (torch.float32, torch.bfloat16, torch.float16)
Shapes = dict[str, tuple[int, ...]]


def convert(
    source: Path, out: Path, *, family: str | None = None, template: str | None = None, dtype: str | None = None
) -> dict[str, Any]:
    """Convert a folder.

    Args:
        source: legacy checkpoint.
        out: folder to write; must not be there, or be one that this function wrote.
        family: its format, where its configuration does not say.
        template: chat template to put into the tokenizer; None: the family's.
        dtype: of the written weights; None: as they are.

    Returns:
        What was done: family, native model type, tensors, bytes, template, repairs.

    Raises:
        InputError: anything about the folder that cannot be converted, or ``out`` is in the way.
        VerificationError: what was written differs from what was converted.
    """
    if source.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{out}: holds the checkpoint itself, and would be replaced; choose another folder")
    if out.exists() and not _converted(out) and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: not empty and not written by sft convert; choose another folder")
    legacy = open_legacy(source)
    kind = family_of(legacy.config, family)
    refuse_quantised(legacy.config)
    config = native_config(kind, legacy.config)
    expected = native_shapes(config)
    partial = out.with_name(f"{files.PARTIAL}{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        config.save_pretrained(partial)
        # the tokenizer first: what is wrong with it is known before the weights, which take minutes
        done = _write_tokenizer(kind, legacy, partial, template, config.vocab_size)
        done |= _write_weights(kind, legacy, partial, expected, None if dtype is None else DTYPES[dtype])
        config.dtype = dtype or done["dtype"]
        config.save_pretrained(partial)
        about = {"family": kind.name, "native": config.model_type, **done}
        about |= {"source": _fingerprints(legacy), "vicugna": version("vicugna")}
        files.write_json(partial / "vicugna.json", {**files.read_json(partial / "vicugna.json"), "converted": about})
        files.publish(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return about


def _converted(out: Path) -> bool:
    """Whether a folder is an earlier conversion: a tuned model must not be replaced by one."""
    try:
        return "converted" in files.read_json(out / "vicugna.json")
    except (OSError, ValueError):
        return False


def native_config(kind: Family, config: Config) -> Any:
    """The native configuration object of a legacy ``config.json``."""
    from sft.model.native import AutoConfig

    fields = kind.config(config)
    return AutoConfig.for_model(str(fields.pop("model_type")), legacy_family=kind.name, **fields)


def native_shapes(config: Any) -> Shapes:
    """Names and shapes of the native model's weights; none of it is allocated."""
    from sft.model.native import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


class Shards:
    """Safetensors files that are filled one by one and read back."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self.places: dict[str, Path] = {}
        self.written = 0
        self._held: dict[str, Tensor] = {}
        self._size = 0
        self._files: list[Path] = []

    def add(self, name: str, value: Tensor) -> None:
        """Take a tensor; a full file is written first."""
        size = value.numel() * value.element_size()
        if self._held and self._size + size > self.most:
            self.flush()
        # a copy of its own: a piece of a larger tensor would be written whole, and the mapped file would stay open
        self._held[name] = value.clone(memory_format=torch.contiguous_format)
        self._size += size
        self.written += size

    def __contains__(self, name: object) -> bool:
        return name in self._held or name in self.places

    def flush(self) -> None:
        """Write what is held, read it back, let go of it."""
        from safetensors import safe_open
        from safetensors.torch import save_file

        if not self._held:
            return
        path = self.folder / f"part-{len(self._files):05d}.safetensors"
        save_file(self._held, path, metadata={"format": "pt"})
        with safe_open(path, framework="pt") as opened:
            for name, value in self._held.items():
                if not torch.equal(_bits(opened.get_tensor(name)), _bits(value)):
                    raise VerificationError(f"{path}: {name} reads back otherwise than it was written")
        self.places |= dict.fromkeys(self._held, path)
        self._files.append(path)
        self._held, self._size = {}, 0

    def finish(self) -> None:
        """Give the files their final names, and write the index."""
        self.flush()
        count, names = len(self._files), {}
        for number, path in enumerate(self._files, 1):
            name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            names[path] = path.rename(self.folder / name).name
        if count > 1:
            places = {name: names[path] for name, path in sorted(self.places.items())}
            index = {"metadata": {"total_size": self.written}, "weight_map": places}
            files.write_json(self.folder / "model.safetensors.index.json", index)


def _bits(value: Tensor) -> Tensor:
    """NaN is equal to itself here."""
    return value.contiguous().view(torch.uint8)


def _write_weights(kind: Family, legacy: Legacy, folder: Path, expected: Shapes, dtype: torch.dtype | None) -> dict[str, Any]:
    largest = max(shard.stat().st_size for shard in legacy.shards)
    shards, seen, types = Shards(folder, min(largest, _MOST_BYTES)), set[str](), set[torch.dtype]()
    for shard in tqdm(legacy.shards, desc="weights", unit="file", leave=False):
        for name, value in legacy.tensors(shard):
            if name in seen:
                raise ModelError(f"{shard}: {name} is in two files; which one is right cannot be known")
            seen.add(name)
            for new, tensor in kind.tensors(name, value, legacy.config):
                _check(new, tensor, expected, shards, shard)
                types.add(tensor.dtype)
                shards.add(new, tensor if dtype is None else tensor.to(dtype))
    shards.finish()
    if legacy.names is not None and (lost := sorted(legacy.names - seen)):
        raise ModelError(f"{legacy.path}: {len(lost)} tensors of the index are in no file, such as {lost[0]}; fetch them again")
    if missing := sorted(set(expected) - set(shards.places)):
        raise ModelError(f"{legacy.path}: {len(missing)} weights of the model are not there, such as {missing[0]}")
    return {
        "tensors": len(shards.places),
        "bytes": shards.written,
        "dtype": str(sorted(types, key=str)[0]).removeprefix("torch."),
    }


def _check(name: str, value: Tensor, expected: Shapes, before: Shards, shard: Path) -> None:
    if name not in expected:
        raise ModelError(f"{shard}: {name} is no weight of the native model: this variant of the family is not known")
    if tuple(value.shape) != expected[name]:
        raise ModelError(f"{shard}: {name} has the shape {tuple(value.shape)}, the configuration asks for {expected[name]}")
    if name in before:
        raise ModelError(f"{shard}: {name} comes from two tensors of the checkpoint")
    if value.dtype not in _FULL:
        raise ModelError(f"{shard}: {name} holds {value.dtype}: a quantised release cannot be converted")


def _write_tokenizer(kind: Family, legacy: Legacy, folder: Path, template: str | None, rows: int) -> dict[str, Any]:
    tokenizer = kind.tokenizer(legacy)
    chosen = load_template(template or kind.template)
    repairs = repair_tokens(tokenizer, chosen)
    if (last := max(tokenizer.get_vocab().values())) >= rows:
        raise ModelError(
            f"{legacy.path}: {tokenizer.convert_ids_to_tokens(last)!r} has the id {last}, and the embedding has {rows} rows: tokenizer and "
            "weights are not of the same checkpoint, or the template needs tokens that it has not; choose another with --template"
        )
    encoder = RowEncoder(tokenizer, chosen, "last" if chosen.only_last else "assistant")
    servable.write_tokenizer(tokenizer, encoder, folder)
    servable.write_generation_config(encoder, tokenizer, folder)
    files.write_json(folder / "vicugna.json", servable.serving_record(encoder))
    servable.check_served_ids(folder, encoder)
    return {"template": chosen.name, "repairs": repairs}


def _fingerprints(legacy: Legacy) -> dict[str, str]:
    """sha256 of every file that was read."""
    read = [legacy.path / "config.json", *legacy.shards, *_tokenizer_files(legacy.path)]
    found = {}
    for path in read:
        with path.open("rb") as handle:
            found[path.name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return found


def _tokenizer_files(folder: Path) -> Iterator[Path]:
    names = ("tokenizer.model", "ice_text.model", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")
    yield from (folder / name for name in names if (folder / name).is_file())
