"""Where the loss falls, counted over a whole data set: by source, by place in the row, by answer and its stop token.

::

    tokens    <s>       USER:     Hi    ASSISTANT:   Hello.     </s>
    place     template  template  user  template     assistant  stop
    learnt                                           yes        yes

Rows come from the code that training runs (encoding and overflow), and every count is taken from their ids and masks.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from sft.data.conversation import ROLES, Conversation, Drops, Turn
from sft.data.overflow import Fitted, fit
from sft.data.render import Renderer
from sft.data.template import Rendered, RenderRefused
from sft.data.tokenize import RowEncoder
from sft.recipe import DataSection

PLACES = (*ROLES, "stop", "template")
"""Where a token can stand: in a message by role, in the end-of-turn text of an answer, or in the template around them."""
_STOP, _TEMPLATE = len(ROLES), len(ROLES) + 1
_BATCH, _BINS = 512, 32
T = TypeVar("T")


def control_ids(encoder: RowEncoder) -> dict[int, str]:
    """Special ids with the spelling that users know, not the encoder's stand-ins."""
    ids = {name: encoder.backend.token_to_id(stand_in) for name, stand_in in encoder.stand_ins.items()}
    return {token: name for name, token in ids.items() if token is not None}


class Reservoir(Generic[T]):
    """A uniform sample of a stream of unknown length, in stream order. The same seed and stream give the same sample."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seen, self._random = size, 0, random.Random(seed)
        self._kept: list[tuple[int, T]] = []

    def offer(self, item: T) -> None:
        slot = self.seen if self.seen < self.size else self._random.randrange(self.seen + 1)
        if slot < self.size:
            self._kept[slot : slot + 1] = [(self.seen, item)]
        self.seen += 1

    def items(self) -> list[T]:
        return [item for _, item in sorted(self._kept, key=lambda kept: kept[0])]


@dataclass(slots=True)
class Share:
    """Rows, tokens and learnt tokens of one source or one place."""

    rows: int = 0
    tokens: int = 0
    trained: int = 0

    def add(self, tokens: int, trained: int) -> None:
        self.rows, self.tokens, self.trained = self.rows + 1, self.tokens + tokens, self.trained + trained

    @property
    def share(self) -> float:
        """Learnt tokens over tokens."""
        return self.trained / self.tokens if self.tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "tokens": self.tokens, "trained": self.trained, "share": self.share}


@dataclass(slots=True)
class TurnCounts:
    """Assistant turns of the kept conversations: ``total = trained + untrained + lost``, ``trained = stopped + cut + unstopped``.

    Attributes:
        total: all of them.
        trained: with at least one learnt token in a training row.
        stopped: learnt, and so is every token of the stop text behind them.
        cut: learnt, but ``data.max_length`` falls before their end.
        lost: in no training row at all, because they lie behind the cut or in a dropped part.
    """

    total: int = 0
    trained: int = 0
    stopped: int = 0
    cut: int = 0
    lost: int = 0

    @property
    def unstopped(self) -> int:
        """Learnt to their end, without a learnt stop token: a model trained on these does not learn to end its answer."""
        return self.trained - self.stopped - self.cut

    @property
    def untrained(self) -> int:
        return self.total - self.trained - self.lost

    @property
    def stop_share(self) -> float:
        """Of the learnt turns, those whose stop token is learnt; the cut ones count in the denominator."""
        return self.stopped / self.trained if self.trained else 0.0

    def to_json(self) -> dict[str, Any]:
        counted = {"total": self.total, "trained": self.trained, "untrained": self.untrained, "lost": self.lost}
        return {**counted, "stopped": self.stopped, "cut": self.cut, "unstopped": self.unstopped, "stop_share": self.stop_share}


@dataclass(slots=True)
class MaskReport:
    """Where the loss falls, over a whole data set.

    Attributes:
        max_length: of the recipe.
        rows_in: rows read, unreadable ones included.
        kept: conversations that give at least one training row.
        rows_out: training rows; more than ``kept`` if some were split.
        drops: rows left out by reason, and rows changed; parts left out of a split row count as changes.
        sources: by label, in recipe order.
        places: by place (see :data:`PLACES`), on ``placed_rows`` training rows.
        placed_rows: all training rows, or the sample that was asked for.
        turns: assistant turns and their stop tokens.
        nothing_trained: training rows in which nothing is learnt; anything but 0 is a bug.
        all_trained: training rows in which everything behind the first token is learnt.
        histogram: training rows by tokens, in equal bins up to ``max_length``: (longest of the bin, rows).
        refusal: what training would say instead of starting; empty if it would start.
    """

    max_length: int
    rows_in: int = 0
    kept: int = 0
    rows_out: int = 0
    drops: Drops = field(default_factory=Drops)
    sources: dict[str, Share] = field(default_factory=dict)
    places: dict[str, Share] = field(default_factory=lambda: {place: Share() for place in PLACES})
    placed_rows: int = 0
    turns: TurnCounts = field(default_factory=TurnCounts)
    nothing_trained: int = 0
    all_trained: int = 0
    histogram: list[tuple[int, int]] = field(default_factory=list)
    refusal: str = ""

    @property
    def total(self) -> Share:
        """All sources together."""
        found = self.sources.values()
        return Share(sum(s.rows for s in found), sum(s.tokens for s in found), sum(s.trained for s in found))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain = ("max_length", "rows_in", "kept", "rows_out", "placed_rows", "nothing_trained", "all_trained", "refusal")
        return {
            **{name: getattr(self, name) for name in plain},
            "drops": self.drops.to_json(),
            "total": self.total.to_json(),
            "sources": {label: share.to_json() for label, share in self.sources.items()},
            "places": {place: share.to_json() for place, share in self.places.items()},
            "turns": self.turns.to_json(),
            "histogram": [{"up_to": longest, "rows": rows} for longest, rows in self.histogram],
        }


def mask_report(
    conversations: Iterable[Conversation],
    encoder: RowEncoder,
    data: DataSection,
    *,
    unread: Drops | None = None,
    sample: int | None = None,
    progress: bool = True,
) -> MaskReport:
    """Run a whole data set through encoding and overflow, and count where the loss falls.

    Args:
        conversations: of all sources, in order; their ``source`` is the label they are counted under.
        encoder: of the run.
        data: its sources, ``max_length`` and ``overflow``.
        unread: filled by the reader while ``conversations`` is consumed: rows that never became a conversation.
        sample: look at this many training rows for the shares by place, drawn with a fixed seed; None takes all. Everything
            else is counted on all rows in any case.
        progress: show a progress bar.

    Raises:
        DataError: a row too long under ``overflow: error``.
    """
    from tqdm import tqdm

    scan = _Scan(encoder, data, sample)
    report, iterator = scan.report, iter(conversations)
    with tqdm(desc="checking masks", unit=" rows", disable=not progress, leave=False) as bar:
        while batch := list(islice(iterator, _BATCH)):
            scan.take(batch)
            bar.update(len(batch))
        if scan.pool:
            scan.place(scan.pool.items())
    if unread is not None:
        report.rows_in, report.drops = report.rows_in + unread.total, unread.merged(report.drops)
    width = -(-data.max_length // _BINS)
    bins = Counter(dict.fromkeys(range(-(-data.max_length // width)), 0))
    for length, rows in scan.lengths.items():
        bins[(length - 1) // width] += rows
    report.histogram = [(min((k + 1) * width, data.max_length), rows) for k, rows in sorted(bins.items())]
    return report


class _Scan:
    """The running counts of one report."""

    def __init__(self, encoder: RowEncoder, data: DataSection, sample: int | None) -> None:
        self.encoder, self.data = encoder, data
        self.report = MaskReport(data.max_length, sources={source.label: Share() for source in data.sources})
        self.lengths: Counter[int] = Counter()
        self.pool = None if sample is None else Reservoir[Fitted](sample, seed=0)
        self._control = control_ids(encoder)
        self._stop, self._ends = encoder.renderer.stop, encoder.end_ids | encoder.inner_ids
        for name in sorted(encoder.stand_ins, key=len, reverse=True):
            self._stop = self._stop.replace(name, encoder.stand_ins[name])
        self._tails: dict[tuple[int, ...], bool] = {}
        self._literals: dict[tuple[str, ...], list[str] | None] = {}

    def take(self, batch: Sequence[Conversation]) -> None:
        """Encode, fit and count some conversations."""
        report, data = self.report, self.data
        report.rows_in += len(batch)
        fitted = fit(self.encoder.trace(batch), batch, self.encoder, data.max_length, data.overflow, report.drops)
        for conversation, parts in zip(batch, fitted, strict=True):
            if not parts:
                continue
            answers = sum(turn.role == "assistant" for turn in conversation.turns)
            report.kept += 1
            report.turns.total += answers
            report.turns.lost += answers - sum(len(part.row.turns) for part in parts)
            for part in parts:
                self._count(part)
                if self.pool is not None:
                    self.pool.offer(part)
        if self.pool is None:
            self.place([part for parts in fitted for part in parts])

    def _count(self, part: Fitted) -> None:
        report, row = self.report, part.row
        trained = int(row.mask.sum())
        report.rows_out += 1
        report.sources.setdefault(row.source, Share()).add(len(row.ids), trained)
        report.nothing_trained += trained == 0
        report.all_trained += trained == len(row.ids) - 1
        self.lengths[len(row.ids)] += 1
        for (first, stop), (_, end) in zip(row.turns, part.whole.row.turns, strict=False):  # turns behind a cut are missing
            if not row.mask[first:stop].any():
                continue
            report.turns.trained += 1
            if stop < end:
                report.turns.cut += 1
            else:
                report.turns.stopped += self._stops(row.ids[first:stop].tolist(), row.mask[first:stop])

    def _stops(self, ids: list[int], mask: npt.NDArray[np.bool_]) -> bool:
        """Whether a turn ends with the stop text, and every token that writes it is learnt.

        The stop is compared in stand-ins, so that an answer that merely spells a special token has not stopped.
        """
        if not self.encoder.template.proven and ids[-1] in self._control:  # as the encoder accepts it from foreign templates
            return bool(mask[-1])
        if ids[-1] in self._ends:
            return bool(mask[-1])
        for width in range(1, min(len(ids), len(self._stop.encode()) + 1) + 1):
            tail = tuple(ids[-width:])
            if tail not in self._tails:
                self._tails[tail] = self.encoder.backend.decode(tail, skip_special_tokens=False).endswith(self._stop)
            if self._tails[tail]:
                return bool(mask[-width:].all())
        return False

    def place(self, rows: Sequence[Fitted]) -> None:
        """Count tokens by where they stand: each belongs to what most of its characters belong to, messages first on a tie."""
        for part in rows:
            row, rendered = part.row, part.whole.rendered
            turns = self._turn_ranges(part.conversation, rendered)
            spans = [(_STOP, *span) for span in rendered.spans]
            labels, starts, ends = zip(*spans, *turns, strict=True)
            ranges = tuple(zip(starts, ends, strict=True))
            text, moved, _ = self.encoder.encode_text(Rendered(rendered.text, ranges, rendered.specials))
            code = np.full(len(text), _TEMPLATE)
            for label, (start, end) in zip(labels, moved, strict=True):
                code[start:end] = label
            place = _places(code, np.asarray(part.whole.encoding.offsets[: len(row.ids)]))
            tokens, trained = (np.bincount(some, minlength=len(PLACES)) for some in (place, place[row.mask]))
            for name, many, learnt in zip(PLACES, tokens.tolist(), trained.tolist(), strict=True):
                if many:
                    self.report.places[name].add(many, learnt)
        self.report.placed_rows += len(rows)

    def _turn_ranges(self, conversation: Conversation, rendered: Rendered) -> list[tuple[int, int, int]]:
        """``(place, start, end)`` of the messages in the text.

        The template is rendered once per sequence of roles with numbered contents; what it writes between them must be found
        again around the real ones. A template that changes contents (trims them, say) is searched from turn to turn instead.
        """
        turns = conversation.turns
        roles = tuple(turn.role for turn in turns)
        if roles not in self._literals:
            self._literals[roles] = _literals(conversation, self.encoder.renderer)
        literals = self._literals[roles]
        if literals and rendered.text == literals[0] + "".join(t.content + s for t, s in zip(turns, literals[1:], strict=True)):
            out, at = [], 0
            for turn, before in zip(turns, literals, strict=False):
                at += len(before)
                out.append((PLACES.index(turn.role), at, at + len(turn.content)))
                at += len(turn.content)
            return out
        return list(_searched(turns, rendered))


def _literals(conversation: Conversation, renderer: Renderer) -> list[str] | None:
    """What the template writes before, between and after messages of these roles; None if it does not keep them apart."""
    names = [f"\ue000{i}\ue001" for i in range(len(conversation.turns))]  # private use: nothing trims or parses these
    turns = tuple(Turn(turn.role, name) for turn, name in zip(conversation.turns, names, strict=True))
    try:
        rest = renderer.render(Conversation("literals", turns, "")).text
    except RenderRefused:
        return None
    out = []
    for name in names:
        before, found, rest = rest.partition(name)
        if not found:
            return None
        out.append(before)
    return [*out, rest]


def _searched(turns: Sequence[Turn], rendered: Rendered) -> Iterator[tuple[int, int, int]]:
    at, spans = 0, iter(rendered.spans)
    for turn in turns:
        if turn.role == "assistant":
            at = max(at, next(spans, (0, 0))[0])
        for content in (turn.content, turn.content.strip()):
            if content and (found := rendered.text.find(content, at)) >= 0:
                at = found + len(content)
                yield PLACES.index(turn.role), found, at
                break


def _places(code: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Place of each token, from the place of each character; a token without a character stands where the next one does."""
    starts, ends = offsets[:, 0], offsets[:, 1]
    place: npt.NDArray[np.int64] = code[np.minimum(starts, len(code) - 1)]
    borders = np.flatnonzero(code[1:] != code[:-1]) + 1
    for k in np.flatnonzero(np.searchsorted(borders, starts, "right") < np.searchsorted(borders, ends, "left")):
        place[k] = np.argmax(np.bincount(code[starts[k] : ends[k]]))
    return place
