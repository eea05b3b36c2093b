"""An OpenAI-compatible server that answers what a test wants, for real clients over a real socket."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EVIL = (
    "before <script>window.owned = 1</script> <img src=x onerror='window.owned = 2'> <svg onload='window.owned = 3'></svg>\n\n"
    "![pixel](http://outside.invalid/pixel.png) [click](javascript:window.owned=4) <iframe srcdoc='<script>parent.owned=5</script>'></iframe>"
    "\n\n```\nif (a <b) { x<y>(1) }\n```\n\nafter"
)
INDENTED = "    four spaces\n\tand a tab\n\n  end "


class Stub:
    """The server and what it saw.

    What it answers is told by the start of the last question: ``hold`` writes one word, and the rest once :attr:`released` is set;
    ``overflow``, ``busy``, ``wrong`` are refused with 400, 429 and 500, ``break`` ends without an end, ``long`` is cut at max_tokens,
    ``evil`` and ``indented`` are the texts above; anything else is ``MODEL says: QUESTION``.

    Attributes:
        asked: bodies of requests for answers, in order.
        left: questions whose client hung up before the end.
    """

    def __init__(self, models: tuple[str, ...], key: str | None = None) -> None:
        self.models, self.key = models, key
        self.asked: list[dict[str, Any]] = []
        self.left: list[str] = []
        self.hung_up = threading.Event()
        self.released = threading.Event()
        stub = self

        class Handler(_Handler):
            server_of = stub

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """Begin again for the next test."""
        self.asked.clear()
        self.left.clear()
        self.hung_up.clear()
        self.released.clear()

    def wait_for(self, count: int) -> None:
        """Wait until so many answers were asked for."""
        end = time.monotonic() + 8
        while len(self.asked) < count:
            assert time.monotonic() < end, f"{len(self.asked)} of {count} requests came"
            time.sleep(0.01)

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_of: Stub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _json(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")  # or a closed server would go on answering on what is open
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, message: str) -> None:
        self._json(status, {"error": {"message": message, "type": "error", "code": status}})

    def _welcome(self) -> bool:
        key = self.server_of.key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return True
        self._error(401, f"wrong key: {self.headers['Authorization']}")
        return False

    def do_GET(self) -> None:
        if self._welcome():
            self._json(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.server_of.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._welcome():
            return
        self.server_of.asked.append(body)
        question = body["messages"][-1]["content"]
        refusals = {
            "overflow": (400, "This model's maximum context length is 64 tokens, the messages are 70"),
            "busy": (429, "too many requests"),
            "wrong": (500, f"{body['model']} has a fault"),
        }
        for start, refusal in refusals.items():
            if question.startswith(start):
                self._error(*refusal)
                return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self._stream(body["model"], question)
        except OSError:
            self.server_of.left.append(question)
            self.server_of.hung_up.set()

    def _stream(self, model: str, question: str) -> None:
        words = {"evil": EVIL, "indented": INDENTED}.get(question.split()[0], f"{model} says: {question}")
        half = len(words) // 2
        self._chunk({"role": "assistant", "content": words[:half]})
        if question.startswith("break"):
            return
        if question.startswith("hold"):
            while not self.server_of.released.wait(0.02):
                self.wfile.write(b": still here\n\n")
        self._chunk({"content": words[half:]})
        self._chunk({}, "length" if question.startswith("long") else "stop")
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunk(self, delta: dict[str, str], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self.wfile.write(
            f"data: {json.dumps({'id': 'x', 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n".encode()
        )
