"""Loops that are compiled; importing this imports numba, which takes a second.

numba's cache does not see that a function of another file has changed: after such a change, touch the file of the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use, kept on disk where a folder for that can be written; other threads of Python run meanwhile."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba found no place for its cache
        return njit(nogil=True)(function)
