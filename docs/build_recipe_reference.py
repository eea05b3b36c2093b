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
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "at least this many:"}


@dataclass(frozen=True, slots=True)
class Knob:
    """One row of the page."""

    name: str
    kind: str
    default: str
    meaning: str


def knobs(section: ast.ClassDef) -> Iterator[Knob]:
    """The annotated fields of a section in reading order."""
    for field, after in zip(section.body, [*section.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        doc = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            doc = " ".join(after.value.value.split()).replace("``", "`")
        default, bounds = _default(field.value)
        kind = ast.unparse(field.annotation) + (f" ({bounds})" if bounds else "")
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
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    parts = [HEAD]
    for section in knobs(classes["Recipe"]):
        owner = section.kind.split(" ")[0]
        optional = " (optional)" if section.default != "required" else ""
        parts.append(_table(f"## {section.name}{optional}", classes[owner]))
        for name, other in classes.items():
            used = [
                knob.name for knob in knobs(classes[owner]) if name in knob.kind.replace("[", " ").replace(",", " ").split()
            ]
            if used:
                keys = " and ".join(f"{section.name}.{key}" for key in used)
                parts.append(_table(f"### {keys}", other))
    return "\n".join(parts)


def _table(title: str, section: ast.ClassDef) -> str:
    doc = ast.get_docstring(section)
    lines = [title, ""]
    if doc:
        lines += [" ".join(doc.split()).replace("``", "`"), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for knob in knobs(section):
        kind, meaning = (text.replace("|", "\\|") for text in (knob.kind, knob.meaning))
        lines.append(f"| `{knob.name}` | {kind} | {knob.default} | {meaning} |")
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
