"""What a row becomes at the edge, and what a row that cannot become it leaves behind."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Role = Literal["system", "user", "input", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)
Policy = str  # "assistant", "last" or "all": see recipe.TemplateSection.train_on


@dataclass(frozen=True, slots=True)
class Turn:
    """One message.

    Attributes:
        role: who speaks. ``input`` is Alpaca's second field: material that the user's instruction is about. Templates that do
            not know it get it folded into the user turn before it (:func:`fold_inputs`).
        content: the text, never stripped or otherwise changed on the way in.
        train: True or False overrides the recipe's ``template.train_on`` for this turn; None follows it.
    """

    role: Role
    content: str
    train: bool | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A checked conversation: at least one assistant turn, known roles, text only.

    Attributes:
        id: unique within its source; ``file:line`` (or ``file#index``) if the row has none of its own.
        turns: in order.
        source: label of the recipe's source, for reports per source.
        where: ``file:line[:column]``, ``file#index`` or ``hub#index`` of the row; empty for one that was not read from a source.
    """

    id: str
    turns: tuple[Turn, ...]
    source: str
    where: str = field(default="", compare=False)

    @property
    def place(self) -> str:
        """How to find the row in its file: where it stands, with its own id behind."""
        return self.id if not self.where or self.id.startswith(self.where) else f"{self.where} ({self.id})"

    def fingerprint(self) -> str:
        """sha256 over roles and texts, the same for equal conversations whatever their id or source."""
        payload = json.dumps([[t.role, t.content, t.train] for t in self.turns], ensure_ascii=False)
        return hashlib.sha256(payload.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that is not trained on.

    Attributes:
        id: the row, as ``file:line`` or its own id with it.
        reason: a short snake_case code, the key of the counts.
        detail: one sentence that says what is wrong and what would cure it.
    """

    id: str
    reason: str
    detail: str


@dataclass(slots=True)
class Drops:
    """Counts of everything that was left out or changed, with a few examples of each.

    Attributes:
        counts: reason -> rows left out.
        changed: reason -> rows kept in another form (truncated, split).
        examples: the first few drops of each reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Drop]] = field(default_factory=dict)
    keep: int = 5

    def add(self, drop: Drop) -> None:
        self.counts[drop.reason] += 1
        kept = self.examples.setdefault(drop.reason, [])
        if len(kept) < self.keep:
            kept.append(drop)

    def extend(self, drops: Iterable[Drop]) -> None:
        for drop in drops:
            self.add(drop)

    def merged(self, other: Drops) -> Drops:
        """Both counts together; the examples of this one come first."""
        out = Drops(self.counts + other.counts, self.changed + other.changed, keep=self.keep)
        for source in (self, other):
            for reason, drops in source.examples.items():
                kept = out.examples.setdefault(reason, [])
                kept.extend(drops[: self.keep - len(kept)])
        return out

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data for run.json and reports."""
        return {
            "counts": dict(sorted(self.counts.items())),
            "changed": dict(sorted(self.changed.items())),
            "examples": {k: [[d.id, d.detail] for d in v] for k, v in sorted(self.examples.items())},
        }


def learnt_answers(conversation: Conversation, train_on: Policy) -> list[bool]:
    """Whether each assistant turn is learnt: what the turn itself says, else the policy."""
    answers = [turn.train for turn in conversation.turns if turn.role == "assistant"]
    return [train_on != "last" or i == len(answers) - 1 if train is None else train for i, train in enumerate(answers)]


def fold_inputs(conversation: Conversation, separator: str = "\n\n") -> Conversation:
    """Fold ``input`` turns into the user turn before them, for templates that have no place of their own for them.

    ``[user "Add.", input "2+2", assistant "4"]`` becomes ``[user "Add.\\n\\n2+2", assistant "4"]``.
    """
    if all(turn.role != "input" for turn in conversation.turns):
        return conversation
    turns: list[Turn] = []
    for turn in conversation.turns:
        if turn.role == "input" and turns and turns[-1].role == "user":
            turns[-1] = Turn("user", turns[-1].content + separator + turn.content, turns[-1].train)
        else:
            turns.append(Turn("user", turn.content, turn.train) if turn.role == "input" else turn)
    return replace(conversation, turns=tuple(turns))
