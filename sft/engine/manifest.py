"""``run.json``: what a run was made of. It explains a run later, and guards its resumption.

A checkpoint may be resumed only by the same recipe, data, template and tokenizer; what may differ is where things are written, how
often, and how the same steps are cut into micro-batches and spread over processes. Who did which steps is recorded (``resumed``).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sft.config import dotted, flatten
from sft.data.dataset import Prepared
from sft.data.tokenize import RowEncoder, fingerprint
from sft.engine.checkpoints import step_of
from sft.errors import ResumeError
from sft.recipe import Recipe

# Where things are written, and how the same steps are carried out: on how many processes, sharded or not, in which pieces.
_FREE = (
    *("output.", "plan.", "memory.", "data.cache_dir", "model.attention"),
    *("train.tokens_per_device", "train.gradient_checkpointing", "train.activation_offload"),
    *("train.tf32", "train.sharding", "train.cpu_offload"),
)
_PACKAGES = (
    "vicugna",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "tokenizers",
    "bitsandbytes",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "nvidia-cudnn-frontend",
    "torchao",
    "deepspeed",
)


def versions(*more: str) -> dict[str, str]:
    """Versions of what a run's numbers depend on, and of more packages where they are installed."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def identity(
    recipe: Recipe, prepared: Prepared, encoder: RowEncoder, tokenizer: Any, commit: str | None = None
) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued: recipe values by key, and fingerprints."""
    values = {dotted(key): value for key, value in flatten(recipe.model_dump(mode="json"))}
    if commit is not None:  # a branch may move between a run and its resumption
        values["model.commit"] = commit
    return {
        "recipe": {key: value for key, value in values.items() if not key.startswith(_FREE)},
        "data": prepared.key,
        "files": {
            f"{entry.get('label')}:{name}": digest
            for entry in prepared.report["inputs"]["files"]
            for name, digest in _digests(entry)
        },
        "template": encoder.template.fingerprint,
        "tokenizer": fingerprint(tokenizer),
    }


def _digests(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    files = entry.get("files")
    if not files:
        return [("hub", json.dumps(entry, sort_keys=True))]
    return [(str(file.get("path") or file.get("name")), str(file.get("sha256"))) for file in files]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two identities, one line each: recipe keys with both values, then data, template, tokenizer."""
    lines = []
    keys = sorted(key for key in set(old["recipe"]) | set(new["recipe"]) if not key.startswith(_FREE))
    for key in keys:
        before, after = old["recipe"].get(key, "(absent)"), new["recipe"].get(key, "(absent)")
        if before != after:
            lines.append(f"recipe: {key} was {before!r}, is {after!r}")
    for name in sorted(set(old["files"]) | set(new["files"])):
        if old["files"].get(name) != new["files"].get(name):
            lines.append(f"data: the bytes of {name} changed")
    for name in ("template", "tokenizer"):
        if old[name] != new[name]:
            lines.append(f"{name}: another one (fingerprint {old[name][:12]} was used, {new[name][:12]} now)")
    if not lines and old["data"] != new["data"]:
        lines.append("data: prepared by another version of the code")
    return lines


def recorded_memory(checkpoint: Path) -> dict[str, Any] | None:
    """What ``auto`` became in the run of a checkpoint (:func:`sft.engine.memory.settle`); None if it has no record of it."""
    path = checkpoint / "vicugna.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("memory") if path.is_file() else None
    return found if isinstance(found, dict) else None


def refuse_changes(checkpoint: Path, new: Mapping[str, Any], spread: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Refuse to resume what is not the same run.

    Args:
        checkpoint: to go on from.
        new: identity of the run that wants to.
        spread: ``world`` and ``sharding`` from here on.

    Returns:
        Every resumption so far with this one: ``step``, and what ``spread`` was before it (``from``) and is after it (``to``).

    Raises:
        ResumeError: no manifest in the checkpoint, or anything that changed, all of it listed.
    """
    path = checkpoint / "vicugna.json"
    if not path.is_file():
        raise ResumeError(f"{checkpoint}: no vicugna.json, so it cannot be known what this checkpoint was trained on")
    old = json.loads(path.read_text(encoding="utf-8"))
    changed = differences(old["identity"], new)
    if changed:
        listed = "\n".join(f"  {line}" for line in changed)
        raise ResumeError(
            f"{checkpoint}: this checkpoint belongs to another run:\n{listed}\nundo these changes, or start a new output.dir"
        )
    before = {"world": old["plan"]["world"], "sharding": old["plan"].get("sharding", "none")}
    return [*old.get("resumed", []), {"step": step_of(checkpoint), "from": before, "to": {key: spread[key] for key in before}}]
