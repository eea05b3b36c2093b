"""What goes over the wire and what comes back, as plain JSON. Pure: shared by single calls and the Batch API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from selfinstruct.records import Request, Usage
from selfinstruct.teacher.budget import estimate, most_prompt_tokens
from selfinstruct.teacher.endpoints import Asking, Reply
from sft.remote.replies import json_of, text_of

PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
_MOST_BYTES_PER_TOKEN = 64


def body_of(request: Request, asking: Asking) -> dict[str, Any]:
    """The JSON body of a request. Temperature and top_p are always stated: servers differ in their defaults."""
    sampling = request.sampling
    body: dict[str, Any] = {"model": asking.model, "temperature": sampling.temperature, "top_p": sampling.top_p}
    if request.kind == "chat":
        body["messages"] = [{"role": message.role, "content": message.content} for message in request.messages]
    else:
        (only,) = request.messages
        body["prompt"] = only.content
    body["max_completion_tokens" if asking.renamed and request.kind == "chat" else "max_tokens"] = asking.max_tokens
    if sampling.presence_penalty:
        body["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty:
        body["frequency_penalty"] = sampling.frequency_penalty
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if asking.schema and request.kind == "chat" and request.schema is not None:
        schema = {"name": "reply", "strict": True, "schema": json.loads(request.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def reply_of(content: bytes | str, request: Request, headers: Mapping[str, str]) -> Reply:
    """The reply that an HTTP 200 body holds.

    Raises:
        CallFault: to be retried: the body is no JSON, or JSON without a first choice with a text.
    """
    return reply_of_json(json_of(content), request, headers)


def reply_of_json(value: object, request: Request, headers: Mapping[str, str]) -> Reply:
    """As :func:`reply_of`, of the parsed body."""
    text, reason = text_of(value, chat=request.kind == "chat")
    assert isinstance(value, Mapping)
    usage = value.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    model = value.get("model")
    return Reply(
        text=text,
        finish_reason=reason,
        prompt_tokens=_whole(usage.get("prompt_tokens")),
        completion_tokens=_whole(usage.get("completion_tokens")),
        model=model if isinstance(model, str) else "",
        headers=headers,
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def usage_of(reply: Reply, request: Request, max_tokens: int) -> tuple[Usage, bool]:
    """What the reply took, and whether that is our estimate.

    A missing count, or one too small for the text, is estimated from the text. One beyond what the request allows is taken as the
    most that it allows, which is also the most that was reserved: so the budget holds whatever an endpoint says.
    """
    prompt_text = "".join(message.content for message in request.messages)
    most = most_prompt_tokens(request)
    prompt, completion = reply.prompt_tokens, reply.completion_tokens
    sound = True
    if prompt is None or prompt == 0 or prompt * _MOST_BYTES_PER_TOKEN < len(prompt_text):
        prompt, sound = estimate(prompt_text), False
    if completion is None or completion * _MOST_BYTES_PER_TOKEN < len(reply.text):
        completion, sound = estimate(reply.text), False
    sound = sound and prompt <= most and completion <= max_tokens
    return Usage(min(prompt, most), min(completion, max_tokens)), not sound
