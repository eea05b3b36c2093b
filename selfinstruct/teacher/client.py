"""The one door to the ``openai`` package: any OpenAI-compatible endpoint, chat and legacy completions, files and batches.

Its own retries are off (ours are counted and budgeted), its errors never leave this module: they hold request and headers, and with
them the key. What leaves is a :class:`CallFault` with the endpoint's words, the key struck out, raised outside the handler so that
no ``__context__`` leads back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import openai

from selfinstruct.records import Request
from selfinstruct.teacher.endpoints import Asking, Reply
from selfinstruct.teacher.faults import CallFault, classify, strike_out
from selfinstruct.teacher.rate import Clock
from selfinstruct.teacher.sections import EndpointSection, RetriesSection
from selfinstruct.teacher.wire import body_of, reply_of

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

_PER_POOL = 32
"""Requests per connection pool: a pool looks at all of its connections for every request."""


class OpenAIClient:
    """Client of one endpoint.

    Args:
        section: address and name.
        retries: its time-outs.
        key: as ``endpoints.key_of`` found it; kept by the openai client alone.
        clock: for a Retry-After that is a date.
    """

    def __init__(self, section: EndpointSection, retries: RetriesSection, key: str | None, clock: Clock | None = None) -> None:
        self._section, self._clock = section, clock or Clock()
        self._timeout = retries.timeout
        self._strike: Callable[[str], str] = lambda text: strike_out(text, key)
        self._make: Callable[[], openai.AsyncOpenAI] = lambda: _client(section, retries, key)
        self._pools: list[openai.AsyncOpenAI] = []
        self._busy: list[int] = []

    async def ask(self, request: Request, asking: Asking) -> Reply:
        """One attempt.

        Raises:
            CallFault: it went wrong; its ``action`` says what to do.
        """
        body = body_of(request, asking)

        async def call(client: openai.AsyncOpenAI) -> Any:
            create = (
                client.chat.completions.with_raw_response if request.kind == "chat" else client.completions.with_raw_response
            )
            return await create.create(**body)

        raw = await self._guarded(call, billed=True)
        headers = raw.http_response.headers
        limits = {name: headers[name] for name in headers if name.startswith("x-ratelimit-")}
        return reply_of(raw.http_response.content, request, limits)

    async def _guarded(self, call: Callable[[openai.AsyncOpenAI], Awaitable[ResultT]], *, billed: bool) -> ResultT:
        """Run one call on the least busy pool, and turn every error of the package into a fault."""
        at = self._pool()
        self._busy[at] += 1
        try:
            async with asyncio.timeout(self._timeout):  # the package's time-out is per read: a dripping body never meets it
                return await call(self._pools[at])
        except (openai.OpenAIError, TimeoutError, ValueError, OSError) as error:
            fault = self._fault(error, billed)
        finally:
            self._busy[at] -= 1
        raise fault

    def _pool(self) -> int:
        if not self._pools or min(self._busy) >= _PER_POOL:
            self._pools.append(self._make())
            self._busy.append(0)
        return self._busy.index(min(self._busy))

    def _fault(self, error: Exception, billed: bool) -> CallFault:
        if isinstance(error, openai.APIStatusError):
            headers = {name.lower(): value for name, value in error.response.headers.items()}
            fault = classify(error.status_code, error.body, headers, now=self._clock.unix())
            fault.detail = self._strike(fault.detail)
            fault.args = (f"{fault.code}: {fault.detail}",)
            return fault
        if isinstance(error, openai.APITimeoutError | TimeoutError):
            return CallFault("retry", "timeout", "no answer in time", billed=billed)
        if isinstance(error, openai.APIConnectionError):
            cause = type(error.__cause__).__name__ if error.__cause__ is not None else "connection"
            # Only a call that never got a connection is sure not to have been charged.
            return CallFault("retry", "disconnect", cause, billed=billed and not cause.startswith("Connect"))
        return CallFault("stop", "client", self._strike(f"{type(error).__name__}: {error}"))

    async def close(self) -> None:
        for client in self._pools:
            await client.close()
        self._pools.clear()
        self._busy.clear()

    # --- files and batches

    async def upload(self, name: str, content: bytes) -> str:
        """Upload an input file of a batch; its id."""
        return (await self._guarded(lambda client: client.files.create(file=(name, content), purpose="batch"), billed=False)).id

    async def create_batch(self, file_id: str, path: str, mark: str) -> dict[str, Any]:
        """Start a batch, marked so that it can be found again; its state."""

        async def call(client: openai.AsyncOpenAI) -> Any:
            return await client.batches.create(
                input_file_id=file_id,
                endpoint=path,  # type: ignore[arg-type]
                completion_window="24h",
                metadata={"vicugna": mark},
            )

        return _plain(await self._guarded(call, billed=False))

    async def batch(self, id_: str) -> dict[str, Any]:
        """The state of a batch."""
        return _plain(await self._guarded(lambda client: client.batches.retrieve(id_), billed=False))

    async def find_batch(self, mark: str) -> dict[str, Any] | None:
        """The batch with a mark among the last few hundred of the account; None if there is none."""

        async def call(client: openai.AsyncOpenAI) -> Any:
            page = await client.batches.list(limit=100)
            for _ in range(5):
                for item in page.data:
                    if (item.metadata or {}).get("vicugna") == mark:
                        return item
                if not page.has_next_page():
                    return None
                page = await page.get_next_page()
            return None

        found = await self._guarded(call, billed=False)
        return None if found is None else _plain(found)

    async def download(self, file_id: str) -> bytes:
        """The content of a file."""

        async def call(client: openai.AsyncOpenAI) -> bytes:
            return (await client.files.content(file_id)).content

        return await self._guarded(call, billed=False)


def _client(section: EndpointSection, retries: RetriesSection, key: str | None) -> openai.AsyncOpenAI:
    # No redirects: the key goes to the address in the recipe and nowhere else. Plain HTTP needs no certificates read for each pool.
    plain: dict[str, Any] = {"verify": False} if section.base_url.startswith("http:") else {}
    made = openai.AsyncOpenAI(
        http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, **plain),
        api_key=key or "none",
        base_url=section.base_url,
        max_retries=0,
        timeout=openai.Timeout(retries.timeout, connect=retries.connect_timeout),
    )
    if "//api.openai.com/" not in f"{section.base_url}/":  # these name an account at OpenAI: nobody else's business
        made.organization = made.project = None
    return made


def _plain(value: Any) -> dict[str, Any]:
    dumped: Mapping[str, Any] = value.model_dump(mode="json", warnings=False)
    return dict(dumped)
