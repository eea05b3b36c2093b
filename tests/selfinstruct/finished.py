"""A small finished run on disk, with every kind of line that a run directory can hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEEDS = ["Write a poem about the sea.", "Name three rivers of Asia."]
# instruction, input, output; the first one is hostile on purpose
KEPT = [
    (
        "Describe <script>document.title='owned'</script> in $one$ sentence & <b>boldly</b>.",
        "",
        "<img src=x onerror=alert(1)> | `x`",
    ),
    ("Write a poem about the old sea.", "Length: four lines", "The sea is old.\nThe sea is wide."),
    ("How do magnets work?", "", "They pull, and push."),
    ("List two facts about cats, please.", "", "They sleep. They purr.\u001b[31m"),
]
REFUSED = [
    ("length", "too_short", ("Explain rain.", "", "Water falls."), {"words": 2}),
    (
        "novelty",
        "near_duplicate",
        ("Name three rivers in Asia.", "", "Indus, Mekong, Ob."),
        {"nearest": "Name three rivers of Asia.", "score": 0.8},
    ),
    ("novelty", "near_duplicate", ("Write a poem about the old sea!", "", "Waves."), {"nearest": KEPT[1][0], "score": 1.0}),
    ("target", "surplus", ("Sort the four numbers.", "4 2 3 1", "1 2 3 4"), {}),
]
FAILURES = [("truncated", "<<<TASK 9>>> Tell a st"), ("missing_output", "<<<TASK 5>>> x </pre><script>1</script>")]


def facts() -> dict[str, Any]:
    return {
        "name": "small",
        "language": "en",
        "target": 4,
        "strategy": "alpaca",
        "teacher": {"models": ["recorded | teacher"], "endpoints": ["ledger"]},
        "prompts": {"alpaca_en.jinja": "0123456789abcdef"},
        "seeds": {"path": "data/seed_tasks.jsonl", "sha256": "77", "instructions": SEEDS},
        "filters": ["length", "blacklist", "novelty"],
        "usage": {"requests": 2, "paid_requests": 1, "prompt_tokens": 1000, "completion_tokens": 500},
        "cost": {"money": 0.5, "currency": "USD", "cap": 2.0},
        "errors": {"rate_limited": 3},
        "versions": {"vicugna": "0"},
    }


def write_run(path: Path, *, changes: Mapping[str, Any] | None = None, kept: list[tuple[str, str, str]] | None = None) -> Path:
    """Write the run; ``changes`` go into run.json, ``kept`` replaces the rows and their candidates."""
    path.mkdir()
    lines: list[dict[str, Any]] = [
        {"failure": {"request_id": "ab", "item": item, "reason": reason, "detail": detail}}
        for item, (reason, detail) in enumerate(FAILURES)
    ]
    rows = []
    for item, task in enumerate(KEPT if kept is None else kept):
        candidate = _candidate(f"0-0-{item}", task)
        lines.append(
            {
                "candidate": candidate,
                "verdict": {"accepted": True, "filter": "", "reason": "", "evidence": {}, "scores": {"nearest": 0.25}},
            }
        )
        rows.append(
            {**{k: candidate[k] for k in ("id", "instruction", "input", "output")}, "lineage": {"request": "ab", "round": 0}}
        )
    for item, (name, reason, task, evidence) in enumerate(REFUSED):
        verdict = {"accepted": False, "filter": name, "reason": reason, "evidence": evidence, "scores": {}}
        lines.append({"candidate": _candidate(f"0-1-{item}", task), "verdict": verdict})
    (path / "run.json").write_text(json.dumps({**facts(), **(changes or {})}), encoding="utf-8")
    write_lines(path / "candidates.jsonl", lines)
    write_lines(path / "dataset.jsonl", rows)
    return path


def write_lines(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _candidate(id: str, task: tuple[str, str, str]) -> dict[str, Any]:
    return {"id": id, "request_id": "ab", "instruction": task[0], "input": task[1], "output": task[2], "round": 0, "item": 0}
