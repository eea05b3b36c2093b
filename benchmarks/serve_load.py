"""Load of ``sft serve``: requests and tokens per second, and latency, at several numbers of clients.

    python benchmarks/serve_load.py runs/quickstart --concurrency 1 8 32

Starts the server on a free port in a process of its own, or asks the one at ``--base-url``. Answers are greedy, of up to ``--max-tokens``.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

import openai

QUESTIONS = ("Name three fruits.", "What is a test?", "Write a line about spring.", "说出三种常见的水果。")


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 100) // 100) - 1)]


async def load(base_url: str, model: str, clients: int, requests: int, max_tokens: int) -> str:
    """One line of the table."""
    todo, times, tokens = iter(range(requests)), list[float](), list[int]()
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=600) as door:

        async def client() -> None:
            for i in todo:
                began = time.perf_counter()
                told = await door.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": QUESTIONS[i % len(QUESTIONS)]}],
                    temperature=0,
                    max_tokens=max_tokens,
                )
                times.append(time.perf_counter() - began)
                assert told.usage is not None
                tokens.append(told.usage.completion_tokens)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        took = time.perf_counter() - began
    return (
        f"{clients:>7} {requests / took:>10.2f} {sum(tokens) / took:>9.1f} {statistics.median(times):>8.3f} "
        f"{percentile(times, 0.95):>8.3f}"
    )


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    """Until the server answers."""
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    sys.exit("the server ended before it answered")


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__)
    told.add_argument("model", help="as of sft serve; with --base-url its name there")
    told.add_argument("--base-url")
    told.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    told.add_argument("--requests", type=int, default=64, help="for each number of clients")
    told.add_argument("--max-tokens", type=int, default=64)
    asked = told.parse_args()
    server = None
    base_url, model = asked.base_url, asked.model
    if base_url is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address, model = f"http://127.0.0.1:{port}", "load"
        queue = str(max(64, *asked.concurrency))
        command = ["serve", asked.model, "--port", str(port), "--name", model, "--max-queue", queue]
        server = subprocess.Popen([sys.executable, "-m", "sft", *command], stderr=subprocess.DEVNULL)
        wait_for(address, server)
        base_url = f"{address}/v1"
    try:
        asyncio.run(load(base_url, model, 1, 2, 4))  # warm
        print("clients requests/s  tokens/s    p50 s    p95 s")
        for clients in asked.concurrency:
            print(asyncio.run(load(base_url, model, clients, asked.requests, asked.max_tokens)), flush=True)
    finally:
        if server is not None:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
