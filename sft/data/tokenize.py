"""Rendered text becomes token ids and a mask: one encoding of the whole text, the mask by character offsets.

::

    text    <s> ... USER: Hi ASSISTANT: Hello.</s>
    ids      1  ...  3148 1001 : ... :   ▁Hello .   2
    mask     0  ...   0    0   0     0     1    1   1

Every row is verified before it may be trained on: the ids of the inference prompt are a prefix of the row's ids, and the decoded
trained spans are the answers with their stop token. What fails becomes a :class:`~sft.data.conversation.Drop` with a reason.

Special tokens written by the template are encoded through private stand-ins (:mod:`sft.data.stand_in`), so their usual spelling in
a message is plain text, while ids stay those of the tokenizer on the whole rendered text.
"""

from __future__ import annotations

import hashlib
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sft.data.conversation import Conversation, Drop, Turn
from sft.data.render import Renderer
from sft.data.stand_in import special_tokens, stand_in_tokenizer, writes_bos
from sft.data.template import ChatTemplate, Rendered, RenderRefused, SpecialTokens, with_bos_policy
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


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A verified row with what it was made from.

    Attributes:
        row: the row.
        rendered: its text.
        encoding: of the text with stand-ins (:meth:`RowEncoder.encode_text`), for its offsets.
    """

    row: Tokenized
    rendered: Rendered
    encoding: Encoding


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the tokenizer's own JSON form: vocabulary, merges, added tokens, normaliser."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def learnt_answers(conversation: Conversation, train_on: Policy) -> list[bool]:
    """Whether each assistant turn is learnt: what the turn itself says, else the policy."""
    answers = [turn.train for turn in conversation.turns if turn.role == "assistant"]
    return [train_on != "last" or i == len(answers) - 1 if train is None else train for i, train in enumerate(answers)]


class _Kept(NamedTuple):
    """A row on its way to ids: ``text`` has stand-ins at ``marks``, as ``spans`` and ``muted`` (what ``all`` leaves out) have."""

    number: int
    rendered: Rendered
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
        text, out = rendered.text, []
        marks: list[int] = []
        ends, shifts = [0], [0]  # behind each special token, what its stand-in and those before it are shorter by
        for start, end in rendered.specials:
            out += [text[ends[-1] : start], self._names[text[start:end]]]
            marks.append(start - shifts[-1])
            shifts.append(shifts[-1] + end - start - 1)
            ends.append(end)
        out.append(text[ends[-1] :])
        spans = tuple((_moved(a, ends, shifts), _moved(b, ends, shifts)) for a, b in rendered.spans)
        return "".join(out), spans, tuple(marks)

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

    def lengths(self, texts: Sequence[Rendered]) -> list[int]:
        """Tokens of some rendered texts."""
        batch = self._backend.encode_batch_fast([self.encode_text(text)[0] for text in texts], add_special_tokens=False)
        return [len(encoding) for encoding in batch]

    def encode(self, conversations: Sequence[Conversation]) -> list[Tokenized | Drop]:
        """Encode and verify a batch, in order; a row that fails any check comes back as a drop."""
        return [found if isinstance(found, Drop) else found.row for found in self.trace(conversations)]

    def trace(self, conversations: Sequence[Conversation]) -> list[Traced | Drop]:
        """As :meth:`encode`, with the text and the encoding of each row (some hundred bytes per token: keep them for a batch)."""
        out: list[Traced | Drop | None] = [None] * len(conversations)
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
            kept.append(_Kept(i, rendered, text, spans[:answers], marks, chosen, spans[answers:]))
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
        out: list[Traced | Drop | None],
    ) -> None:
        """Fill ``out`` with rows that passed: boundaries, prompt prefixes and decoded spans, each checked in one batch."""
        tails: list[str] = []
        tail_checks: list[tuple[int, list[int]]] = []
        spans_ids: list[list[int]] = []
        span_checks: list[tuple[int, str]] = []
        for row, encoding in zip(kept, encodings, strict=True):
            i, text, conversation = row.number, row.text, conversations[row.number]
            try:
                bounds = [_token_bounds(encoding, text, start, end) for start, end in row.spans]
            except RenderRefused as refusal:
                out[i] = Drop(conversation.id, refusal.reason, refusal.detail)
                continue
            ids = encoding.ids
            mask = self._mask(row, encoding, bounds)
            if not mask.any():
                out[i] = Drop(
                    conversation.id, "nothing_trained", "all that is learnt is the first token, which nothing predicts"
                )
                continue
            for k in row.chosen:
                (start, end), (first, stop) = row.spans[k], bounds[k]
                # What stands before a special token cannot change the ids behind it: the prompt is compared from the last one on.
                begin = max((m for m in row.marks if m < start), default=0)
                tails.append(text[begin:start])
                tail_checks.append((i, ids[encoding.char_to_token(begin) or 0 : first]))
                spans_ids.append(ids[first:stop])
                span_checks.append((i, text[start:end]))
            made = Tokenized(conversation.id, conversation.source, np.asarray(ids, dtype=np.int32), mask, tuple(bounds))
            out[i] = Traced(made, row.rendered, encoding)
        for (i, expected), tail in zip(
            tail_checks, self._backend.encode_batch_fast(tails, add_special_tokens=False), strict=True
        ):
            if tail.ids != expected and isinstance(out[i], Traced):
                out[i] = Drop(
                    conversations[i].id,
                    "prompt_not_prefix",
                    "the end of the prompt has other ids where an answer follows" + _CURE,
                )
        decoded = self._backend.decode_batch(spans_ids, skip_special_tokens=False)
        for (i, expected_text), said in zip(span_checks, decoded, strict=True):
            if isinstance(out[i], Traced) and not _same_text(said, expected_text):
                detail = f"the trained ids decode to {said[:60]!r}, not to the answer"
                out[i] = Drop(conversations[i].id, "decode_mismatch", detail)

    def _mask(self, row: _Kept, encoding: Encoding, bounds: list[tuple[int, int]]) -> npt.NDArray[np.bool_]:
        """What is learnt, by policy."""
        mask = np.full(len(encoding), self.train_on == "all")
        if row.muted:  # also the tokens that hold only a part of such a turn
            starts, ends = np.asarray(encoding.offsets).T
            for start, end in row.muted:
                mask[(starts < end) & (ends > start)] = False
        for k in row.chosen:
            mask[slice(*bounds[k])] = True
        mask[:1] = False
        return mask


_CURE = (
    "; the ids of the inference prompt are not the first ids of this row, so training on it would teach what inference never "
    "meets. Choose a template whose prompt ends where this tokenizer always cuts, such as behind a special token or in the newline "
    "of chatml, or the tokenizer that the template was made for"
)


def _moved(position: int, ends: list[int], shifts: list[int]) -> int:
    return position - shifts[bisect_right(ends, position) - 1]


def _token_bounds(encoding: Encoding, text: str, start: int, end: int) -> tuple[int, int]:
    """Tokens ``[first, stop)`` that cover exactly the characters ``[start, end)``.

    The end is found from the character behind the span: a last character of several byte tokens keeps all of them.
    """
    if start == end:
        raise RenderRefused("span_mismatch", "an answer rendered to nothing")
    first = encoding.char_to_token(start)
    stop = len(encoding) if end >= len(text) else encoding.char_to_token(end)
    if first is None or stop is None:
        raise RenderRefused("decode_mismatch", "the tokenizer removes a character at the edge of the answer")
    span = encoding.token_to_chars(first)
    if span is not None and span[0] < start:
        before, inside = text[span[0] : start], text[start : span[1]]
        detail = f"one token holds {before!r}, the end of the prompt, and {inside!r}, the start of the answer"
        raise RenderRefused("prompt_not_prefix", detail + _CURE)
    if end < len(text):
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
