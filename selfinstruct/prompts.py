"""Prompt files: Jinja templates that a strategy fills in, each known by the fingerprint of its bytes.

A prompt is data: it renders in a sandbox, sees only what the strategy hands it, and an unknown name in it is an error. What it is
filled with never becomes template code. Files in ``prompts/`` go by their name; anything that ends in ``.jinja`` is a path.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sft.errors import InputError

FOLDER = Path(__file__).parent / "prompts"
_SENTINEL = re.compile(r"<<<[A-Z]+(?: \d+)?>>>")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt file.

    Attributes:
        name: as the recipe names it.
        source: its text.
        fingerprint: first 16 hex digits of the sha256 of the text; it stands in every row's lineage.
    """

    name: str
    source: str
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", hashlib.sha256(self.source.encode()).hexdigest()[:16])

    def render(self, **values: Any) -> str:
        """Fill the prompt in.

        Raises:
            InputError: the template is broken, or uses a name that the strategy does not give.
        """
        try:
            return _compiled(self.source).render(**values)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            line = getattr(error, "lineno", None)
            place = f"{self.name}:{line}" if line else self.name
            raise InputError(f"prompt {place}: {error}; it may use {', '.join(sorted(values))}") from None


@lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False, autoescape=False
    )
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(source)


def prompt_names() -> list[str]:
    """Names of the prompts that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def load_prompt(name: str) -> Prompt:
    """Load a prompt by name, or by path if it ends in ``.jinja``.

    Raises:
        InputError: no such prompt (the known ones are named), an unreadable file, or a template with a syntax error and its line.
    """
    path = Path(name) if name.endswith(".jinja") else FOLDER / f"{name}.jinja"
    if not name.endswith(".jinja") and name not in prompt_names():
        raise InputError(f"prompt {name!r}: not one of {', '.join(prompt_names())}, nor a path that ends in .jinja")
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompt {name}: cannot be read as UTF-8 text: {error}") from None
    prompt = Prompt(name, source)
    try:
        _compiled(source)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"prompt {name}:{error.lineno}: {error.message}") from None
    return prompt


def refuse_sentinels(texts: Iterable[tuple[str, str]]) -> None:
    """Refuse demonstrations that spell a mark of the reply format: the reply could not be told apart.

    Args:
        texts: ``(id, text)`` pairs.

    Raises:
        InputError: the id and the mark.
    """
    for id_, text in texts:
        if found := _SENTINEL.search(text):
            raise InputError(f"seed {id_}: its text holds {found.group()!r}, a mark of the reply format; reword it")
