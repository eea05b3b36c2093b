"""Write docs/generate_recipes.md from the sections of selfinstruct/recipe.py and the docstrings behind their fields. ``--check`` compares."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from selfinstruct.recipe import Recipe
from sft.config import Section, sections_of

PAGE = Path(__file__).resolve().parent / "generate_recipes.md"
HEAD = """# Recipe reference of the generator

Generated from `selfinstruct/recipe.py` and the sections that it names by `docs/build_generate_reference.py`; edit the docstrings there.
Unknown keys are refused. How to use them: [generate](generate.md).
"""
_WORDS = {str: "text", bool: "true or false", int: "whole number", float: "number", type(None): "null"}
_BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"), ("min_length", "of at least"))


def spoken(annotation: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return spoken(arguments[0])
    if list(sections_of(annotation)):
        return "list of sections" if origin in (tuple, list) else "section"
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(spoken(argument) for argument in arguments)
    if origin in (tuple, list):
        return f"list of {spoken(arguments[0])}"
    return "map" if origin is dict else _WORDS.get(annotation, str(annotation))


def default(info: FieldInfo) -> str:
    """A default as YAML would have it; long ones by their size."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return "its defaults"
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`"
    if isinstance(value, tuple | list) and len(value) > 6:
        return f"{len(value)} entries"
    if isinstance(value, tuple | list):
        return "its defaults" if any(isinstance(item, Section) for item in value) else f"`[{', '.join(map(str, value))}]`"
    return "empty" if value in ({}, "") else f"`{value}`"


def bounds(info: FieldInfo) -> str:
    found = {name: getattr(item, name) for item in info.metadata for name, _ in _BOUNDS if hasattr(item, name)}
    return "".join(f", {word} {found[name]}" for name, word in _BOUNDS if name in found)


def text(doc: str | None) -> str:
    return " ".join((doc or "").split()).replace("``", "`").replace("|", "\\|")


def table(title: str, section: type[Section]) -> str:
    lines = [title, "", text(section.__doc__), "", "| key | value | default | meaning |", "|---|---|---|---|"]
    for name, info in section.model_fields.items():
        if name == "kind" and len(typing.get_args(info.annotation)) == 1:
            continue  # the heading says it
        kind = spoken(info.annotation) + bounds(info)
        given = default(info) if info.default is not PydanticUndefined or not info.is_required() else "required"
        lines.append(f"| `{name}` | {kind} | {given} | {text(info.description) or text(_about(info))} |")
    return "\n".join([*lines, ""])


def _about(info: FieldInfo) -> str:
    """What a section says of itself, for a field without a docstring of its own."""
    found = list(sections_of(info.annotation))
    return (found[0].__doc__ or "").split("\n\n")[0] if len(found) == 1 else ""


def tables(key: str, info: FieldInfo, depth: int) -> Iterator[str]:
    for section in sections_of(info.annotation):
        kind = section.model_fields.get("kind")
        name = (
            f"{key}: {kind.default if kind.default is not PydanticUndefined else kind.annotation.__args__[0]}"
            if _tagged(info) and kind
            else key
        )
        yield table(f"{'#' * depth} {name}", section)
        for inner, below in section.model_fields.items():
            yield from tables(f"{key}.{inner}", below, depth + 1)


def _tagged(info: FieldInfo) -> bool:
    return len(list(sections_of(info.annotation))) > 1


def build() -> str:
    """The whole page."""
    parts = [HEAD, table("## The file", Recipe)]
    for key, info in Recipe.model_fields.items():
        parts += tables(key, info, 2)
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` say whether it is up to date."""
    page = build()
    if "--check" not in arguments:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    sys.stderr.write("docs/generate_recipes.md is out of date: run python docs/build_generate_reference.py\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
