"""What a module of this folder says about its format; :mod:`sft.model.families.convert` does the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sft.errors import ModelError
from sft.model.families.legacy import Legacy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Config = Mapping[str, Any]
Renamed = Iterator[tuple[str, Tensor]]

_QUANTISED = ("quantization_config", "quantization_bit", "wbits")


@dataclass(frozen=True, slots=True)
class Facts:
    """What ``sft families`` prints: LoRA targets, context in tokens, how documents are packed, what was verified and to what figure."""

    lora: tuple[str, ...]
    context: str
    packing: str
    verified: str


@dataclass(frozen=True, slots=True)
class Family:
    """One legacy format.

    Attributes:
        name: as ``--family`` takes it.
        native: model type that the checkpoint becomes; with several, each with the size it is for.
        template: chat template of its chat models.
        recognises: whether a ``config.json`` is of this format, by what it holds. Raises ModelError for a relative of it that cannot be
            converted, with a sentence.
        config: the native configuration, ``model_type`` among its keys. Raises ModelError for what cannot be converted, with a sentence.
        tensors: one legacy tensor (name, values, legacy configuration) to the native ones, none for what is computed today. Values may
            share memory with the legacy tensor.
        tokenizer: built from the files of the folder, special ids checked. Raises TokenizerError.
        facts: for the table.
    """

    name: str
    native: str
    template: str
    recognises: Callable[[Config], bool]
    config: Callable[[Config], dict[str, Any]]
    tensors: Callable[[str, Tensor, Config], Renamed]
    tokenizer: Callable[[Legacy], PreTrainedTokenizerBase]
    facts: Facts


def refuse_quantised(config: Config) -> None:
    """Raises:
    ModelError: weights of fewer bits; they are not the weights that the formula is about.
    """
    for key in _QUANTISED:
        if config.get(key) not in (None, 0, 32, {}):
            raise ModelError(
                f"config.json: {key} = {config[key]!r}: a quantised release cannot be converted; take the full checkpoint of the same model"
            )


def expect(config: Config, **values: Any) -> None:
    """Every key has its value, where the configuration has the key at all.

    Raises:
        ModelError: another variant than the formula that is known here.
    """
    for key, value in values.items():
        if config.get(key, value) != value:
            raise ModelError(
                f"config.json: {key} = {config[key]!r}, and only {value!r} is known: this variant of the family cannot be converted"
            )


def need(config: Config, *keys: str) -> tuple[Any, ...]:
    """The values of keys.

    Raises:
        ModelError: one is not there.
    """
    if missing := [key for key in keys if key not in config]:
        raise ModelError(f"config.json: {', '.join(missing)} missing; is this the whole checkpoint?")
    return tuple(config[key] for key in keys)
