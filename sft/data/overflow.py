"""What becomes of a row that is longer than the recipe allows. Every outcome is counted; none is silent.

::

    drop      the row is left out                      (counted as too_long)
    truncate  cut inside an answer:  [p p p a a | a s] -> [p p p a a]      no stop token is put where none was
    split     cut between exchanges: [S u1 a1 u2 a2]   -> [S u1 a1] [S u2 a2]   the system message is repeated
    error     the run stops
"""

from __future__ import annotations

import numpy as np

from sft.data.conversation import Conversation, Drop, Drops, Turn
from sft.data.tokenize import RowEncoder, Tokenized
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
    return _truncate(row, max_length, drops)


def _truncate(row: Tokenized, max_length: int, drops: Drops) -> list[Tokenized]:
    end = max_length
    learnt = np.flatnonzero(row.mask[:max_length])
    if len(learnt) == 0:
        drops.add(
            Drop(
                row.id,
                "nothing_trained",
                f"no answer begins within data.max_length = {max_length} tokens; raise it or use overflow: split",
            )
        )
        return []
    if not row.mask[end - 1]:
        end = int(learnt[-1]) + 1  # a prompt without its answer teaches nothing: end with the last answer
    drops.changed["truncated"] += 1
    turns = tuple((a, min(b, end)) for a, b in row.turns if a < end)
    return [Tokenized(row.id, row.source, row.ids[:end], row.mask[:end], turns)]


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
    """Greedy from the front: each part takes as many whole exchanges as its rendered length allows."""
    head, pairs = exchanges(conversation)
    drops.changed["split"] += 1
    out: list[Tokenized] = []
    begin = 0
    while begin < len(pairs):
        end, best = begin + 1, _encode(conversation, head, pairs[begin : begin + 1], begin, encoder)
        while isinstance(best, Tokenized) and len(best.ids) <= max_length and end < len(pairs):
            longer = _encode(conversation, head, pairs[begin : end + 1], begin, encoder)
            if isinstance(longer, Drop) or len(longer.ids) > max_length:
                break
            end, best = end + 1, longer
        if isinstance(best, Drop):
            drops.add(best)
        elif len(best.ids) > max_length:
            out += _truncate(best, max_length, drops)  # one exchange that is too long alone
        else:
            out.append(best)
        begin = end
    return out


def _encode(
    conversation: Conversation, head: tuple[Turn, ...], pairs: list[tuple[Turn, ...]], begin: int, encoder: RowEncoder
) -> Tokenized | Drop:
    turns = head + tuple(turn for pair in pairs for turn in pair)
    if not any(turn.role == "assistant" for turn in turns):
        return Drop(f"{conversation.id}#{begin}", "no_assistant_turn", "this part of a split row has no answer")
    return encoder.encode([Conversation(f"{conversation.id}#{begin}", turns, conversation.source)])[0]
