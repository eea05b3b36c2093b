"""A tuned Baichuan in the names of its publisher, for engines that know only those: the way back of ``sft convert``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sft import files
from sft.errors import InputError, ModelError
from sft.model.families import baichuan
from sft.model.families.convert import Shards
from sft.model.families.legacy import Legacy, open_legacy

_NORM_HEAD = {"baichuan": False, "baichuan2": True}
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "vicugna.json",
    "README.md",
)


def norm_head_of(config: Mapping[str, Any]) -> bool:
    """Whether a converted model's head was normalised.

    Args:
        config: native configuration; ``legacy_family`` is what it was converted from.

    Raises:
        ModelError: a family without a way back.
    """
    family = config.get("legacy_family")
    if family not in _NORM_HEAD:
        raise ModelError(
            f"--layout legacy: this model was {f'a {family}' if family else 'no legacy checkpoint'}, and only Baichuan has a way back; "
            "leave the option out"
        )
    return _NORM_HEAD[family]


def write_legacy_layout(native: Path, out: Path) -> None:
    """Write a native folder in the legacy layout, weights file by weights file, each read back.

    Args:
        native: exported by ``sft export``; its configuration names the family that it was converted from.
        out: folder to write; not there, or an export of ours, which is replaced.

    Raises:
        InputError: ``out`` is in the way.
        ModelError: no Baichuan, or a model that the old code would compute otherwise.
    """
    if out.exists() and any(out.iterdir()) and not (out / "vicugna.json").is_file():
        raise InputError(f"{out}: not empty and not a model of ours; choose another folder")
    legacy = open_legacy(native)
    norm_head = norm_head_of(legacy.config)
    partial = out.with_name(f"{files.PARTIAL}{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        config = baichuan.legacy_config(legacy.config, norm_head=norm_head)
        files.write_json(partial / "config.json", config | {"torch_dtype": legacy.config.get("dtype")})
        shards = Shards(partial, max(shard.stat().st_size for shard in legacy.shards))
        for name, value in baichuan.legacy_tensors(_all(legacy), norm_head=norm_head):
            shards.add(name, value)
        shards.finish()
        for name in _COPIED:
            if (native / name).is_file():
                shutil.copy2(native / name, partial / name)
        files.publish(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _all(legacy: Legacy) -> Iterator[tuple[str, Tensor]]:
    for shard in legacy.shards:
        yield from legacy.tensors(shard)
