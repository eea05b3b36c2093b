"""Templates and tokenisation under fuzz: text, spans and special tokens; ids, masks, and what becomes of rows that are too long."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import fuzz_draws as draws
import numpy as np
from fuzz_law import Broken, require

from sft.data.conversation import Conversation, Drop, Drops, Turn
from sft.data.fields import RowFault
from sft.data.formats import FORMATS
from sft.data.marks import compile_template, without_marks
from sft.data.overflow import exchanges, fit
from sft.data.render import Renderer
from sft.data.template import ChatTemplate, RenderRefused, SpecialTokens, builtin_names, load_template
from sft.data.tokenize import RowEncoder, Tokenized, Traced
from sft.errors import InputError
from tests.builders import byte_level, colon_crossing, sentencepiece_like
from tests.templates import answer

_TOKENS = [
    SpecialTokens("<s>", "</s>", ("<s>", "</s>", "<|im_start|>", "<|im_end|>")),
    SpecialTokens("", "<|endoftext|>", ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im", "|>")),
    SpecialTokens("</s>", "</s>", ("</s>", "s>s", "ss")),
]
_SPELL = [*draws.SPELT, "|im_end|>", "<|im_start", "s>s", "</", "s", "\n###", " ", ""]


def _text(dice: random.Random) -> str:
    kind = dice.random()
    if kind < 0.05:
        return ""
    return "".join(dice.choices(_SPELL, k=dice.randint(1, 4))) if kind < 0.3 else draws.text(dice)


def _turns(dice: random.Random) -> list[list[Any]]:
    """Roles in their order, mostly, with texts and flags."""
    turns: list[list[Any]] = [["system", _text(dice), None]] if dice.random() < 0.25 else []
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        turns.append(["user", _text(dice), None])
        if dice.random() < 0.15:
            turns.append([dice.choice(("input", "tool")), _text(dice), None])
        turns.append(["assistant", _text(dice), dice.choice((None, None, None, None, True, False))])
    if dice.random() < 0.12:
        at = dice.randrange(len(turns))
        turns[at] = [dice.choice(("system", "user", "input", "assistant", "tool")), turns[at][1], dice.choice((None, False))]
    return turns


def _conversation(turns: list[list[Any]]) -> Conversation:
    return Conversation("c", tuple(Turn(role, text, train) for role, text, train in turns), "s")


class Templates:
    """Each input is a conversation for one template, ours or one that was tampered with; see :meth:`check`."""

    name = "templates"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ours = {name: load_template(name) for name in builtin_names()}
        self._with_system = {
            name: load_template(name, system="Say </s> {{ x }} {# <|im_end|>")
            for name, one in self._ours.items()
            if "system" in one.roles
        }
        self._renderers: dict[tuple[str, bool, int], Renderer] = {}

    def draw(self, dice: random.Random) -> Any:
        name, tokens = dice.choice(list(self._ours)), dice.randrange(len(_TOKENS))
        if dice.random() < 0.002:
            long = [[role, draws.stretched(dice, 40_000), None] for role in ("user", "assistant")]
            return ["ours", name, False, tokens, long]
        if dice.random() < 0.97:
            return ["ours", name, name in self._with_system and dice.random() < 0.3, tokens, _turns(dice)]
        source = self._ours[name].source
        for _ in range(dice.choice((0, 1, 1, 2))):
            source = _tampered(dice, source)
        return ["foreign", source, tokens, _turns(dice)]

    def check(self, made: Any, counts: Counter[str]) -> None:
        getattr(self, f"_check_{made[0]}")(*made[1:], counts=counts)

    def _renderer(self, name: str, system: bool, tokens: int) -> Renderer:
        key = (name, system, tokens)
        if key not in self._renderers:
            self._renderers[key] = Renderer((self._with_system if system else self._ours)[name], _TOKENS[tokens])
        return self._renderers[key]

    def _check_ours(self, name: str, system: bool, tokens: int, turns: list[list[Any]], counts: Counter[str]) -> None:
        """Answers with their stop stand where the spans say, special tokens only where the template writes them, prompts are prefixes."""
        renderer, conversation = self._renderer(name, system, tokens), _conversation(turns)
        try:
            made = renderer.render(conversation)
        except RenderRefused as refusal:
            counts[refusal.reason] += 1
            return
        counts["rendered"] += 1
        written = renderer._with_system(renderer.turns_of(conversation))
        require(renderer._render(written) == made, "a frame renders what the template renders")
        answers = [i for i, turn in enumerate(written) if turn.role == "assistant"]
        for (start, end), i in zip(made.spans, answers, strict=True):
            following = written[i + 1].role if i + 1 < len(written) else None
            before = written[i - 1].role if i else None
            wanted = answer(renderer.template, written[i].content, renderer.tokens.eos, following, before)
            require(made.text[start:end] == wanted, "a span is the answer with its stop")
        require(all(a[1] <= b[0] for a, b in pairwise(made.spans)), "spans are in order")
        served = compile_template(renderer.template.source).render(
            messages=[{"role": t.role, "content": t.content} for t in written],
            add_generation_prompt=False,
            tools=None,
            **renderer._named,
        )
        require(without_marks(served) == made.text, "what is served is what is trained")
        require(all(made.text[a:b] in renderer.tokens.control for a, b in made.specials), "special tokens are special")
        if all(turn.content for turn in conversation.turns):
            bland = renderer.render(
                replace(conversation, turns=tuple(replace(turn, content="x") for turn in conversation.turns))
            )
            names = [bland.text[a:b] for a, b in bland.specials]
            require([made.text[a:b] for a, b in made.specials] == names, "no text of a message becomes a special token")
        last = next((i for i in reversed(range(len(conversation.turns))) if conversation.turns[i].role == "assistant"), 0)
        if last and conversation.turns[last - 1].role != "assistant":
            prompt = renderer.prompt(replace(conversation, turns=conversation.turns[:last]))
            require(made.text[: made.spans[-1][0]] == prompt.text, "the prompt is a prefix")
            require(made.specials[: len(prompt.specials)] == prompt.specials, "the prompt's special tokens are the row's")

    def _check_foreign(self, source: str, tokens: int, turns: list[list[Any]], counts: Counter[str]) -> None:
        """A template of somebody else is refused, or renders what it serves, with the answers in its spans."""
        path = self._folder / "foreign.jinja"
        path.write_bytes(source.encode("utf-8", "surrogatepass"))
        try:
            renderer = Renderer(load_template(str(path)), _TOKENS[tokens])
        except InputError:
            counts["foreign template refused"] += 1
            return
        try:
            made = renderer.render(_conversation(turns))
        except RenderRefused as refusal:
            counts[f"foreign: {refusal.reason}"] += 1
            return
        counts["foreign rendered"] += 1
        written = renderer._with_system(renderer.turns_of(_conversation(turns)))
        require(made.text == renderer._served(written, prompt=False), "what is served is what is trained")
        require(len(made.spans) == sum(turn.role == "assistant" for turn in written), "each answer has a span")


def _tampered(dice: random.Random, source: str) -> str:
    """A template with the marks gone, a filter put in, a line lost, or characters changed."""
    kind = dice.randrange(6)
    if kind == 0:
        return source.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    if kind == 1:
        return source.replace(
            "['content']", dice.choice(("['content'] | trim", "['content'] | upper", "['content'][1:]", ".content", "['x']"))
        )
    if kind == 2:
        lines = source.split("\n")
        del lines[dice.randrange(len(lines))]
        return "\n".join(lines)
    if kind == 3:
        odd = (
            "{{ 1 / 0 }}",
            "{{ x.y.z }}",
            "{% break %}",
            "{{ messages | tojson }}",
            "{{ strftime_now('%d') }}",
            "{{ range(9999999) }}",
            "\ud800",
        )
        at = dice.randint(0, len(source))
        return source[:at] + dice.choice(odd) + source[at:]
    return draws.mutated(dice, source) if kind == 4 else source.replace("eos_token", dice.choice(("''", "bos_token", "'</s>'")))


class Tokenise:
    """Each input is a conversation that a row may hold, for one tokenizer, template and policy; see :meth:`check`."""

    name = "tokenise"

    def __init__(self, folder: Path) -> None:
        self._pairs: list[tuple[RowEncoder, RowEncoder]] = []
        for tokenizer, names in (
            (byte_level(), ("chatml", "alpaca", "vicuna_v0")),
            (sentencepiece_like(), ("vicuna_v1.1", "llama2", "alpaca_newline", "plain", "chinese_vicuna_chat")),
            (colon_crossing(), ("vicuna_v1.1", "alpaca")),
        ):
            for name in names:
                template: ChatTemplate = load_template(name)
                for policy in ("last",) if template.only_last else ("assistant", "last", "all"):
                    plain, interned = (RowEncoder(tokenizer, template, policy, start) for start in (1 << 60, 0))
                    warm = _conversation([["user", "Hello there", None], ["assistant", "Yes, 你好", None]])
                    interned.encode([warm])
                    self._pairs.append((plain, interned))

    def draw(self, dice: random.Random) -> Any:
        turns = _turns(dice)
        for turn in turns:
            if dice.random() < 0.98 and not (turn[0] in ("input", "tool") and not turn[1]):
                turn[1] = "".join(char for char in turn[1] if char != "\0" and not "\ud800" <= char <= "\udfff") or "x"
        if dice.random() < 0.003:
            dice.choice(turns)[1] = (
                draws.stretched(dice, 20_000).translate({0: None, **dict.fromkeys(range(0xD800, 0xE000))}) + "x"
            )
        return [dice.randrange(len(self._pairs)), turns, dice.choice((4, 12, 30, 64, 120))]

    def check(self, made: Any, counts: Counter[str]) -> None:
        """Both encoders agree to the id; the ids are the tokenizer's on the whole text, the mask is the answers, prompts are prefixes."""
        (plain, interned), turns, longest = self._pairs[made[0]], made[1], made[2]
        conversation = _conversation(turns)
        if not _is_sound(conversation):
            counts["no row has these turns"] += 1
            [one], [other] = plain.encode([conversation]), interned.encode([conversation])
            require(
                one == other if isinstance(one, Drop) or isinstance(other, Drop) else _plain(one) == _plain(other),
                "interned or not, anything is encoded alike",
            )
            return
        [one], [other] = plain.trace([conversation]), interned.trace([conversation])
        if isinstance(one, Drop) or isinstance(other, Drop):
            require(one == other, "interned or not, a row is dropped alike")
            assert isinstance(one, Drop)
            counts[one.reason] += 1
        else:
            self._check_row(plain, conversation, one, other, counts)
        for policy in ("truncate", "drop", "split"):
            fitted = [
                _fitted(encoder, row, conversation, longest, policy) for encoder, row in ((plain, one), (interned, other))
            ]
            require(fitted[0][1:] == fitted[1][1:], "interned or not, a row is fitted alike")
            _check_fitted(fitted[0][0], one, conversation, longest, policy, fitted[0][2])

    def _check_row(
        self, encoder: RowEncoder, conversation: Conversation, one: Traced, other: Traced, counts: Counter[str]
    ) -> None:
        counts["encoded"] += 1
        row, rendered = one.row, one.rendered
        require(_plain(row) == _plain(other.row), "ids, mask and turns are equal, interned or not")
        require(row.ids.tolist() == encoder.ids_of(rendered), "ids are those of the whole text")
        require(not row.mask[0], "the first token is never learnt")
        learnt = np.zeros(len(row.ids), np.bool_)
        for start, stop in row.turns:
            learnt[start:stop] = True
        require(encoder.train_on == "all" or not (row.mask & ~learnt).any(), "nothing but answers is learnt")
        for number, turn in enumerate(conversation.turns):
            if turn.role == "assistant":
                answer = sum(t.role == "assistant" for t in conversation.turns[:number])
                start = row.turns[answer][0]
                if row.mask[row.turns[answer][1] - 1] and encoder.train_on != "all":
                    ids = encoder.prompt_ids(replace(conversation, turns=conversation.turns[:number]))
                    require(row.ids[:start].tolist() == ids, "the ids of the prompt are a prefix")


def _is_sound(conversation: Conversation) -> bool:
    """Whether a row can hold a conversation: what the encoder may count on."""
    entries = [
        {"role": "user" if t.role == "input" else t.role, "content": t.content} for t in conversation.turns if t.role != "input"
    ]
    try:
        FORMATS["messages"]({"messages": entries}, {})
    except RowFault:
        return False
    roles = [turn.role for turn in conversation.turns]
    return all(role != "input" or (i and roles[i - 1] == "user") for i, role in enumerate(roles))


def _plain(row: Tokenized) -> Any:
    return row.id, row.ids.tolist(), row.mask.tolist(), row.turns


def _fitted(encoder: RowEncoder, row: Traced | Drop, conversation: Conversation, longest: int, policy: str) -> Any:
    drops = Drops()
    [found] = fit([row], [conversation], encoder, longest, policy, drops)
    return found, [_plain(one.row) for one in found], drops.to_json()


def _check_fitted(found: Any, whole: Traced | Drop, conversation: Conversation, longest: int, policy: str, told: Any) -> None:
    """Nothing is too long, nothing is lost without a count, what was not long is left as it is."""
    require(all(len(one.row.ids) <= longest for one in found), "no row is too long")
    require(all(one.row.mask.any() for one in found), "each row learns something")
    require(bool(found) != bool(told["counts"]), "a row comes out or is counted as dropped")
    if isinstance(whole, Drop):
        return
    if len(whole.row.ids) <= longest:
        require(len(found) == 1 and found[0].row is whole.row, "a row that fits is left as it is")
    elif policy == "truncate" and found:
        cut = found[0].row
        require(cut.ids.tolist() == whole.row.ids[: len(cut.ids)].tolist(), "a truncated row is a prefix")
        require(bool(cut.mask[-1]), "a truncated row ends with something learnt")
    elif policy == "split":
        pairs = [pair for one in found for pair in exchanges(one.conversation)[1]]
        every = exchanges(conversation)[1]
        texts = [[turn.content for turn in pair] for pair in every]
        went = [[turn.content for turn in pair] for pair in pairs]
        require(_is_subsequence(went, texts), "parts hold the exchanges in their order, each once")
        lost = len(every) - len(pairs)
        counted = sum(n for reason, n in told["changed"].items() if reason.startswith("split_")) + sum(told["counts"].values())
        require(lost == 0 or counted > 0, "an exchange that is lost is counted")


def _is_subsequence(some: list[Any], every: list[Any]) -> bool:
    rest = iter(every)
    return all(one in rest for one in some)


__all__ = ["Broken", "Templates", "Tokenise"]
