"""Which fault calls for what: the table of ``faults.py``, line by line, and headers as endpoints write them."""

from __future__ import annotations

from typing import Any

import pytest

from selfinstruct.teacher.faults import classify, retry_after, strike_out
from selfinstruct.teacher.rate import seconds

CONTEXT = (
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens "
    "(2000 in the messages, 3000 in the completion)."
)
RENAMED = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."


@pytest.mark.parametrize(
    ("status", "error", "action", "code"),
    [
        (429, {"message": "slow down", "code": "rate_limit_exceeded"}, "wait", "rate_limit"),
        (429, {"message": "no money", "code": "insufficient_quota"}, "stop", "insufficient_quota"),
        (429, {"message": "no money", "type": "insufficient_quota"}, "stop", "insufficient_quota"),
        (402, {"message": "no credit"}, "stop", "insufficient_quota"),
        (401, {"message": "bad key"}, "stop", "unauthorized"),
        (403, {"message": "no"}, "stop", "forbidden"),
        (404, {"message": "The model `x` does not exist", "code": "model_not_found"}, "stop", "not_found"),
        (405, {}, "stop", "not_allowed"),
        (307, {}, "stop", "redirected"),
        (408, {}, "retry", "http_408"),
        (409, {}, "retry", "http_409"),
        (500, {"message": "oops"}, "retry", "http_500"),
        (503, {"message": "overloaded"}, "retry", "http_503"),
        (400, {"message": CONTEXT, "code": "context_length_exceeded"}, "shorten", "context_too_long"),
        (
            400,
            {"message": "the request exceeds the available context size", "type": "exceed_context_size_error"},
            "shorten",
            "context_too_long",
        ),
        (400, {"message": RENAMED, "code": "unsupported_parameter", "param": "max_tokens"}, "rename", "max_tokens_renamed"),
        (400, {"message": "not supported", "param": "response_format"}, "plain", "schema_refused"),
        (422, {"message": "json_schema is no known field"}, "plain", "schema_refused"),
        (400, {"message": "filtered", "code": "content_filter"}, "give_up", "content_filter"),
        (400, {"message": "filtered", "code": "content_policy_violation"}, "give_up", "content_filter"),
        (400, {"message": "temperature is 9"}, "give_up", "bad_request"),
        (422, {"message": "no"}, "give_up", "bad_request"),
        (413, {"message": "body too large"}, "give_up", "too_large"),
    ],
)
def test_every_answer_has_its_action(status: int, error: dict[str, Any], action: str, code: str) -> None:
    for body in (error, {"error": error}):  # the client unwraps the error object, a batch line does not
        fault = classify(status, body, {})
        assert (fault.action, fault.code) == (action, code)


@pytest.mark.parametrize("body", [None, "plain text", [], {"error": "text"}, {"error": None}, {"detail": "text"}, 7])
def test_odd_error_bodies_are_read_too(body: object) -> None:
    assert classify(500, body, {}).action == "retry"
    assert classify(400, body, {}).action == "give_up"


def test_what_fits_is_read_from_the_endpoints_own_account() -> None:
    assert classify(400, {"message": CONTEXT, "code": "context_length_exceeded"}, {}).fits == 2096
    fields = {"message": "context size", "type": "exceed_context_size_error", "n_ctx": 512, "n_prompt_tokens": 500}
    assert classify(400, fields, {}).fits == 12
    assert classify(400, {"message": "context length exceeded"}, {}).fits is None


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 60.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], wait: float | None) -> None:
    assert retry_after(headers, now=40.0) == wait


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("120ms", 0.12),
        ("1h2m3.5s", 3723.5),
        ("1.5", 1.5),
        ("2d", 172800.0),
        ("", 0),
        ("x", None),
        ("1x", None),
    ],
)
def test_durations_of_rate_headers(text: str, value: float | None) -> None:
    assert seconds(text) == (value if text else 0)


def test_a_key_is_struck_out_of_an_endpoints_words() -> None:
    assert strike_out("wrong key sk-123 (sk-123)", "sk-123") == "wrong key [key] ([key])"
    assert len(strike_out("x" * 999, None)) == 300
