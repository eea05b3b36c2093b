"""A conversation becomes text, and the text remembers which characters the model learns to write.

::

    turns    user "Hi"     assistant "Hello."
    text     <s>A chat ... USER: Hi ASSISTANT: Hello.</s>
    spans                                     ^^^^^^^^^^^     the answer and its stop token, never the header
    specials ^^^                                      ^^^^    written by the template, so they become special ids

Templates are Jinja with ``{% generation %}`` marks (the transformers convention). What the trainer renders is what the exported
tokenizer renders: one source, with a prelude for the recipe's choices. Text inside messages can never become a special token:
anything that looks like one is broken by a private mark while rendering, and the mark is taken out afterwards.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sft.data.conversation import ROLES, Conversation, Role, Turn, fold_inputs
from sft.errors import TemplateError

TEMPLATE_DIR = Path(__file__).parent / "templates"

# Plane 16 is private use and empty in practice; rows that contain it are dropped with a reason (tokenize.py).
PRIVATE_FIRST, PRIVATE_LAST = "\U00100000", "\U0010ffff"
_OPEN, _CLOSE, _BREAK = "\U0010fff0", "\U0010fff1", "\U0010fff2"

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
        source: Jinja text, marks and recipe prelude included. Its bytes are the fingerprint.
        stop: text that ends every trained answer; "" for the tokenizer's EOS.
        roles: roles the template writes itself (``input`` is folded into the user turn if it is missing here).
        multi_turn: False refuses conversations with more than one answer.
        only_last: True if just the last answer carries a stop token, so that ``train_on: last`` is the only sound policy.
        tokens: special tokens that the tokenizer must have (they are added to it if missing).
        proven: True if the prompt is a prefix of the text by construction (our own files, tested); others are checked row by row.
    """

    name: str
    source: str
    stop: str
    roles: tuple[Role, ...] = ROLES
    multi_turn: bool = True
    only_last: bool = False
    tokens: tuple[str, ...] = ()
    proven: bool = False

    @property
    def fingerprint(self) -> str:
        """sha256 of the source."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def marked(self) -> bool:
        """Whether the source carries ``{% generation %}`` marks."""
        return _GENERATION_TAG.search(self.source) is not None

    def served_source(self) -> str:
        """The source without marks, for engines whose Jinja does not know them. It renders the same text."""
        return _GENERATION_TAG.sub(lambda m: "{#" + m[1] + " " + m[2] + "#}", self.source)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``: the transformers tag, here putting private marks around the block."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return _OPEN + caller() + _CLOSE


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


@lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise
    return env.from_string(source)


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
    source = found.source
    if system is not None:
        if "system" not in found.roles:
            raise TemplateError(f"template.system: {name} has no place for a system message; remove it")
        text = json.dumps(system, ensure_ascii=True)
        source = (
            "{%- if not messages or messages[0]['role'] != 'system' -%}"
            "{%- set messages = [{'role': 'system', 'content': " + text + "}] + messages -%}{%- endif -%}" + source
        )
    try:
        _compile(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"{name}:{error.lineno}: not a valid Jinja template: {error.message}") from None
    return ChatTemplate(
        found.name, source, found.stop, found.roles, found.multi_turn, found.only_last, found.tokens, found.proven
    )


def _from_file(name: str, path: Path, own: bool) -> ChatTemplate:
    source = path.read_text(encoding="utf-8")
    header = _header(source, path) if own or source.startswith("{#") else {}
    roles = tuple(header.get("roles", "system user assistant tool").split())
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise TemplateError(f"{path}:1: unknown role {unknown[0]!r} in the header; known are {', '.join(ROLES)}")
    stop = json.loads(header["stop"]) if header.get("stop", "eos") != "eos" else ""
    return ChatTemplate(
        name=name,
        source=source,
        stop=stop,
        roles=cast(tuple[Role, ...], roles),
        multi_turn=header.get("turns", "many") == "many",
        only_last=header.get("stop_on", "every") == "last",
        tokens=tuple(header.get("tokens", "").split()),
        proven=own,
    )


def with_bos_policy(template: ChatTemplate, writes_bos: bool) -> ChatTemplate:
    """Pin down, inside the source, that ``bos_token`` is empty where the tokenizer itself writes none (GPT-2, SmolLM2, Qwen).

    Only our own templates ask: they say ``{{ bos_token }}`` for every model. A tokenizer's own template already knows.
    """
    if writes_bos or not template.proven:
        return template
    source = "{%- set bos_token = '' -%}" + template.source
    return ChatTemplate(
        template.name,
        source,
        template.stop,
        template.roles,
        template.multi_turn,
        template.only_last,
        template.tokens,
        template.proven,
    )


class RenderRefused(ValueError):
    """A conversation that a template cannot write. ``reason`` is a drop code."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(detail)


@dataclass(slots=True)
class Renderer:
    """A template bound to the special tokens of one tokenizer."""

    template: ChatTemplate
    tokens: SpecialTokens
    _scan: re.Pattern[str] = field(init=False)
    _guard: re.Pattern[str] | None = field(init=False)
    _private: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        # Longest first: the tokenizer's own matcher takes the leftmost longest token.
        control = sorted((re.escape(t) for t in self.tokens.control if t), key=len, reverse=True)
        self._guard = re.compile("|".join(control)) if control else None
        self._scan = re.compile("|".join([f"[{_OPEN}-{_BREAK}]", *control]))
        self._private = re.compile(f"[{PRIVATE_FIRST}-{PRIVATE_LAST}]")

    @property
    def stop(self) -> str:
        """The text that ends an answer."""
        return self.template.stop or self.tokens.eos

    def render(self, conversation: Conversation) -> Rendered:
        """Render a whole conversation for training.

        Raises:
            RenderRefused: the template cannot write it, or its spans cannot be trusted.
        """
        turns = self._turns(conversation)
        answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        if len(answers) > 1 and not self.template.multi_turn:
            raise RenderRefused(
                "template_refused", f"the template {self.template.name} holds one answer, this row has {len(answers)}"
            )
        rendered = self._finish(self._raw(turns, prompt=False))
        if self.template.marked:
            if not self.template.proven:
                self._check_prefixes(turns, answers, rendered)
        else:
            rendered = self._derive_spans(turns, answers, rendered)
        if len(rendered.spans) != len(answers):
            raise RenderRefused(
                "span_mismatch", f"the template marked {len(rendered.spans)} answers, the conversation has {len(answers)}"
            )
        return rendered

    def prompt(self, conversation: Conversation) -> Rendered:
        """Render what precedes the next answer: the inference prompt. The last turn is not an assistant turn."""
        return self._finish(self._raw(self._turns(conversation), prompt=True))

    def _turns(self, conversation: Conversation) -> tuple[Turn, ...]:
        if "input" not in self.template.roles:
            conversation = fold_inputs(conversation)
        for turn in conversation.turns:
            if turn.role not in self.template.roles:
                raise RenderRefused("template_refused", f"the template {self.template.name} has no {turn.role} role")
            if self._private.search(turn.content):
                raise RenderRefused("private_use_character", "the text contains plane 16 private-use characters; remove them")
        return conversation.turns

    def _raw(self, turns: Sequence[Turn], prompt: bool) -> str:
        messages = [{"role": turn.role, "content": self._protect(turn.content)} for turn in turns]
        named = dict(self.tokens.named)
        try:
            return _compile(self.template.source).render(
                messages=messages,
                add_generation_prompt=prompt,
                tools=None,
                **{**named, "bos_token": self.tokens.bos, "eos_token": self.tokens.eos},
            )
        except jinja2.TemplateError as error:
            raise RenderRefused("template_refused", f"the template {self.template.name} refused: {error.message}") from None
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise RenderRefused("template_refused", f"the template {self.template.name} failed: {error}") from None

    def _protect(self, text: str) -> str:
        """Break every special token that is written in a message after its first character."""
        if self._guard is None or not self._guard.search(text):
            return text
        return self._guard.sub(lambda m: m[0][0] + _BREAK + m[0][1:], text)

    def _finish(self, raw: str) -> Rendered:
        """Take the private marks out of a render and turn them into positions."""
        pieces: list[str] = []
        spans: list[tuple[int, int]] = []
        specials: list[tuple[int, int]] = []
        length = last = start = 0
        for match in self._scan.finditer(raw):
            pieces.append(raw[last : match.start()])
            length += match.start() - last
            last = match.end()
            found = match[0]
            if found == _OPEN:
                start = length
            elif found == _CLOSE:
                spans.append((start, length))
            elif found != _BREAK:
                specials.append((length, length + len(found)))
                pieces.append(found)
                length += len(found)
        pieces.append(raw[last:])
        return Rendered("".join(pieces), tuple(spans), tuple(specials))

    def _check_prefixes(self, turns: Sequence[Turn], answers: Iterable[int], rendered: Rendered) -> None:
        """For templates that are not ours: the prompt before each answer must be what inference would render."""
        for (start, _), index in zip(rendered.spans, answers, strict=False):
            prompt = self._finish(self._raw(turns[:index], prompt=True)).text
            if prompt != rendered.text[:start]:
                raise RenderRefused(
                    "prompt_not_prefix",
                    f"the prompt before answer {index} renders differently in training and inference: {_differ(prompt, rendered.text)}",
                )

    def _derive_spans(self, turns: Sequence[Turn], answers: Iterable[int], rendered: Rendered) -> Rendered:
        """Find the answers of an unmarked template by rendering every prefix, and verify what was found.

        The span starts where the inference prompt ends and runs through the first stop token after the answer.
        """
        spans = []
        for index in answers:
            prompt = self._finish(self._raw(turns[:index], prompt=True)).text
            upto = self._finish(self._raw(turns[: index + 1], prompt=False)).text
            if not rendered.text.startswith(prompt):
                raise RenderRefused(
                    "prompt_not_prefix", f"the prompt before answer {index} is no prefix: {_differ(prompt, rendered.text)}"
                )
            answer = turns[index].content.strip()
            at = rendered.text.find(answer, len(prompt))
            if at < 0 or rendered.text[len(prompt) : at].strip():
                raise RenderRefused("answer_not_rendered", f"the template does not write answer {index} right after its prompt")
            end = self._stop_end(rendered, at + len(answer), limit=len(upto))
            if rendered.text[:end] != upto[:end]:
                raise RenderRefused("prompt_not_prefix", f"answer {index} is written differently when turns follow it")
            spans.append((len(prompt), end))
        return Rendered(rendered.text, tuple(spans), rendered.specials)

    def _stop_end(self, rendered: Rendered, after: int, limit: int) -> int:
        for start, end in rendered.specials:
            if start >= after and end <= limit and not rendered.text[after:start].strip():
                return end
        raise RenderRefused("stop_not_rendered", "no stop token follows the answer, so the model could never learn to stop")


def _differ(left: str, right: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    return f"at character {at}: {left[at : at + 24]!r} against {right[at : at + 24]!r}"
