"""What flows through a generation run, from seed task to verdict; everything that is written to disk has a ``to_json`` here.

::

    SeedTask ─┐                                       ┌─ accepted ─► dataset.jsonl
              ├► Request ─► Completion ─► Candidate ─► Verdict
    rows so ──┘     (ledger.jsonl)        (candidates.jsonl)  └─ refused, with reason and evidence
    far

A request is known by what it asks: its id is the hash of model, messages, sampling and schema, so that a reply that was paid for
is found again however the run is cut or resumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def shallow(record: Any) -> dict[str, Any]:
    """The fields of a flat record by name. ``dataclasses.asdict`` copies everything below too: most of the time of writing a line."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def digest(value: Any) -> str:
    """The first 32 hex digits of the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Instance:
    """One worked example of a task; ``input`` is empty for tasks that need none."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class SeedTask:
    """A task written by hand, in the format of Self-Instruct's ``seed_tasks.jsonl``."""

    id: str
    name: str
    instruction: str
    instances: tuple[Instance, ...]
    is_classification: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the teacher draws its reply. ``seed`` is sent only where it is not None."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to the teacher.

    Attributes:
        model: name that the endpoint knows.
        messages: chat messages; a legacy completion has exactly one, whose content is the prompt.
        sampling: how to draw the reply.
        kind: ``chat`` or ``completion``.
        schema: JSON schema that the reply must follow, as canonical JSON text; None for free text.
        draw: tells apart requests that are equal otherwise (a second sample of the same prompt).
        purpose: stage of the strategy, such as ``tasks``, ``classify``, ``instances``, ``evolve``, ``critic``. Not part of the id.
        round: barrier that it belongs to, from 0. Not part of the id.
        index: place in its round, from 0. Not part of the id.
        demonstrations: ids of the seed tasks or rows shown. Not part of the id (their text is, within the messages).
        prompt_fingerprint: of the prompt file. Not part of the id.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    kind: Literal["chat", "completion"] = "chat"
    schema: str | None = None
    draw: int = 0
    purpose: str = "tasks"
    round: int = 0
    index: int = 0
    demonstrations: tuple[str, ...] = ()
    prompt_fingerprint: str = ""
    id: str = field(init=False)

    def __post_init__(self) -> None:
        asked = {
            "model": self.model,
            "kind": self.kind,
            "messages": [[m.role, m.content] for m in self.messages],
            "sampling": shallow(self.sampling),
            "schema": self.schema,
            "draw": self.draw,
        }
        object.__setattr__(self, "id", digest(asked))

    def to_json(self) -> dict[str, Any]:
        messages = tuple(shallow(message) for message in self.messages)
        return {**shallow(self), "messages": messages, "sampling": shallow(self.sampling)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Request:
        """Rebuild from a ledger line; the id is computed again, not believed.

        Raises:
            KeyError, TypeError: not a request.
        """
        given = {key: item for key, item in value.items() if key != "id"}
        given["messages"] = tuple(Message(m["role"], m["content"]) for m in value["messages"])
        given["sampling"] = Sampling(**{**value["sampling"], "stop": tuple(value["sampling"]["stop"])})
        given["demonstrations"] = tuple(value["demonstrations"])
        return Request(**given)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, as the endpoint counted them (or our estimate where it did not: see the ledger)."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A reply that was paid for.

    Attributes:
        request_id: of the request that it answers.
        text: as received.
        finish_reason: as received (``stop``, ``length``, ``content_filter``...).
        usage: tokens.
        model: name that the endpoint gave back.
        endpoint: label of the endpoint, never a key or a URL with one.
        cost: money, in the currency of the recipe's prices; 0 for a replay.
        created: Unix time in seconds.
        usage_estimated: the endpoint's counts were missing or impossible; ``usage`` is our estimate.
        schema_dropped: the endpoint refused the request's JSON schema; the reply is free text.
        max_tokens: limit that was sent, where it had to be smaller than the request's (context too long); else 0.
    """

    request_id: str
    text: str
    finish_reason: str
    usage: Usage
    model: str = ""
    endpoint: str = ""
    cost: float = 0.0
    created: float = 0.0
    usage_estimated: bool = False
    schema_dropped: bool = False
    max_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**shallow(self), "usage": shallow(self.usage)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Completion:
        """Rebuild from a ledger line.

        Raises:
            KeyError, TypeError: not a completion.
        """
        usage = value["usage"]
        return Completion(**{**value, "usage": Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))})


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that got no reply for good: the code of the fault, and what the endpoint said (never a key)."""

    request_id: str
    code: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One task that a teacher proposed, parsed but not judged.

    Attributes:
        id: ``{round}-{index}-{item}``, unique in a run and equal in every replay.
        instruction, input, output: as parsed; ``input`` is empty for "no input".
        is_classification: where the strategy knows.
        item: place in the completion, from 0.
        parent: id of the row that it was evolved from, else empty.
        operator: name of the evolution operator, else empty.
        via: ids of earlier requests without which this one would not have been asked (stages of a strategy), in order.
        group: shared by the instances of one instruction, which are not measured against each other; empty stands alone.
        cost: its share of what its requests cost: each request's cost over the candidates that came of it.
    """

    id: str
    request_id: str
    instruction: str
    input: str
    output: str
    round: int
    item: int
    teacher: str = ""
    demonstrations: tuple[str, ...] = ()
    prompt_fingerprint: str = ""
    is_classification: bool | None = None
    parent: str = ""
    operator: str = ""
    via: tuple[str, ...] = ()
    group: str = ""
    cost: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return shallow(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Candidate:
        """Rebuild from a line of candidates.jsonl.

        Raises:
            KeyError, TypeError: not a candidate.
        """
        return Candidate(**{**value, "demonstrations": tuple(value["demonstrations"]), "via": tuple(value.get("via", ()))})


@dataclass(frozen=True, slots=True)
class ParseFailure:
    """A piece of a completion that is no candidate: the reason code, and the piece (shortened) as evidence."""

    request_id: str
    item: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a candidate; the first filter that refuses decides.

    Attributes:
        accepted: whether it is a row.
        filter: name of the filter that refused; empty if accepted.
        reason: code of the refusal, such as ``too_short`` or ``near_duplicate``; empty if accepted.
        evidence: what decided: the word, the nearest text and its score, the length.
        scores: what the filters measured on the way, kept for accepted rows too (nearest ROUGE-L and the like).
    """

    candidate_id: str
    accepted: bool
    filter: str = ""
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return shallow(self)
