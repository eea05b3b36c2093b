"""The routes: OpenAI's chat completions, completions and models, and a health check."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from sft.errors import InputError
from sft.run.generate import Continued, Sampling
from sft.serve import schemas
from sft.serve.engine import Closed, Engine, Job, PromptTooLong, QueueFull
from sft.serve.replies import Shape
from sft.serve.schemas import ApiError

DEFAULT_COMPLETION = 16
"""Longest text of ``/v1/completions`` where the request says nothing, as OpenAI has it."""
RETRY_AFTER = 1
"""Seconds."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may be.

    Attributes:
        body: bytes.
        messages: of a chat.
        prompts: of ``/v1/completions``.
    """

    body: int = 4 << 20
    messages: int = 1024
    prompts: int = 64


@dataclass(slots=True, eq=False)
class _Events:
    """What the model's thread tells, on its way to the event loop."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[tuple[str, int, Any]] = field(default_factory=asyncio.Queue)

    def tell(self, event: tuple[str, int, Any]) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.queue.put_nowait, event)


class Api:
    """The endpoints of one model.

    Args:
        engine: the model.
        name: what requests call it.
        limits: of requests.
    """

    def __init__(self, engine: Engine, name: str, limits: Limits) -> None:
        self.engine, self.name, self.limits = engine, name, limits
        self.since = int(time.time())

    async def health(self) -> JSONResponse:
        """Whether the model can answer."""
        alive = self.engine.alive
        body: dict[str, Any] = {"status": "ok" if alive else "down", "model": self.name}
        body |= {"running": int(self.engine.running), "waiting": self.engine.waiting}
        return JSONResponse(body, 200 if alive else 503)

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.since,
            "owned_by": "vicugna",
            "max_model_len": self.engine.known,
        }

    async def models(self) -> JSONResponse:
        """The one model."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, name: str) -> JSONResponse:
        """The same by its name."""
        self._known(name)
        return JSONResponse(self._card())

    def _known(self, name: str) -> None:
        if name != self.name:
            raise ApiError(
                404, f"the model {name!r} is not served here; {self.name!r} is", param="model", code="model_not_found"
            )

    async def chat(self, request: Request) -> Any:
        """``POST /v1/chat/completions``."""
        asked = schemas.read(schemas.ChatRequest, await self._body(request))
        self._known(asked.model)
        if len(asked.messages) > self.limits.messages:
            raise ApiError(400, f"{len(asked.messages)} messages; at most {self.limits.messages} are read", param="messages")
        turns = schemas.turns_of(asked.messages)
        most = schemas.max_tokens_of(asked)
        with _said_of("messages"):
            ids = await asyncio.to_thread(self.engine.chat_ids, turns)
        return await self._reply(request, asked, [ids], most, Shape(self.name, chat=True))

    async def completion(self, request: Request) -> Any:
        """``POST /v1/completions``."""
        asked = schemas.read(schemas.TextRequest, await self._body(request))
        self._known(asked.model)
        texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        if len(texts) > self.limits.prompts:
            raise ApiError(400, f"{len(texts)} prompts; at most {self.limits.prompts} are read", param="prompt")
        prompts = [await asyncio.to_thread(self.engine.text_ids, text) for text in texts]
        most = DEFAULT_COMPLETION if asked.max_tokens is None else asked.max_tokens
        return await self._reply(request, asked, prompts, most, Shape(self.name, chat=False))

    async def _body(self, request: Request) -> bytes:
        """The body, up to its limit.

        Raises:
            ApiError: 400 or 413.
        """
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ApiError(400, "Content-Type must be application/json")
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self.limits.body:
                raise ApiError(413, f"the body has more than {self.limits.body} bytes", code="request_too_large")
        return bytes(body)

    async def _reply(
        self, request: Request, asked: schemas.Request, prompts: list[list[int]], most: int | None, shape: Shape
    ) -> Any:
        with _said_of("messages" if shape.chat else "prompt"):
            rooms = [self.engine.room(ids, most) for ids in prompts]
        events = _Events(asyncio.get_running_loop())
        job = Job(
            prompts,
            rooms,
            Sampling(temperature=asked.heat, top_p=1.0 if asked.top_p is None else asked.top_p),
            self.engine.stops(asked.stops, raw=not shape.chat),
            asked.n or 1,
            asked.seed,
            raw=not shape.chat,
            stream=bool(asked.stream),
            tell=events.tell,
        )
        with _said_of(None):
            self.engine.submit(job)
        if asked.stream:
            counted = asked.stream_options is not None and asked.stream_options.include_usage
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            pieces = self._stream(job, events, shape, usage=counted)
            return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)
        return await self._whole(request, job, events, shape)

    async def _stream(self, job: Job, events: _Events, shape: Shape, *, usage: bool) -> AsyncIterator[str]:
        """Server-sent events; left early (the client is gone), it takes the request back."""
        made = 0
        try:
            for choice in range(len(job.prompts) * job.n):
                if shape.chat:
                    yield shape.begin(choice, usage=usage)
            while True:
                what, choice, value = await events.queue.get()
                if what == "text":
                    yield shape.piece(choice, value, usage=usage)
                elif what == "done":
                    made += value.tokens
                    yield shape.done(choice, _finish(value), usage=usage)
                elif what == "failed":
                    yield shape.event(_failure(value).body)
                    return
                else:
                    break
            if job.cancelled.is_set():
                yield shape.event(_failure(Closed("the server is going down")).body)
                return
            if usage:
                yield shape.usage(sum(map(len, job.prompts)), made)
            yield "data: [DONE]\n\n"
        finally:
            self.engine.cancel(job)

    async def _whole(self, request: Request, job: Job, events: _Events, shape: Shape) -> JSONResponse:
        gone = asyncio.create_task(_disconnected(request))
        done: dict[int, Continued] = {}
        try:
            while True:
                next_one = asyncio.create_task(events.queue.get())
                await asyncio.wait({gone, next_one}, return_when=asyncio.FIRST_COMPLETED)
                if not next_one.done():
                    next_one.cancel()
                    return JSONResponse({}, 499)  # nobody reads it
                what, choice, value = next_one.result()
                if what == "failed":
                    raise _failure(value)
                if what == "end":
                    break
                done[choice] = value
        finally:
            gone.cancel()
            self.engine.cancel(job)
        if len(done) < len(job.prompts) * job.n or any(one.said.finish == "stopped" for one in done.values()):
            raise _failure(Closed("the server is going down"))
        answers = [(done[i].said.text, _finish(done[i])) for i in sorted(done)]
        return JSONResponse(shape.whole(answers, sum(map(len, job.prompts)), sum(one.tokens for one in done.values())))


def _finish(made: Continued) -> str:
    return "length" if made.said.finish == "length" else "stop"


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _failure(error: Exception) -> ApiError:
    if isinstance(error, Closed):
        return ApiError(503, str(error), kind="server_error", code="server_closing")
    return ApiError(
        500, "the model failed on this request; the server's log says how", kind="server_error", code="model_failed"
    )


@contextmanager
def _said_of(param: str | None) -> Iterator[None]:
    """Turns refusals of the engine into answers; ``param`` is what of the request they are about."""
    try:
        yield
    except PromptTooLong as error:
        raise ApiError(400, str(error), param=param, code="context_length_exceeded") from None
    except QueueFull as error:
        wait = {"Retry-After": str(RETRY_AFTER)}
        raise ApiError(429, str(error), code="queue_full", kind="rate_limit_error", headers=wait) from None
    except Closed as error:
        raise _failure(error) from None
    except InputError as error:
        raise ApiError(400, str(error), param=param) from None


class Gate:
    """Lets in who has the key; without a key, who calls the server by a name of this machine.

    A page of another site that reaches a loopback address by a name of its own (DNS rebinding) names that site as its host.

    Args:
        app: what lies behind.
        key: of the server; None for none.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], key: str | None) -> None:
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (fault := self._fault(scope)) is not None:
            await JSONResponse(fault.body, fault.status, fault.headers)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _fault(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        if self.key is None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = re.sub(r":\d*$", "", host) if host.count(":") == 1 or host.startswith("[") else host
            return None if name in LOOPBACK else ApiError(403, "without a key this server answers to loopback names only")
        if scope["path"] == "/health":
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.key.encode()):
            return None
        return ApiError(
            401,
            "no or a wrong API key: Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def make_app(engine: Engine, name: str, *, key: str | None = None, limits: Limits | None = None) -> Any:
    """The ASGI application.

    Args:
        engine: the model; closed when the application ends.
        name: what requests call it.
        key: that requests must bring.
        limits: of requests.
    """

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    async def refused(request: Request, error: Any) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    async def unknown(request: Request, error: Any) -> JSONResponse:
        fault = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        return JSONResponse(fault.body, fault.status, error.headers)

    api = Api(engine, name, limits or Limits())
    app = FastAPI(title="Vicugna", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_api_route("/health", api.health, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models", api.models, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models/{name:path}", api.model, methods=["GET"], response_model=None)
    app.add_api_route("/v1/chat/completions", api.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", api.completion, methods=["POST"], response_model=None)
    app.add_exception_handler(ApiError, refused)
    for status in (404, 405):
        app.add_exception_handler(status, unknown)
    return Gate(app, key)
