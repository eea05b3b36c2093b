"""What can go wrong with one call, and what to do about it. Pure: no network, no third-party library.

=============  =================================================================  =======================================
action         when                                                               then
=============  =================================================================  =======================================
``wait``       429 (rate limit)                                                   ask again after Retry-After or back-off
``retry``      5xx, 408, 409, 425, time-out, lost connection, body cut or no      ask again after back-off, within the
               JSON, JSON that is no completion                                   attempts and the retry budget
``shorten``    prompt and ``max_tokens`` exceed the context                       ask again with a smaller ``max_tokens``
``rename``     ``max_tokens`` unknown, ``max_completion_tokens`` wanted           ask again under the newer name
``plain``      the JSON schema (``response_format``) is refused                   ask again without it, from now on
``give_up``    content filter, any other 400, 413 and 422                         this request has failed
``stop``       401, 402, 403, 404, 405, 3xx, quota or credit used up              the run stops at once
=============  =================================================================  =======================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Literal

Action = Literal["wait", "retry", "shorten", "rename", "plain", "give_up", "stop"]

_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "credit_balance_too_low")
_RETRY_STATUS = (408, 409, 425)
_STOP_STATUS = {401: "unauthorized", 402: "payment_required", 403: "forbidden", 404: "not_found", 405: "not_allowed"}
_FILTER = ("content_filter", "content_policy_violation", "responsibleaipolicyviolation", "invalid_prompt")
_CONTEXT = ("context_length_exceeded", "exceed_context_size_error")
_CONTEXT_TEXT = re.compile(
    r"context (length|size|window)|maximum (model|sequence|input) length|too many tokens|max_model_len", re.I
)
_SCHEMA_TEXT = re.compile(r"response_format|json_schema|guided|grammar|structured output", re.I)
_NUMBER = re.compile(r"\d+")


class CallFault(Exception):
    """One attempt went wrong. Stays inside the engine that asked; never holds a request, a header or a key.

    Attributes:
        action: what to do (the table above).
        code: reason code for the counts, such as ``http_500`` or ``timeout``.
        detail: the endpoint's message, shortened, with any key struck out.
        retry_after: seconds that the endpoint asked for; None if it did not.
        limits: rate-limit headers of the answer.
        billed: whether the endpoint may have charged for the attempt although no reply came.
        fits: for ``shorten``, the ``max_tokens`` that would fit by the endpoint's own account; None if it did not say.
    """

    def __init__(
        self,
        action: Action,
        code: str,
        detail: str = "",
        *,
        retry_after: float | None = None,
        limits: Mapping[str, str] | None = None,
        billed: bool = False,
        fits: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.action, self.code, self.detail = action, code, detail
        self.retry_after, self.limits, self.billed, self.fits = retry_after, limits or {}, billed, fits


def classify(status: int, body: object, headers: Mapping[str, str], *, now: float = 0.0) -> CallFault:
    """The fault that an HTTP error is.

    Args:
        status: HTTP status other than success.
        body: the ``error`` object of the answer, or any other JSON value or text.
        headers: names in lower case.
        now: Unix time in seconds, for a Retry-After that is a date.
    """
    fields = body if isinstance(body, Mapping) else {}
    inner = fields.get("error", fields)
    inner = inner if isinstance(inner, Mapping) else {"message": str(inner) if inner else str(body or "")}
    code, kind, param = (str(inner.get(key) or "").lower() for key in ("code", "type", "param"))
    message = str(inner.get("message") or inner.get("detail") or "")
    limits = {name: value for name, value in headers.items() if name.startswith("x-ratelimit-")}
    if any(mark in (code, kind) for mark in _QUOTA) or status == 402:
        return CallFault("stop", "insufficient_quota", message)
    if status < 400:
        return CallFault("stop", "redirected", f"HTTP {status}: the address leads elsewhere; write the final one into base_url")
    if status in _STOP_STATUS:
        return CallFault("stop", _STOP_STATUS[status], message)
    if status == 429:
        return CallFault("wait", "rate_limit", message, retry_after=retry_after(headers, now), limits=limits)
    if status >= 500 or status in _RETRY_STATUS:
        return CallFault("retry", f"http_{status}", message, retry_after=retry_after(headers, now), limits=limits)
    return _bad_request(status, code, kind, param, message, inner)


def _bad_request(status: int, code: str, kind: str, param: str, message: str, inner: Mapping[str, Any]) -> CallFault:
    if any(mark in (code, kind) for mark in _FILTER):
        return CallFault("give_up", "content_filter", message)
    if "max_completion_tokens" in message and "max_tokens" in message:
        return CallFault("rename", "max_tokens_renamed", message)
    if any(mark in (code, kind) for mark in _CONTEXT) or _CONTEXT_TEXT.search(message):
        return CallFault("shorten", "context_too_long", message, fits=_room(message, inner))
    if param.startswith(("response_format", "guided")) or _SCHEMA_TEXT.search(message):
        return CallFault("plain", "schema_refused", message)
    return CallFault("give_up", "too_large" if status == 413 else "bad_request", message)


def _room(message: str, inner: Mapping[str, Any]) -> int | None:
    """Tokens left for the reply: context less prompt, where the endpoint names both (fields, else numbers in the text)."""
    if isinstance(context := inner.get("n_ctx"), int) and isinstance(prompt := inner.get("n_prompt_tokens"), int):
        return max(0, context - prompt)
    numbers = [int(number) for number in _NUMBER.findall(message)]
    if (
        len(numbers) >= 4 and numbers[2] + numbers[3] == numbers[1]
    ):  # "context is C ... requested R (P in the ..., M in the ...)"
        return max(0, numbers[0] - numbers[2])
    return None


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait by ``retry-after-ms`` or ``retry-after`` (seconds or an HTTP date); None without a usable one."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) / unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - now)
    except (KeyError, ValueError, TypeError):
        return None


def strike_out(text: str, key: str | None, most: int = 300) -> str:
    """Text of an endpoint, with the key struck out and shortened to ``most`` characters."""
    if key:
        text = text.replace(key, "[key]")
    return text if len(text) <= most else text[: most - 1] + "…"
