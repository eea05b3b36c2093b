"""What the model will see and learn, for a person to look at before any GPU is rented.

::

    row a.jsonl:1     <s>  A chat ... USER: Hi ASSISTANT:   Hello.  </s>
    piece             special       prompt                  trained special+trained

Pieces are decoded from the ids and the mask of the finished row, after encoding and overflow by the code that training runs;
the rendered text is not consulted. The report counts over the whole data set where the loss falls, by source and by role.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import jinja2
import numpy as np
import numpy.typing as npt
from rich.table import Column, Table
from rich.text import Text

from sft.data.conversation import ROLES, Conversation, Drop, Drops, Turn
from sft.data.overflow import exchanges, fit
from sft.data.template import Rendered, Renderer, RenderRefused
from sft.data.tokenize import RowEncoder, Tokenized
from sft.errors import DataError
from sft.recipe import DataSection, Recipe

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

PLACES = (*ROLES, "stop", "template")
"""Where a token can stand: in a message by role, in the end-of-turn text of an answer, or in the template around them."""
_STOP, _TEMPLATE = len(ROLES), len(ROLES) + 1
_BATCH, _BINS = 512, 32
T = TypeVar("T")


# --- rows, as the model sees them --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of tokens that are treated alike.

    Attributes:
        texts: its text, one item per token (or per few tokens, where only together they make whole characters).
        trained: whether the model learns to write it.
        special: one special token, such as EOS, as opposed to text that may spell the same.
    """

    texts: tuple[str, ...]
    trained: bool
    special: bool

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass(frozen=True, slots=True)
class MarkedRow:
    """One training row for display, or the reason why there is none.

    Attributes:
        id: of the row (``#i`` behind it for a part of a split one).
        source: label of its source.
        tokens: of the row as trained.
        trained: those that are learnt.
        encoded: tokens before ``data.overflow`` was applied; more than ``tokens`` if the row was cut or split.
        pieces: the whole row in order; empty if it was dropped.
        drop: why it was dropped.
    """

    id: str
    source: str
    tokens: int
    trained: int
    encoded: int
    pieces: tuple[Piece, ...]
    drop: Drop | None = None


def _control(encoder: RowEncoder) -> dict[int, str]:
    """Special ids with the spelling that users know, not the encoder's stand-ins."""
    ids = {name: encoder._backend.token_to_id(stand_in) for name, stand_in in encoder._names.items()}
    return {token: name for name, token in ids.items() if token is not None}


def marked_pieces(ids: Sequence[int], mask: Sequence[bool], encoder: RowEncoder) -> tuple[Piece, ...]:
    """Decode a row from its ids, and cut it wherever the mask changes or a special token stands.

    A character of several tokens (byte tokens of emoji, of Chinese) is decoded whole. The tokens before it are decoded with it
    and taken off again, because decoders strip or join at the start of what they get.
    """
    control = _control(encoder)
    decode = partial(encoder._backend.decode, skip_special_tokens=False)
    pieces: list[Piece] = []
    texts: list[str] = []
    context = begin = 0  # ids[context:begin] is written, ids[begin:k + 1] waits for the rest of its character
    for k, token in enumerate(ids):
        special = token in control
        ends = special or k + 1 == len(ids) or mask[k + 1] != mask[k] or ids[k + 1] in control
        known, now = decode(ids[context:begin]), decode(ids[context : k + 1])
        new = now[len(known) :] if now.startswith(known) else decode(ids[begin : k + 1])
        if ends or (new and not new.endswith("\N{REPLACEMENT CHARACTER}")):
            texts.append(control[token] if special else new)
            context, begin = begin, k + 1
        if ends:
            pieces.append(Piece(tuple(texts), bool(mask[k]), special))
            texts = []
    return tuple(pieces)


def marked_rows(
    conversations: Iterable[Conversation],
    encoder: RowEncoder,
    data: DataSection,
    *,
    count: int = 5,
    seed: int | None = None,
    ids: Sequence[str] = (),
) -> list[MarkedRow]:
    """Encode a few conversations exactly as training does, for display.

    Args:
        conversations: read only as far as needed.
        encoder: of the run.
        data: its ``max_length`` and ``overflow`` are applied.
        count: how many conversations; a split one gives several rows.
        seed: None takes the first ones, a number a random sample (the same one for the same number), in file order.
        ids: take the conversations with these ids instead.

    Raises:
        DataError: an id that no conversation has, or a row too long under ``overflow: error``.
    """
    if ids:
        wanted = [c for c in conversations if c.id in ids]
        if missing := sorted(set(ids) - {c.id for c in wanted}):
            raise DataError(f"no row has the id {', '.join(missing)}; ids are those of the file, or file:line")
    elif seed is None:
        wanted = list(islice(conversations, count))
    else:
        pool = _Reservoir[Conversation](count, seed)
        for conversation in conversations:
            pool.offer(conversation)
        wanted = pool.items()
    out: list[MarkedRow] = []
    for conversation, row in zip(wanted, encoder.encode(wanted), strict=True):
        drops = Drops(keep=len(conversation.turns))
        parts: list[Tokenized] = []
        if isinstance(row, Drop):
            drops.add(row)
        else:
            parts = fit(row, conversation, encoder, data.max_length, data.overflow, drops)
        encoded = 0 if isinstance(row, Drop) else len(row.ids)
        for part in parts:
            pieces = marked_pieces(part.ids.tolist(), part.mask.tolist(), encoder)
            out.append(MarkedRow(part.id, part.source, len(part.ids), int(part.mask.sum()), encoded, pieces))
        for drop in (d for some in drops.examples.values() for d in some):
            out.append(MarkedRow(drop.id, conversation.source, 0, 0, encoded, (), drop))
    return out


class _Reservoir(Generic[T]):
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


# --- the whole data set ------------------------------------------------------------------------------------------------


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
        drops: rows left out by reason (for a split row, its parts), and rows changed.
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
        self.pool = None if sample is None else _Reservoir[tuple[Conversation, Tokenized]](sample, seed=0)
        self._control = _control(encoder)
        self._stop = encoder.renderer.stop
        for name in sorted(encoder._names, key=len, reverse=True):
            self._stop = self._stop.replace(name, encoder._names[name])
        self._tails: dict[tuple[int, ...], bool] = {}
        self._literals: dict[tuple[str, ...], list[str] | None] = {}

    def take(self, batch: Sequence[Conversation]) -> None:
        """Encode, fit and count some conversations."""
        report, finished = self.report, []
        report.rows_in += len(batch)
        for conversation, row in zip(batch, self.encoder.encode(batch), strict=True):
            if isinstance(row, Drop):
                report.drops.add(row)
                continue
            parts = fit(row, conversation, self.encoder, self.data.max_length, self.data.overflow, report.drops)
            if not parts:
                continue
            report.kept += 1
            report.turns.total += len(row.turns)
            report.turns.lost += len(row.turns) - sum(len(part.turns) for part in parts)
            for part in parts:
                origin, whole = (conversation, row) if part.id == row.id else _origin(part, conversation, self.encoder)
                self._count(part, whole)
                finished.append((origin, part))
        if self.pool is None:
            self.place(finished)
            return
        for item in finished:
            self.pool.offer(item)

    def _count(self, part: Tokenized, whole: Tokenized) -> None:
        report, trained = self.report, int(part.mask.sum())
        report.rows_out += 1
        report.sources.setdefault(part.source, Share()).add(len(part.ids), trained)
        report.nothing_trained += trained == 0
        report.all_trained += trained == len(part.ids) - 1
        self.lengths[len(part.ids)] += 1
        for (first, stop), (_, end) in zip(part.turns, whole.turns, strict=False):  # turns behind a cut are not in the part
            if not part.mask[first:stop].any():
                continue
            report.turns.trained += 1
            if stop < end:
                report.turns.cut += 1
            else:
                report.turns.stopped += self._stops(part.ids[first:stop].tolist(), part.mask[first:stop])

    def _stops(self, ids: list[int], mask: npt.NDArray[np.bool_]) -> bool:
        """Whether a turn ends with the stop text, and every token that writes it is learnt.

        The stop is compared in stand-ins, so that an answer that merely spells a special token has not stopped.
        """
        if not self.encoder.template.proven and ids[-1] in self._control:  # as the encoder accepts it from foreign templates
            return bool(mask[-1])
        for width in range(1, min(len(ids), len(self._stop.encode()) + 1) + 1):
            tail = tuple(ids[-width:])
            if tail not in self._tails:
                self._tails[tail] = self.encoder._backend.decode(tail, skip_special_tokens=False).endswith(self._stop)
            if self._tails[tail]:
                return bool(mask[-width:].all())
        return False

    def place(self, rows: Sequence[tuple[Conversation, Tokenized]]) -> None:
        """Count tokens by where they stand: each belongs to what most of its characters belong to, messages first on a tie."""
        renderer, texts, codes = self.encoder.renderer, [], []
        for conversation, _ in rows:
            rendered = renderer.render(conversation)
            turns = self._turn_ranges(conversation, rendered)
            spans = [(_STOP, *span) for span in rendered.spans]
            labels, starts, ends = zip(*spans, *turns, strict=True)
            ranges = tuple(zip(starts, ends, strict=True))
            text, moved, _ = self.encoder.encode_text(Rendered(rendered.text, ranges, rendered.specials))
            code = np.full(len(text), _TEMPLATE)
            for label, (start, end) in zip(labels, moved, strict=True):
                code[start:end] = label
            texts.append(text)
            codes.append(code)
        encodings = self.encoder._backend.encode_batch(texts, add_special_tokens=False)
        for (_, row), code, encoding in zip(rows, codes, encodings, strict=True):
            place = _places(code, np.asarray(encoding.offsets[: len(row.ids)]))
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


def _origin(part: Tokenized, conversation: Conversation, encoder: RowEncoder) -> tuple[Conversation, Tokenized]:
    """The exchanges that one part of a split row was made of, and their whole encoding (a part may have been cut, too)."""
    head, pairs = exchanges(conversation)
    begin = int(part.id[len(conversation.id) + 1 :])
    for end in range(begin + 1, len(pairs) + 1):
        turns = head + tuple(turn for pair in pairs[begin:end] for turn in pair)
        some = Conversation(part.id, turns, conversation.source)
        whole = encoder.encode([some])[0] if any(turn.role == "assistant" for turn in turns) else None
        if isinstance(whole, Tokenized) and np.array_equal(whole.ids[: len(part.ids)], part.ids):
            return some, whole
    raise AssertionError(f"{part.id} is not made of exchanges of {conversation.id}")


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
    """Place of each token, from the place of each character."""
    seen = np.zeros((len(PLACES), len(code) + 1), dtype=np.int64)
    seen[code, np.arange(len(code)) + 1] = 1
    np.cumsum(seen, axis=1, out=seen)
    starts, ends = offsets[:, 0], offsets[:, 1]
    place: npt.NDArray[np.int64] = np.argmax(seen[:, ends] - seen[:, starts], axis=0)
    empty = starts == ends  # tokens without a character of their own stand where the next character does
    place[empty] = code[np.minimum(starts[empty], len(code) - 1)]
    return place


# --- on the screen and on a page ---------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Text without anything that a terminal or a browser would obey: controls, direction marks, lone surrogates.

    They become escapes (``\\x1b``). Newlines and tabs stay, and so do joiners: emoji need them.
    """
    return "".join(map(_printable, text))


def _printable(char: str) -> str:
    if char in "\n\t\u200c\u200d" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return char
    return char.encode("unicode_escape").decode()


def _visible(text: str) -> str:
    """For rows: a newline is a token like any other, so it is shown as well as obeyed."""
    return printable(text).replace("\n", "↵\n")


def _style(piece: Piece) -> str:
    return ("bold green" if piece.trained else "dim") + (" reverse" if piece.special else "")


def _header(row: MarkedRow) -> str:
    if row.drop:
        return printable(f"{row.id} · {row.source} · dropped: {row.drop.reason}")
    cut = f", of {row.encoded:,} before overflow" if row.encoded > row.tokens else ""
    return printable(f"{row.id} · {row.source} · {row.tokens:,} tokens{cut}, {row.trained:,} trained")


def print_rows(console: Console, rows: Sequence[MarkedRow]) -> None:
    """Print rows with what is learnt in bold green, what is given dim, and special tokens inverse.

    Where there are no colours (a pipe, ``NO_COLOR``), learnt text stands between ``⟦`` and ``⟧``.
    """
    plain = console.color_system is None or console.no_color
    samples = (
        ("trained", True, False),
        ("prompt", False, False),
        ("special token", False, True),
        ("trained special", True, True),
    )
    pieces = [Piece((name,), trained, special) for name, trained, special in samples]
    console.print(Text("  ").join(_painted(piece, plain) for piece in pieces))
    for row in rows:
        console.print()
        console.print(Text(_header(row), style="bold"))
        console.print(Text.assemble(*(_painted(piece, plain) for piece in row.pieces)))
        if row.drop:
            console.print(Text(printable(row.drop.detail), style="red"))


def _painted(piece: Piece, plain: bool) -> Text:
    shown = _visible(piece.text)
    return Text(f"⟦{shown}⟧" if plain and piece.trained else shown, style=_style(piece))


def summary(report: MaskReport) -> list[tuple[str, str]]:
    """The report's equations, as ``(label, sentence)``."""
    total, turns, drops = report.total, report.turns, report.drops
    dropped = " + ".join(f"{count:,} {reason}" for reason, count in drops.counts.most_common())
    changed = ", ".join(f"{count:,} {reason}" for reason, count in sorted(drops.changed.items()))
    return [
        ("rows", f"{report.rows_in:,} read, {report.kept:,} kept, {report.rows_out:,} training rows"),
        ("dropped", f"{drops.total:,}" + (f" = {dropped}" if dropped else "")),
        ("changed", changed or "0"),
        ("tokens", f"{total.tokens:,}, of which {total.trained:,} trained ({total.share:.1%})"),
        (
            "answers",
            f"{turns.total:,} = {turns.trained:,} trained + {turns.untrained:,} untrained + {turns.lost:,} left out by overflow",
        ),
        (
            "stops",
            f"{turns.trained:,} trained = {turns.stopped:,} with stop + {turns.cut:,} cut + {turns.unstopped:,} without stop",
        ),
        ("stop share", f"{_percent(turns.stop_share)} of the trained answers also train their stop token"),
        ("odd rows", f"{report.nothing_trained:,} with nothing trained, {report.all_trained:,} with everything trained"),
    ]


def _percent(share: float) -> str:
    """Two places; rounding must not make a share look like 0 or 100 that is not."""
    return f"{share:.2%}" if share in (0.0, 1.0) else f"{min(max(share, 0.0001), 0.9999):.2%}"


def _tables(report: MaskReport) -> list[tuple[str, list[tuple[str, Share]]]]:
    sampled = "" if report.placed_rows == report.rows_out else f" ({report.placed_rows:,} of {report.rows_out:,} rows)"
    sources = [*report.sources.items(), *([("all sources", report.total)] if len(report.sources) > 1 else [])]
    return [("source", sources), (f"place{sampled}", [(name, share) for name, share in report.places.items() if share.tokens])]


def print_report(console: Console, report: MaskReport) -> None:
    """Print the report as tables."""
    facts = Table.grid(padding=(0, 2))
    for label, sentence in summary(report):
        facts.add_row(Text(label, style="dim"), Text(printable(sentence)))
    console.print(facts)
    for title, shares in _tables(report):
        numbers = (Column(Text(name), justify="right") for name in ("rows", "tokens", "trained", "share"))
        table = Table(Column(Text(title)), *numbers)
        for name, share in shares:
            table.add_row(
                Text(printable(name)), f"{share.rows:,}", f"{share.tokens:,}", f"{share.trained:,}", f"{share.share:.1%}"
            )
        console.print(table)
    most = max((rows for _, rows in report.histogram), default=0) or 1
    bars = Table(Column("tokens up to", justify="right"), Column("rows", justify="right"), "", box=None)
    for longest, rows in report.histogram:
        if rows:
            bars.add_row(f"{longest:,}", f"{rows:,}", Text("█" * max(1, round(40 * rows / most)), style="green"))
    console.print(bars)
    for reason, examples in sorted(report.drops.examples.items()):
        console.print(Text(printable(f"{reason}: such as {examples[0].id}: {examples[0].detail}"), style="yellow"))
    if report.refusal:
        console.print(Text(printable(f"Training would refuse this data.\n{report.refusal}"), style="bold red"))


def write_html(path: str | Path, rows: Sequence[MarkedRow], report: MaskReport, title: str) -> None:
    """Write rows and report as one page that needs no network and no script.

    Every string goes through :func:`printable` and then through Jinja's escaping, wherever the template writes it.
    """
    env = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        finalize=lambda value: printable(value) if isinstance(value, str) else value,
    )
    env.filters["visible"] = _visible
    most = max((rows for _, rows in report.histogram), default=0) or 1
    page = env.get_template("preview.html.jinja").render(
        title=title, rows=rows, report=report, summary=summary(report), tables=_tables(report), most=most, header=_header
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def run_preview(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    encoder: RowEncoder,
    *,
    count: int,
    html: str | Path | None,
    console: Console,
    seed: int | None = None,
    ids: Sequence[str] = (),
    sample: int | None = None,
) -> MaskReport:
    """Show some rows at once, then read all of them and report.

    Args:
        recipe: whose ``data.sources`` are read.
        tokenizer: named on the page.
        encoder: made from the two.
        count: conversations to show.
        html: also write a page there.
        console: prints rows and report.
        seed: see :func:`marked_rows`.
        ids: see :func:`marked_rows`.
        sample: see :func:`mask_report`.

    Raises:
        DataError: unreadable sources, an unknown id, or a row too long under ``overflow: error``.
    """
    # Only here, because it brings torch in through the collator, and nothing above needs that.
    from sft.data.dataset import _check_drops, iterate_sources

    data, progress = recipe.data, console.is_terminal
    first = (conversation for _, conversation in iterate_sources(data.sources, Drops(), progress=False))
    rows = marked_rows(first, encoder, data, count=count, seed=seed, ids=ids)
    print_rows(console, rows)
    unread = Drops()
    every = (conversation for _, conversation in iterate_sources(data.sources, unread, progress=False))
    report = mask_report(every, encoder, data, unread=unread, sample=sample, progress=progress)
    try:
        _check_drops(report.drops, report.rows_in, data)
    except DataError as refusal:
        report.refusal = str(refusal)
    console.print()
    print_report(console, report)
    if html is not None:
        name = Path(str(tokenizer.name_or_path)).name or type(tokenizer).__name__
        write_html(html, rows, report, f"{encoder.template.name} on {name}, training on {encoder.train_on}")
        console.print(Text(printable(f"written: {html}"), style="dim"))
    return report
