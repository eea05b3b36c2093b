"""Equivalences: settings that must train alike, and how far apart they were seen."""

from __future__ import annotations

import json
import os


def record_law(name: str, value: float, bound: float) -> None:
    """Append a law's largest deviation to the file named by ``VICUGNA_LAW_TABLE``, if it is set."""
    table = os.environ.get("VICUGNA_LAW_TABLE")
    if table:
        with open(table, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"law": name, "largest": value, "bound": bound}) + "\n")
