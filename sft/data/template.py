"""A conversation becomes text, and the text remembers which characters the model learns to write.

::

    turns    user "Hi"     assistant "Hello."
    text     <s>A chat ... USER: Hi ASSISTANT: Hello.</s>
    spans                                     ^^^^^^^^^^^     the answer and its stop token, never the header
    specials ^^^                                      ^^^^    written by the template, so they become special ids

Templates are Jinja with ``{% generation %}`` marks (the transformers convention). What the trainer renders is what the exported
tokenizer renders: one source, with a prelude for the recipe's system message.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import jinja2

from sft.data.conversation import ROLES, Role
from sft.data.frame import Frame
from sft.data.marks import PRIVATE, compile_template
from sft.errors import TemplateError

TEMPLATE_DIR = Path(__file__).parent / "templates"

_SURROGATE = re.compile("[\ud800-\udfff]")
_GENERATION_TAG = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """Text with its trained spans.

    Attributes:
        text: what the model sees, special tokens written out.
        spans: ``(start, end)`` characters of each assistant turn with its stop token, in order.
        specials: ``(start, end)`` characters of special tokens that the template wrote.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    specials: tuple[tuple[int, int], ...]


class Filled(NamedTuple):
    """A conversation in a frame: what :class:`Rendered` is, as long as nobody needs its text.

    Attributes:
        frame: of its roles.
        messages: what goes into the gaps.
    """

    frame: Frame
    messages: Sequence[str]

    def rendered(self) -> Rendered:
        """The text with its trained spans."""
        return Rendered(*self.frame.fill(self.messages))


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What a template needs to know of a tokenizer.

    Attributes:
        bos: text of the BOS token, or "" if the tokenizer itself would not write one.
        eos: text of the EOS token.
        control: strings that become one special id when they stand in plain text.
        named: further ``name -> text`` variables for templates (``pad_token``, ``unk_token`` ...).
    """

    bos: str
    eos: str
    control: tuple[str, ...]
    named: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """One way to write conversations.

    Attributes:
        name: file name without ending, ``tokenizer``, or the path that the recipe gave.
        source: Jinja text, marks included, without the recipe's system message.
        stop: text that ends every trained answer; "" for the tokenizer's EOS.
        roles: roles the template writes itself (``input`` is folded into the user turn if it is missing here).
        multi_turn: False refuses conversations with more than one answer.
        only_last: True if just the last answer carries a stop token, so that ``train_on: last`` is the only sound policy.
        ends: special tokens that end an answer, in the place of ``stop``, where another turn follows: the first tokens of that turn.
        inner: special tokens that end an answer behind which another one stands, of the same speaker: thoughts before commands.
        tokens: special tokens that the tokenizer must have (``repair_tokens`` adds them when a model is loaded).
        proven: True if the prompt is a prefix of the text by construction (our own files, tested); others are checked row by row.
        system: the recipe's system message, for conversations without one. Training inserts it as a turn, so that it is guarded
            like any other message; a server gets it as a prelude of the source.
    """

    name: str
    source: str
    stop: str
    roles: tuple[Role, ...] = ROLES
    multi_turn: bool = True
    only_last: bool = False
    ends: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    proven: bool = False
    system: str | None = None

    @property
    def fingerprint(self) -> str:
        """sha256 of the whole source, recipe's system message included."""
        return hashlib.sha256(self.full_source().encode()).hexdigest()

    @property
    def marked(self) -> bool:
        """Whether the source carries ``{% generation %}`` marks."""
        return _GENERATION_TAG.search(self.source) is not None

    def full_source(self) -> str:
        """The source with the recipe's system message in it: alone, it renders what training renders."""
        return self._prelude() + self.source

    def served_source(self) -> str:
        """The full source without marks, for engines whose Jinja does not know them. It renders the same text."""
        return self._prelude() + _GENERATION_TAG.sub(lambda m: "{#" + m[1] + " " + m[2] + "#}", self.source)

    def _prelude(self) -> str:
        if self.system is None:
            return ""
        # JSON escapes are Jinja escapes as long as no surrogate pair is written. The final newline is eaten (trim_blocks); behind
        # it the source begins on a line of its own, so that its first blank characters are treated as without a prelude.
        return (
            "{%- if not messages or messages[0]['role'] != 'system' -%}{%- set messages = [{'role': 'system', 'content': "
            + json.dumps(self.system, ensure_ascii=False)
            + "}] + messages -%}{%- endif %}\n"
        )


def _header(source: str, path: Path) -> dict[str, str]:
    """The ``key: value`` lines of the comment that opens each of our templates."""
    match = re.match(r"\{#-?(.*?)-?#\}", source, re.DOTALL)
    if match is None:
        raise TemplateError(f"{path}:1: a template starts with a comment that names its stop string; see templates/README.md")
    pairs = (line.split(":", 1) for line in match[1].splitlines() if re.match(r"\s*[a-z_]+:", line))
    return {key.strip(): value.strip() for key, value in pairs}


def builtin_names() -> list[str]:
    """Names of the templates in the package."""
    return sorted(path.stem for path in TEMPLATE_DIR.glob("*.jinja"))


def load_template(name: str, *, system: str | None = None, tokenizer_source: str | None = None) -> ChatTemplate:
    """Find a template and add the recipe's system message to it.

    Args:
        name: a built-in name, ``tokenizer``, or a path ending in ``.jinja`` (same header as ours, or none).
        system: system message for conversations without one.
        tokenizer_source: the tokenizer's own template, for ``tokenizer``.

    Raises:
        TemplateError: unknown name, syntax error, bad header, or a tokenizer without a template.
    """
    if name == "tokenizer":
        if not tokenizer_source:
            raise TemplateError("template.name: tokenizer, but this tokenizer has no chat template; name one of ours instead")
        found = ChatTemplate(name, tokenizer_source, stop="")
    else:
        path = Path(name) if name.endswith(".jinja") else TEMPLATE_DIR / f"{name}.jinja"
        if not path.is_file():
            raise TemplateError(
                f"template.name: no template {name!r}; there are {', '.join(builtin_names())}, tokenizer, or a path"
            )
        found = _from_file(name, path, own=path.parent == TEMPLATE_DIR)
    if system is not None:
        if "system" not in found.roles:
            raise TemplateError(f"template.system: {name} has no place for a system message; remove it")
        if PRIVATE.search(system) or _SURROGATE.search(system):
            raise TemplateError(
                f"template.system: {system!r} holds plane 16 private-use characters or half surrogates; remove them"
            )
        found = replace(found, system=system)
    try:
        compile_template(found.source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"{name}:{error.lineno}: not a valid Jinja template: {error.message}") from None
    except (SyntaxError, RecursionError, ValueError) as error:  # {% break %} within {% generation %}, a number of 5,000 digits
        raise TemplateError(f"{name}: not a valid Jinja template: {error}") from None
    return found


def _from_file(name: str, path: Path, own: bool) -> ChatTemplate:
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    header = _header(source, path) if own or source.startswith("{#") else {}
    roles = tuple(header.get("roles", "system user assistant tool").split())
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise TemplateError(f"{path}:1: unknown role {unknown[0]!r} in the header; known are {', '.join(ROLES)}")
    try:
        stop = json.loads(header["stop"]) if header.get("stop", "eos") != "eos" else ""
    except json.JSONDecodeError:
        raise TemplateError(f'{path}:1: stop: {header["stop"]} is neither eos nor a quoted string such as "\\n###"') from None
    return ChatTemplate(
        name=name,
        source=source,
        stop=stop,
        roles=cast(tuple[Role, ...], roles),
        multi_turn=header.get("turns", "many") == "many",
        only_last=header.get("stop_on", "every") == "last",
        ends=tuple(header.get("ends", "").split()),
        inner=tuple(header.get("inner", "").split()),
        tokens=tuple(header.get("tokens", "").split()),
        proven=own,
    )


def with_bos_policy(template: ChatTemplate, writes_bos: bool) -> ChatTemplate:
    """Pin down, inside the source, that ``bos_token`` is empty where the tokenizer itself writes none (GPT-2, SmolLM2, Qwen).

    Only our own templates ask: they say ``{{ bos_token }}`` for every model. A tokenizer's own template already knows.
    """
    if writes_bos or not template.proven:
        return template
    return replace(template, source="{%- set bos_token = '' -%}" + template.source)


class RenderRefused(ValueError):
    """A conversation that a template cannot write. ``reason`` is a drop code."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(detail)
