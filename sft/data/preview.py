"""What the model will see and learn, for a person to look at before any GPU is rented.

::

    row a.jsonl:1     <s>  A chat ... USER: Hi ASSISTANT:   Hello.  </s>
    piece             special       prompt                  trained special+trained

Pieces are decoded from the ids and the mask of the finished row, after encoding and overflow by the code that training runs;
the rendered text is not consulted. Below the rows stands the report of :mod:`sft.data.mask_report`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from rich.table import Column, Table
from rich.text import Text

from sft.data.conversation import Conversation, Drop, Drops
from sft.data.mask_report import MaskReport, Reservoir, Share, control_ids, mask_report
from sft.data.overflow import fit
from sft.data.tokenize import RowEncoder
from sft.errors import DataError
from sft.recipe import DataSection, Recipe

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase


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


def marked_pieces(ids: Sequence[int], mask: Sequence[bool], encoder: RowEncoder) -> tuple[Piece, ...]:
    """Decode a row from its ids, and cut it wherever the mask changes or a special token stands.

    A character of several tokens (byte tokens of emoji, of Chinese) is decoded whole. The tokens before it are decoded with it
    and taken off again, because decoders strip or join at the start of what they get.
    """
    control = control_ids(encoder)
    decode = partial(encoder.backend.decode, skip_special_tokens=False)
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
        pool = Reservoir[Conversation](count, seed)
        for conversation in conversations:
            pool.offer(conversation)
        wanted = pool.items()
    out: list[MarkedRow] = []
    for conversation, row in zip(wanted, encoder.trace(wanted), strict=True):
        drops = Drops(keep=len(conversation.turns))
        encoded = 0 if isinstance(row, Drop) else len(row.row.ids)
        for part in fit([row], [conversation], encoder, data.max_length, data.overflow, drops)[0]:
            tokens, mask = part.row.ids.tolist(), part.row.mask.tolist()
            pieces = marked_pieces(tokens, mask, encoder)
            out.append(MarkedRow(part.row.id, part.row.source, len(tokens), sum(mask), encoded, pieces))
        for drop in (d for some in drops.examples.values() for d in some):
            out.append(MarkedRow(drop.id, conversation.source, 0, 0, encoded, (), drop))
    return out


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
    from sft.data.dataset import check_drops, iterate_sources, learnt_as

    data, progress = recipe.data, console.is_terminal
    first = (conversation for _, conversation in iterate_sources(data.sources, Drops(), progress=False))
    told = learnt_as(recipe, encoder, tokenizer)
    rows = marked_rows(first, encoder, data, count=count, seed=seed, ids=ids)
    print_rows(console, rows)
    for token, other in sorted(told.items()):
        pair = tokenizer.convert_ids_to_tokens([token, other])
        console.print(f"learnt where {pair[0]} ends an answer: {pair[1]} in its place", markup=False)
    unread = Drops()
    every = (conversation for _, conversation in iterate_sources(data.sources, unread, progress=False))
    report = mask_report(every, encoder, data, unread=unread, sample=sample, progress=progress)
    try:
        check_drops(report.drops, report.rows_in, data, ((label, share.rows) for label, share in report.sources.items()))
    except DataError as refusal:
        report.refusal = str(refusal)
    console.print()
    print_report(console, report)
    if html is not None:
        name = Path(str(tokenizer.name_or_path)).name or type(tokenizer).__name__
        write_html(html, rows, report, f"{encoder.template.name} on {name}, training on {encoder.train_on}")
        console.print(Text(printable(f"written: {html}"), style="dim"))
    return report
