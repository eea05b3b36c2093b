"""The replay teacher: answers from recorded ledgers, without a key, a network or a price."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfinstruct.records import Completion, Request
from selfinstruct.teacher.faults import RequestFailed
from selfinstruct.teacher.ledger import Ledger
from sft.errors import InputError, TeacherError


class ReplayTeacher:
    """Answers each request with what a ledger holds for it, unchanged, its cost at the time included.

    Args:
        paths: ledgers, or run directories that hold a ``ledger.jsonl``; where two know a request, the first one answers.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        if not paths:
            raise InputError("a replay needs at least one ledger")
        self._ledgers: list[Ledger] = []
        self.hits = 0
        try:
            for path in map(Path, paths):
                self._ledgers.append(Ledger.open(path / "ledger.jsonl" if path.is_dir() else path, read_only=True))
        except BaseException:
            self.close()
            raise

    async def complete(self, request: Request) -> Completion:
        """Look the request up.

        Raises:
            RequestFailed: it was given up when it was recorded.
            TeacherError: no ledger holds it.
        """
        for ledger in self._ledgers:
            entry = ledger.entry(request.id)
            if entry is None:
                continue
            self.hits += 1
            if entry.failure is not None:
                raise RequestFailed(entry.failure)
            assert entry.completion is not None
            return entry.completion
        names = ", ".join(str(ledger.path) for ledger in self._ledgers)
        raise TeacherError(
            f"the replay does not hold request {request.id} (round {request.round}, {request.purpose}, number {request.index}): {names} "
            f"has {sum(map(len, self._ledgers)):,} other replies. A request is known by model, messages, sampling and schema: "
            f"seeds, prompts, strategy, seed number or an earlier filter changed since it was recorded"
        )

    def close(self) -> None:
        for ledger in self._ledgers:
            ledger.close()

    async def aclose(self) -> None:
        self.close()
