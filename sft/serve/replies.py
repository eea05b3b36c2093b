"""Answers in OpenAI's shapes, whole and in pieces."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """The answer to one request.

    Attributes:
        model: its name.
        chat: of ``/v1/chat/completions``, else of ``/v1/completions``.
        id, created: of the answer; Unix time in seconds.
    """

    model: str
    chat: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        made = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        return {"id": made, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def whole(self, answers: Sequence[tuple[str, str]], asked: int, made: int) -> dict[str, Any]:
        """All answers (text and finish reason) at once; ``asked`` and ``made`` count tokens."""
        choices = [
            {"index": i, "finish_reason": finish, "logprobs": None}
            | ({"message": {"role": "assistant", "content": text}} if self.chat else {"text": text})
            for i, (text, finish) in enumerate(answers)
        ]
        kind = "chat.completion" if self.chat else "text_completion"
        return self._frame(kind, choices) | {"usage": _usage(asked, made)}

    def begin(self, choice: int, *, usage: bool) -> str:
        """The first event of a choice of a chat."""
        return self._chunk(choice, {"role": "assistant", "content": ""}, None, usage)

    def piece(self, choice: int, text: str, *, usage: bool) -> str:
        """The next piece of a choice."""
        return self._chunk(choice, {"content": text}, None, usage)

    def done(self, choice: int, finish: str, *, usage: bool) -> str:
        """The last event of a choice."""
        return self._chunk(choice, {}, finish, usage)

    def usage(self, asked: int, made: int) -> str:
        """The event behind all choices that counts tokens."""
        return self.event(self._frame(self._kind, []) | {"usage": _usage(asked, made)})

    def event(self, body: dict[str, Any]) -> str:
        """One server-sent event."""
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, choice: int, delta: dict[str, str], finish: str | None, usage: bool) -> str:
        said = {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        body = self._frame(self._kind, [{"index": choice, "finish_reason": finish, "logprobs": None} | said])
        return self.event(body | ({"usage": None} if usage else {}))


def _usage(asked: int, made: int) -> dict[str, int]:
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}
