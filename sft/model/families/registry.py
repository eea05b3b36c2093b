"""All formats that can be converted. A new one is a module of this folder and a line here."""

from __future__ import annotations

from sft.errors import InputError, ModelError
from sft.model.families import baichuan, chatglm, llama, moss
from sft.model.families.family import Config, Family

FAMILIES: tuple[Family, ...] = (*baichuan.FAMILIES, *chatglm.FAMILIES, *llama.FAMILIES, *moss.FAMILIES)


def family_of(config: Config, named: str | None = None) -> Family:
    """The family of a checkpoint.

    Args:
        config: its ``config.json``.
        named: what the caller says it is.

    Raises:
        InputError: no family of that name.
        ModelError: none recognises it, or several do.
    """
    by_name = {family.name: family for family in FAMILIES}
    found = [family for family in FAMILIES if family.recognises(config)]
    if named is not None and named not in by_name:
        raise InputError(f"--family: {named!r} is none of {', '.join(by_name)}")
    if named is not None and by_name[named] not in found:
        others = (
            f"it is one of {' or '.join(family.name for family in found)}"
            if found
            else f"model_type {config.get('model_type')!r}"
        )
        raise ModelError(f"config.json: this is no checkpoint of {named}: {others}")
    if named is not None:
        return by_name[named]
    if not found:
        kind, names = config.get("model_type"), config.get("architectures")
        raise ModelError(
            f"config.json: model_type {kind!r}, architectures {names!r}: no legacy format that is known here. What transformers has a class "
            "for needs no conversion: name the folder in a recipe as it is"
        )
    if len(found) > 1:
        raise ModelError(f"config.json: this may be {' or '.join(family.name for family in found)}: say which with --family")
    return found[0]
