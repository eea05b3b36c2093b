"""What all pages of one process share, and what each page that is open has of its own."""

from __future__ import annotations

import random
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

from sft.web.records import Battle, Keeper
from sft.web.servers import Fault, Servers
from sft.web.talk import Talk
from sft.web.words import Language, say

_KEPT = 24 * 3600.0
"""Seconds that a page is kept after its last step. Its connection tells nothing: that of a phone ends whenever the screen is off."""


@dataclass(slots=True)
class Page:
    """One page in one browser.

    Attributes:
        voter: a name for who votes here, drawn at random.
        plain: text is shown as it was written.
        seen: when it last did something.
    """

    chat: Talk = field(default_factory=Talk)
    battle: Battle = field(default_factory=Battle)
    keeper: Keeper = field(default_factory=Keeper)
    voter: str = field(default_factory=lambda: f"human_{secrets.token_hex(4)}")
    plain: bool = False
    seen: float = 0.0


@dataclass(slots=True)
class Desk:
    """Servers, files and pages.

    Attributes:
        votes: file that votes are appended to.
        saved: file that dialogues are appended to.
        chance: draws the models of a battle.
    """

    servers: Servers
    votes: Path
    saved: Path
    chance: random.Random = field(default_factory=random.SystemRandom)
    _pages: dict[str, Page] = field(default_factory=dict)

    def page(self, session: str | None) -> Page:
        """The page of a browser's session; pages that nobody used for a day are forgotten."""
        now = time.monotonic()
        for old in [name for name, page in self._pages.items() if now - page.seen > _KEPT and not page.chat.busy]:
            del self._pages[old]
        page = self._pages.setdefault(session or "", Page())
        page.seen = now
        return page


def fault_words(language: Language, fault: Fault, *, blind: bool = False) -> str:
    """What the page says of a fault; ``blind`` keeps back what would tell which model it was."""
    kind = {"busy": "busy_server"}.get(fault.kind, str(fault.kind))
    if blind:
        kind = {"no_such_model": "failed"}.get(kind, kind)
        return say(language, kind, server=say(language, "a_server"), detail="")
    return say(language, kind, server=fault.server, detail=fault.detail)
