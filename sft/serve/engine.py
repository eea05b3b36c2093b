"""The model in one thread of its own: requests wait in the order in which they came, and one is answered at a time.

Prompts are the ids of the training: :meth:`Engine.chat_ids` asks the encoder that ``sft chat`` and ``sft answer`` ask.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from sft.data.conversation import Conversation, Turn
from sft.data.template import RenderRefused
from sft.errors import InputError
from sft.run.chat import load_to_talk
from sft.run.generate import Continued, Sampling, Stops, continued
from sft.run.session import refuse_system

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sft.data.tokenize import RowEncoder

log = logging.getLogger(__name__)

UNBOUNDED = 2048
"""Longest answer that is given unasked by a model without a limit of its own (ALiBi)."""
_LAST_SEED = 2**63


class PromptTooLong(InputError):
    """A prompt and an answer that the model's positions do not hold."""


class QueueFull(InputError):
    """As many requests wait as may."""


class Closed(InputError):
    """The server is going down."""


@dataclass(slots=True, eq=False)
class Job:
    """One request.

    Attributes:
        prompts: ids of each prompt.
        rooms: most tokens of an answer to each.
        sampling: how to pick tokens.
        stops: what ends an answer.
        n: answers to each prompt; choice ``p * n + k`` is answer ``k`` to prompt ``p``.
        seed: of the first choice; the next ones count on. None draws one.
        raw: the prompts are texts to be continued, not of the template.
        tell: called in the model's thread with ``("text", choice, piece)``, ``("done", choice, Continued)``, and at last with
            ``("end", 0, None)`` or ``("failed", 0, exception)``. Pieces come only where ``stream`` is set.
    """

    prompts: Sequence[Sequence[int]]
    rooms: Sequence[int]
    sampling: Sampling
    stops: Stops
    n: int
    seed: int | None
    raw: bool
    stream: bool
    tell: Callable[[tuple[str, int, Any]], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Engine:
    """A loaded model and its queue.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        encoder: its template.
        about: its serving record.
        most_waiting: requests that may wait beside the one that is answered.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoder: RowEncoder,
        about: dict[str, Any],
        most_waiting: int = 64,
    ) -> None:
        self.model, self.tokenizer, self.encoder = model, tokenizer, encoder
        self.multi_turn = bool(about.get("multi_turn", True))
        self.known: int | None = getattr(model.config, "max_position_embeddings", None)
        self.most_waiting = most_waiting
        self.tokens_made = 0
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        self._writing = threading.Lock()  # an encoder learns words while it works, and requests come side by side
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, name: str, most_waiting: int = 64) -> Engine:
        """A run directory, an exported folder or a Hub name, as of ``sft chat``."""
        return cls(*load_to_talk(name), most_waiting)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> bool:
        return self._running is not None

    def chat_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of the prompt for the answer to some turns: those that training put before that answer.

        Raises:
            InputError: the template cannot write them, or would pass over some.
        """
        if not turns or turns[-1].role not in ("user", "input", "tool"):
            raise InputError("the last message must be of the user (or a tool): the model answers it")
        if not self.multi_turn and sum(turn.role == "user" for turn in turns) > 1:
            raise InputError("the template of this model holds one exchange; send one user message")
        with self._writing:
            return self._ids(turns)

    def _ids(self, turns: Sequence[Turn]) -> list[int]:
        try:
            ids = self._prompt(turns)
            for i in [i for i, turn in enumerate(turns) if turn.role == "tool"][:1]:
                other = replace(turns[i], content=f"{turns[i].content} b")
                if self._prompt([*turns[:i], other, *turns[i + 1 :]]) == ids:
                    raise InputError("the template of this model has no place for tool messages and would pass them over")
        except RenderRefused as refusal:
            raise InputError(refusal.detail) from None
        if turns[0].role == "system":
            refuse_system(self.encoder, turns[0].content)
        return ids

    def _prompt(self, turns: Sequence[Turn]) -> list[int]:
        return self.encoder.prompt_ids(Conversation("request", tuple(turns), "request"))

    def text_ids(self, text: str) -> list[int]:
        """Ids of a raw text, with what the tokenizer puts before one."""
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=True).ids)

    def room(self, ids: Sequence[int], max_tokens: int | None) -> int:
        """Most tokens of an answer.

        Args:
            ids: of the prompt.
            max_tokens: as asked for; None takes what the model has left.

        Raises:
            PromptTooLong: the model has not so many positions left.
        """
        if not ids:
            raise InputError("the prompt has no tokens")
        if self.known is None:
            return max_tokens or UNBOUNDED
        if len(ids) + (max_tokens or 1) > self.known:
            asked = f"max_tokens is {max_tokens}" if max_tokens else "the answer needs one at least"
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens, {asked}, and the model's limit is {self.known} tokens in all"
            )
        return max_tokens or self.known - len(ids)

    def stops(self, extra: Sequence[str], raw: bool) -> Stops:
        """The template's stops and those of a request; a raw text has only the tokens of the first."""
        ids, strings = self.encoder.stops()
        return Stops(ids, () if raw else strings, extra)

    def submit(self, job: Job) -> None:
        """Put a request into the queue.

        Raises:
            QueueFull: too many wait.
            Closed: the server is going down.
        """
        with self._changed:
            if self._closed:
                raise Closed("the server is going down")
            if len(self._waiting) >= self.most_waiting:
                raise QueueFull(f"{len(self._waiting)} requests wait already; try again later")
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Take a request back: it leaves the queue, or stops after the token at hand."""
        job.cancelled.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> None:
        """Stop what runs and end the thread."""
        with self._changed:
            self._closed = True
            dropped = [*self._waiting, *([self._running] if self._running else [])]
            self._waiting.clear()
            self._changed.notify()
        for job in dropped:
            job.cancelled.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._running = self._waiting.popleft()
            try:
                self._answer(job)
            except Exception as error:  # whatever it is, the next request may still be answered
                log.exception("a request failed")
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                job.tell(("failed", 0, error))
            else:
                job.tell(("end", 0, None))

    def _answer(self, job: Job) -> None:
        seed = secrets.randbelow(_LAST_SEED) if job.seed is None else job.seed
        for p, (ids, room) in enumerate(zip(job.prompts, job.rooms, strict=True)):
            done: Continued | None = None
            for choice in range(p * job.n, (p + 1) * job.n):
                if job.cancelled.is_set():
                    return
                if done is None or job.sampling.temperature > 0:  # greedy answers are all the same
                    torch.manual_seed((seed + choice) % _LAST_SEED)
                    done = self._continue(job, choice, ids, room)
                elif job.stream:
                    job.tell(("text", choice, done.said.text))
                self.tokens_made += done.tokens
                job.tell(("done", choice, done))

    def _continue(self, job: Job, choice: int, ids: Sequence[int], room: int) -> Continued:
        def tell(text: str) -> None:
            job.tell(("text", choice, text))

        return continued(
            self.model,
            self.tokenizer,
            ids,
            room,
            replace(job.sampling, max_tokens=room),
            job.stops,
            on_text=tell if job.stream else None,
            stopped=job.cancelled.is_set,
            raw=job.raw,
        )
