"""How text that nobody vouches for is shown: cut to size, and without characters that steer a terminal or hide other text."""

from __future__ import annotations

import re

# C0 and C1 controls but tab and newline; zero-width and bidirectional controls; line separators; lone surrogates; tag characters.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def shown(text: str, limit: int = 600) -> str:
    """A text as it may be printed: controls spelled out as ``\\u001b``, cut with ``…`` behind ``limit`` characters."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return _STEERING.sub(lambda found: rf"\u{ord(found[0]):04x}", cut)
