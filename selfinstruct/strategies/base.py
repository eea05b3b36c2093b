"""What a strategy is: the requests of a round, and what their replies amount to.

A strategy never meets the network. It is driven, and a round is a barrier::

    requests = strategy.requests(round, view)                  from seed, round and the rows of earlier rounds only
    stage = strategy.propose(requests, view)                   a generator
        yields a batch of requests  <- the first are those above, later ones are further stages
        is sent one reply per request, in the order of the requests
        returns candidates and parse failures, in an order that depends on the requests alone

So a round is a function of its inputs, whatever the concurrency. In a replay the requests of the first stage come out of the ledger.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from selfinstruct.records import (
    Candidate,
    Completion,
    Failure,
    Instance,
    Message,
    ParseFailure,
    Request,
    Sampling,
    SeedTask,
    Verdict,
)

MOST_STOPS = 4
"""Stop strings that the API takes."""
Reply = Completion | Failure
Item = Candidate | ParseFailure
Stage = Generator[list[Request], Sequence[Reply], list[Item]]


@dataclass(frozen=True, slots=True)
class Asking:
    """How requests are put, whatever they ask.

    Attributes:
        model: name that the endpoints know.
        kind: chat, or the legacy completion.
        sampling: of the first stage, and of those that have none of their own.
        seed: of the run.
    """

    model: str
    kind: Literal["chat", "completion"]
    sampling: Sampling
    seed: int

    def request(self, text: str, sampling: Sampling | None = None, stop: tuple[str, ...] = (), **about: Any) -> Request:
        """A request of one user message (for a legacy completion: of one prompt). ``stop``: strings of the strategy's own format."""
        drawn = sampling or self.sampling
        drawn = replace(drawn, stop=tuple(dict.fromkeys((*drawn.stop, *stop)))[:MOST_STOPS])
        return Request(model=self.model, kind=self.kind, messages=(Message("user", text),), sampling=drawn, **about)

    def rng(self, number: int, purpose: str = "") -> random.Random:
        """The dice of a round: of the run's seed and the round, and of nothing else."""
        return random.Random(f"{self.seed}:{number}{':' if purpose else ''}{purpose}")


@dataclass(frozen=True, slots=True)
class View:
    """What a strategy may look at: seeds, and what was accepted before this round.

    Attributes:
        seeds: in file order.
        rows: accepted rows in order.
        screen: judge a bare instruction, before its instances are paid for; None where nothing objects.
    """

    seeds: Sequence[SeedTask]
    rows: Sequence[Candidate]
    screen: Callable[[Candidate], Verdict | None]


class Strategy(Protocol):
    """See the module's docstring."""

    purpose: str
    """Purpose of the first stage's requests (up to a colon): a replay finds them by it."""

    def prompts(self) -> dict[str, str]:
        """Name -> fingerprint of every prompt file in use."""

    def requests(self, number: int, view: View) -> list[Request]:
        """The first stage of a round; empty if there is nothing more to ask."""

    def propose(self, requests: list[Request], view: View) -> Stage:
        """Turn replies into candidates, asking further stages where the method has them."""


def shared(candidates: Sequence[Candidate], completion: Completion, request: Request) -> list[Candidate]:
    """Give the candidates of one completion their teacher and an equal share of its cost."""
    share = completion.cost / len(candidates) if candidates else 0.0
    teacher = completion.model or request.model
    return [replace(c, teacher=teacher, cost=c.cost + share) for c in candidates]


def one_instance(seed: SeedTask, rng: random.Random) -> Instance:
    """One worked example of a seed; a seed with a single one costs no draw."""
    return seed.instances[0] if len(seed.instances) == 1 else rng.choice(seed.instances)


def prose(text: str) -> str:
    """A rendered prompt: one newline at its end, which a legacy completion goes on from."""
    return text.strip() + "\n"
