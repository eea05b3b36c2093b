"""Conversations are rendered by a template for one tokenizer, for training and as inference prompts, and the spans are proven.

A special token is recognised only where the template wrote every character of it: what could pass for a piece of one in a message
is rendered in disguise, character by character (:class:`~sft.data.marks.Disguise`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import jinja2

from sft.data.conversation import Conversation, Role, Turn, fold_inputs
from sft.data.frame import Frame, fillers
from sft.data.marks import PRIVATE_FIRST, PRIVATE_LAST, Disguise, compile_template, take_marks, without_marks
from sft.data.template import ChatTemplate, Filled, Rendered, RenderRefused, SpecialTokens

_MOST_FRAMES = 1 << 10
_UNWRITABLE = re.compile(f"[\ud800-\udfff{PRIVATE_FIRST}-{PRIVATE_LAST}]")


@dataclass(slots=True)
class Renderer:
    """A template bound to the special tokens of one tokenizer.

    What a template of ours writes around messages depends on their roles alone, so it is asked once for each sequence of roles.
    """

    template: ChatTemplate
    tokens: SpecialTokens
    _guard: Disguise = field(init=False)
    _head: tuple[Turn, ...] = field(init=False)
    _named: dict[str, str] = field(init=False)
    _marked: bool = field(init=False)
    _frames: dict[tuple[str, ...], Frame | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._marked = self.template.marked
        self._guard = Disguise(self.tokens.control)
        self._head = () if self.template.system is None else (Turn("system", self.template.system),)
        self._named = {**dict(self.tokens.named), "bos_token": self.tokens.bos, "eos_token": self.tokens.eos}

    @property
    def stop(self) -> str:
        """The text that ends an answer."""
        return self.template.stop or self.tokens.eos

    def render(self, conversation: Conversation) -> Rendered:
        """Render a whole conversation for training.

        Raises:
            RenderRefused: the template cannot write it, or its spans cannot be trusted.
        """
        made = self.prepare(conversation)
        return made.rendered() if isinstance(made, Filled) else made

    def prepare(self, conversation: Conversation) -> Filled | Rendered:
        """As :meth:`render`; in a frame if the template is ours, which spares writing the text.

        Raises:
            RenderRefused: as :meth:`render`.
        """
        messages = [turn.content for turn in conversation.turns]
        # Around an empty message two texts of the template meet, and may spell a special token together.
        frame = (
            self._frame(tuple([turn.role for turn in conversation.turns])) if self.template.proven and all(messages) else None
        )
        if frame is None:
            return self._render(self._with_system(self.turns_of(conversation)))
        for message in messages:
            _refuse_unwritable(message)
        return Filled(frame, messages)

    def _frame(self, roles: tuple[Role, ...]) -> Frame | None:
        """What the template writes around messages of these roles; None if it refuses them, or does not write them all in order."""
        if roles not in self._frames:
            if len(self._frames) >= _MOST_FRAMES:
                self._frames.clear()
            self._frames[roles] = None
            with contextlib.suppress(RenderRefused):
                gaps = fillers(len(roles))
                turns = tuple(map(Turn, roles, gaps))
                made = self._render(self._with_system(self._known_turns(Conversation("frame", turns, ""))))
                self._frames[roles] = Frame.cut(made.text, gaps, made.spans, made.specials)
        return self._frames[roles]

    def _render(self, turns: tuple[Turn, ...]) -> Rendered:
        answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        if len(answers) > 1 and not self.template.multi_turn:
            detail = (
                f"the template {self.template.name} holds one answer, this row has {len(answers)}: "
                "name one that holds many, such as vicuna_v1.1 or chatml"
            )
            raise RenderRefused("template_refused", detail)
        rendered = self._write(turns, prompt=False)
        if not self._marked:
            rendered = self._derive_spans(turns, answers, rendered)
        if len(rendered.spans) != len(answers):
            raise RenderRefused(
                "span_mismatch", f"the template marked {len(rendered.spans)} answers, the conversation has {len(answers)}"
            )
        if self._marked and not self.template.proven:
            self._check_spans(turns, answers, rendered)
        return rendered

    def prompt(self, conversation: Conversation) -> Rendered:
        """Render what precedes the next answer: the inference prompt. The last turn is not an assistant turn."""
        return self._write(self._with_system(self.turns_of(conversation)), prompt=True)

    def turns_of(self, conversation: Conversation) -> tuple[Turn, ...]:
        """The turns as the template gets them from a conversation (inputs folded), without the recipe's system message.

        Raises:
            RenderRefused: a turn that the template cannot write.
        """
        return self._known_turns(conversation, _refuse_unwritable)

    def _known_turns(self, conversation: Conversation, check: Callable[[str], object] = len) -> tuple[Turn, ...]:
        if "input" not in self.template.roles:
            conversation = fold_inputs(conversation)
        for i, turn in enumerate(conversation.turns):
            if turn.role not in self.template.roles:
                raise RenderRefused("template_refused", f"the template {self.template.name} has no {turn.role} role")
            if turn.role == "system" and i > 0:
                raise RenderRefused(
                    "template_refused", "a system turn that is not the first would be lost; move it to the front"
                )
            if turn.role == "assistant" and i and conversation.turns[i - 1].role == "assistant" and not self.template.inner:
                detail = f"the template {self.template.name} has no place for two answers in a row (thoughts, then commands)"
                raise RenderRefused("template_refused", f"{detail}; join them, or name moss_plugin")
            check(turn.content)
        return conversation.turns

    def places(self, conversation: Conversation, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Where some turns of :meth:`turns_of` stand in the rendered text, first to last character that the template kept.

        Found by rendering again with every other character (blank ones too, if the template is ours) in their place.
        """
        turns = self._with_system(self.turns_of(conversation))
        shift = len(turns) - len(self.turns_of(conversation))
        text, other = self._served(turns, prompt=False), re.compile(r"[\s\S]" if self.template.proven else r"\S")
        found = []
        for index in (i + shift for i in indices if other.search(turns[i + shift].content)):
            masked = replace(turns[index], content=other.sub(PRIVATE_FIRST, turns[index].content))
            changed = self._served((*turns[:index], masked, *turns[index + 1 :]), prompt=False)
            differ = [i for i, char in enumerate(changed) if char == PRIVATE_FIRST]
            if len(changed) != len(text) or not differ:
                detail = f"the template does not write turn {index} as it is, so it cannot be masked"
                raise RenderRefused("turn_not_rendered", detail)
            found.append((differ[0], differ[-1] + 1))
        return found

    def _with_system(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        return turns if turns and turns[0].role == "system" else self._head + turns

    def _raw(self, turns: Sequence[Turn], contents: Iterable[str], prompt: bool) -> str:
        messages = [{"role": turn.role, "content": content} for turn, content in zip(turns, contents, strict=True)]
        try:
            return compile_template(self.template.source).render(
                messages=messages, add_generation_prompt=prompt, tools=None, **self._named
            )
        except jinja2.TemplateError as error:
            raise RenderRefused("template_refused", f"the template {self.template.name} refused: {error.message}") from None
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise RenderRefused("template_refused", f"the template {self.template.name} failed: {error}") from None

    def _served(self, turns: Sequence[Turn], prompt: bool) -> str:
        """The text alone, as a server renders it: no disguise, no marks."""
        return without_marks(self._raw(turns, (turn.content for turn in turns), prompt))

    def _write(self, turns: Sequence[Turn], prompt: bool) -> Rendered:
        """Render with messages in disguise, so that special tokens are found only where the template wrote all of them.

        A template of ours writes messages whole. One that is not may cut, trim or search them: every character that occurs in a
        special token is hidden then, or, if the template minds that, only what spells one; its text must come out as served.
        """
        if self.template.proven:
            return self._finish(self._raw(turns, [self._guard.pieces(turn.content) for turn in turns], prompt))
        served = self._finish(self._raw(turns, [turn.content for turn in turns], prompt)).text
        for hide in (self._guard.everything, self._guard.pieces):
            try:
                found = self._finish(self._raw(turns, [hide(turn.content) for turn in turns], prompt))
            except RenderRefused:
                continue
            if found.text == served:
                return found
        raise RenderRefused(
            "prompt_not_prefix",
            "the template rewrites special tokens that a message spells, so training and inference would render it differently",
        )

    def _finish(self, raw: str) -> Rendered:
        try:
            hidden, spans = take_marks(raw)
        except ValueError as error:
            raise RenderRefused("span_mismatch", f"in the template {self.template.name}, {error}") from None
        text, specials = self._guard.uncover(hidden)
        return Rendered(text, spans, specials)

    def _check_spans(self, turns: Sequence[Turn], answers: Iterable[int], rendered: Rendered) -> None:
        """For templates that are not ours: each prompt, and each answer as history, must be what inference would render."""
        for (start, end), index in zip(rendered.spans, answers, strict=True):
            if any(a < edge < b for a, b in rendered.specials for edge in (start, end)):
                raise RenderRefused("span_mismatch", "the template's generation marks stand inside a special token")
            _same(self._served(turns[:index], prompt=True), rendered.text[:start], f"the prompt before answer {index}")
            if index + 1 < len(turns):
                upto = self._served(turns[: index + 1], prompt=False)
                _same(upto[:end], rendered.text[:end], f"answer {index} as history")

    def _derive_spans(self, turns: Sequence[Turn], answers: Iterable[int], rendered: Rendered) -> Rendered:
        """Find the answers of an unmarked template by rendering every prefix, and verify what was found.

        The span starts where the inference prompt ends and runs through the first stop token after the answer.
        """
        spans, text = [], rendered.text
        for index in answers:
            prompt = self._served(turns[:index], prompt=True)
            upto = self._served(turns[: index + 1], prompt=False)
            _same(prompt, text[: len(prompt)], f"the prompt before answer {index}")
            _same(prompt, upto[: len(prompt)], f"the prompt before answer {index}")
            answer = turns[index].content.strip()
            at = upto.find(answer, len(prompt))
            if at < 0 or upto[len(prompt) : at].strip():
                raise RenderRefused("answer_not_rendered", f"the template does not write answer {index} right after its prompt")
            end = at + len(answer)
            _same(upto[:end], text[:end], f"answer {index} as history")
            end = self._stop_end(rendered, end, limit=len(upto))
            _same(upto[:end], text[:end], f"answer {index} as history")
            spans.append((len(prompt), end))
        return replace(rendered, spans=tuple(spans))

    def _stop_end(self, rendered: Rendered, after: int, limit: int) -> int:
        for start, end in rendered.specials:
            if start >= after and end <= limit and not rendered.text[after:start].strip():
                return end
        raise RenderRefused("stop_not_rendered", "no stop token follows the answer, so the model could never learn to stop")


def _refuse_unwritable(message: str) -> None:
    if message.isascii() or not (found := _UNWRITABLE.search(message)):
        return
    if found[0] >= PRIVATE_FIRST:
        raise RenderRefused("private_use_character", "the text contains plane 16 private-use characters; remove them")
    # no row has one, but what somebody types may
    raise RenderRefused("unpaired_surrogate", f"the text holds half a character, U+{ord(found[0]):04X}; remove it")


def _same(served: str, trained: str, what: str) -> None:
    if served != trained:
        at = next(i for i in range(len(served) + 1) if served[i : i + 1] != trained[i : i + 1])
        raise RenderRefused(
            "prompt_not_prefix",
            f"{what} renders differently in training and inference: at character {at}: "
            f"{trained[at : at + 24]!r} against {served[at : at + 24]!r}",
        )
