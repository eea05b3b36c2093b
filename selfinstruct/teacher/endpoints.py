"""The endpoints of a run: which of them is asked next, and the keys, from the environment only."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from selfinstruct.records import Request
from selfinstruct.teacher.budget import Price
from selfinstruct.teacher.rate import Clock, Departure, Gate
from selfinstruct.teacher.sections import EndpointSection
from sft.remote.address import key_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How a request is put to an endpoint, after what was learnt about both.

    Attributes:
        model: name at the endpoint.
        max_tokens: length limit that is sent.
        schema: whether the request's JSON schema is sent.
        renamed: whether the limit is called ``max_completion_tokens``.
    """

    model: str
    max_tokens: int
    schema: bool
    renamed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back. Token counts are None where the endpoint gave none that is a whole number."""

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str
    headers: Mapping[str, str]


class Client(Protocol):
    """One door to one endpoint. ``ask`` raises :class:`selfinstruct.teacher.faults.CallFault` only."""

    async def ask(self, request: Request, asking: Asking) -> Reply: ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class Endpoint:
    """One server, with what was learnt about it on the way.

    Attributes:
        label: name in ledger and report.
        client: asks it.
        price: of its tokens.
        gate: its rate.
        plain: it refuses JSON schemas.
        renamed: it wants ``max_completion_tokens``.
    """

    label: str
    client: Client
    price: Price
    gate: Gate
    weight: float = 1.0
    model: str | None = None
    plain: bool = False
    renamed: bool = False

    def asking(self, request: Request, max_tokens: int) -> Asking:
        schema = request.schema is not None and not self.plain
        return Asking(model=self.model or request.model, max_tokens=max_tokens, schema=schema, renamed=self.renamed)


@dataclass(slots=True)
class Endpoints:
    """A weighted list. Requests leave in the order in which they arrive here, to the freest endpoint by weight.

    Attributes:
        waits: how often the head of the queue waited for a rate.
        waited: seconds that it waited.
        waiting: requests that queue now.
    """

    items: Sequence[Endpoint]
    clock: Clock = field(default_factory=Clock)
    waits: int = 0
    waited: float = 0.0
    waiting: int = 0
    _door: asyncio.Lock = field(default_factory=asyncio.Lock)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def width(self) -> int:
        """Most requests that can be in flight."""
        return sum(item.gate.rate.max_concurrency for item in self.items)

    @property
    def in_flight(self) -> int:
        return sum(item.gate.in_flight for item in self.items)

    async def enter(self, tokens: int) -> tuple[Endpoint, Departure]:
        """Wait until an endpoint may be asked; the request counts as in flight there from then on."""
        self.waiting += 1
        try:
            async with self._door:
                while True:
                    self._changed.clear()
                    delays = [item.gate.delay(tokens) for item in self.items]
                    if ready := [item for item, delay in zip(self.items, delays, strict=True) if delay <= 0]:
                        break
                    await self._wait(min(delays))
        finally:
            self.waiting -= 1
        chosen = min(ready, key=lambda item: (item.gate.in_flight + 1) / item.weight)
        return chosen, chosen.gate.enter(tokens)

    def left(self) -> None:
        """A request came back: look at the gates again."""
        self._changed.set()

    async def _wait(self, delay: float) -> None:
        if delay == float("inf"):
            await self._changed.wait()
            return
        self.waits += 1
        start = self.clock.now()
        either: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(self.clock.sleep(delay)),
            asyncio.ensure_future(self._changed.wait()),
        ]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in either:
                one.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await one
            self.waited += self.clock.now() - start

    async def close(self) -> None:
        for item in self.items:
            await item.client.close()


def key_of(section: EndpointSection, environment: Mapping[str, str] = os.environ) -> str | None:
    """The key of an endpoint, None where it wants none.

    Raises:
        InputError: the variable is not set, or empty, or holds what no header can carry.
    """
    if section.key_variable is None:
        return None
    return key_in(section.key_variable, section.label, "key_variable: null for a server that wants none", environment)
