"""Programs that are given as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Names = dict[str, Any]
"""What a program defines."""


def names(source: str) -> Names:
    found: Names = {}
    exec(compile(source, "<reference>", "exec"), found)
    return found


def refused(error: type[Exception], function: Callable[..., Any], *arguments: Any) -> bool:
    try:
        function(*arguments)
    except error:
        return True
    return False
