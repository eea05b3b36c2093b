"""Requests per second of the paying teacher at a fixed concurrency, beside the bare ``openai`` client with ``asyncio.gather``.

    python benchmarks/teacher_throughput.py                          2,560 requests a run, 256 at once, 5 runs each, in turn
    python benchmarks/teacher_throughput.py --delay 0.5 --requests 5000

An instant local server runs in a process of its own (``--delay`` seconds before each answer makes it a patient one). The bare client is what
one would write in five lines: one ``AsyncOpenAI``, a semaphore, ``asyncio.gather``, replies kept in memory, nothing written. Ours does the
whole: ledger with fsync, budget, rate, retries, journal. Printed per way: requests/s, and the CPU time of the client process as the share of
one core that 100 requests/s take. Median, smallest and largest over the runs.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import openai

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from selfinstruct.records import Message, Request, Sampling  # noqa: E402
from selfinstruct.teacher.budget import Budget, Price  # noqa: E402
from selfinstruct.teacher.client import OpenAIClient  # noqa: E402
from selfinstruct.teacher.dispatch import LedgerTeacher, complete_all  # noqa: E402
from selfinstruct.teacher.endpoints import Endpoint, Endpoints  # noqa: E402
from selfinstruct.teacher.journal import Journal  # noqa: E402
from selfinstruct.teacher.ledger import Ledger  # noqa: E402
from selfinstruct.teacher.rate import Gate  # noqa: E402
from selfinstruct.teacher.sections import EndpointSection, RateSection, RetriesSection  # noqa: E402

PROMPT = "You are asked to come up with a set of 20 diverse task instructions. " * 40


def requests(count: int, run: int) -> list[Request]:
    made = [(Message("user", f"{run}-{number} {PROMPT}"),) for number in range(count)]
    return [Request(model="m", messages=messages, sampling=Sampling(4000), index=n) for n, messages in enumerate(made)]


async def bare(url: str, asked: list[Request], concurrency: int) -> None:
    """The five lines."""
    client = openai.AsyncOpenAI(api_key="none", base_url=url, timeout=120)  # its 5 s to connect are too few on a loaded machine
    gate = asyncio.Semaphore(concurrency)

    async def one(request: Request) -> str | None:
        async with gate:
            reply = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": request.messages[0].content}], max_tokens=4000
            )
            return reply.choices[0].message.content

    replies = await asyncio.gather(*(one(request) for request in asked))
    assert len([reply for reply in replies if reply]) == len(asked)
    await client.close()


async def ours(url: str, asked: list[Request], concurrency: int) -> None:
    """The whole way, into a ledger on disk."""
    with tempfile.TemporaryDirectory() as folder:
        rate, retries, price = (
            RateSection(max_concurrency=concurrency, start_concurrency=concurrency),
            RetriesSection(),
            Price(1, 2),
        )
        section = EndpointSection(base_url=url, key_variable=None, rate=rate)
        endpoint = Endpoint("here", OpenAIClient(section, retries, None), price, Gate(rate))
        ledger = Ledger.open(Path(folder) / "ledger.jsonl")
        journal = Journal(Path(folder) / "journal.jsonl", ledger.__contains__)
        teacher = LedgerTeacher(Endpoints([endpoint]), ledger, Budget(max_money=1e6, prices={"m": price}), retries, journal)
        await complete_all(teacher, asked)
        assert len(ledger) == len(asked)
        await teacher.aclose()


def measured(
    way: Callable[[str, list[Request], int], Awaitable[None]], url: str, options: argparse.Namespace, run: int
) -> tuple[float, float]:
    """Requests per second, and per cent of one core per 100 requests/s."""
    asked = requests(options.requests, run)
    gc.collect()
    began, cpu = time.perf_counter(), time.process_time()
    asyncio.run(way(url, asked, options.concurrency))  # type: ignore[arg-type]
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return options.requests / seconds, 100 * 100 * cpu / options.requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2560)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    command = [sys.executable, "-m", "tests.selfinstruct.fault_server", "--delay", str(options.delay)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        found: dict[str, list[tuple[float, float]]] = {"bare openai client": [], "this package": []}
        try:
            for run in range(-1, options.runs):  # run -1 warms up and is not counted
                for number, (name, way) in enumerate(zip(found, (bare, ours), strict=True)):
                    result = measured(way, url, options, 2 * run + number)
                    if run >= 0:
                        found[name].append(result)
        finally:
            server.kill()
    print(
        f"{options.requests:,} requests a run, {options.concurrency} at once, {options.runs} runs in turn, server delay {options.delay} s"
    )
    for name, results in found.items():
        for label, values in (
            ("requests/s", [r[0] for r in results]),
            ("% of a core per 100 requests/s", [r[1] for r in results]),
        ):
            print(
                f"{name:20} {label:32} median {statistics.median(values):8.1f}  min {min(values):8.1f}  max {max(values):8.1f}"
            )
    speed = [statistics.median(r[0] for r in results) for results in found.values()]
    cpu = [statistics.median(r[1] for r in results) for results in found.values()]
    print(json.dumps({"speed_ratio": round(speed[1] / speed[0], 3), "cpu_ratio": round(cpu[1] / cpu[0], 3)}))


if __name__ == "__main__":
    main()
