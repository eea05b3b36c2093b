"""Rendered text becomes token ids and a mask: one encoding of the whole text, the mask by character offsets.

::

    text    <s> ... USER: Hi ASSISTANT: Hello.</s>
    ids      1  ...  3148 1001 : ... :   ▁Hello .   2
    mask     0  ...   0    0   0     0     1    1   1

Every row is verified before it may be trained on: the ids of the inference prompt are a prefix of the row's ids, and the decoded
trained spans are the answers with their stop token. What fails becomes a :class:`~sft.data.conversation.Drop` with a reason.

Special tokens written by the template are encoded through private stand-ins: the encoder is a copy of the tokenizer in which each
special token has another name, so its usual spelling in a message is plain text, while ids stay those of the tokenizer on the
whole rendered text.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sft.data.conversation import Conversation, Drop, Turn
from sft.data.marks import PRIVATE_FIRST
from sft.data.template import ChatTemplate, Rendered, Renderer, RenderRefused, SpecialTokens, with_bos_policy
from sft.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

Policy = str  # "assistant", "last" or "all": see recipe.TemplateSection.train_on


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One row, ready to be batched.

    Attributes:
        id: of the conversation (with ``#i`` behind it for a part of a split one).
        source: label of its source.
        ids: int32 ``[T]``.
        mask: bool ``[T]``; True where the token is learnt. The first token is never learnt: nothing predicts it.
        turns: token range ``[start, stop)`` of each assistant turn with its stop token, learnt or not.
    """

    id: str
    source: str
    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    turns: tuple[tuple[int, int], ...]


def special_tokens(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> SpecialTokens:
    """The control strings of a tokenizer, and the variables that its templates use.

    Tokens count as control if they are marked special, or if the template itself writes them (``<think>``, ``<tool_call>``).
    Other added tokens (runs of spaces, HTML tags) are ordinary vocabulary.
    """
    control = [
        str(token.content)
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content.strip() and token.content in template.source)
    ]
    named = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    bos = str(tokenizer.bos_token or "")
    eos = str(tokenizer.eos_token or "")
    return SpecialTokens(bos=bos, eos=eos, control=tuple(sorted(set(control))), named=tuple(sorted(named.items())))


def writes_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts its BOS token before a text (LLaMA and OPT do, GPT-2 and Qwen do not)."""
    if not tokenizer.bos_token:
        return False
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the tokenizer's own JSON form: vocabulary, merges, added tokens, normaliser."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def stand_in_tokenizer(tokenizer: PreTrainedTokenizerBase, control: Sequence[str]) -> tuple[Tokenizer, dict[str, str]]:
    """Copy the tokenizer's backend with each control token renamed to one private character.

    Returns:
        The copy (no post-processor, no padding, no truncation) and the map from token to stand-in.

    Raises:
        TokenizerError: no Rust backend, a control token that ordinary text needs as a piece, or a copy that does not keep the ids.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(
            f"{type(tokenizer).__name__} has no tokenizers backend, so offsets are unknown; "
            "save it once as tokenizer.json (AutoTokenizer with the tokenizers package) and point the recipe there"
        )
    spec = json.loads(backend.to_str())
    spec["post_processor"] = spec["padding"] = spec["truncation"] = None
    names = {token: chr(ord(PRIVATE_FIRST) + i) for i, token in enumerate(control)}
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = spec["model"]
    _refuse_needed_pieces(model, names)
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in model["vocab"].items()}
    elif isinstance(model.get("vocab"), list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    try:
        copy = Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
    except Exception as error:  # the bindings raise nothing more specific
        raise TokenizerError(
            f"the tokenizer cannot be copied with its special tokens ({', '.join(control)}) renamed: {error}; "
            "re-save it, or take those that are ordinary text out of its special tokens"
        ) from None
    for token, stand_in in names.items():
        if copy.token_to_id(stand_in) != backend.token_to_id(token):
            raise TokenizerError(f"the special token {token!r} has no stable id in tokenizer.json; re-save the tokenizer")
    return copy, names


def _refuse_needed_pieces(model: dict[str, Any], control: Collection[str]) -> None:
    """Ordinary text must not need a control token as a piece: renaming it would take that text out of the vocabulary."""
    if model.get("type") != "BPE":
        return
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    used = {piece for left, right in merges for piece in (left, right, left + right)}
    byte_fallback = bool(model.get("byte_fallback"))
    for token in control:
        # A letter, or one of the byte pieces that stand in for letters, is needed without any merge.
        letter = len(token) == 1 and token in model["vocab"] and not byte_fallback
        byte = byte_fallback and re.fullmatch("<0x[0-9A-F]{2}>", token)
        if token in used or letter or byte:
            raise TokenizerError(
                f"the special token {token!r} is also a piece that ordinary text is made of (a letter, or a step of a merge), so the "
                "two cannot be told apart; choose another string for it, or take it out of the tokenizer's special tokens"
            )


def learnt_answers(conversation: Conversation, train_on: Policy) -> list[bool]:
    """Whether each assistant turn is learnt: what the turn itself says, else the policy."""
    answers = [turn.train for turn in conversation.turns if turn.role == "assistant"]
    return [train_on != "last" or i == len(answers) - 1 if train is None else train for i, train in enumerate(answers)]


class _Kept(NamedTuple):
    """A rendered row on its way to ids: ``text`` has stand-ins at ``marks``; ``muted`` is what ``train_on: all`` leaves out."""

    number: int
    text: str
    spans: tuple[tuple[int, int], ...]
    marks: tuple[int, ...]
    chosen: list[int]
    muted: tuple[tuple[int, int], ...]


class RowEncoder:
    """Turns conversations into verified rows, in batches.

    Args:
        tokenizer: with a Rust backend.
        template: what writes the text.
        train_on: ``assistant``, ``last`` or ``all``.

    Raises:
        TokenizerError: no EOS token, missing tokens of the template, a policy that it cannot serve, or no usable backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, train_on: Policy = "assistant") -> None:
        template = with_bos_policy(template, writes_bos(tokenizer))
        tokens = special_tokens(tokenizer, template)
        if not (template.stop or tokens.eos):
            raise TokenizerError(
                "the tokenizer has no EOS token (or an empty one), so an answer could never end; set eos_token"
            )
        if missing := [token for token in template.tokens if token not in tokens.control]:
            raise TokenizerError(
                f"the template {template.name} writes {', '.join(missing)}, which this tokenizer would cut into plain text; "
                "add them as special tokens, or choose another template"
            )
        if template.only_last and train_on != "last":
            raise TokenizerError(
                f"the template {template.name} ends only the last answer with a stop token; set template.train_on: last"
            )
        if tokens.bos and not writes_bos(tokenizer) and template.proven:
            tokens = SpecialTokens("", tokens.eos, tokens.control, tokens.named)
        self.template = template
        self.renderer = Renderer(template, tokens)
        self.train_on = train_on
        self._backend, self._names = stand_in_tokenizer(tokenizer, tokens.control)

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer's copy that knows special tokens by their stand-ins only."""
        return self._backend

    @property
    def stand_ins(self) -> dict[str, str]:
        """Special token -> the private character that stands for it in the backend."""
        return self._names

    def encode_text(self, rendered: Rendered) -> tuple[str, tuple[tuple[int, int], ...], tuple[int, ...]]:
        """The text with stand-ins, its spans in the new positions, and the positions of the stand-ins."""
        text, out, last, shift = rendered.text, [], 0, 0
        marks: list[int] = []
        moves: list[tuple[int, int]] = []
        for start, end in rendered.specials:
            out += [text[last:start], self._names[text[start:end]]]
            marks.append(start - shift)
            shift += end - start - 1
            moves.append((end, shift))
            last = end
        out.append(text[last:])
        if not moves:
            return text, rendered.spans, ()
        return "".join(out), tuple((_move(a, moves), _move(b, moves)) for a, b in rendered.spans), tuple(marks)

    def ids_of(self, rendered: Rendered) -> list[int]:
        """Token ids of one rendered text (prompts, served requests)."""
        return list(self._backend.encode(self.encode_text(rendered)[0], add_special_tokens=False).ids)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Token ids of the inference prompt: what stands before the next answer.

        Raises:
            RenderRefused: the template cannot write it.
        """
        return self.ids_of(self.renderer.prompt(conversation))

    def stops(self) -> tuple[list[int], list[str]]:
        """What ends an answer at inference: ids that stop generation, and strings for stops that are plain text.

        Found from a rendered answer, so that it is what training taught, whatever the tokenizer's configuration says.
        """
        probe = Conversation("probe", (Turn("user", "a"), Turn("assistant", "b")), "probe")
        rendered = self.renderer.render(probe)
        end = rendered.spans[-1][1]
        names = [rendered.text[a:b] for a, b in rendered.specials if b == end]
        strings = [] if names else [self.renderer.stop]
        names += [token for token in (self.renderer.tokens.eos,) if token in self._names]
        ids = (self._backend.token_to_id(self._names[name]) for name in names)
        return list(dict.fromkeys(token for token in ids if token is not None)), strings

    def encode(self, conversations: Sequence[Conversation]) -> list[Tokenized | Drop]:
        """Encode and verify a batch, in order; a row that fails any check comes back as a drop."""
        out: list[Tokenized | Drop | None] = [None] * len(conversations)
        kept: list[_Kept] = []
        for i, conversation in enumerate(conversations):
            try:
                rendered = self.renderer.render(conversation)
                chosen, muted = self._chosen(conversation, rendered)
            except RenderRefused as refusal:
                out[i] = Drop(conversation.id, refusal.reason, refusal.detail)
                continue
            answers = len(rendered.spans)
            text, spans, marks = self.encode_text(Rendered(rendered.text, rendered.spans + muted, rendered.specials))
            kept.append(_Kept(i, text, spans[:answers], marks, chosen, spans[answers:]))
        encodings = self._backend.encode_batch([row.text for row in kept], add_special_tokens=False)
        self._verify(conversations, kept, encodings, out)
        return [row for row in out if row is not None]

    def _chosen(self, conversation: Conversation, rendered: Rendered) -> tuple[list[int], tuple[tuple[int, int], ...]]:
        """The answers that are learnt, and the characters that ``train_on: all`` leaves out because their turn says so."""
        learnt = learnt_answers(conversation, self.train_on)
        chosen = [i for i, yes in enumerate(learnt) if yes]
        for i in chosen:
            if not self._stopped(rendered, *rendered.spans[i]):
                raise RenderRefused("stop_not_rendered", f"answer {i} does not end with its stop token {self.renderer.stop!r}")
        if self.train_on == "all":
            if all(turn.train is not False for turn in conversation.turns):
                return chosen, ()
            turns = self.renderer.turns_of(conversation)
            others = [i for i, turn in enumerate(turns) if turn.train is False and turn.role != "assistant"]
            unlearnt = [span for span, yes in zip(rendered.spans, learnt, strict=True) if not yes]
            return chosen, (*unlearnt, *self.renderer.places(conversation, others))
        if not chosen:
            which = "the last" if self.train_on == "last" else "every"
            detail = f"template.train_on is {self.train_on}, and {which} assistant turn of this row is marked train: false"
            raise RenderRefused("nothing_trained", detail)
        return chosen, ()

    def _stopped(self, rendered: Rendered, start: int, end: int) -> bool:
        """Whether an answer ends with its stop: the token itself if it is one, not text that spells it."""
        stop = self.renderer.stop
        if stop in self._names and (end - len(stop), end) in rendered.specials:
            return True
        if not self.template.proven and any(a >= start and b == end for a, b in rendered.specials):
            return True  # a foreign template may end its turns with another token
        return stop not in self._names and rendered.text[start:end].endswith(stop)

    def _verify(
        self,
        conversations: Sequence[Conversation],
        kept: list[_Kept],
        encodings: list[Encoding],
        out: list[Tokenized | Drop | None],
    ) -> None:
        """Fill ``out`` with rows that passed: boundaries, prompt prefixes and decoded spans, each checked in one batch."""
        tails: list[str] = []
        tail_checks: list[tuple[int, list[int]]] = []
        spans_ids: list[list[int]] = []
        span_checks: list[tuple[int, str]] = []
        for (i, text, spans, marks, chosen, muted), encoding in zip(kept, encodings, strict=True):
            conversation = conversations[i]
            try:
                bounds = [_token_bounds(encoding, start, end, len(text)) for start, end in spans]
            except RenderRefused as refusal:
                out[i] = Drop(conversation.id, refusal.reason, refusal.detail)
                continue
            ids = encoding.ids
            mask = np.zeros(len(ids), dtype=np.bool_)
            if self.train_on == "all":
                mask[:] = True
                for start, end in muted:  # also the tokens that hold only a part of such a turn
                    mask[[k for k, (a, b) in enumerate(encoding.offsets) if a < end and b > start]] = False
            for k in chosen:
                first, stop = bounds[k]
                mask[first:stop] = True
                begin = max((m for m in marks if m < spans[k][0]), default=0)
                anchor = encoding.char_to_token(begin) or 0
                tails.append(text[begin : spans[k][0]])
                tail_checks.append((i, ids[anchor:first]))
                spans_ids.append(ids[first:stop])
                span_checks.append((i, text[spans[k][0] : spans[k][1]]))
            mask[:1] = False
            if not mask.any():
                out[i] = Drop(
                    conversation.id, "nothing_trained", "all that is learnt is the first token, which nothing predicts"
                )
                continue
            row = np.asarray(ids, dtype=np.int32)
            out[i] = Tokenized(conversation.id, conversation.source, row, mask, tuple(bounds))
        for (i, expected), tail in zip(tail_checks, self._backend.encode_batch(tails, add_special_tokens=False), strict=True):
            if tail.ids != expected and isinstance(out[i], Tokenized):
                out[i] = Drop(conversations[i].id, "prompt_not_prefix", _PREFIX_DETAIL)
        decoded = self._backend.decode_batch(spans_ids, skip_special_tokens=False)
        for (i, expected_text), text in zip(span_checks, decoded, strict=True):
            if isinstance(out[i], Tokenized) and not _same_text(text, expected_text):
                detail = f"the trained ids decode to {text[:60]!r}, not to the answer"
                out[i] = Drop(conversations[i].id, "decode_mismatch", detail)


_PREFIX_DETAIL = (
    "the tokens of the inference prompt are not the first tokens of this row: a token spans the end of the header and the "
    "start of the answer; choose a template whose header ends at a token boundary for this tokenizer"
)


def _move(position: int, moves: list[tuple[int, int]]) -> int:
    shift = 0
    for end, total in moves:
        if end > position:
            break
        shift = total
    return position - shift


def _token_bounds(encoding: Encoding, start: int, end: int, length: int) -> tuple[int, int]:
    """Tokens ``[first, stop)`` that cover exactly the characters ``[start, end)``.

    The end is found from the character behind the span: a last character of several byte tokens keeps all of them.
    """
    total = len(encoding.ids)
    if start == end:
        raise RenderRefused("span_mismatch", "an answer rendered to nothing")
    first = encoding.char_to_token(start)
    stop = total if end >= length else encoding.char_to_token(end)
    if first is None or stop is None:
        raise RenderRefused("decode_mismatch", "the tokenizer removes a character at the edge of the answer")
    span = encoding.token_to_chars(first)
    if span is not None and span[0] < start:
        raise RenderRefused("prompt_not_prefix", _PREFIX_DETAIL)
    if end < length:
        after = encoding.token_to_chars(stop)
        if after is not None and after[0] < end:
            raise RenderRefused("stop_straddles", "one token holds the end of the answer and the text behind it")
    return first, stop


def _same_text(decoded: str, expected: str) -> bool:
    """Equal up to what tokenizers do on purpose: one leading space (SentencePiece) and Unicode normalisation."""
    if decoded == expected or " " + decoded == expected:
        return True
    forms: tuple[Literal["NFC", "NFKC"], ...] = ("NFC", "NFKC")
    return any(
        unicodedata.normalize(form, decoded).lstrip(" ") == unicodedata.normalize(form, expected).lstrip(" ") for form in forms
    )
