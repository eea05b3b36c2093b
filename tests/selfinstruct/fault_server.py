"""A local OpenAI-compatible server that misbehaves on purpose, the same way for the same request.

Chat and legacy completions, files and batches, over HTTP/1.1 with kept connections, from the standard library alone. Which fault a
request meets is a function of its body and of how often that body was sent before: ``faults`` maps a fault to its share, a request is
hit by at most ``in_a_row`` of them, and then answered. What was answered whole, and how often, is counted by body: ``paid``.

As a program: ``python -m tests.selfinstruct.fault_server --port 0`` prints its address, and serves until it is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]
FAULTS = (
    *(
        "429",
        "429_after",
        "500",
        "hang",
        "disconnect",
        "cut_body",
        "cut_json",
        "wrong_schema",
        "slow",
        "no_usage",
        "wrong_usage",
    ),
    *("401", "403", "quota", "content_filter", "context", "schema_refused", "renamed", "bad_request", "refusal", "null_length"),
)


def words(body: Body, digest: str) -> str:
    """A reply: some words drawn by the digest."""
    draw = random.Random(digest)
    return " ".join(f"w{draw.randrange(5000)}" for _ in range(draw.randrange(5, 40)))


@dataclass(slots=True)
class Stats:
    """By digest of the body: answered whole (``paid``), cut short after the work was done (``lost``); by fault: ``faults``."""

    paid: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    peak: int = 0
    bodies: list[Body] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        twice = sum(count - 1 for count in self.paid.values())
        return {
            "requests": self.requests,
            "paid": len(self.paid),
            "paid_again": twice,
            "lost": sum(self.lost.values()),
            "faults": dict(self.faults),
            "peak": self.peak,
        }


@dataclass(slots=True)
class FaultServer:
    """Start with :meth:`start`.

    Attributes:
        faults: fault -> share of the requests.
        always: fault that every request meets; empty for none.
        in_a_row: most faults for one body, before it is answered.
        text: makes the reply's text of body and digest.
        delay: seconds before each answer; ``slow`` adds to it.
        keep: keep the bodies in ``stats.bodies``.
        headers: added to every answer.
        echo_key: put the Authorization header into every error message, as some proxies do.
        context: tokens of context, for the ``context`` fault.
    """

    faults: Mapping[str, float] = field(default_factory=dict)
    always: str = ""
    in_a_row: int = 2
    text: Callable[[Body, str], str] = words
    delay: float = 0.0
    slow: float = 0.05
    keep: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    echo_key: bool = False
    context: int = 1000
    retry_after: str = "7"
    seed: str = ""
    stats: Stats = field(default_factory=Stats)
    tries: Counter[str] = field(default_factory=Counter)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, Body] = field(default_factory=dict)
    batch_answers: Callable[[FaultServer, Body], None] | None = None
    active: int = 0
    server: asyncio.Server | None = None
    connections: set[asyncio.BaseTransport] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, port: int = 0) -> str:
        """Listen; the ``base_url``."""
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port, backlog=4096)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"

    async def stop(self) -> None:
        assert self.server is not None
        self.server.close()
        for task in list(self.tasks):
            task.cancel()
        for connection in list(self.connections):
            connection.close()
        await asyncio.sleep(0)

    def fault_for(self, digest: str) -> str:
        """The fault of this try, or an empty text; counts the try."""
        at = self.tries[digest]
        self.tries[digest] += 1
        if self.always:
            return self.always
        if not self.faults or at >= self.in_a_row:
            return ""
        draw, low = random.Random(f"{self.seed}:{digest}:{at}").random(), 0.0
        for name, share in self.faults.items():
            low += share
            if draw < low:
                return name
        return ""

    async def complete(self, wire: _Connection, path: str, body: Body, auth: str) -> None:
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24]
        if self.keep:
            self.stats.bodies.append(body)
        fault = self.fault_for(digest)
        if fault:
            self.stats.faults[fault] += 1
        if self.delay or fault == "slow":
            await asyncio.sleep(self.delay + (self.slow if fault == "slow" else 0))
        if fault == "hang":
            self.stats.lost[digest] += 1
            await asyncio.sleep(3600)
        if answer := self.refusal(fault, body):
            status, error, headers = answer
            if self.echo_key:
                error["message"] = f"{error['message']} (you sent {auth})"
            wire.send(status, {"error": error}, headers)
            return
        value = self.reply(path, body, digest, fault)
        data = json.dumps(value).encode()
        if fault in ("disconnect", "cut_body", "cut_json", "wrong_schema"):
            self.stats.lost[digest] += 1
            wire.spoil(fault, data)
            return
        if wire.alive:
            self.stats.paid[digest] += 1
            wire.send_bytes(200, data, self.headers)

    def refusal(self, fault: str, body: Body) -> tuple[int, Body, Mapping[str, str]] | None:
        """Status, error object and headers of a fault that is an HTTP error."""
        asked = body.get("max_completion_tokens") or body.get("max_tokens") or 0
        if fault == "context":
            if asked + 100 <= self.context:
                return None
            text = (
                f"This model's maximum context length is {self.context} tokens. However, you requested {asked + 100} tokens "
                f"(100 in the messages, {asked} in the completion)."
            )
            return 400, {"message": text, "code": "context_length_exceeded", "type": "invalid_request_error"}, {}
        if fault == "schema_refused":
            if "response_format" not in body:
                return None
            return 400, {"message": "response_format of type json_schema is not supported", "param": "response_format"}, {}
        if fault == "renamed":
            if "max_tokens" not in body:
                return None
            text = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            return 400, {"message": text, "code": "unsupported_parameter", "param": "max_tokens"}, {}
        simple: dict[str, tuple[int, Body, Mapping[str, str]]] = {
            "429": (429, {"message": "Rate limit reached", "code": "rate_limit_exceeded"}, {}),
            "429_after": (
                429,
                {"message": "Rate limit reached", "code": "rate_limit_exceeded"},
                {"retry-after": self.retry_after},
            ),
            "500": (500, {"message": "The server had an error"}, {}),
            "401": (401, {"message": "Incorrect API key provided", "code": "invalid_api_key"}, {}),
            "403": (403, {"message": "Country not supported", "code": "unsupported_country"}, {}),
            "quota": (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}, {}),
            "content_filter": (400, {"message": "The prompt was filtered", "code": "content_filter"}, {}),
            "bad_request": (400, {"message": "temperature is out of range", "param": "temperature"}, {}),
        }
        return simple.get(fault)

    def reply(self, path: str, body: Body, digest: str, fault: str) -> Body:
        text, reason = self.text(body, digest), "stop"
        prompt = body.get("prompt") or "".join(message["content"] for message in body.get("messages", []))
        usage: Any = {"prompt_tokens": len(prompt) // 4 + 9, "completion_tokens": len(text) // 4 + 1}
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        if fault == "no_usage":
            usage = None
        if fault == "wrong_usage":
            usage = {"prompt_tokens": 10**9, "completion_tokens": -5, "total_tokens": "many"}
        message: Body = {"role": "assistant", "content": text}
        if fault == "refusal":
            message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
        if fault == "null_length":
            message, reason = {"role": "assistant", "content": None}, "length"
        choice = {"index": 0, "text": text} if path.endswith("/v1/completions") else {"index": 0, "message": message}
        choice["finish_reason"] = reason
        # One id for all: a ledger that went by the endpoint's ids would lose replies.
        return {
            "id": "cmpl-0",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }

    # --- files and batches

    def upload(self, wire: _Connection, raw: bytes, kind: str) -> None:
        boundary = re.search(r"boundary=([^;]+)", kind)
        assert boundary is not None
        for part in raw.split(b"--" + boundary[1].strip('"').encode()):
            head, _, content = part.partition(b"\r\n\r\n")
            if b"filename=" in head:
                id_ = f"file-{len(self.files)}"
                self.files[id_] = content.removesuffix(b"\r\n")
                wire.send(200, self.file(id_))

    def file(self, id_: str) -> Body:
        size = len(self.files[id_])
        fixed = {"object": "file", "created_at": 0, "filename": "input.jsonl", "purpose": "batch", "status": "processed"}
        return {"id": id_, "bytes": size, **fixed}

    def batch(self, wire: _Connection, body: Body) -> None:
        id_ = f"batch-{len(self.batches)}"
        fixed = {"object": "batch", "created_at": 0, "completion_window": "24h", "status": "validating"}
        self.batches[id_] = {"id": id_, **body, **fixed, "input_file_id": body["input_file_id"]}
        wire.send(200, self.batches[id_])

    def look(self, wire: _Connection, id_: str) -> None:
        """One look at a batch moves it on: validating, in progress, completed."""
        batch = self.batches[id_]
        if batch["status"] == "in_progress":
            (self.batch_answers or answer_all)(self, batch)
        elif batch["status"] == "validating":
            batch["status"] = "in_progress"
        wire.send(200, batch)


def answer_all(server: FaultServer, batch: Body) -> None:
    """Complete a batch: each line meets the faults that a single request would, as lines of the output or the error file."""
    good, bad = [], []
    for line in server.files[batch["input_file_id"]].splitlines():
        asked = json.loads(line)
        digest = hashlib.sha256(json.dumps(asked["body"], sort_keys=True).encode()).hexdigest()[:24]
        fault = server.fault_for(digest)
        if refused := server.refusal(fault, asked["body"]):
            bad.append(
                {"custom_id": asked["custom_id"], "response": {"status_code": refused[0], "body": {"error": refused[1]}}}
            )
            continue
        if fault in ("hang", "disconnect"):  # expired before its turn
            error = {
                "code": "batch_expired",
                "message": "This request could not be executed before the completion window expired.",
            }
            bad.append({"custom_id": asked["custom_id"], "response": None, "error": error})
            continue
        server.stats.paid[digest] += 1
        body = server.reply(asked["url"], asked["body"], digest, fault)
        good.append({"custom_id": asked["custom_id"], "response": {"status_code": 200, "body": body}, "error": None})
    random.Random(batch["id"]).shuffle(good)  # the order of a batch's output is nobody's promise
    for name, lines in (("output_file_id", good), ("error_file_id", bad)):
        if lines:
            batch[name] = f"file-{len(server.files)}"
            server.files[batch[name]] = "".join(json.dumps(line) + "\n" for line in lines).encode()
    batch["status"] = "completed"


class _Connection(asyncio.Protocol):
    """One kept HTTP/1.1 connection: requests one after the other."""

    def __init__(self, server: FaultServer) -> None:
        self.server = server
        self.buffer = b""
        self.transport: asyncio.Transport | None = None
        self.alive = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.alive = transport, True
        self.server.connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        assert self.transport is not None
        self.server.connections.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            lines = self.buffer[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            length = int(headers.get("content-length", 0))
            if len(self.buffer) < end + 4 + length:
                return
            raw, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            method, path, _ = lines[0].split(" ")
            task = asyncio.get_running_loop().create_task(self.handle(method, path.split("?")[0], headers, raw))
            self.server.tasks.add(task)
            task.add_done_callback(self.server.tasks.discard)

    async def handle(self, method: str, path: str, headers: Mapping[str, str], raw: bytes) -> None:
        server = self.server
        server.stats.requests += 1
        server.active += 1
        server.stats.peak = max(server.stats.peak, server.active)
        try:
            await self.route(method, path, headers, raw)
        finally:
            server.active -= 1

    async def route(self, method: str, path: str, headers: Mapping[str, str], raw: bytes) -> None:
        server, last = self.server, path.rsplit("/", 1)[-1]
        if path == "/stats":
            self.send(200, server.stats.to_json())
        elif path.endswith("completions"):
            await server.complete(self, path, json.loads(raw), headers.get("authorization", ""))
        elif path == "/v1/files":
            server.upload(self, raw, headers["content-type"])
        elif path.endswith("/content"):
            self.send_bytes(200, server.files[path.split("/")[-2]], {})
        elif path == "/v1/batches" and method == "POST":
            server.batch(self, json.loads(raw))
        elif path == "/v1/batches":
            self.send(200, {"object": "list", "data": list(server.batches.values())[::-1], "has_more": False})
        elif path.startswith("/v1/batches/"):
            server.look(self, last)
        else:
            self.send(404, {"error": {"message": f"no such path: {path}"}})

    def send(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        self.send_bytes(status, json.dumps(value).encode(), headers or {})

    def send_bytes(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}content-length: {len(data)}\r\n\r\n"
        if self.alive and self.transport is not None:
            self.transport.write(head.encode("latin-1") + data)

    def spoil(self, fault: str, data: bytes) -> None:
        """Answer, but not as promised."""
        if self.transport is None:
            return
        if fault == "wrong_schema":
            self.send(200, {"result": "fine"})
        elif fault == "cut_json":
            self.send_bytes(200, data[: len(data) // 2], {})
        else:
            if fault == "cut_body":
                head = f"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
                self.transport.write(head.encode() + data[: len(data) // 2])
            self.transport.close()


async def _serve(options: argparse.Namespace) -> None:
    server = FaultServer(faults=json.loads(options.faults), delay=options.delay, in_a_row=options.in_a_row)
    print(await server.start(options.port), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", default="{}", help='JSON, such as {"500": 0.05}')
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--in-a-row", type=int, default=2)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
