"""The recorded ledger of the quickstart, packed from plain texts and unpacked into them.

    python data/selfinstruct_quickstart/build.py unpack FOLDER     ledger.jsonl -> FOLDER/000.txt, 001.txt ...
    python data/selfinstruct_quickstart/build.py pack FOLDER       FOLDER/000.txt ... -> ledger.jsonl

One file is one reply, in the order of the calls that ``recipes/selfinstruct_quickstart.yaml`` makes; its first line may be
``#finish_reason: length``. A reply is found by the hash of its request, so pack again after a change of prompt, seeds or recipe.
Token counts are estimates (four ASCII characters each, other characters one each): the replies were written for this project.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from selfinstruct.job import prepare
from selfinstruct.recipe import load_recipe
from selfinstruct.records import Completion, Request, Usage
from selfinstruct.strategies.base import View
from selfinstruct.teacher.budget import estimate
from selfinstruct.teacher.ledger import Entry, Ledger, encode

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parents[1] / "recipes" / "selfinstruct_quickstart.yaml"
_MARK = "#finish_reason: "


def calls(seeds: Path) -> Iterator[Request]:
    """The requests of the recipe, in order, without end."""
    recipe, _ = load_recipe(RECIPE, [f"seeds.path={seeds}"])
    prepared = prepare(recipe)
    view = View(prepared.job.seeds, [], lambda candidate: None)
    number = 0
    while True:
        yield from prepared.job.strategy.requests(number, view)
        number += 1


def pack(folder: Path) -> bytes:
    """The ledger of the texts in ``folder``."""
    out = []
    files = sorted(folder.glob("*.txt"))
    for request, path in zip(calls(HERE.parents[1] / "data" / "seed_tasks.jsonl"), files, strict=False):
        text, reason = path.read_text(encoding="utf-8"), "stop"
        if text.startswith(_MARK):
            head, _, text = text.partition("\n")
            reason = head.removeprefix(_MARK).strip()
        usage = Usage(sum(estimate(message.content) for message in request.messages), estimate(text))
        completion = Completion(
            request_id=request.id, text=text, finish_reason=reason, usage=usage, model=request.model, endpoint="recorded"
        )
        out.append(encode(Entry(request, completion)))
    return b"".join(out)


def unpack(ledger: Path, folder: Path) -> int:
    """The texts of ``ledger``, written to ``folder``; how many."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for entry in Ledger.open(ledger, read_only=True).iterate():
        completion = entry.completion
        assert completion is not None
        head = "" if completion.finish_reason == "stop" else f"{_MARK}{completion.finish_reason}\n"
        (folder / f"{count:03}.txt").write_text(head + completion.text, encoding="utf-8")
        count += 1
    return count


def main(arguments: list[str]) -> None:
    """Entry point."""
    if len(arguments) != 2 or arguments[0] not in ("pack", "unpack"):
        sys.exit(__doc__)
    action, folder = arguments[0], Path(arguments[1])
    ledger = HERE / "ledger.jsonl"
    if action == "pack":
        data = pack(folder)
        ledger.write_bytes(data)
        print(f"{ledger}: {len(data.splitlines())} replies, {len(data):,} bytes")
    else:
        print(f"{folder}: {unpack(ledger, folder)} texts")


if __name__ == "__main__":
    main(sys.argv[1:])
