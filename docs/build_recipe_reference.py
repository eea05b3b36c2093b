"""Write docs/recipes.md from the fields of sft/recipe.py and the docstrings behind them. ``--check`` only compares.

Reads the source with ``ast``: nothing is imported, and the page cannot say what the code does not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "sft" / "recipe.py"
PAGE = ROOT / "docs" / "recipes.md"
HEAD = """# Recipe reference

Generated from `sft/recipe.py` by `docs/build_recipe_reference.py`; edit the docstrings there. `sft show RECIPE` prints these values
for one recipe, with where each comes from. Unknown keys are refused.
"""
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "of at least"}
_WORDS = {"str": "text", "bool": "true or false", "int": "whole number", "float": "number", "None": "null"}


@dataclass(frozen=True, slots=True)
class Knob:
    """One row of the page."""

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Names:
    """What an annotation may name: the sections of the file, and its aliases for choices."""

    sections: dict[str, ast.ClassDef]
    aliases: dict[str, ast.expr]

    @staticmethod
    def of(module: ast.Module) -> Names:
        targets = [node for node in module.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
        return Names(
            {node.name: node for node in module.body if isinstance(node, ast.ClassDef)},
            {ast.unparse(node.targets[0]): node.value for node in targets if isinstance(node.value, ast.Subscript)},
        )


def spoken(annotation: ast.expr, names: Names) -> str:
    """An annotation in words: ``Literal['a', 'b'] | None`` is "`a`, `b` or null"."""
    if isinstance(annotation, ast.BinOp):
        return f"{spoken(annotation.left, names)} or {spoken(annotation.right, names)}"
    if isinstance(annotation, ast.Name) and annotation.id in names.aliases:
        return spoken(names.aliases[annotation.id], names)
    if isinstance(annotation, ast.Name) and annotation.id in names.sections:
        return "section"
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        kind = ast.unparse(annotation.value)
        if kind == "Literal":
            return ", ".join(f"`{ast.literal_eval(choice)}`" for choice in inner)
        return "map" if kind == "dict" else f"list of {spoken(inner[0], names)}".replace("list of section", "list of sections")
    return _WORDS.get(ast.unparse(annotation), ast.unparse(annotation))


def knobs(section: ast.ClassDef, names: Names) -> Iterator[Knob]:
    """The annotated fields of a section in reading order."""
    for field, after in zip(section.body, [*section.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        doc = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            doc = " ".join(after.value.value.split()).replace("``", "`")
        default, bounds = _default(field.value)
        kind = spoken(field.annotation, names) + (f", {bounds}" if bounds else "")
        yield Knob(field.target.id, kind, default, doc)


def _default(value: ast.expr | None) -> tuple[str, str]:
    """Default and bounds out of a plain value or a call of ``Field``."""
    if value is None:
        return "required", ""
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Field"):
        return _literal(value), ""
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    bounds = ", ".join(f"{word} {ast.unparse(given[key])}" for key, word in _BOUNDS.items() if key in given)
    if "default" in given:
        return _literal(given["default"]), bounds
    if "default_factory" in given:
        return "empty" if ast.unparse(given["default_factory"]) == "dict" else "its defaults", bounds
    return "required", bounds


def _literal(value: ast.expr) -> str:
    if isinstance(value, ast.Constant):
        words = {None: "null", True: "true", False: "false"}
        return f"`{words[value.value]}`" if value.value is None or isinstance(value.value, bool) else f"`{value.value!s}`"
    return "`[]`" if isinstance(value, ast.Tuple) and not value.elts else f"`{ast.unparse(value)}`"


def build(source: str) -> str:
    """The whole page for the source of sft/recipe.py."""
    names = Names.of(ast.parse(source))
    parts = [HEAD]
    for section in _fields(names.sections["Recipe"]):
        owner = names.sections[_owner(section, names)]
        optional = " (optional)" if section.value is not None else ""
        parts.append(_table(f"## {ast.unparse(section.target)}{optional}", owner, names))
        for name, other in names.sections.items():
            keys = [ast.unparse(field.target) for field in _fields(owner) if _owner(field, names) == name]
            if keys:
                title = " and ".join(f"{ast.unparse(section.target)}.{key}" for key in keys)
                parts.append(_table(f"### {title}", other, names))
    return "\n".join(parts)


def _fields(section: ast.ClassDef) -> list[ast.AnnAssign]:
    return [node for node in section.body if isinstance(node, ast.AnnAssign)]


def _owner(field: ast.AnnAssign, names: Names) -> str:
    """The section that a field holds, or lists; "" if it holds a plain value."""
    found = (node.id for node in ast.walk(field.annotation) if isinstance(node, ast.Name) and node.id in names.sections)
    return next(found, "")


def _table(title: str, section: ast.ClassDef, names: Names) -> str:
    doc = ast.get_docstring(section)
    lines = [title, ""]
    if doc:
        lines += [" ".join(doc.split()).replace("``", "`"), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for knob in knobs(section, names):
        lines.append(f"| `{knob.name}` | {knob.kind} | {knob.default} | {knob.meaning.replace('|', chr(92) + '|')} |")
    return "\n".join([*lines, ""])


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` say whether it is up to date."""
    page = build(SOURCE.read_text(encoding="utf-8"))
    if "--check" not in arguments:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    sys.stderr.write("docs/recipes.md is out of date: run python docs/build_recipe_reference.py\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
