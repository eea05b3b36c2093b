"""An OpenAI-compatible server as what answers: many questions at once, each turn by turn, asked again where that can help.

The key comes from an environment variable and goes to the one address given. What can go wrong with a call, and what is done about it:
:mod:`sft.remote.faults`. A rate limit holds all questions back; a fault that concerns all of them (a wrong key, no such model, credit
used up) stops the run once the calls under way have ended.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sft.errors import InputError, RunError, VicugnaError
from sft.remote.address import address_fault, is_variable, key_in
from sft.remote.faults import CallFault
from sft.run.answer import Asked, Failed, Said, Talk

ATTEMPTS = 8
"""Most times that one turn is asked."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second attempt, doubled each time, and their bound; a Retry-After is obeyed up to ten times the bound."""
FUTILE = 20
"""Questions that fail one after the other, with no answer between them, before the run stops."""
CONNECT_TIMEOUT = 10.0
_NOT_ASKED = "not_asked"


class EndpointAnswerer:
    """A server.

    Args:
        base_url: its address up to ``/v1``.
        model: name of the model there.
        key_variable: name of the environment variable that holds the key; None for a server that wants none.
        concurrency: most requests under way at once.
        timeout: seconds that one attempt may take.
        sleep: waits; a test moves the clock instead.
        clock: seconds since some moment.

    Raises:
        InputError: an address or a variable that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_variable: str | None = None,
        concurrency: int = 16,
        timeout: float = 600.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if (fault := address_fault(base_url)) is not None:
            raise InputError(f"--base-url {fault.replace('key_variable', '--key-variable')}")
        if key_variable is not None and not is_variable(key_variable):
            raise InputError("--key-variable must be the name of an environment variable, never the key itself")
        self.base_url, self.model, self.key_variable = base_url, model, key_variable
        without = "leave --key-variable out for a server that wants none"
        self._key = None if key_variable is None else key_in(key_variable, base_url, without)
        self._concurrency, self._timeout, self._sleep, self._clock = concurrency, timeout, sleep, clock
        self._renamed, self._seeds = False, True
        self._until, self._futile, self._answers = 0.0, 0, 0
        self._stopped: VicugnaError | None = None

    def answer_each(self, talks: Sequence[Talk], done: Callable[[Talk, list[Said]], None]) -> list[Failed]:
        """Answer each question; see :class:`sft.run.answer.Concurrent`.

        Raises:
            InputError: the server refuses key, address or model. All that was answered before is kept.
            RunError: nothing is answered any more, or the credit is used up; likewise.
        """
        return asyncio.run(self._all(talks, done))

    async def _all(self, talks: Sequence[Talk], done: Callable[[Talk, list[Said]], None]) -> list[Failed]:
        from sft.remote.door import Door

        door = Door(self.base_url, self._key, timeout=self._timeout, connect_timeout=CONNECT_TIMEOUT)
        queue, failed = iter(talks), list[Failed]()

        async def work() -> None:
            for talk in queue:
                if self._stopped is not None:
                    return
                outcome = await self._talk(door, talk)
                if isinstance(outcome, list):
                    self._futile = 0
                    done(talk, outcome)
                elif outcome.code != _NOT_ASKED:
                    failed.append(outcome)
                    self._futile += 1
                    if self._futile >= FUTILE:
                        self._stop(
                            RunError(f"{FUTILE} questions in a row failed, the last one: {outcome.code}: {outcome.detail}")
                        )

        try:
            async with asyncio.TaskGroup() as group:  # a bug or Ctrl-C in one ends all
                for _ in range(min(self._concurrency, len(talks))):
                    group.create_task(work())
        except* VicugnaError as errors:
            raise errors.exceptions[0] from None
        finally:
            await door.close()
        if self._stopped is not None:
            raise self._stopped
        return failed

    async def _talk(self, door: Any, talk: Talk) -> list[Said] | Failed:
        said = list(talk.kept)
        while len(said) < len(talk.question.turns):
            try:
                said.append(await self._turn(door, talk.asked(said)))
            except CallFault as fault:
                return Failed(talk.question, fault.code, fault.detail)
            if len(said) < len(talk.question.turns):
                talk.keep(said[-1])
        return said

    async def _turn(self, door: Any, asked: Asked) -> Said:
        """One answer, however many attempts it takes; a :class:`CallFault` leaves only where no further one can help."""
        most, attempt, quiet = asked.max_tokens, 1, self._answers
        while True:
            while (wait := self._until - self._clock()) > 0 and self._stopped is None:
                await self._sleep(wait)
            if self._stopped is not None:
                raise CallFault("give_up", _NOT_ASKED)
            renamed, seeded = self._renamed, self._seeds
            try:
                said = await self._ask(door, asked, most, renamed=renamed, seeded=seeded)
                self._answers += 1
                return said
            except CallFault as found:
                fault = found
            if fault.action == "stop":
                self._stop(self._refusal(fault))
                raise fault
            if fault.action == "rename" and not renamed:
                self._renamed = True
            elif fault.action == "give_up" and seeded and asked.temperature > 0 and "seed" in fault.detail:
                self._seeds = False
            elif fault.action == "shorten" and fault.fits is not None and 0 < fault.fits < most:
                most = fault.fits
            elif fault.action in ("wait", "retry"):
                if attempt >= ATTEMPTS:
                    raise CallFault("give_up", fault.code, f"{ATTEMPTS} attempts, the last one: {fault.detail}")
                await self._back_off(fault, attempt)
                # A rate limit costs an attempt only where nothing was answered meanwhile.
                attempt, quiet = attempt + (fault.action == "retry" or self._answers == quiet), self._answers
            else:
                raise fault

    async def _ask(self, door: Any, asked: Asked, most: int, *, renamed: bool, seeded: bool) -> Said:
        from sft.remote.replies import json_of, text_of

        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in asked.conversation.turns],
            "temperature": asked.temperature,
            "top_p": 1.0,  # servers differ in what they do without it
            "max_completion_tokens" if renamed else "max_tokens": most,
        }
        if seeded and asked.temperature > 0:
            body["seed"] = asked.seed
        content, _ = await door.complete(body)
        return Said(*text_of(json_of(content), chat=True))

    async def _back_off(self, fault: CallFault, attempt: int) -> None:
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
        if fault.retry_after is not None:
            wait += min(fault.retry_after, 10 * LONGEST_WAIT)
        if fault.action == "wait":
            self._until = max(self._until, self._clock() + wait)
        else:
            await self._sleep(wait)

    def _stop(self, error: VicugnaError) -> None:
        self._stopped = self._stopped or error

    def _refusal(self, fault: CallFault) -> VicugnaError:
        said = f"{self.base_url} refuses: {fault}"
        if fault.code in ("unauthorized", "forbidden"):
            cure = (
                f"the key in {self.key_variable} is not taken"
                if self.key_variable
                else "name the variable of its key: --key-variable"
            )
            return InputError(f"{said}; {cure}")
        if fault.code in ("not_found", "not_allowed", "redirected"):
            return InputError(
                f"{said}; --base-url ends in /v1 as a rule, and MODEL ({self.model}) is the model's name at the server"
            )
        return RunError(f"{said}; what was answered is kept, and the same command goes on")
