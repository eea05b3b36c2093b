"""What becomes of a row that is longer than the recipe allows. Every outcome is counted; none is silent.

::

    drop      the row is left out                      (counted as too_long)
    truncate  cut inside an answer:  [p p p a a | a s] -> [p p p a a]      no stop token is put where none was
    split     cut between exchanges: [S u1 a1 u2 a2]   -> [S u1 a1] [S u2 a2]   the system message is repeated,
                                                                     parts that learn nothing are left out
    error     the run stops
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from sft.data.conversation import Conversation, Drop, Drops, Turn
from sft.data.template import RenderRefused
from sft.data.tokenize import RowEncoder, Tokenized, learnt_answers
from sft.errors import DataError


def fit(
    row: Tokenized, conversation: Conversation, encoder: RowEncoder, max_length: int, overflow: str, drops: Drops
) -> list[Tokenized]:
    """Bring one row under ``max_length`` tokens by the recipe's policy.

    Args:
        row: verified row, of any length.
        conversation: what it was made from; ``split`` needs its turns.
        encoder: makes the parts of a split row.
        max_length: in tokens.
        overflow: ``drop``, ``truncate``, ``split`` or ``error``.
        drops: gets one count for every row dropped, cut or split.

    Returns:
        The rows to train on, none of them longer, each with something learnt.

    Raises:
        DataError: ``overflow: error``.
    """
    if len(row.ids) <= max_length:
        return [row]
    if overflow == "error":
        raise DataError(
            f"{row.id}: {len(row.ids)} tokens, data.max_length is {max_length}; "
            "raise it, or set data.overflow to drop, truncate or split"
        )
    if overflow == "drop":
        drops.add(Drop(row.id, "too_long", f"{len(row.ids)} tokens; data.max_length is {max_length} and data.overflow is drop"))
        return []
    if overflow == "split" and len(row.turns) > 1:
        return _split(conversation, encoder, max_length, drops)
    cut = _truncate(row, max_length)
    if isinstance(cut, Drop):
        drops.add(cut)
        return []
    drops.changed["truncated"] += 1
    return [cut]


def _truncate(row: Tokenized, max_length: int) -> Tokenized | Drop:
    end = max_length
    learnt = np.flatnonzero(row.mask[:max_length])
    if len(learnt) == 0:
        detail = f"no answer begins within data.max_length = {max_length} tokens; raise it or use overflow: split"
        return Drop(row.id, "nothing_trained", detail)
    if not row.mask[end - 1]:
        end = int(learnt[-1]) + 1  # a prompt without its answer teaches nothing: end with the last answer
    turns = tuple((a, min(b, end)) for a, b in row.turns if a < end)
    return Tokenized(row.id, row.source, row.ids[:end], row.mask[:end], turns)


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


def _split(conversation: Conversation, encoder: RowEncoder, max_length: int, drops: Drops) -> list[Tokenized]:
    """Greedy from the front: each part takes as many whole exchanges as its rendered length allows.

    Which answers are learnt is settled before cutting: under ``train_on: last`` only the last answer of the whole row is. Parts
    without a learnt answer are left out.
    """
    head, pairs = exchanges(_settled(conversation, encoder))
    out: list[Tokenized] = []
    changed: Counter[str] = Counter()
    first: Drop | None = None
    begin = 0
    while begin < len(pairs):
        end, (length, best) = begin + 1, _encode(conversation, head, pairs[begin : begin + 1], begin, encoder)
        while not isinstance(best, Drop) and length <= max_length and end < len(pairs):
            longer, part = _encode(conversation, head, pairs[begin : end + 1], begin, encoder)
            if isinstance(part, Drop) or longer > max_length:
                break
            end, length, best = end + 1, longer, part
        if isinstance(best, Tokenized) and length > max_length:  # one exchange that is too long alone
            best = _truncate(best, max_length)
            changed["truncated"] += isinstance(best, Tokenized)
        if isinstance(best, Tokenized):
            out.append(best)
        elif best is None:
            changed["split_untrained"] += 1
        else:
            changed["split_part_" + best.reason] += 1
            first = first or best
        begin = end
    if out:
        drops.changed.update(changed + Counter(split=1))
    else:
        reason, detail = (first.reason, first.detail) if first else ("nothing_trained", "no part of this row learns an answer")
        drops.add(Drop(conversation.id, reason, f"no part of this split row is left: {detail}"))
    return out


def _settled(conversation: Conversation, encoder: RowEncoder) -> Conversation:
    """The conversation with ``train`` written out on every answer, so that a part learns what the whole row would have."""
    learnt = iter(learnt_answers(conversation, encoder.train_on))
    turns = (replace(t, train=next(learnt)) if t.role == "assistant" else t for t in conversation.turns)
    return replace(conversation, turns=tuple(turns))


def _encode(
    conversation: Conversation, head: tuple[Turn, ...], pairs: list[tuple[Turn, ...]], begin: int, encoder: RowEncoder
) -> tuple[int, Tokenized | Drop | None]:
    """The length of one part and its row; None for a row in which nothing is learnt."""
    turns = head + tuple(turn for pair in pairs for turn in pair)
    part = Conversation(f"{conversation.id}#{begin}", turns, conversation.source)
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers:
        return 0, Drop(part.id, "no_assistant_turn", "this part of a split row has no answer")
    if encoder.train_on != "all" and not any(turn.train for turn in answers):
        try:
            return len(encoder.ids_of(encoder.renderer.render(part))), None
        except RenderRefused as refusal:
            return 0, Drop(part.id, refusal.reason, refusal.detail)
    row = encoder.encode([part])[0]
    return (0, row) if isinstance(row, Drop) else (len(row.ids), row if row.mask.any() else None)
