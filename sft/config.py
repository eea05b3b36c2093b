"""Strict configuration: one YAML 1.2 reader, frozen pydantic sections, all faults at once.

PyYAML as it comes follows YAML 1.1: ``2e-5`` is a string, ``on`` a bool, ``010`` eight, and a repeated key wins silently.
Here PyYAML only parses; plain scalars are resolved by the YAML 1.2 core schema (https://yaml.org/spec/1.2.2, section 10.3.2)
and repeated keys, anchors and tags are faults. A recipe is data: nothing in it can name code.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from sft.errors import Fault, InputError, RecipeError

Key = tuple[str | int, ...]
SectionT = TypeVar("SectionT", bound="Section")

_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_PATH = re.compile(r"[^.\[\]]+(\[\d+\]|\.[^.\[\]]+)*")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Section(pydantic.BaseModel):
    """Base of every recipe section: unknown keys refused, no coercion, immutable, documented by attribute docstrings."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )


@dataclass(slots=True)
class Document:
    """A parsed YAML file: plain values, and where each of them stands.

    Attributes:
        value: dicts, lists, strings, ints, floats, bools and None only.
        where: key path -> ``file:line`` (or ``--set``).
        path: the file, for messages.
    """

    value: dict[str, Any]
    where: dict[Key, str]
    path: str
    faults: list[Fault] = field(default_factory=list)

    def locate(self, key: Key) -> str:
        """The place of ``key``, or of the nearest section around it."""
        for end in range(len(key), -1, -1):
            if key[:end] in self.where:
                return self.where[key[:end]]
        return self.path


def dotted(key: Key) -> str:
    """``("data", "sources", 0, "path")`` -> ``data.sources[0].path``."""
    out = ""
    for part in key:
        out += f"[{part}]" if isinstance(part, int) else (f".{part}" if out else part)
    return out


def parse_scalar(text: str) -> Any:
    """Resolve one plain scalar by the YAML 1.2 core schema. Infinite and NaN raise ``ValueError``: no knob takes them."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        value = float(text)
        if math.isinf(value):
            raise ValueError(f"{text} is too large for a number")
        return value
    if _SPECIAL_FLOAT.fullmatch(text):
        raise ValueError(f"{text} is not a usable number; write a finite one")
    return text


class _Walker:
    """Turn a YAML node graph into plain values, collecting places and faults."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.where: dict[Key, str] = {}
        self.faults: list[Fault] = []
        self._seen: set[int] = set()
        self._resolver: Any = yaml.resolver.Resolver()

    def fault(self, node: yaml.Node, key: Key, message: str) -> None:
        self.faults.append(Fault(self.place(node), dotted(key), message))

    def place(self, node: yaml.Node) -> str:
        return f"{self.path}:{node.start_mark.line + 1}"

    def walk(self, node: yaml.Node, key: Key) -> Any:
        self.where.setdefault(key, self.place(node))
        if id(node) in self._seen:  # an alias is the anchor's own node: the key knows the line, the node does not
            message = "YAML anchors and aliases are not supported; write the value out"
            self.faults.append(Fault(self.where[key], dotted(key), message))
            return None
        self._seen.add(id(node))
        if self._tagged(node, key):
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.walk(child, (*key, i)) for i, child in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, key)

    def _tagged(self, node: yaml.Node, key: Key) -> bool:
        """Whether the file gives this node a tag: then its tag is not the one that PyYAML finds by itself."""
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if node.tag == self._resolver.resolve(type(node), node.value, (plain, not plain)):
            return False
        self.fault(node, key, f"the tag {node.tag} is not allowed: a recipe is data only")
        return True

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name_node, child in node.value:
            name = name_node.value
            if not isinstance(name_node, yaml.ScalarNode) or not isinstance(name, str):
                self.fault(name_node, key, "a key must be plain text")
                continue
            if self._tagged(name_node, (*key, name)):
                continue
            if name in out:
                first = self.where[(*key, name)].rsplit(":", 1)[-1]
                self.fault(name_node, (*key, name), f"this key was already given on line {first}; keep one")
                continue
            self.where[(*key, name)] = self.place(name_node)
            out[name] = self.walk(child, (*key, name))
        return out

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        if node.style is not None:  # quoted or block text is always a string
            return node.value
        try:
            return parse_scalar(node.value)
        except ValueError as error:
            self.fault(node, key, str(error))
            return None


def read_yaml(path: str | Path) -> Document:
    """Read one YAML 1.2 mapping.

    Raises:
        RecipeError: unreadable file, not YAML, not a mapping, or any repeated key, tag or alias (all of them at once).
    """
    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError([Fault(name, "", "no such file")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Fault(name, "", f"cannot be read as UTF-8 text: {error}")]) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError([Fault(f"{name}:{line}", "", f"not valid YAML: {error.problem}")]) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError([Fault(name, "", f"not valid YAML: {str(error).splitlines()[0]}")]) from None
    walker = _Walker(name)
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError([Fault(f"{name}:1", "", "a recipe is a mapping of sections, such as 'model:' and 'data:'")])
    value = walker.walk(node, ())
    return Document(value=value, where=walker.where, path=name, faults=walker.faults)


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
        except (yaml.YAMLError, RecursionError):
            document.faults.append(Fault("--set", name, f"the value {text!r} is not valid YAML"))
            continue
        walker = _Walker("--set")
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
        faults += _schema_faults(schema, document, error.errors())
        built = None
    if faults or built is None:
        raise RecipeError(sorted(faults, key=_file_order))
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


def _file_order(fault: Fault) -> tuple[str, int]:
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
    key = _strip_union_labels(raw, document.value)
    kind, given = item["type"], item.get("input")
    if kind == "value_error" and isinstance(item["ctx"]["error"], KeyedErrors):
        return [Fault(document.locate((*key, *k)), dotted((*key, *k)), message) for k, message in item["ctx"]["error"].items]
    if kind == "extra_forbidden":
        message = "unknown key" + _did_you_mean(schema, key)
    elif kind == "value_error":
        message = str(item["ctx"]["error"])
        named = getattr(item["ctx"]["error"], "key", None)
        if named:
            key = (*key, *named)
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


def _strip_union_labels(key: Key, value: Any) -> Key:
    """pydantic puts union branch names into ``loc``; keep only the parts that lead somewhere in the document."""
    out: list[str | int] = []
    for i, part in enumerate(key):
        here = value[part] if _has(value, part) else None
        if _has(value, part):
            out.append(part)
            value = here
        elif i == len(key) - 1 and isinstance(value, dict) and isinstance(part, str) and part.isidentifier():
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
    """The section class inside ``X``, ``X | None``, ``tuple[X, ...]`` or ``Annotated[X, ...]``; None for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            found = section_of(argument)
            if found is not None:
                return found
    return None


def known_keys(schema: type[Section], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema, sections first."""
    for name, info in schema.model_fields.items():
        yield prefix + name
        inner = section_of(info.annotation)
        if inner is not None:
            yield from known_keys(inner, f"{prefix}{name}.")


def _did_you_mean(schema: type[Section], key: Key) -> str:
    wanted = ".".join(part for part in key if isinstance(part, str))
    keys = [k for k in known_keys(schema) if not f"{wanted}.".startswith(f"{k}.")]
    # The same name in another section beats a similar name here.
    moved = [k for k in keys if k.rsplit(".", 1)[-1] == key[-1]]
    match = moved or difflib.get_close_matches(wanted, keys, 1, 0.7)
    if not match:
        by_leaf = {k.rsplit(".", 1)[-1]: k for k in keys}
        near = difflib.get_close_matches(str(key[-1]), list(by_leaf), 1, 0.75)
        match = [by_leaf[n] for n in near]
    return f"; did you mean '{match[0]}'?" if match else ""


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
