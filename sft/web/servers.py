"""The models of some OpenAI-compatible servers, and their answers as they are written; the page's one door to the ``openai`` package.

::

    GET  URL/v1/models               which models there are
    POST URL/v1/chat/completions     one answer, streamed

Errors of the openai package hold the request and with it the key: none leaves this module, what leaves is a :class:`Fault`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import openai

from sft.errors import InputError
from sft.remote.door import client_of

log = logging.getLogger(__name__)

FaultKind = Literal["unreachable", "key", "too_long", "refused", "busy", "failed", "broke_off", "no_such_model"]
_CONNECT, _SILENCE = 10.0, 600.0
"""Seconds to reach a server, and seconds that it may be silent: a long prompt on a CPU takes minutes before its first token."""
_OVERFLOW = ("context length", "context_length", "context window", "maximum context", "too long", "max_model_len")


class Fault(Exception):
    """A server did not do what it was asked to.

    Attributes:
        kind: what went wrong, the key of the words on the page.
        server: its address.
        detail: the server's own words, the key struck out; may be empty, and may name the model.
    """

    def __init__(self, kind: FaultKind, server: str, detail: str = "") -> None:
        self.kind, self.server, self.detail = kind, server, detail
        super().__init__(f"{server}: {kind}: {detail}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: text that was added, and at the end why it ended (``stop``, ``length``, ...)."""

    text: str
    finish: str | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn: 0 is greedy; the longest answer in tokens."""

    temperature: float
    max_tokens: int


def base_url(address: str) -> str:
    """The address of a server's API, with ``/v1`` at its end whether it was given or not.

    Raises:
        InputError: no http address, or one with a user, a query or a fragment.
    """
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise InputError(f"--server: {address!r} is no address of a server; write one such as http://127.0.0.1:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(f"--server: {parts.hostname}: give the address alone; a key goes into VICUGNA_API_KEY")
    bare = address.rstrip("/")
    return bare if bare.endswith("/v1") else f"{bare}/v1"


class Servers:
    """Some servers and the models that they have.

    Args:
        addresses: of the servers, see :func:`base_url`.
        key: sent to every one of them; None sends a word that servers without keys pass over.

    Raises:
        InputError: an address that cannot be used, or one that is there twice.
    """

    def __init__(self, addresses: Sequence[str], key: str | None = None) -> None:
        urls = [base_url(address) for address in addresses]
        if twice := [url for url, count in Counter(urls).items() if count > 1]:
            raise InputError(f"--server: {twice[0]} is given twice; give each server once")
        self._key = key
        self._clients = {url: client_of(url, key, _SILENCE, _CONNECT) for url in urls}
        self._found: dict[str, list[str]] = {url: [] for url in urls}
        self._models: dict[str, tuple[str, str]] = {}

    @property
    def names(self) -> list[str]:
        """The models by the names of the page: their ids, with the server behind where two servers have the same."""
        return list(self._models)

    async def refresh(self) -> list[Fault]:
        """Ask every server for its models. One that cannot be asked keeps those it had; why, is returned."""
        faults = []
        for url, client in self._clients.items():
            try:
                page = await client.models.list()
                self._found[url] = [model.id for model in page.data]
            except Exception as error:  # whatever a foreign server may answer, the page goes on
                faults.append(self._fault(error, url))
        counts = Counter(model for models in self._found.values() for model in models)
        self._models = {
            model if counts[model] == 1 else f"{model} @ {urlsplit(url).netloc}": (url, model)
            for url, models in self._found.items()
            for model in models
        }
        return faults

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.close()

    async def answer(
        self, name: str, messages: Sequence[Mapping[str, str]], sampling: Sampling
    ) -> AsyncIterator[Piece]:  # an async generator: closing it closes the connection, and the server stops
        """Stream one answer.

        Args:
            name: one of :attr:`names`.
            messages: ``{"role", "content"}``, the last one the user's.
            sampling: how it is drawn.

        Raises:
            Fault: the server refused, failed, or broke off before it said why the answer ended.
        """
        if name not in self._models:
            raise Fault("no_such_model", "", name)
        url, model = self._models[name]
        finish, fault = None, None
        told: Any = list(messages)  # plain dicts are what the client's typed ones are
        try:
            stream = await self._clients[url].chat.completions.create(
                model=model,
                messages=told,
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                stream=True,
            )
            async with stream:
                async for chunk in stream:
                    if chunk.choices:
                        finish = chunk.choices[0].finish_reason or finish
                        yield Piece(chunk.choices[0].delta.content or "", chunk.choices[0].finish_reason)
        except Exception as error:  # transport errors under a stream are not the openai package's own
            fault = self._fault(error, url)
        if fault is None and finish is None:
            fault = Fault("broke_off", url)
        if fault is not None:
            raise fault

    def _fault(self, error: Exception, url: str) -> Fault:
        kind, detail = _classified(error)
        if self._key:
            detail = detail.replace(self._key, "[key]")
        log.warning("%s: %s%s", url, kind, f": {detail}" if detail else "")
        return Fault(kind, url, detail)


def _classified(error: Exception) -> tuple[FaultKind, str]:
    if isinstance(error, openai.APIStatusError):
        said, status = _said(error), error.status_code
        if status in (401, 403):
            return "key", said
        if status in (400, 413, 422):
            told = f"{error.code or ''} {said}".lower()  # OpenAI's code where there is one; other servers have only words
            return ("too_long" if any(word in told for word in _OVERFLOW) else "refused"), said
        if status in (429, 503):
            return "busy", said
        return "failed", f"{status}: {said}"
    if isinstance(error, openai.APITimeoutError):
        return "unreachable", f"no answer within {_CONNECT:.0f} s, or silent for {_SILENCE:.0f} s"
    if isinstance(error, openai.APIConnectionError):
        return "unreachable", str(error.__cause__ or "")
    if isinstance(error, openai.APIError):  # an error event within a stream
        return "failed", str(error.message)
    return "broke_off", f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _said(error: openai.APIStatusError) -> str:
    """The message in the body of an error, in the shapes that servers write."""
    body = error.body
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        for found in (inner, *(inner.get(key) for key in ("message", "detail") if isinstance(inner, Mapping))):
            if isinstance(found, str) and found:
                return found
    return str(error.message)
