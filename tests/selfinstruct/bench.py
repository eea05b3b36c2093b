"""A paying teacher in a run directory, behind it the real ``openai`` client and the local server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfinstruct.records import Message, Request, Sampling
from selfinstruct.teacher.budget import Budget, Price
from selfinstruct.teacher.client import OpenAIClient
from selfinstruct.teacher.dispatch import LedgerTeacher
from selfinstruct.teacher.endpoints import Endpoint, Endpoints, key_of
from selfinstruct.teacher.journal import Journal
from selfinstruct.teacher.ledger import Ledger
from selfinstruct.teacher.rate import Gate
from selfinstruct.teacher.sections import EndpointSection, RateSection, RetriesSection
from tests.selfinstruct.fault_server import FaultServer
from tests.selfinstruct.timing import Moved

KEY = "sk-this-must-not-be-found-anywhere-4711"
SCHEMA = '{"type":"object"}'
PRICE = Price(1_000_000, 2_000_000)  # a millionth per prompt token, two per completion token
EVERY = ("429", "429_after", "500", "disconnect", "cut_body", "cut_json", "wrong_schema", "slow", "no_usage", "wrong_usage")


def asked(count: int, *, first: int = 0, max_tokens: int = 200, schema: str | None = None, kind: Any = "chat") -> list[Request]:
    return [
        Request(
            model="m",
            messages=(Message("user", f"question {n}"),),
            sampling=Sampling(max_tokens),
            index=n,
            schema=schema,
            kind=kind,
        )
        for n in range(first, first + count)
    ]


@dataclass
class Bench:
    """A teacher in a run directory, on a clock that sleeping moves."""

    teacher: LedgerTeacher
    server: FaultServer
    moved: Moved
    endpoint: Endpoint

    @property
    def counts(self) -> Any:
        return self.teacher.counts

    @property
    def budget(self) -> Budget:
        return self.teacher.budget


async def on_bench(
    folder: Path,
    server: FaultServer,
    use: Callable[[Bench], Awaitable[Any]],
    *,
    retries: dict[str, Any] | None = None,
    budget: dict[str, Any] | None = None,
    concurrency: int = 64,
    client: Callable[[OpenAIClient], Any] = lambda client: client,
) -> Any:
    url = await server.start() if server.server is None else f"http://127.0.0.1:{server.server.sockets[0].getsockname()[1]}/v1"
    moved = Moved()
    section = EndpointSection(
        base_url=url,
        name="here",
        key_variable="TEST_KEY",
        rate=RateSection(max_concurrency=concurrency, start_concurrency=concurrency),
    )
    knobs = RetriesSection(**{"timeout": 20.0, "attempts": 8, **(retries or {})})
    made = client(OpenAIClient(section, knobs, key_of(section, {"TEST_KEY": KEY}), moved.clock))
    endpoint = Endpoint(section.label, made, PRICE, Gate(section.rate, moved.clock))
    ledger = Ledger.open(folder / "ledger.jsonl")
    journal = Journal(folder / "journal.jsonl", ledger.__contains__)
    caps = Budget(**{"prices": {"m": PRICE}, **(budget or {})})
    teacher = LedgerTeacher(Endpoints([endpoint], moved.clock), ledger, caps, knobs, journal, moved.clock)
    try:
        return await use(Bench(teacher, server, moved, endpoint))
    finally:
        await teacher.aclose()
        await server.stop()


def bench(folder: Path, server: FaultServer, use: Callable[[Bench], Awaitable[Any]], **knobs: Any) -> Any:
    return asyncio.run(on_bench(folder, server, use, **knobs))
