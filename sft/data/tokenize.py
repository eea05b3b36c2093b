"""Rendered text becomes token ids and a mask: one encoding of the whole text, the mask by character offsets.

::

    text    <s> ... USER: Hi ASSISTANT: Hello.</s>
    ids      1  ...  3148 1001 : ... :   ▁Hello .   2
    mask     0  ...   0    0   0     0     1    1   1

Every row is verified before it may be trained on: the ids of the inference prompt are a prefix of the row's ids, and the decoded
trained spans are the answers with their stop token. What fails becomes a :class:`~sft.data.conversation.Drop` with a reason.

Long data is encoded word by word (:mod:`sft.data.interning`) where the tokenizer can be followed exactly: same ids, sooner.

Special tokens written by the template are encoded through private stand-ins (:mod:`sft.data.stand_in`), so their usual spelling in
a message is plain text, while ids stay those of the tokenizer on the whole rendered text.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from sft.data.conversation import Conversation, Drop, Policy, Turn, learnt_answers
from sft.data.frame import Frame, fillers
from sft.data.render import Renderer
from sft.data.stand_in import special_tokens, stand_in_tokenizer, writes_bos
from sft.data.template import ChatTemplate, Filled, Rendered, RenderRefused, SpecialTokens, with_bos_policy
from sft.data.text_encoder import Encoded, TextEncoder
from sft.data.verify import Verifier, token_bounds
from sft.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_MOST_FRAMES = 1 << 10
_PART = 128  # rows that are encoded together


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
        made: its text, or what that is written from.
        encoding: of the text with stand-ins (:meth:`RowEncoder.encode_text`), for its offsets.
    """

    row: Tokenized
    made: Filled | Rendered
    encoding: Encoded

    @property
    def rendered(self) -> Rendered:
        """The text of the row."""
        return self.made.rendered() if isinstance(self.made, Filled) else self.made


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the tokenizer's own JSON form: vocabulary, merges, added tokens, normaliser."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


class _Kept(NamedTuple):
    """A row on its way to ids.

    Attributes:
        number: of the row in its batch.
        made: its text, or what that is written from.
        text: with stand-ins, as all positions below are.
        spans: of all answers.
        chosen: numbers of those that are learnt.
        begins: for each of them, where its prompt is compared from, and the characters left out there.
        muted: what ``all`` leaves out.
    """

    number: int
    made: Filled | Rendered
    text: str
    spans: tuple[tuple[int, int], ...]
    chosen: Sequence[int]
    begins: Sequence[tuple[int, int]]
    muted: tuple[tuple[int, int], ...]

    @property
    def edges(self) -> list[int]:
        """Positions where tokens must begin: of the spans, start and end by turns, then where prompts are compared from."""
        return [*chain.from_iterable(self.spans), *[begin for begin, _ in self.begins]]


class RowEncoder:
    """Turns conversations into verified rows, in batches.

    Args:
        tokenizer: with a Rust backend.
        template: what writes the text.
        train_on: ``assistant``, ``last`` or ``all``.
        interned_from: characters to encode before words are interned, None for the usual number; ids do not depend on it.

    Raises:
        TokenizerError: no EOS token, missing tokens of the template, a policy that it cannot serve, or no usable backend.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        train_on: Policy = "assistant",
        interned_from: int | None = None,
    ) -> None:
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
        self.known_stops: tuple[list[int], list[str]] | None = None  # as an export of ours records them
        self._backend, self._names = stand_in_tokenizer(tokenizer, tokens.control)
        self.texts = TextEncoder(self._backend, self._names, interned_from)
        self._verifier = Verifier(self._backend, self.texts)
        self._plans: dict[Frame, tuple[Frame, list[int]]] = {}

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer's copy that knows special tokens by their stand-ins only."""
        return self._backend

    @property
    def stand_ins(self) -> dict[str, str]:
        """Special token -> the private character that stands for it in the backend."""
        return self._names

    def encode_text(self, rendered: Rendered) -> tuple[str, tuple[tuple[int, int], ...], list[int]]:
        """The text with stand-ins, its spans in the new positions, and the positions of the stand-ins."""
        text, out, marks = rendered.text, list[str](), list[int]()
        ends, shifts = [0], [0]  # behind each special token, what its stand-in and those before it are shorter by
        for start, end in rendered.specials:
            out += [text[ends[-1] : start], self._names[text[start:end]]]
            marks.append(start - shifts[-1])
            shifts.append(shifts[-1] + end - start - 1)
            ends.append(end)
        out.append(text[ends[-1] :])
        spans = tuple((_moved(a, ends, shifts), _moved(b, ends, shifts)) for a, b in rendered.spans)
        return "".join(out), spans, marks

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
        if self.known_stops is not None:
            return self.known_stops
        probe = Conversation("probe", (Turn("user", "a"), Turn("assistant", "b")), "probe")
        rendered = self.renderer.render(probe)
        names = [rendered.text[a:b] for a, b in rendered.specials if b == rendered.spans[-1][1]]
        strings = [] if names else [self.renderer.stop]
        names += [token for token in (self.renderer.tokens.eos, *self.template.ends) if token in self._names]
        ids = (self._backend.token_to_id(self._names[name]) for name in names)
        return list(dict.fromkeys(token for token in ids if token is not None)), strings

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids of the template's ``ends``."""
        return self._ids(self.template.ends)

    @property
    def inner_ids(self) -> frozenset[int]:
        """Ids of the template's ``inner``."""
        return self._ids(self.template.inner)

    def _ids(self, tokens: Sequence[str]) -> frozenset[int]:
        found = (self._backend.token_to_id(self._names[token]) for token in tokens if token in self._names)
        return frozenset(token for token in found if token is not None)

    def lengths(self, texts: Sequence[Rendered]) -> list[int]:
        """Tokens of some rendered texts."""
        return [len(encoding) for encoding in self.texts.encode([self.encode_text(text)[0] for text in texts])]

    def encode(self, conversations: Sequence[Conversation]) -> list[Tokenized | Drop]:
        """Encode and verify a batch, in order; a row that fails any check comes back as a drop."""
        return [found if isinstance(found, Drop) else found.row for found in self.trace(conversations)]

    def trace(self, conversations: Sequence[Conversation]) -> list[Traced | Drop]:
        """As :meth:`encode`, with the text and the encoding of each row (some hundred bytes per token: keep them for a batch)."""
        out: list[Traced | Drop | None] = [None] * len(conversations)
        if len(conversations) <= _PART or self.texts.words is not None:
            kept = self._prepare_all(conversations, 0, out)
            self._verify(conversations, kept, self._encodings(kept), out)
            return [row for row in out if row is not None]
        # While the tokenizer encodes one part in the other thread, outside the interpreter's lock, the next ones are written.
        with ThreadPoolExecutor(1) as pool:
            parts = []
            for begin in range(0, len(conversations), _PART):
                kept = self._prepare_all(conversations[begin : begin + _PART], begin, out)
                parts.append((kept, pool.submit(self._encodings, kept)))
            for kept, encodings in parts:
                self._verify(conversations, kept, encodings.result(), out)
        return [row for row in out if row is not None]

    def _encodings(self, kept: Sequence[_Kept]) -> Sequence[Encoded]:
        return self.texts.encode([row.text for row in kept], [row.edges for row in kept])

    def _prepare_all(self, conversations: Sequence[Conversation], begin: int, out: list[Traced | Drop | None]) -> list[_Kept]:
        """Everything about some rows but their ids; those that are refused become drops in ``out``, from ``begin`` on."""
        kept: list[_Kept] = []
        for i, conversation in enumerate(conversations, begin):
            try:
                kept.append(self._prepare(i, conversation))
            except RenderRefused as refusal:
                out[i] = Drop(conversation.id, refusal.reason, refusal.detail)
        return kept

    def _prepare(self, number: int, conversation: Conversation) -> _Kept:
        """Everything about a row but its ids.

        Raises:
            RenderRefused: it cannot be written, or learns nothing.
        """
        made = self.renderer.prepare(conversation)
        muted: tuple[tuple[int, int], ...] = ()
        chosen: Sequence[int]
        if isinstance(made, Filled) and not self._told(conversation):
            frame, chosen = self._plans.get(made.frame) or self._plan(made, conversation)
            text, spans, specials = frame.fill(made.messages)
            marks = [mark for mark, _ in specials]
        else:
            rendered = made.rendered() if isinstance(made, Filled) else made
            chosen, muted = self._chosen(conversation, rendered)
            every = Rendered(rendered.text, rendered.spans + muted, rendered.specials)
            text, spans, marks = self.encode_text(every)
            spans, muted = spans[: len(rendered.spans)], spans[len(rendered.spans) :]
        begins = [self._verifier.restart(text, marks, spans[k][0]) for k in chosen]
        return _Kept(number, made, text, spans, chosen, begins, muted)

    def _told(self, conversation: Conversation) -> bool:
        """Whether a turn says of itself what the policy would say."""
        return any(t.train is not None and (t.role == "assistant" or self.train_on == "all") for t in conversation.turns)

    def _plan(self, made: Filled, conversation: Conversation) -> tuple[Frame, list[int]]:
        """The frame with stand-ins written, which are its special tokens then, and the answers that are learnt."""
        chosen, _ = self._chosen(conversation, made.rendered())
        if len(self._plans) >= _MOST_FRAMES:
            self._plans.clear()
        gaps = fillers(len(made.messages))
        text, spans, marks = self.encode_text(Rendered(*made.frame.fill(gaps)))
        frame = Frame.cut(text, gaps, spans, [(mark, mark) for mark in marks])
        assert frame is not None
        return self._plans.setdefault(made.frame, (frame, chosen))

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
        own = (stop, *self.template.ends, *self.template.inner)
        if any(token in self._names and (end - len(token), end) in rendered.specials for token in own):
            return True
        if not self.template.proven and any(a >= start and b == end for a, b in rendered.specials):
            return True  # a foreign template may end its turns with another token
        return stop not in self._names and rendered.text[start:end].endswith(stop)

    def _verify(
        self,
        conversations: Sequence[Conversation],
        kept: list[_Kept],
        encodings: Sequence[Encoded],
        out: list[Traced | Drop | None],
    ) -> None:
        """Fill ``out`` with rows that passed: boundaries, prompt prefixes and decoded spans."""
        for row, encoding in zip(kept, encodings, strict=True):
            i, text, conversation = row.number, row.text, conversations[row.number]
            try:
                bounds, begins = _bounds(row, encoding)
            except RenderRefused as refusal:
                out[i] = Drop(conversation.id, refusal.reason, refusal.detail)
                continue
            ids = encoding.ids
            mask = self._mask(row, encoding, bounds)
            if mask is None:
                out[i] = Drop(
                    conversation.id, "nothing_trained", "all that is learnt is the first token, which nothing predicts"
                )
                continue
            for k, (begin, skipped), token in zip(row.chosen, row.begins, begins, strict=True):
                (start, end), (first, stop) = row.spans[k], bounds[k]
                if isinstance(ids, list):
                    self._verifier.add(i, text[begin + skipped : start], ids[token:first], text[start:end], ids[first:stop])
                else:  # interned words are made of the pieces that spell them
                    self._verifier.add(i, text[begin + skipped : start], ids[token:first].tolist(), "", None)
            made = Tokenized(conversation.id, conversation.source, np.asarray(ids, dtype=np.int32), mask, tuple(bounds))
            out[i] = Traced(made, row.made, encoding)
        for i, (reason, detail) in self._verifier.failures().items():
            out[i] = Drop(conversations[i].id, reason, detail)

    def _mask(self, row: _Kept, encoding: Encoded, bounds: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_] | None:
        """What is learnt, by policy; None if nothing is."""
        everything = self.train_on == "all"
        mask = np.ones(len(encoding), np.bool_) if everything else np.zeros(len(encoding), np.bool_)
        if row.muted:  # also the tokens that hold only a part of such a turn
            starts, ends = np.asarray(encoding.offsets).T
            for start, end in row.muted:
                mask[(starts < end) & (ends > start)] = False
        for k in row.chosen:
            first, stop = bounds[k]
            mask[first:stop] = True
        mask[:1] = False
        learns = mask.any() if everything else any(bounds[k][1] > 1 for k in row.chosen)
        return mask if learns else None


def _bounds(row: _Kept, encoding: Encoded) -> tuple[Sequence[tuple[int, int]], Sequence[int]]:
    """Tokens of each answer, and the tokens that prompts are compared from.

    Raises:
        RenderRefused: an answer that begins or ends inside a token.
    """
    at: Sequence[int] = getattr(encoding, "at", ())
    if at and -1 not in at:
        spans = 2 * len(row.spans)
        bounds = list(zip(at[:spans:2], at[1:spans:2], strict=True))
        if all(first < stop for first, stop in bounds):
            return bounds, at[spans:]
    bounds = [token_bounds(encoding, row.text, start, end) for start, end in row.spans]
    return bounds, [encoding.char_to_token(begin) or 0 for begin, _ in row.begins]


def _moved(position: int, ends: list[int], shifts: list[int]) -> int:
    return position - shifts[bisect_right(ends, position) - 1]
