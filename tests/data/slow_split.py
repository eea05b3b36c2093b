"""The splitting of long rows as it is defined, one exchange at a time and every part encoded anew: slow, and easy to believe."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from dataclasses import replace as changed

import numpy as np

from sft.data.conversation import Conversation, Drop, Turn
from sft.data.template import RenderRefused
from sft.data.tokenize import RowEncoder, Tokenized


@dataclass
class Split:
    """Rows as plain data ``(id, ids, mask, turns)``, counts of changes, and the reason if nothing is left."""

    rows: list[tuple[str, list[int], list[bool], list[tuple[int, int]]]] = field(default_factory=list)
    changed: Counter[str] = field(default_factory=Counter)
    dropped: str | None = None


def plain(row: Tokenized) -> tuple[str, list[int], list[bool], list[tuple[int, int]]]:
    return row.id, row.ids.tolist(), row.mask.tolist(), list(row.turns)


def written_out(conversation: Conversation, policy: str) -> list[Turn]:
    """Every answer says itself whether it is learnt."""
    last = max(i for i, turn in enumerate(conversation.turns) if turn.role == "assistant")
    out = []
    for i, turn in enumerate(conversation.turns):
        learnt = turn.train if turn.train is not None else (policy != "last" or i == last)
        out.append(changed(turn, train=learnt) if turn.role == "assistant" else turn)
    return out


def in_exchanges(turns: list[Turn]) -> list[list[Turn]]:
    out: list[list[Turn]] = [[]]
    for turn in turns:
        if turn.role == "user" and out[-1] and out[-1][-1].role == "assistant":
            out.append([])
        out[-1].append(turn)
    return out


def measure(part: Conversation, encoder: RowEncoder) -> tuple[int, Tokenized | Drop | None]:
    answers = [turn for turn in part.turns if turn.role == "assistant"]
    if not answers:
        return 0, Drop(part.id, "no_assistant_turn", "")
    if encoder.train_on != "all" and not any(turn.train for turn in answers):
        try:
            return len(encoder.ids_of(encoder.renderer.render(part))), None
        except RenderRefused as refusal:
            return 0, Drop(part.id, refusal.reason, "")
    (row,) = encoder.encode([part])
    return (0 if isinstance(row, Drop) else len(row.ids)), row


def cut(row: Tokenized, limit: int) -> Tokenized | None:
    """The longest beginning of at most ``limit`` tokens that ends with a learnt one."""
    ends = [i + 1 for i in range(limit) if row.mask[i]]
    if not ends:
        return None
    end = ends[-1]
    turns = tuple((a, min(b, end)) for a, b in row.turns if a < end)
    return Tokenized(row.id, row.source, row.ids[:end], np.asarray(row.mask[:end]), turns)


def slow_split(conversation: Conversation, encoder: RowEncoder, limit: int) -> Split:
    turns = written_out(conversation, encoder.train_on)
    head = turns[:1] if turns[0].role == "system" else []
    pairs, out, begin = in_exchanges(turns[len(head) :]), Split(), 0
    reasons = []
    while begin < len(pairs):
        found: list[tuple[int, Tokenized | Drop | None]] = []
        for end in range(begin + 1, len(pairs) + 1):
            some = (*head, *(turn for pair in pairs[begin:end] for turn in pair))
            length, row = measure(Conversation(f"{conversation.id}#{begin}", some, conversation.source), encoder)
            if found and (length > limit or isinstance(row, Drop)):
                break
            found.append((length, row))
            if length > limit or isinstance(row, Drop):
                break
        length, row = found[-1]
        short = cut(row, limit) if isinstance(row, Tokenized) and length > limit else row
        if isinstance(short, Tokenized):
            out.rows.append(plain(short))
            out.changed["truncated"] += length > limit
        elif row is None:
            out.changed["split_untrained"] += 1
        else:
            reasons.append(row.reason if isinstance(row, Drop) else "nothing_trained")
            out.changed["split_part_" + reasons[-1]] += 1
        begin += len(found)
    if not out.rows:
        return Split(dropped=reasons[0] if reasons else "nothing_trained")
    out.changed["split"] += 1
    out.changed = +out.changed
    return out
