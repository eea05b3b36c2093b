"""The rules of cleaning over real conversations: what each drops and changes, and how fast.

``python benchmarks/rules.py [FILE ...] [--evaluation FILE ...] [--show KIND --rows 30]``, or without files ``chat/*.json`` below the folder
that ``VICUGNA_DATA`` names, with ``vicuna80/*question.jsonl`` as evaluation sets. A row with ``instruction`` and ``output`` counts as a
conversation of one round. Each rule stands alone, with its defaults; MB are of UTF-8 text, seconds are CPU seconds of one thread, the best
of three. ``--show`` prints what a rule did to random rows, to be read by eye.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.config import Document, Section, build
from sft.curate.chat import Chat, Message, read_chat
from sft.curate.rules import RuleBase, RuleSection
from sft.data.conversation import Drop
from sft.data.jsonl import read_rows


class _Recipe(Section):
    rules: tuple[RuleSection, ...]


def sections(evaluation: Sequence[str]) -> list[dict[str, Any]]:
    """Every kind once, and some in their other ways."""
    guard: list[dict[str, Any]] = [{"kind": "contamination", "files": list(evaluation)}] if evaluation else []
    return [
        *({"kind": kind} for kind in ("html", "role_repair", "empty_turn", "min_length", "single_round", "notice", "refusal")),
        {"kind": "vendor_names"},
        {"kind": "vendor_names", "scope": "itself"},
        {"kind": "vendor_names", "action": "replace", "name": "Ada", "organisation": "the Lab"},
        {"kind": "repetition"},
        {"kind": "broken_list"},
        {"kind": "language", "keep": ["en"]},
        {"kind": "model", "keep": ["gpt-4*"]},
        {"kind": "field", "field": "plugins", "present": "drop"},
        {"kind": "pii"},
        *guard,
    ]


def read(files: Sequence[Path]) -> list[Chat]:
    """Conversations; rows of instructions become one round."""
    chats = []
    for file in files:
        for row in read_rows(file):
            value = row.value
            if "conversations" in value:
                chats.append(read_chat(value, row.where))
            else:
                asked = f"{value['instruction']}\n{value.get('input') or ''}".rstrip("\n")
                messages = (Message("user", asked), Message("assistant", str(value["output"])))
                chats.append(Chat(row.where, messages, where=row.where))
    return chats


def size(chats: Sequence[Chat]) -> float:
    """MB of text."""
    return sum(len(m.text.encode("utf-8", "surrogatepass")) for chat in chats for m in chat.messages) / 1e6


def measure(rule: RuleBase, chats: Sequence[Chat]) -> tuple[list[Chat | Drop], float]:
    """What a rule makes of each conversation, and the CPU seconds for all."""
    for chat in chats[:20]:
        rule.apply(chat)  # what is loaded once per process
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        found = [rule.apply(chat) for chat in chats]
        best = min(best, time.process_time() - start)
    return found, best


def show(rule: RuleBase, chats: Sequence[Chat], rows: int) -> None:
    """Random rows that a rule drops or changes."""
    found = [(chat, rule.apply(chat)) for chat in chats]
    hits = [(chat, made) for chat, made in found if made is not chat]
    random.Random(0).shuffle(hits)
    for chat, made in hits[:rows]:
        print(f"\n== {chat.where or chat.id}")
        if isinstance(made, Drop):
            print(f"dropped: {made.reason}: {made.detail}")
            print("\n".join(f"  {m.role}: {m.text[:300]!r}" for m in chat.messages[:4]))
            continue
        kept = [(m.role, m.text) for m in made.messages]
        for message in chat.messages:
            if (message.role, message.text) not in kept:
                print(f"  - {message.role}: {message.text[:600]!r}")
        before = {(m.role, m.text) for m in chat.messages}
        for message in made.messages:
            if (message.role, message.text) not in before:
                print(f"  + {message.role}: {message.text[:600]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--evaluation", nargs="*", default=[])
    parser.add_argument("--show", metavar="KIND")
    parser.add_argument("--rows", type=int, default=30)
    options = parser.parse_args()
    folder = os.environ.get("VICUGNA_DATA")
    if not options.files and not folder:
        sys.exit("name files of conversations, or set VICUGNA_DATA to a folder with chat/*.json")
    files = options.files or sorted(Path(folder or "").glob("chat/*.json"))
    evaluation = options.evaluation or [
        str(path) for path in sorted(Path(folder or "/nowhere").glob("vicuna80/*question.jsonl"))
    ]
    wanted = [section for section in sections(evaluation) if options.show in (None, section["kind"])]
    rules = build(_Recipe, Document({"rules": wanted}, {}, "benchmarks/rules.py")).rules
    chats = read(files)
    print(f"{len(chats):,} conversations, {size(chats):.2f} MB")
    for rule, section in zip(rules, wanted, strict=True):
        if options.show:
            show(rule, chats, options.rows)
            continue
        found, seconds = measure(rule, chats)
        drops = Counter(made.reason for made in found if isinstance(made, Drop))
        changed = sum(made is not chat and not isinstance(made, Drop) for made, chat in zip(found, chats, strict=True))
        again = sum(isinstance(made, Chat) and rule.apply(made) is not made for made in found)
        what = ", ".join(f"{key}: {value}" for key, value in section.items() if key not in ("kind", "files"))
        left = ", ".join(f"{reason} {count}" for reason, count in sorted(drops.items())) or "0"
        print(
            f"| {section['kind']}{f' ({what})' if what else ''} | {left} | {changed} | {again} | {size(chats) / seconds:,.1f} |"
        )


if __name__ == "__main__":
    main()
