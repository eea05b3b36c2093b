"""Teachers of the tests: what they write depends on the request alone, faults included."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfinstruct.records import Completion, Request, Usage
from selfinstruct.teacher.faults import BudgetReached

VERBS = [
    "Describe",
    "Compare",
    "Summarise",
    "Sort",
    "Explain",
    "Rank",
    "Sketch",
    "Invent",
    "Correct",
    "Translate",
    "Rewrite",
    "Count",
    "Outline",
    "Justify",
]
NOUNS = [
    "harbour",
    "kettle",
    "orchard",
    "violin",
    "bridge",
    "comet",
    "ledger",
    "meadow",
    "tunnel",
    "glacier",
    "parcel",
    "lantern",
    "puzzle",
    "market",
    "engine",
    "falcon",
]
PLACES = ["Lisbon", "Osaka", "Bergen", "Quito", "Accra", "Perth", "Tallinn", "Cusco", "Hanoi", "Oran", "Turin", "Malmo"]


def task(draw: random.Random) -> tuple[str, str, str]:
    """Instruction, input, output."""
    words = [draw.choice(NOUNS) for _ in range(draw.randrange(3, 8))]
    instruction = (
        f"{draw.choice(VERBS)} the {' and the '.join(words)} of {draw.choice(PLACES)} in {draw.randrange(3, 90)} words."
    )
    if draw.random() < 0.05:
        instruction = f"Draw a picture of the {words[0]} near {draw.choice(PLACES)} harbour."
    given = f"number {draw.randrange(10**6)}" if draw.random() < 0.5 else ""
    return instruction, given, f"The {words[-1]} has {draw.randrange(10**6)} parts."


def numbered(draw: random.Random, first: int = 4, count: int = 20) -> tuple[str, str]:
    """A reply of Alpaca's kind with its finish_reason; one in ten is cut."""
    blocks = []
    for number in range(first, first + count):
        instruction, given, output = task(draw)
        given = given or "<noinput>"
        blocks.append(
            f"<<<TASK {number}>>>\n<<<INSTRUCTION>>>\n{instruction}\n<<<INPUT>>>\n{given}\n<<<OUTPUT>>>\n{output}\n<<<END {number}>>>"
        )
    text = "\n".join(blocks)
    if draw.random() < 0.1:
        return text[: draw.randrange(len(text))], "length"
    return text, "stop"


def reply(request: Request, seed: str = "") -> tuple[str, str]:
    """Text and finish_reason for any purpose."""
    draw = random.Random(f"{request.id}{seed}")
    purpose = request.purpose.partition(":")[0]
    if purpose == "tasks" and request.schema is not None:
        keys = ("instruction", "input", "output")
        return json.dumps({"tasks": [dict(zip(keys, task(draw), strict=True)) for _ in range(20)]}), "stop"
    if purpose == "tasks":
        return numbered(draw)
    if purpose == "instructions":
        return "\n".join(f"{n}. {task(draw)[0]}" for n in range(9, 17)) + "\n<<<END>>>", "stop"
    if purpose == "classification":
        return draw.choice(["Yes", "No", " no.", "Yes, it is", "Perhaps"]), "stop"
    if purpose == "instances":
        label_first = "Class label:" in request.messages[0].content
        parts = []
        for i in range(draw.randrange(1, 4)):
            _, given, output = task(draw)
            parts.append(
                f"Class label: {output}\nInput: {given}"
                if label_first
                else f"Example {i + 1}\nInput: {given}\nOutput: {output}"
            )
        return "\n".join(parts) + "\n<<<END>>>", "stop"
    if purpose == "evolve":
        instruction, given, _ = task(draw)
        text = f"<<<INSTRUCTION>>>\n{instruction}\n<<<INPUT>>>\n{given or '<noinput>'}\n<<<END>>>"
        return (text, "stop") if draw.random() < 0.9 else (text[:-12], "length")
    if purpose == "gain":
        return draw.choice(["Yes", "yes.", "Yes, it does", "No"]), "stop"
    if purpose == "critic":
        return draw.choice(["5", "4", "3/5", "none"]), "stop"
    return draw.choice([*[task(draw)[2]] * 4, "I am sorry, I cannot do that.", "..."]), "stop"


def completion(request: Request) -> Completion:
    text, reason = reply(request)
    return Completion(
        request_id=request.id,
        text=text,
        finish_reason=reason,
        usage=Usage(len(request.messages[0].content) // 4, len(text) // 4),
        model="synthetic",
        endpoint="here",
        cost=len(text) / 1e6,
    )


class Synthetic:
    """A teacher for :func:`selfinstruct.teacher.dispatch.complete_all`.

    Args:
        most: calls before the budget is reached; None for no end.
        scatter: finish calls in an order that has nothing to do with that of the requests.
    """

    def __init__(self, most: int | None = None, scatter: bool = False) -> None:
        self.most, self.scatter = most, scatter
        self.asked: Counter[str] = Counter()
        self.width = 64 if scatter else 1

    async def complete(self, request: Request) -> Completion:
        if self.most is not None and self.asked.total() >= self.most:
            raise BudgetReached("the budget is reached: budget.max_requests is used up")
        self.asked[request.id] += 1
        if self.scatter:
            for _ in range(int(request.id, 16) % 17):
                await asyncio.sleep(0)
        return completion(request)


RECIPE: dict[str, Any] = {
    "seed": 7,
    "seeds": {"path": "data/seed_tasks.jsonl"},
    "teacher": {"model": "synthetic", "replay": ["nowhere"], "sampling": {"max_tokens": 2000}},
    "strategy": {"kind": "alpaca", "requests_per_round": 4},
    "filters": [{"kind": "length"}, {"kind": "blacklist"}, {"kind": "exact_duplicate"}, {"kind": "novelty", "neighbours": 2}],
    "output": {"dir": "run", "rows": 150},
}


def write_recipe(folder: Path, **sections: Any) -> Path:
    """A recipe in ``folder`` that differs from :data:`RECIPE` by whole sections; paths are made absolute."""
    root = Path(__file__).resolve().parents[2]
    value = {**RECIPE, "output": {**RECIPE["output"], "dir": str(folder / "run")}, **sections}
    value["seeds"] = {**value["seeds"], "path": str(root / value["seeds"]["path"])}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(value))  # JSON is YAML
    return path


def texts(requests: Sequence[Request]) -> list[str]:
    return [request.messages[0].content for request in requests]
