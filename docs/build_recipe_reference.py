"""Write the references of the recipes from their sections and the docstrings behind the fields. ``--check`` only compares.

::

    docs/recipes.md             sft train            sft/recipe.py
    docs/generate_recipes.md    selfinstruct run     selfinstruct/recipe.py
    docs/judge_recipes.md       selfinstruct judge   selfinstruct/judge/recipe.py
    docs/curate_recipes.md      sft data run         sft/curate/recipe.py
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

import selfinstruct.judge.recipe
import selfinstruct.recipe
import sft.curate.recipe
import sft.recipe
from selfinstruct.teacher.sections import BudgetSection
from sft.config import Section, sections_of
from sft.curate.rules import RuleSection

FOLDER = Path(__file__).resolve().parent
_WORDS = {str: "text", bool: "true or false", int: "whole number", float: "number", type(None): "null"}
_BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"), ("min_length", "of at least"))
_MOST_SHOWN = 6  # entries of a default


@dataclass(frozen=True)
class Page:
    """A page, and the recipe that it is about.

    Attributes:
        name: of the file in docs/.
        recipe: the section of the whole file.
        head: title and first words.
        overview: begin with a table of the sections; without it their headings say which ones a recipe may leave out.
        elsewhere: sections that another page has the tables of, and where.
    """

    name: str
    recipe: type[Section]
    head: str
    overview: bool = True
    elsewhere: Mapping[type[Section], str] = field(default_factory=dict)


PAGES = (
    Page(
        "recipes.md",
        sft.recipe.Recipe,
        """# Recipe reference

Generated from `sft/recipe.py` by `docs/build_recipe_reference.py`; edit the docstrings there. `sft show RECIPE` prints these values
for one recipe, with where each comes from. Unknown keys are refused.
""",
        overview=False,
    ),
    Page(
        "generate_recipes.md",
        selfinstruct.recipe.Recipe,
        """# Recipe reference of the generator

Generated from `selfinstruct/recipe.py` and the sections that it names by `docs/build_recipe_reference.py`; edit the docstrings there.
Unknown keys are refused. How to use them: [generate](generate.md).
""",
    ),
    Page(
        "judge_recipes.md",
        selfinstruct.judge.recipe.JudgeRecipe,
        """# Recipe reference of a judgment

Generated from `selfinstruct/judge/recipe.py` by `docs/build_recipe_reference.py`; edit the docstrings there. Unknown keys are refused.
How to use them: [judge](judge.md).
""",
        elsewhere={
            selfinstruct.recipe.Teacher: "[teacher](generate_recipes.md#teacher)",
            BudgetSection: "[budget](generate_recipes.md#budget)",
        },
    ),
    Page(
        "curate_recipes.md",
        sft.curate.recipe.CurateRecipe,
        """# Recipe reference of a curation

Generated from `sft/curate/recipe.py` and the sections that it names by `docs/build_recipe_reference.py`; edit the docstrings there.
Unknown keys are refused. How to use them: [curate](curate.md).
""",
        elsewhere={
            sft.recipe.ModelSection: "[model](recipes.md#model)",
            sft.recipe.TemplateSection: "[template](recipes.md#template)",
            **dict.fromkeys(sections_of(RuleSection), "[rules](curate_rules.md)"),
        },
    ),
)


def spoken(annotation: Any) -> str:
    """An annotation in words: ``Literal['a', 'b'] | None`` is "`a`, `b` or null"."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return spoken(arguments[0])
    if origin in (tuple, list):
        return f"list of {spoken(arguments[0])}".replace("list of section", "list of sections")
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(spoken(argument) for argument in arguments))
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    if origin is dict:
        return "map of sections" if list(sections_of(annotation)) else "map"
    return _WORDS.get(annotation, str(annotation))


def default(info: FieldInfo) -> str:
    """A default as YAML would have it; long ones by their size."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return "its defaults"
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`"
    if isinstance(value, tuple | list):
        shown = f"`[{', '.join(map(str, value))}]`" if len(value) <= _MOST_SHOWN else f"{len(value)} entries"
        return "its defaults" if any(isinstance(item, Section) for item in value) else shown
    return "empty" if value in ({}, "") else f"`{value}`"


def bounds(info: FieldInfo) -> str:
    """What a number or a list may be."""
    found = {name: getattr(item, name) for item in info.metadata for name, _ in _BOUNDS if hasattr(item, name)}
    return "".join(f", {word} {_number(found[name])}" for name, word in _BOUNDS if name in found)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)


def text(doc: str | None) -> str:
    """A docstring in one line of a table."""
    return " ".join((doc or "").split()).replace("``", "`").replace("|", "\\|")


def table(title: str, section: type[Section], page: Page) -> str:
    """A section's fields in their order."""
    about = [text(section.__doc__), ""] if section.__doc__ else []
    lines = [title, "", *about, "| key | value | default | meaning |", "|---|---|---|---|"]
    for name, info in section.model_fields.items():
        if name == "kind" and len(typing.get_args(info.annotation)) == 1:
            continue  # the heading says it
        meaning = text(info.description) or text(_about(info))
        links = dict.fromkeys(page.elsewhere[inner] for inner in sections_of(info.annotation) if inner in page.elsewhere)
        told = " ".join([meaning, *(f"Keys: {link}." for link in links)])
        lines.append(f"| `{name}` | {spoken(info.annotation)}{bounds(info)} | {default(info)} | {told} |")
    return "\n".join([*lines, ""])


def _about(info: FieldInfo) -> str:
    """What a section says of itself, for a field without a docstring of its own."""
    found = list(sections_of(info.annotation))
    return (found[0].__doc__ or "").split("\n\n")[0] if len(found) == 1 else ""


def titles(section: type[Section], page: Page, key: str = "", depth: int = 2) -> Iterator[tuple[type[Section], str, int]]:
    """Every section below another with its title and the depth of its heading, in the order of the file."""
    for name, info in section.model_fields.items():
        below = [inner for inner in sections_of(info.annotation) if inner not in page.elsewhere]
        for inner in below:
            kind = inner.model_fields.get("kind")
            title = f"{key}{name}"
            if len(below) > 1 and kind:
                title += f": {typing.get_args(kind.annotation)[0]}"
            if not (key or page.overview or info.is_required()):
                title += " (optional)"
            yield inner, title, depth
            yield from titles(inner, page, f"{key}{name}.", depth + 1)


def build(page: Page) -> str:
    """The whole page; a section that stands in several places has one table."""
    places: dict[type[Section], list[str]] = {}
    depths: dict[type[Section], int] = {}
    for section, title, depth in titles(page.recipe, page):
        places.setdefault(section, []).append(title)
        depths.setdefault(section, depth)
    parts = [page.head, *([table("## The file", page.recipe, page)] if page.overview else [])]
    parts += [table(f"{'#' * depths[section]} {_listed(names)}", section, page) for section, names in places.items()]
    return "\n".join(parts)


def _listed(names: list[str]) -> str:
    *first, last = dict.fromkeys(names)
    return f"{', '.join(first)} and {last}" if first else last


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` say whether they are up to date."""
    stale = 0
    for page in PAGES:
        path, wanted = FOLDER / page.name, build(page)
        if "--check" not in arguments:
            path.write_text(wanted, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != wanted:
            sys.stderr.write(f"docs/{page.name} is out of date: run python docs/build_recipe_reference.py\n")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
