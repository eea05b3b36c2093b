"""One YAML 1.2 reader that remembers where each value stands.

PyYAML as it comes follows YAML 1.1: ``2e-5`` is a string, ``on`` a bool, ``010`` eight, and a repeated key wins silently.
Here PyYAML only parses; plain scalars are resolved by the YAML 1.2 core schema (https://yaml.org/spec/1.2.2, section 10.3.2)
and repeated keys, anchors and tags are faults. A recipe is data: nothing in it can name code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sft.errors import Fault, RecipeError

Key = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_MOST_DIGITS = 1000  # Python writes and reads no more than 4,300, a number in hexadecimal digits takes 1.2 times as many
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_HALF = re.compile(r"[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")  # of a surrogate pair: "\ud800"


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
    """Resolve one plain scalar by the YAML 1.2 core schema. What no knob takes raises ``ValueError``: infinite, NaN, a number of pages."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if _INT.fullmatch(text) or _BASED.fullmatch(text):
        if len(text) > _MOST_DIGITS:
            raise ValueError(f"a number of {len(text):,} digits is too large")
        return int(text) if _INT.fullmatch(text) else int(text, 0)
    if _FLOAT.fullmatch(text):
        value = float(text)
        if math.isinf(value):
            raise ValueError(f"{text} is too large for a number")
        return value
    if _SPECIAL_FLOAT.fullmatch(text):
        raise ValueError(f"{text} is not a usable number; write a finite one")
    return text


class Walker:
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
            if half := _HALF.search(name):
                self.fault(name_node, key, f"a key holds half a character, U+{ord(half[0]):04X}")
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
        if half := _HALF.search(node.value):
            self.fault(node, key, f"the text holds half a character, U+{ord(half[0]):04X}")
            return None
        if node.style is not None:  # quoted or block text is always a string
            return node.value
        try:
            return parse_scalar(node.value)
        except ValueError as error:
            self.fault(node, key, str(error))
            return None


def read_yaml(path: str | Path, sections: Sequence[str] = ("model", "data")) -> Document:
    """Read one YAML 1.2 mapping.

    Args:
        path: the file.
        sections: some that it should have, to name where it has none.

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
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # the last two: \U00110000, %YAML 9999...9
        raise RecipeError([Fault(name, "", f"not valid YAML: {str(error).splitlines()[0]}")]) from None
    walker = Walker(name)
    if not isinstance(node, yaml.MappingNode):
        named = " and ".join(f"'{name}:'" for name in sections)
        raise RecipeError([Fault(f"{name}:1", "", f"a recipe is a mapping of sections, such as {named}")])
    value = walker.walk(node, ())
    return Document(value=value, where=walker.where, path=name, faults=walker.faults)
