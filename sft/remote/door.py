"""The one door to the ``openai`` package.

Its own retries are off (whoever asks counts them), its errors never leave this module: they hold request and headers, and with them
the key. What leaves is a :class:`CallFault` with the server's words, the key struck out, raised outside the handler so that no
``__context__`` leads back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import openai

from sft.remote.faults import CallFault, classify, strike_out

ResultT = TypeVar("ResultT")

_PER_POOL = 32
"""Requests per connection pool: a pool looks at all of its connections for every request."""


class Door:
    """Calls to one server.

    Args:
        base_url: address up to ``/v1``.
        key: as :func:`sft.remote.address.key_in` found it; kept by the openai client alone.
        timeout: seconds that one call may take.
        connect_timeout: seconds to reach the server.
        unix: Unix time in seconds, for a Retry-After that is a date.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None,
        *,
        timeout: float,
        connect_timeout: float,
        unix: Callable[[], float] = time.time,
    ) -> None:
        self._timeout, self._unix = timeout, unix
        self._strike: Callable[[str], str] = lambda text: strike_out(text, key)
        self._make: Callable[[], openai.AsyncOpenAI] = lambda: client_of(base_url, key, timeout, connect_timeout)
        self._pools: list[openai.AsyncOpenAI] = []
        self._busy: list[int] = []

    async def complete(self, body: Mapping[str, Any], *, chat: bool = True) -> tuple[bytes, Mapping[str, str]]:
        """One attempt at a completion: the bytes of its body, and its headers.

        Raises:
            CallFault: it went wrong; its ``action`` says what to do.
        """

        async def call(client: openai.AsyncOpenAI) -> Any:
            create = client.chat.completions.with_raw_response if chat else client.completions.with_raw_response
            return await create.create(**body)

        raw = await self.guarded(call, billed=True)
        return raw.http_response.content, raw.http_response.headers

    async def guarded(self, call: Callable[[openai.AsyncOpenAI], Awaitable[ResultT]], *, billed: bool) -> ResultT:
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
            fault = classify(error.status_code, error.body, headers, now=self._unix())
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
        """Close all connections."""
        for client in self._pools:
            await client.close()
        self._pools.clear()
        self._busy.clear()


def client_of(base_url: str, key: str | None, timeout: float, connect_timeout: float) -> openai.AsyncOpenAI:
    """A client that tries once, and tells nobody but the address given of a key or an account: it follows no redirects."""
    # Plain HTTP needs no certificates read for each pool.
    plain: dict[str, Any] = {"verify": False} if base_url.startswith("http:") else {}
    made = openai.AsyncOpenAI(
        http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, **plain),
        api_key=key or "none",
        base_url=base_url,
        max_retries=0,
        timeout=openai.Timeout(timeout, connect=connect_timeout),
    )
    if "//api.openai.com/" not in f"{base_url}/":  # these name an account at OpenAI: nobody else's business
        made.organization = made.project = None
    return made
