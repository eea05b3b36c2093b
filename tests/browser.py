"""Pages in a real browser, where one is installed: what a script of ours measures, and whether one of somebody else's would run."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BAIT = """<script>parent.postMessage([window.name, "obeyed", null], "*")</script>"""
# Pages in frames of the width that is wanted, since a window is never narrower than 500 pixels; each tells what it measured.
FRAMES = """<!doctype html><i id=found></i>{frames}<script>const found = [];
  addEventListener("message", event => {{ found.push(event.data);
    document.getElementById("found").textContent = JSON.stringify(found); }})</script>"""


def chromium(*arguments: str, home: Path) -> str:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={home / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode()


def measured(pages: dict[str, tuple[str, int]], home: Path) -> dict[str, tuple[str, dict[str, int] | None]]:
    """What a browser says of each page (its text, and the width of its frame): title and measures, if a script of it ran at all."""
    frames = ""
    for name, (text, width) in pages.items():
        (home / f"{name}.html").write_text(text, encoding="utf-8")
        frames += f'<iframe name={name} src="{name}.html" style="width: {width}px; height: 900px; border: 0"></iframe>'
    (home / "frames.html").write_text(FRAMES.format(frames=frames), encoding="utf-8")
    shown = chromium("--virtual-time-budget=5000", "--dump-dom", (home / "frames.html").as_uri(), home=home)
    match = re.search(r'<i id="found">(.*?)</i>', shown, re.S)
    assert match is not None, shown[-500:]
    return {name: (title, found) for name, title, found in json.loads(html.unescape(match[1]))}
