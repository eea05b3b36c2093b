"""Make long conversations of short ones: turns of many, one behind the other, until there are as many characters as asked for.

``python benchmarks/chain_chats.py CHATS.json OUT.json [--characters 80000]``. For runs of 16,384 tokens where few real chats are
that long; pieces are cut by the recipe (``data.overflow: split``). Reads and writes ShareGPT's format; a
conversation that does not start with a person is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def chained(chats: Iterable[list[dict[str, Any]]], characters: int) -> Iterator[list[dict[str, Any]]]:
    """Conversations of at least so many characters; what is left over at the end is not given."""
    turns: list[dict[str, Any]] = []
    size = 0
    for chat in chats:
        if len(chat) < 2 or chat[0].get("from") not in ("human", "user"):
            continue
        whole = chat[: len(chat) // 2 * 2]  # ends with an answer
        turns += whole
        size += sum(len(str(turn.get("value", ""))) for turn in whole)
        if size >= characters:
            yield turns
            turns, size = [], 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("chats", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--characters", type=int, default=80_000)
    options = parser.parse_args()
    rows = json.loads(options.chats.read_text(encoding="utf-8"))
    chats = [row["conversations"] if isinstance(row, dict) else row for row in rows]
    made = [{"id": str(i), "conversations": turns} for i, turns in enumerate(chained(chats, options.characters))]
    options.out.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    print(f"{options.out}: {len(made)} conversations of {len(chats)}")


if __name__ == "__main__":
    main()
