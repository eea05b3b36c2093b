"""What a request may say, after OpenAI's API, and what is refused because it would be passed over."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sft.data.conversation import Turn

MOST_CHOICES, MOST_STOPS = 16, 16
GREEDY_BELOW = 1e-4
"""A temperature under this is greedy: logits divided by it would overflow."""

# Says nothing about the answer.
_IGNORED = {
    *("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    "parallel_tool_calls",  # of tools, which are refused
}
# Not built, but harmless at these values, which clients write out of habit. null is harmless everywhere.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}


class ApiError(Exception):
    """An answer in OpenAI's shape of an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status, self.headers = status, headers or {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        super().__init__(message)


class _Said(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class TextPart(BaseModel):
    """A part of a message that is text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: str
    text: str


class Message(_Said):
    """One message of a chat."""

    role: str
    content: str | list[TextPart]


class StreamOptions(_Said):
    """How to stream."""

    include_usage: bool = False


class Request(_Said):
    """What both kinds of request have."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def heat(self) -> float:
        """The temperature; 1 as OpenAI has it, 0 where it is as good as greedy."""
        asked = 1.0 if self.temperature is None else self.temperature
        return asked if asked >= GREEDY_BELOW else 0.0

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class ChatRequest(Request):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class TextRequest(Request):
    """``POST /v1/completions``."""

    prompt: str | Annotated[list[str], Field(min_length=1)]


RequestT = TypeVar("RequestT", bound=Request)


def read(kind: type[RequestT], body: bytes) -> RequestT:
    """A request from its body.

    Raises:
        ApiError: 400: no JSON, a value out of its range, or a parameter that would be passed over.
    """
    try:
        found = kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ApiError(400, f"{where}: {first['msg']}" if where else first["msg"], param=where or None) from None
    for name, value in (found.model_extra or {}).items():
        _refuse(name, value)
    for name, value in (found.stream_options.model_extra or {} if found.stream_options else {}).items():
        if value not in (None, False):
            raise ApiError(400, f"stream_options.{name} is not supported", param="stream_options", code="unsupported_parameter")
    if found.stream_options is not None and not found.stream:
        raise ApiError(400, "stream_options is for stream: true only", param="stream_options")
    if len(found.stops) > MOST_STOPS or any(not stop or len(stop) > 1000 for stop in found.stops):
        raise ApiError(400, f"stop: up to {MOST_STOPS} strings of 1 to 1000 characters", param="stop")
    return found


def _refuse(name: str, value: Any) -> None:
    if value is None or name in _IGNORED or any(value == harmless for harmless in _NEUTRAL.get(name, ())):
        return
    raise ApiError(
        400, f"{name} is not supported by this server, and without it the answer would be another; leave it out", param=name,
        code="unsupported_parameter",
    )  # fmt: skip


def max_tokens_of(request: Request) -> int | None:
    """The longest answer asked for.

    Raises:
        ApiError: 400: two that differ.
    """
    newer = getattr(request, "max_completion_tokens", None)
    if None not in (newer, request.max_tokens) and newer != request.max_tokens:
        raise ApiError(400, "max_tokens and max_completion_tokens differ; give one", param="max_tokens")
    return newer if newer is not None else request.max_tokens


def turns_of(messages: list[Message]) -> list[Turn]:
    """Messages as turns of a conversation.

    Raises:
        ApiError: 400: a role that we do not know, or what no template writes.
    """
    turns = []
    for i, message in enumerate(messages):
        if message.role not in ("system", "user", "assistant", "tool", "input"):
            hint = "; write system" if message.role == "developer" else ""
            raise ApiError(400, f"messages.{i}: there is no role {message.role!r}{hint}", param=f"messages.{i}.role")
        for name, value in (message.model_extra or {}).items():
            if value not in (None, []):
                raise ApiError(
                    400, f"messages.{i}: {name} is not written by any template; leave it out", param=f"messages.{i}.{name}",
                    code="unsupported_parameter",
                )  # fmt: skip
        content = message.content
        if not isinstance(content, str):
            if any(part.type != "text" for part in content):
                raise ApiError(400, f"messages.{i}: only parts of type text can be read", param=f"messages.{i}.content")
            content = "".join(part.text for part in content)
        turns.append(Turn(message.role, content))  # type: ignore[arg-type]  # one of ROLES, as just seen
    return turns
