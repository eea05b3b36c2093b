"""A whole generation run against a server that misbehaves, killed again and again, compared with an undisturbed one.

    python benchmarks/selfinstruct_kills.py                            52,000 rows, 24 kills
    python benchmarks/selfinstruct_kills.py --rows 2000 --kills 5

Both runs go through the command line, the real client and HTTP. The server's replies depend on the request alone, so the data sets must be
equal byte for byte. Printed: equality, requests that the server answered twice (calls in flight at a kill are the only ones that may be),
wall times, rows per second, and the largest resident memory of a process of the run.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.selfinstruct.fault_server import Body, FaultServer  # noqa: E402

FAULTS = {
    "429": 0.03,
    "429_after": 0.01,
    "500": 0.03,
    "disconnect": 0.03,
    "cut_body": 0.02,
    "cut_json": 0.02,
    "wrong_schema": 0.02,
}
FAULTS |= {"slow": 0.02, "no_usage": 0.02, "hang": 0.001}
_DRAW = random.Random(0)
_LETTERS = "bcdfghjklmnprstvwz", "aeiou"
WORDS = ["".join(_DRAW.choice(_LETTERS[i % 2]) for i in range(_DRAW.randrange(4, 9))) for _ in range(8000)]


def tasks(body: Body, digest: str) -> str:
    """Twenty tasks; one reply in twelve is cut, one task in nine repeats a common opening, so that filters have work."""
    draw = random.Random(hashlib.sha256(body["messages"][0]["content"].encode()).digest() + digest.encode())
    blocks = []
    for number in range(4, 24):
        words = [WORDS[int(len(WORDS) * draw.random() ** 2)] for _ in range(draw.randrange(6, 22))]
        instruction = f"Describe the {' '.join(words)}."
        if draw.random() < 0.11:
            instruction = f"Describe the {WORDS[draw.randrange(12)]} of the {WORDS[draw.randrange(12)]}."
        given = " ".join(draw.choices(WORDS, k=draw.randrange(3, 30))) if draw.random() < 0.4 else "<noinput>"
        output = " ".join(draw.choices(WORDS, k=draw.randrange(8, 80)))
        fields = f"<<<INSTRUCTION>>>\n{instruction}\n<<<INPUT>>>\n{given}\n<<<OUTPUT>>>\n{output}\n"
        blocks.append(f"<<<TASK {number}>>>\n{fields}<<<END {number}>>>\n")
    text = "".join(blocks)
    return text[: draw.randrange(len(text))] if draw.random() < 1 / 12 else text


def recipe(folder: Path, url: str, rows: int, concurrency: int) -> Path:
    """A recipe like ``selfinstruct_alpaca.yaml``, asking the server at ``url``."""
    kinds = [
        "length",
        "blacklist",
        "write_a_program",
        "first_character",
        "empty_output",
        "echo",
        "input_is_output",
        "trailing_colon",
    ]
    filters: list[dict[str, Any]] = [{"kind": kind} for kind in (*kinds, "refusal", "contradiction", "exact_duplicate")]
    value = {
        "seeds": {"path": str(ROOT / "data" / "seed_tasks.jsonl")},
        "teacher": {
            "model": "synthetic",
            "endpoints": [
                {"base_url": url, "key_variable": None, "rate": {"max_concurrency": concurrency, "start_concurrency": 64}}
            ],
            "sampling": {"max_tokens": 8000},
            "retries": {"first_wait": 0.05, "longest_wait": 0.5, "timeout": 10.0, "attempts": 30, "budget_share": 10.0},
        },
        "strategy": {"kind": "alpaca", "requests_per_round": 256},
        "filters": [*filters, {"kind": "novelty", "neighbours": 10}],
        "output": {"dir": str(folder), "rows": rows},
    }
    path = folder.with_suffix(".yaml")
    path.write_text(json.dumps(value))
    return path


async def start(path: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "selfinstruct", "run", str(path), "--no-report", cwd=ROOT, stdout=asyncio.subprocess.DEVNULL
    )


def size(folder: Path) -> int:
    ledger = folder / "ledger.jsonl"
    return ledger.stat().st_size if ledger.is_file() else 0


async def killed(path: Path, folder: Path, kills: int, whole: int, draw: random.Random) -> int:
    """Run until it is done, killed each time the ledger has grown by about its share of ``whole`` bytes; how often it was killed."""
    done = 0
    while True:
        process = await start(path)
        until = size(folder) + int(whole / (kills + 1) * draw.uniform(0.3, 1.2))
        while process.returncode is None and (done >= kills or size(folder) < until):
            try:
                await asyncio.wait_for(process.wait(), draw.uniform(0.01, 0.06))
            except TimeoutError:
                continue
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
            done += 1
        elif process.returncode == 0:
            return done
        else:
            sys.exit(f"the run ended with {process.returncode}")


async def undisturbed(folder: Path, options: argparse.Namespace) -> tuple[float, dict[str, Any]]:
    server = FaultServer(text=tasks)
    path = recipe(folder, await server.start(), options.rows, options.concurrency)
    began = time.monotonic()
    process = await start(path)
    if await process.wait() != 0:
        sys.exit(f"the undisturbed run ended with {process.returncode}")
    seconds = time.monotonic() - began
    await server.stop()
    return seconds, server.stats.to_json()


async def disturbed(folder: Path, options: argparse.Namespace, whole: int) -> tuple[float, dict[str, Any], int]:
    server = FaultServer(text=tasks, faults=FAULTS, in_a_row=3, retry_after="0.2")
    path = recipe(folder, await server.start(), options.rows, options.concurrency)
    began = time.monotonic()
    kills = await killed(path, folder, options.kills, whole, random.Random(options.seed))
    seconds = time.monotonic() - began
    await server.stop()
    return seconds, server.stats.to_json(), kills


def told(rows: int, seconds: float) -> str:
    """Rows, pace, and the largest resident memory of a process so far."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return f"{rows:,} rows in {seconds:.1f} s ({rows / seconds:.0f} rows/s), at most {peak:.0f} MiB"


async def measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        calm, wild = Path(scratch) / "calm", Path(scratch) / "wild"
        seconds, stats = await undisturbed(calm, options)
        print(f"undisturbed: {told(options.rows, seconds)}, {stats['paid']:,} replies")
        seconds, stats, kills = await disturbed(wild, options, size(calm))
        print(f"{kills} kills and faults: {told(options.rows, seconds)}")
        about = json.loads((wild / "run.json").read_text())
        print(f"server: {json.dumps(stats)}")
        twice, open_ = stats["paid_again"], about["in_flight_at_kill"]
        print(f"answered twice: {twice} of {stats['paid']:,} requests; calls in flight at the kills: {open_}")
        print(f"calls without a reply that may have been charged, by our own count: {about['lost_calls']}")
        if twice > open_:
            sys.exit("a request that was not in flight at a kill was paid for twice")
        for name in ("dataset.jsonl", "candidates.jsonl"):
            same = (calm / name).read_bytes() == (wild / name).read_bytes()
            print(f"{name}: {'equal' if same else 'DIFFERENT'}, {(calm / name).stat().st_size:,} bytes")
            if not same:
                sys.exit(1)
        lines = (wild / "dataset.jsonl").read_bytes().count(b"\n")
        print(
            f"rows: {lines:,}; candidates: {about['candidates']:,}; sessions {about['sessions']}, interrupted {about['interrupted']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=52_000)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the run directories; default: the system's")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
