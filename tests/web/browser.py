"""The page as a person uses it: ``sft web`` as a process of its own, and Chromium driven by Playwright."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.browser import CHROMIUM

ROOT = Path(__file__).resolve().parents[2]


class Site:
    """``sft web`` on a free port, which starts while the caller goes on.

    Attributes:
        folder: holds the files, ``votes.jsonl`` and ``saved.jsonl``, and ``web.log``.
    """

    def __init__(self, servers: list[str], folder: Path, *more: str, key: str | None = None) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "sft", "web", "--port", "0", *(part for url in servers for part in ("--server", url))]
        command += ["--votes", str(folder / "votes.jsonl"), "--saved", str(folder / "saved.jsonl"), *more]
        environment = {name: value for name, value in os.environ.items() if name != "VICUGNA_API_KEY"} | {
            "PYTHONPATH": str(ROOT)
        }
        if key is not None:
            environment["VICUGNA_API_KEY"] = key
        with (folder / "web.log").open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=environment
            )

    @cached_property
    def url(self) -> str:
        """Its address, once it listens."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("http://"), self.log
        return line.split()[0]

    @property
    def log(self) -> str:
        return (self.folder / "web.log").read_text(encoding="utf-8")

    def close(self) -> int:
        """Stop it as Ctrl-C does. Returns the exit status."""
        self._process.send_signal(signal.SIGINT)
        status = self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return status


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser that knows no host but this one: a context, whose pages share their cache."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser.new_context(locale="en-US")
        browser.close()


class Seen:
    """One page, and everything that it asked for or complained about.

    Attributes:
        requests: addresses that were asked for.
        blocked: those that the page's own policy kept from being asked for.
        errors: uncaught errors of scripts.
    """

    def __init__(self, context: Any, url: str, *, width: int = 1200, height: int = 900) -> None:
        self.url = url
        self.page = context.new_page()
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.set_default_timeout(8000)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.blocked: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", self._failed)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.open()

    def open(self) -> None:
        """Load the page, which forgets what was on it."""
        self.requests.clear()
        self.blocked.clear()
        self.page.goto(self.url)
        self.page.wait_for_selector("#chat-typed textarea")

    def _failed(self, request: Any) -> None:
        if request.failure == "csp":
            self.blocked.append(request.url)
            self.requests.remove(request.url)

    def close(self) -> None:
        self.page.close()

    def ready(self, model: str) -> None:
        """Wait until the models are there."""
        self.wait("(name) => document.querySelector('#chat-model input').value === name", model)

    def tab(self, label: str) -> None:
        """Go to another tab, and take the time that a hand takes from there to the keys."""
        self.page.click(f"button[role=tab]:has-text('{label}')")
        self.page.wait_for_timeout(400)

    def wait(self, condition: str, argument: Any = None) -> None:
        self.page.wait_for_function(condition, arg=argument)

    def type(self, text: str, tab: str = "chat") -> None:
        self.page.fill(f"#{tab}-typed textarea", text)

    def typed(self, tab: str = "chat") -> str:
        return str(self.page.input_value(f"#{tab}-typed textarea"))

    def send(self, text: str, tab: str = "chat") -> None:
        self.type(text, tab)
        self.page.press(f"#{tab}-typed textarea", "Enter")

    def press(self, name: str, tab: str = "chat") -> None:
        self.page.click(f"#{tab}-{name}")

    def enabled(self, name: str, tab: str = "chat") -> bool:
        return bool(self.page.is_enabled(f"#{tab}-{name}"))

    def idle(self, tab: str = "chat", after: int = 0) -> None:
        """Wait until nothing is being written; from so many milliseconds on, where nothing else shows that it has begun."""
        self.page.wait_for_timeout(after)
        self.wait(
            "(tab) => document.querySelector(`#${tab}-stop`).disabled && !document.querySelector(`#${tab}-send`).disabled", tab
        )

    def shows(self, text: str, box: str = "chat-box-0") -> None:
        self.wait("([box, text]) => document.getElementById(box).innerText.includes(text)", [box, text])

    def text(self, box: str = "chat-box-0") -> str:
        return str(self.page.inner_text(f"#{box}"))

    def notice(self, part: str, tab: str = "chat") -> None:
        """Wait until the notice holds a text."""
        self.wait(
            "([tab, part]) => (document.querySelector(`#${tab}-notice textarea`)?.value ?? '').includes(part)", [tab, part]
        )

    def messages(self, box: str = "chat-box-0") -> list[str]:
        """The texts in a chat box, questions and answers in turn."""
        return [text.strip() for text in self.page.locator(f"#{box} .message .prose, #{box} .message .md").all_inner_texts()]

    def edit(self, place: int, text: str) -> None:
        """Put other words in the place of a question or an answer, by its pencil."""
        self.page.locator("#chat-box-0 [aria-label='Edit']").nth(place).click()
        self.page.locator("#chat-box-0 .message textarea").fill(text)
        self.page.locator("#chat-box-0 [aria-label='Submit']").click()
