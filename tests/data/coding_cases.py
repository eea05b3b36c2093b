"""Cases for the programs in the references of the coding questions.

``python -m tests.data.coding_cases 241`` reads the programs of both turns from stdin, as a JSON list, and runs the cases of that question on
them: in a process of its own, since a wrong program may never end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from tests.data import coding_first as first
from tests.data import coding_second as second


def cases() -> dict[int, Callable[[str, str], None]]:
    """By question."""
    first_five = (first.durations, first.cache_with_clock, first.windows, first.library, first.buses)
    last_five = (second.dictionaries, second.amounts, second.weights, second.gathering, second.spreadsheet)
    return dict(enumerate(first_five + last_five, 241))


if __name__ == "__main__":
    cases()[int(sys.argv[1])](*json.load(sys.stdin))
