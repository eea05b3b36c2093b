"""What a completion says. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sft.remote.faults import CallFault


def json_of(content: bytes | str) -> Any:
    """The JSON of an HTTP 200 body.

    Raises:
        CallFault: to be retried: it is none.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise CallFault("retry", "invalid_json", f"{len(content)} bytes that are no JSON", billed=True) from None


def text_of(value: object, *, chat: bool) -> tuple[str, str]:
    """Text and finish reason of the first choice; an empty reason where none is given.

    Raises:
        CallFault: to be retried: no first choice with a text.
    """
    try:
        assert isinstance(value, Mapping)
        choice = value["choices"][0]
        if chat:
            message = choice["message"]
            text = message.get("content")
            refusal = message.get("refusal")
        else:
            text, refusal = choice["text"], None
        reason = choice.get("finish_reason") or ""
        if text is None and isinstance(refusal, str):
            text, reason = refusal, "refusal"
        if text is None and reason in ("length", "content_filter"):
            text = ""  # all of the limit went into hidden reasoning, or all of the answer was withheld
        if not isinstance(text, str) or not isinstance(reason, str):
            raise TypeError("no text")
    except (KeyError, IndexError, TypeError, AttributeError, AssertionError):
        raise CallFault("retry", "malformed", "JSON that is no completion", billed=True) from None
    return text, reason
