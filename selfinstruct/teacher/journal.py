"""The journal: which calls were sent and have no reply in the ledger, so that they can be counted after a kill.

::

    {"sent": "9b2f…", "money": 5120000, "tokens": 4096}     before a call leaves: the most that it can cost
    {"free": "9b2f…"}                                        it was refused: nothing was charged
    {"lost": "9b2f…"}                                        no reply came, and it may have been charged

A call whose reply is in the ledger needs no second line. On opening, what is still open was in flight at a kill: it counts as
lost, at its most, and the file is written anew as one line of sums. Lines are not synced: they survive a kill, and after a power
failure at worst a few lost calls are not counted; replies are the ledger's, which is synced.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfinstruct.teacher.budget import Spent
from sft.errors import DataError, InputError, RunError


class Journal:
    """Open beside a ledger that is open for writing; the ledger's lock guards it too.

    Attributes:
        spent: the ``lost_*`` sums over all processes so far.
        in_flight_at_kill: calls that the last process had open when it ended, over all processes.
    """

    def __init__(self, path: Path, answered: Callable[[str], bool]) -> None:
        """Args: ``answered`` tells whether the ledger holds a reply to a request id.

        Raises:
            DataError: the file is damaged.
            InputError: it cannot be written.
        """
        self.path = path
        self.spent = Spent()
        self.in_flight_at_kill = 0
        self._load(answered)
        try:
            self._rewrite()
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{path}: the journal of calls cannot be written: {error.strerror}") from None

    def _load(self, answered: Callable[[str], bool]) -> None:
        pending: dict[str, list[tuple[int, int]]] = {}
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return
        *lines, _torn = text.split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                self._apply(json.loads(line), pending)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError):
                raise DataError(
                    f"{self.path}:{number}: not a line of the journal of calls; delete the file to go on: calls that were lost "
                    f"so far then no longer count towards the budget"
                ) from None
        for id_, calls in pending.items():
            # The last call of an answered request is the one that the ledger paid for.
            for money, tokens in calls[:-1] if answered(id_) else calls:
                self.in_flight_at_kill += 1
                self._lose(money, tokens)

    def _apply(self, value: dict[str, Any], pending: dict[str, list[tuple[int, int]]]) -> None:
        if "sent" in value:
            pending.setdefault(value["sent"], []).append((int(value["money"]), int(value["tokens"])))
        elif "free" in value:
            pending[value["free"]].pop()
        elif "lost" in value:
            self._lose(*pending[value["lost"]].pop())
        else:
            self._lose(int(value["money"]), int(value["tokens"]), int(value["requests"]))
            self.in_flight_at_kill += int(value["in_flight_at_kill"])

    def _lose(self, money: int, tokens: int, requests: int = 1) -> None:
        self.spent.lost_money += money
        self.spent.lost_tokens += tokens
        self.spent.lost_requests += requests

    def _rewrite(self) -> None:
        sums = {
            "money": self.spent.lost_money,
            "tokens": self.spent.lost_tokens,
            "requests": self.spent.lost_requests,
            "in_flight_at_kill": self.in_flight_at_kill,
        }
        new = self.path.with_name(self.path.name + ".new")
        with open(new, "wb") as file:
            file.write(json.dumps(sums).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)

    def sent(self, id_: str, money: int, tokens: int) -> None:
        """A call leaves; it can cost ``money`` (1e-12 of the currency) and ``tokens`` at most."""
        self._write({"sent": id_, "money": money, "tokens": tokens})

    def free(self, id_: str) -> None:
        """The call was refused without a charge."""
        self._write({"free": id_})

    def lost(self, id_: str) -> None:
        """No reply came, and the call may have been charged."""
        self._write({"lost": id_})

    def _write(self, value: dict[str, Any]) -> None:
        line = json.dumps(value).encode() + b"\n"
        try:
            written = os.write(self._fd, line)
            if written < len(line):  # the disk took a part: take it back, or the next line would stand behind half a line
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RunError(
                f"{self.path}: the journal of calls cannot be written: {error.strerror}; make room and run again"
            ) from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)
