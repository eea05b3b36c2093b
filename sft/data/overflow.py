"""What becomes of a row that is longer than the recipe allows. Every outcome is counted; none is silent.

::

    drop      the row is left out                      (counted as too_long)
    truncate  cut inside an answer:  [p p p a a | a s] -> [p p p a a]      no stop token is put where none was
    split     cut between exchanges: [S u1 a1 u2 a2]   -> [S u1 a1] [S u2 a2]   the system message is repeated,
                                                                     parts that learn nothing are left out
    error     the run stops
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sft.data.conversation import Conversation, Drop, Drops, Policy, Turn, learnt_answers
from sft.data.marks import PRIVATE_FIRST
from sft.data.template import Rendered, RenderRefused
from sft.data.tokenize import RowEncoder, Tokenized, Traced
from sft.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A row to train on, and what it was made from.

    Attributes:
        row: no longer than the limit, with something learnt.
        conversation: its turns; those of one part if the row was split.
        whole: the row before it was cut.
    """

    row: Tokenized
    conversation: Conversation
    whole: Traced


@dataclass(slots=True)
class _Outcome:
    """What became of one row: rows to train on, parts and rows that changed by reason, or why nothing is left."""

    rows: list[Fitted] = field(default_factory=list)
    changed: Counter[str] = field(default_factory=Counter)
    drop: Drop | None = None


def fit(
    rows: Sequence[Traced | Drop],
    conversations: Sequence[Conversation],
    encoder: RowEncoder,
    max_length: int,
    overflow: str,
    drops: Drops,
) -> list[list[Fitted]]:
    """Bring a batch of rows under ``max_length`` tokens by the recipe's policy.

    Args:
        rows: verified, of any length; drops are counted and give no rows.
        conversations: what the rows were made from.
        encoder: that made the rows, and makes the parts of split ones: those of the whole batch together.
        max_length: in tokens.
        overflow: ``drop``, ``truncate``, ``split`` or ``error``.
        drops: gets one count for every row dropped, cut or split, in the order of the rows.

    Returns:
        For each row those to train on.

    Raises:
        DataError: ``overflow: error``.
    """
    outcomes: list[_Outcome | None] = []
    splits: dict[int, _Splitting] = {}
    for i, (row, conversation) in enumerate(zip(rows, conversations, strict=True)):
        long = isinstance(row, Traced) and len(row.row.ids) > max_length
        if isinstance(row, Traced) and long and overflow == "split" and len(exchanges(conversation)[1]) > 1:
            splits[i] = _split(row, conversation, encoder, max_length)
            outcomes.append(None)
        else:
            outcomes.append(_unsplit(row, conversation, max_length, overflow))
    for i, outcome in _together(splits, encoder).items():
        outcomes[i] = outcome
    out: list[list[Fitted]] = []
    for found, conversation in zip(outcomes, conversations, strict=True):
        assert found is not None
        if found.drop:
            drops.add(replace(found.drop, id=conversation.place))
        drops.changed.update(found.changed)
        out.append(found.rows)
    return out


def _unsplit(row: Traced | Drop, conversation: Conversation, max_length: int, overflow: str) -> _Outcome:
    """What every policy but ``split`` makes of a row."""
    if isinstance(row, Drop):
        return _Outcome(drop=row)
    length = len(row.row.ids)
    if length <= max_length:
        return _Outcome([Fitted(row.row, conversation, row)])
    if overflow == "error":
        raise DataError(
            f"{conversation.place}: {length} tokens, data.max_length is {max_length}; "
            "raise it, or set data.overflow to drop, truncate or split"
        )
    if overflow == "drop":
        detail = f"{length} tokens; data.max_length is {max_length} and data.overflow is drop"
        return _Outcome(drop=Drop(row.row.id, "too_long", detail))
    cut = _truncate(row.row, max_length, "raise it or use overflow: split")
    if isinstance(cut, Drop):
        return _Outcome(drop=cut)
    return _Outcome([Fitted(cut, conversation, row)], Counter(truncated=1))


def _truncate(row: Tokenized, max_length: int, advice: str) -> Tokenized | Drop:
    end = max_length
    learnt = np.flatnonzero(row.mask[:max_length])
    if len(learnt) == 0:
        detail = f"no answer begins within data.max_length = {max_length} tokens; {advice}"
        return Drop(row.id, "nothing_trained", detail)
    if not row.mask[end - 1]:
        end = int(learnt[-1]) + 1  # a prompt without its answer teaches nothing: end with the last answer
    turns = tuple((a, min(b, end)) for a, b in row.turns if a < end)
    return Tokenized(row.id, row.source, row.ids[:end], row.mask[:end], turns)


# --- splitting ---------------------------------------------------------------------------------------------------------


def exchanges(conversation: Conversation) -> tuple[tuple[Turn, ...], list[tuple[Turn, ...]]]:
    """The leading system turns, and the rest cut behind each assistant turn that a user turn (or nothing) follows."""
    turns = conversation.turns
    head = tuple(t for t in turns[:1] if t.role == "system")
    out: list[tuple[Turn, ...]] = []
    current: list[Turn] = []
    for turn in turns[len(head) :]:
        if turn.role == "user" and current and current[-1].role == "assistant":
            out.append(tuple(current))
            current = []
        current.append(turn)
    if current:
        out.append(tuple(current))
    return head, out


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """One part: its tokens, and its row, or a drop, or the text alone where nothing is learnt (only its length matters then)."""

    conversation: Conversation
    length: int
    row: Traced | Drop | Rendered

    def fits(self, max_length: int) -> bool:
        return not isinstance(self.row, Drop) and self.length <= max_length


_Splitting = Generator[Conversation, _Measured, _Outcome]
"""A row being split: asks for one part after another, and is told what each measures."""


def _together(splits: dict[int, _Splitting], encoder: RowEncoder) -> dict[int, _Outcome]:
    """Run many splittings side by side, so that the parts that they ask for are encoded in batches."""
    out: dict[int, _Outcome] = {}
    asked = {i: next(splitting) for i, splitting in splits.items()}
    while asked:
        told = dict(zip(asked, _measure(list(asked.values()), encoder), strict=True))
        asked = {}
        for i, part in told.items():
            try:
                asked[i] = splits[i].send(part)
            except StopIteration as done:
                out[i] = done.value
    return out


def _measure(parts: Sequence[Conversation], encoder: RowEncoder) -> list[_Measured]:
    """Encode parts; those without a learnt answer are not verified, since they will not be trained on."""
    found: dict[int, Traced | Drop | Rendered] = {}
    learns: list[int] = []
    for i, part in enumerate(parts):
        answers = [turn for turn in part.turns if turn.role == "assistant"]
        if not answers:
            found[i] = Drop(part.id, "no_assistant_turn", "this part of a split row has no answer")
        elif encoder.train_on == "all" or any(turn.train for turn in answers):
            learns.append(i)
        else:
            try:
                found[i] = encoder.renderer.render(part)
            except RenderRefused as refusal:
                found[i] = Drop(part.id, refusal.reason, refusal.detail)
    found.update(zip(learns, encoder.trace([parts[i] for i in learns]), strict=True))
    texts = {i: text for i, text in found.items() if isinstance(text, Rendered)}
    lengths = dict(zip(texts, encoder.lengths(list(texts.values())), strict=True))
    lengths.update((i, len(row.row.ids)) for i, row in found.items() if isinstance(row, Traced))
    return [_Measured(part, lengths.get(i, 0), found[i]) for i, part in enumerate(parts)]


def _split(row: Traced, conversation: Conversation, encoder: RowEncoder, max_length: int) -> _Splitting:
    """Greedy from the front: each part takes as many whole exchanges as its rendered length allows.

    Which answers are learnt is settled before cutting: under ``train_on: last`` only the last answer of the whole row is. Parts
    without a learnt answer are left out. The row's own encoding says where to cut, so a part is encoded when its end is known,
    and another one only where that is not certain.
    """
    plan = _Plan(row, settled(conversation, encoder.train_on), encoder)
    out, first = _Outcome(), None
    begin, last = 0, len(plan.pairs)
    while begin < last:
        end = plan.guess(begin, max_length)
        best = yield plan.part(begin, end)
        while end > begin + 1 and not best.fits(max_length):
            plan.learn(best, begin, end)
            end = min(end - 1, plan.guess(begin, max_length))
            best = yield plan.part(begin, end)
        while end < last and best.fits(max_length) and not plan.is_full(best, begin, end, max_length):
            longer = yield plan.part(begin, end + 1)
            if not longer.fits(max_length):
                break
            end, best = end + 1, longer
        plan.learn(best, begin, end)
        dropped = _take(best, max_length, out)
        first, begin = first or dropped, end
    if out.rows:
        out.changed["split"] += 1
        return out
    reason, detail = (first.reason, first.detail) if first else ("nothing_trained", "no part of this row learns an answer")
    return _Outcome(drop=Drop(conversation.id, reason, f"no part of this split row is left: {detail}"))


def settled(conversation: Conversation, train_on: Policy) -> Conversation:
    """The conversation with ``train`` written out on every answer, so that a part learns what the whole row would have."""
    learnt = iter(learnt_answers(conversation, train_on))
    turns = (replace(t, train=next(learnt)) if t.role == "assistant" else t for t in conversation.turns)
    return replace(conversation, turns=tuple(turns))


def _take(part: _Measured, max_length: int, out: _Outcome) -> Drop | None:
    """Add a part to the rows, cut if it is one exchange that is too long alone; else count it, and say why."""
    found = part.row
    if isinstance(found, Traced):
        cut = found.row if part.length <= max_length else _truncate(found.row, max_length, "raise it")
        if isinstance(cut, Tokenized):
            out.rows.append(Fitted(cut, part.conversation, found))
            if part.length > max_length:
                out.changed["truncated"] += 1
            return None
        found = cut
    if isinstance(found, Rendered):
        out.changed["split_untrained"] += 1
        return None
    out.changed["split_part_" + found.reason] += 1
    return found


class _Plan:
    """Where a row may be cut, read off its own encoding.

    ::

        text     S u1 a1 </s> u2 a2 </s> u3 a3 </s> \n
        ends                 ^          ^          ^      behind the last answer of each exchange, in tokens and in characters
        part 2   S u2 a2 </s> \n                          tokens of its exchanges + those around them (S and the newline)
    """

    def __init__(self, whole: Traced, conversation: Conversation, encoder: RowEncoder) -> None:
        self._conversation, self._encoder = conversation, encoder
        self._head, self.pairs = exchanges(conversation)
        self._text, spans, _ = encoder.encode_text(whole.rendered)
        self._tokens, self._chars = [], []
        answers, length = 0, len(whole.row.ids)
        for pair in self.pairs:
            answers += (found := sum(turn.role == "assistant" for turn in pair))
            self._tokens.append(whole.row.turns[answers - 1][1] if found else length)
            self._chars.append(spans[answers - 1][1] if found else len(self._text))
        self._around = length - self._tokens[-1]

    def part(self, begin: int, end: int) -> Conversation:
        """The conversation of exchanges ``[begin, end)``, behind the system message of the whole."""
        turns = self._head + tuple(turn for pair in self.pairs[begin:end] for turn in pair)
        return replace(self._conversation, id=f"{self._conversation.id}#{begin}", turns=turns)

    def guess(self, begin: int, max_length: int) -> int:
        """The end of the longest part that seems to fit, at least one exchange behind ``begin``."""
        before = self._tokens[begin - 1] if begin else 0
        return max(begin + 1, bisect_right(self._tokens, max_length - self._around + before))

    def learn(self, part: _Measured, begin: int, end: int) -> None:
        """Correct the next guess by the length of a part."""
        if not isinstance(part.row, Drop):
            before = self._tokens[begin - 1] if begin else 0
            self._around = part.length - (self._tokens[end - 1] - before)

    def is_full(self, part: _Measured, begin: int, end: int, max_length: int) -> bool:
        """Whether the exchange behind a part is proven to be too much for it, without encoding the two.

        A text is tokenised independently on both sides of a special token. So if the exchange stands between two of them, in the
        longer part as in the whole row, it adds the tokens that it has there; what stands around it must be the part's own text.
        """
        assert not isinstance(part.row, Drop)
        if part.length + self._tokens[end] - self._tokens[end - 1] <= max_length:
            return False
        try:
            longer = self._encoder.encode_text(self._encoder.renderer.render(self.part(begin, end + 1)))[0]
        except RenderRefused:
            return True
        text, spans, _ = self._encoder.encode_text(part.row.rendered if isinstance(part.row, Traced) else part.row)
        added, at = self._text[self._chars[end - 1] : self._chars[end]], spans[-1][1]
        between = text[at - 1] >= PRIVATE_FIRST and added[-1] >= PRIVATE_FIRST
        return between and longer == text[:at] + added + text[at:]
