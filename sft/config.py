"""Strict configuration: frozen pydantic sections over :mod:`sft.strict_yaml`, edits by ``--set``, all faults at once."""

from __future__ import annotations

import copy
import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import pydantic
import yaml

from sft.errors import Fault, InputError, RecipeError
from sft.strict_yaml import Document, Key, Walker, dotted, parse_scalar, read_yaml

__all__ = [
    "Document",
    "Key",
    "KeyedError",
    "KeyedErrors",
    "Section",
    "apply_overrides",
    "build",
    "dotted",
    "file_order",
    "flatten",
    "known_keys",
    "load",
    "parse_scalar",
    "read_yaml",
    "require",
    "section_of",
]

SectionT = TypeVar("SectionT", bound="Section")

_KIND = "kind"
"""Key that tells the sections of a union apart."""
_KINDS: Final = (
    (frozenset({"model", "template", "data", "train", "lora", "plan"}), "a training", "sft"),
    (frozenset({"sources", "rules", "dedup", "split", "identity", "mix"}), "a curation", "sft data"),
    (frozenset({"questions", "answers", "judge"}), "a judgment", "selfinstruct judge"),
    (frozenset({"seeds", "strategy", "filters"}), "a generation", "selfinstruct"),
)
"""Sections that only one kind of recipe has, what it is of, and the command whose verbs read it."""
_HINT = re.compile(r"did you mean '([^']*)'")
_PATH = re.compile(r"[^.\[\]]+(\[\d+\]|\.[^.\[\]]+)*")


class Section(pydantic.BaseModel):
    """Base of every recipe section: unknown keys refused, no coercion, immutable, documented by attribute docstrings."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )


def apply_overrides(document: Document, overrides: Iterable[str]) -> None:
    """Edit a document in place with ``a.b=value`` or ``a.b[0].c=value`` items; values are YAML (JSON works too)."""
    for item in overrides:
        name, sep, text = item.partition("=")
        parts = [int(p[1:-1]) if p.startswith("[") else p for p in re.findall(r"\[\d+\]|[^.\[\]]+", name)]
        if not sep or not _PATH.fullmatch(name):
            document.faults.append(Fault("--set", name, f"write key=value, got {item!r}"))
            continue
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError, ValueError, OverflowError):  # the last two: "\U00110000"
            document.faults.append(Fault("--set", name, f"the value {text!r} is not valid YAML"))
            continue
        walker = Walker("--set")
        value = None if node is None else walker.walk(node, ())
        document.faults += [Fault("--set", name, fault.message) for fault in walker.faults]
        _assign(document, tuple(parts), value, name)


def _assign(document: Document, key: Key, value: Any, name: str) -> None:
    target: Any = document.value
    for i, part in enumerate(key[:-1]):
        if isinstance(part, str) and isinstance(target, dict):
            if target.get(part) is None:
                target[part] = {}
                document.where[key[: i + 1]] = "--set"
            target = target[part]
        elif isinstance(part, int) and isinstance(target, list) and part < len(target):
            target = target[part]
        else:
            document.faults.append(Fault("--set", name, f"there is no {dotted(key[: i + 1])} to set a value in"))
            return
    last = key[-1]
    fits = isinstance(target, dict) if isinstance(last, str) else isinstance(target, list) and last < len(target)
    if not fits:
        document.faults.append(Fault("--set", name, f"there is no {dotted(key)} to set"))
        return
    target[last] = value
    for old in [k for k in document.where if k[: len(key)] == key]:
        del document.where[old]
    document.where[key] = "--set"
    for inner, _ in flatten(value):
        document.where[(*key, *inner)] = "--set"


def build(schema: type[SectionT], document: Document) -> SectionT:
    """Validate a document against a schema.

    Raises:
        RecipeError: every fault of the file, the overrides and the schema together, in file order.
    """
    faults = list(document.faults)
    try:
        # JSON mode: strict about types, yet a list may fill a tuple field.
        built = schema.model_validate_json(json.dumps(document.value))
    except pydantic.ValidationError as error:
        found = _schema_faults(schema, document, error.errors())
        faults += [*found, *_behind_unknown_keys(schema, document, error.errors(), found)]
        built = None
    if faults or built is None:
        raise RecipeError(sorted(faults, key=file_order))
    return built


def _schema_faults(schema: type[Section], document: Document, items: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """One fault per key: none where the reader already found one, and the branches of a union in one sentence."""
    known = {fault.key for fault in document.faults}
    found: dict[str, Fault] = {}
    for item in items:
        inner = any(other["loc"][: len(item["loc"])] == item["loc"] and other is not item for other in items)
        if item["type"] == "too_short" and inner:
            continue  # pydantic counts only sound items: the item that is not has its own fault
        for fault in _faults(schema, document, item):
            first = found.get(fault.key)
            if first is not None and first.message.startswith("must be ") and fault.message.startswith("must be "):
                message = f"{first.message.rsplit(', got ', 1)[0]} or {fault.message.removeprefix('must be ')}"
                fault = Fault(fault.where, fault.key, message)
            if fault.key not in known:
                found[fault.key] = fault
    return list(found.values())


def _behind_unknown_keys(
    schema: type[Section], document: Document, items: Sequence[Mapping[str, Any]], told: Sequence[Fault]
) -> list[Fault]:
    """What a section's own checks say: pydantic does not ask them while it has an unknown key. They are asked as if each had the name
    that it was taken for, or were not there."""
    unknown = [
        _own_key(tuple(item["loc"]), document.value, absent=False) for item in items if item["type"] == "extra_forbidden"
    ]
    hints = {fault.key: name for fault in told for name in _HINT.findall(fault.message)}
    value = copy.deepcopy(document.value)
    for *around, last in unknown:
        inside: Any = value
        for part in around:
            inside = inside[part]
        section, _, meant = hints.get(dotted((*around, last)), "").rpartition(".")
        given = inside.pop(last, None)
        if meant and section == dotted(tuple(around)):
            inside.setdefault(meant, given)
    known = {fault.key for fault in told}
    below = tuple(f"{name}{mark}" for name in hints.values() for mark in ".[")
    try:
        if unknown:
            schema.model_validate_json(json.dumps(value))
    except pydantic.ValidationError as error:
        found = _schema_faults(schema, replace(document, value=value), error.errors())
        return [f for f in found if f.key not in known | set(hints.values()) and not f.key.startswith(below)]
    return []


def file_order(fault: Fault) -> tuple[str, int]:
    """By what faults are sorted."""
    name, _, line = fault.where.rpartition(":")
    return (name, int(line)) if line.isdigit() else (fault.where, 0)


_PLAIN_WORDS = {
    "missing": "is required",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "int_from_float": "must be a whole number",
}


def _faults(schema: type[Section], document: Document, item: Mapping[str, Any]) -> list[Fault]:
    raw: Key = tuple(item["loc"])
    key = _own_key(raw, document.value, absent=item["type"] == "missing")
    kind, given = item["type"], item.get("input")
    if kind == "value_error" and isinstance(item["ctx"]["error"], KeyedErrors):
        return [Fault(document.locate((*key, *k)), dotted((*key, *k)), message) for k, message in item["ctx"]["error"].items]
    if kind == "extra_forbidden":
        message = "unknown key" + _did_you_mean(schema, key, document.value)
    elif kind == "value_error":
        message = str(item["ctx"]["error"])
        named = getattr(item["ctx"]["error"], "key", None)
        if named:
            key = (*key, *named)
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        key = (*key, item["ctx"]["discriminator"].strip("'"))
        expected = item["ctx"].get("expected_tags", "")
        tag = item["ctx"].get("tag")
        message = "is required" if tag is None else f"must be one of {expected}, got {_show(tag)}" + _closest(tag, expected)
    elif kind in _PLAIN_WORDS:
        message = _PLAIN_WORDS[kind] + ("" if kind == "missing" else f", got {_show(given)}")
    elif kind == "literal_error":
        message = f"must be {item['ctx']['expected']}, got {_show(given)}" + _closest(given, item["ctx"]["expected"])
    else:
        message = item["msg"][0].lower() + item["msg"][1:] + f", got {_show(given)}"
    return [Fault(document.locate(key), dotted(key), message)]


class KeyedErrors(ValueError):
    """Refusals that span sections, each with the dotted key that it is about."""

    def __init__(self, items: Iterable[tuple[str, str]]) -> None:
        self.items: list[tuple[Key, str]] = [(tuple(key.split(".")), message) for key, message in items]
        super().__init__("; ".join(message for _, message in self.items))


class KeyedError(ValueError):
    """A refusal by a section that names the field it is about, so that the message carries that field's line."""

    def __init__(self, key: str, message: str) -> None:
        self.key: Key = (key,)
        super().__init__(message)


def _own_key(loc: Key, value: Any, *, absent: bool) -> Key:
    """The key in the document of what pydantic found at ``loc``, which also holds the names of union branches.

    The section of a union that is told by its ``kind`` has that kind right behind it, whatever keys it has: a key may be of the same name.
    Of other parts those stay that lead somewhere in the document (``absent``: all but the last).
    """
    out: list[str | int] = []
    entered = False
    for i, part in enumerate(loc):
        if entered and isinstance(value, dict) and value.get(_KIND) == part:
            entered = False
        elif _has(value, part):
            out.append(part)
            value, entered = value[part], True
        elif absent and i == len(loc) - 1 and isinstance(value, dict) and isinstance(part, str) and part.isidentifier():
            out.append(part)
    return tuple(out)


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _closest(given: Any, expected: str) -> str:
    names = re.findall(r"'([^']*)'", expected)
    match = difflib.get_close_matches(given, names, 1, 0.6) if isinstance(given, str) else []
    return f"; did you mean '{match[0]}'?" if match else ""


def section_of(annotation: Any) -> type[Section] | None:
    """The first section class inside ``X``, ``X | None``, ``tuple[X, ...]`` or ``Annotated[X, ...]``; None for plain values."""
    return next(sections_of(annotation), None)


def sections_of(annotation: Any) -> Iterator[type[Section]]:
    """Every section class inside an annotation: the branches of a union too."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            yield from sections_of(argument)


def known_keys(schema: type[Section], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema, sections first."""
    for name, info in schema.model_fields.items():
        yield prefix + name
        for inner in sections_of(info.annotation):
            yield from known_keys(inner, f"{prefix}{name}.")


def _did_you_mean(schema: type[Section], key: Key, value: Any) -> str:
    names = [part for part in key if isinstance(part, str)]
    wanted = ".".join(names)
    keys = [k for k in _fitting_keys(schema, key, value) if not f"{wanted}.".startswith(f"{k}.")]
    # The same name in another section beats a similar name here.
    moved = [k for k in keys if k.rsplit(".", 1)[-1] == key[-1]]
    by_leaf = {k.rsplit(".", 1)[-1]: k for k in keys}
    # A shared section makes any two of its keys look alike, so the names must be alike too.
    alike = difflib.get_close_matches(str(key[-1]), list(by_leaf), len(by_leaf) or 1, 0.5)
    match = moved or difflib.get_close_matches(wanted, [k for k in keys if k.rsplit(".", 1)[-1] in alike], 1, 0.7)
    if not match:
        near = difflib.get_close_matches(str(key[-1]), list(by_leaf), 1, 0.75)
        match = [by_leaf[n] for n in near]
    return f"; did you mean '{_beside(key, match[0])}'?" if match else ""


def _fitting_keys(schema: type[Section], key: Key, value: Any) -> list[str]:
    """All keys but those that only sections of another ``kind`` have in the place of the one around ``key``."""
    for part in key[:-1]:
        value = value[part]
    around = [part for part in key[:-1] if isinstance(part, str)]
    here = [schema]
    for name in around:
        fields = [section.model_fields[name] for section in here if name in section.model_fields]
        here = [inner for info in fields for inner in sections_of(info.annotation)]
    told = [section for section in here if _KIND in section.model_fields]
    kinds = [section for section in told if section.model_fields[_KIND].default == value.get(_KIND)]
    if len(told) < 2 or not kinds:
        return list(known_keys(schema))
    prefix = ".".join(around) + "."
    return [
        k for k in known_keys(schema) if not k.startswith(prefix) or k[len(prefix) :].split(".")[0] in kinds[0].model_fields
    ]


def _beside(key: Key, name: str) -> str:
    """A known key with the indices of ``key`` in the part that both share."""
    out: list[str | int] = []
    left = name.split(".")
    for part in key:
        if isinstance(part, str):
            if not left or left[0] != part:
                break
            left.pop(0)
        out.append(part)
    return dotted((*out, *left))


def _refuse_other_kinds(schema: type[Section], document: Document) -> None:
    """One fault instead of one for every key, where a recipe is meant for other verbs."""
    given, fields = document.value.keys(), schema.model_fields.keys()
    if any(sections & fields and sections & given for sections, _, _ in _KINDS):
        return
    for sections, what, command in _KINDS:
        if not sections & fields and len(sections & given) > 1:
            said = f"this is the recipe of {what}: its verbs are those of {command}, such as {command} check"
            raise RecipeError([Fault(document.path, "", said)])


def load(schema: type[SectionT], path: str | Path, overrides: Iterable[str] = ()) -> tuple[SectionT, Document]:
    """Read, edit and check a recipe.

    Args:
        schema: the section class of the whole file.
        path: the YAML file, or a run directory (its ``recipe.yaml``).
        overrides: ``a.b=value`` edits, applied before any check.

    Returns:
        The frozen recipe, and the document that remembers where each value came from.

    Raises:
        RecipeError: all faults together.
    """
    path = Path(path)
    required = [name for name, info in schema.model_fields.items() if info.is_required()]
    document = read_yaml(path / "recipe.yaml" if path.is_dir() else path, required[:2])
    _refuse_other_kinds(schema, document)
    apply_overrides(document, overrides)
    return build(schema, document), document


def flatten(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Leaves of nested dicts and lists, in order, with their key paths. Empty containers are leaves."""
    items: Sequence[tuple[str | int, Any]]
    if isinstance(value, dict) and value:
        items = list(value.items())
    elif isinstance(value, (list, tuple)) and value:
        items = list(enumerate(value))
    else:
        yield key, value
        return
    for part, child in items:
        yield from flatten(child, (*key, part))


def require(condition: bool, message: str) -> None:
    """Raise :class:`InputError` unless ``condition``: for inputs, never for invariants of our own (those are asserts)."""
    if not condition:
        raise InputError(message)
