"""report.html: everything in the records is on the page, nothing in them is obeyed by it, and a browser shows it whole."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sft.engine.metrics import read_metrics
from sft.run.report import duration, smooth, write_report
from sft.train import run
from tests.runs import tiny_recipe

EVIL = "</pre><script>document.title='obeyed'</script><img src=x onerror=\"document.title='obeyed'\">{{ 7*7 }}&lt;"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run with held-out rows, samples and a merged model."""
    folder = tmp_path_factory.mktemp("report") / "run"
    recipe = tiny_recipe(
        folder, data__holdout=4, output__merge=True, output__eval_every=2, data__max_length=28, data__max_drop_share=0.9
    )
    run(recipe.model_copy(update={"output": recipe.output.model_copy(update={"sample_prompts": ("Hi",), "sample_tokens": 4})}))
    return folder


def edited(finished: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the records of a run with some changed."""
    folder.mkdir(parents=True)
    record = json.loads((finished / "run.json").read_text()) | changes
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    shutil.copy(finished / "metrics.jsonl", folder)
    return folder


class Page(HTMLParser):
    """Elements, and visible text outside style sheets and drawings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            f"{tag} {name}={value}" for name, value in attributes if name in ("src", "href", "action", "onerror", "onload")
        ]
        if tag in ("style", "svg"):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_holds_what_the_records_hold(finished: Path) -> None:
    page = Page((finished / "report.html").read_text(encoding="utf-8"))
    record = json.loads((finished / "run.json").read_text())
    evals = [line["eval"] for line in read_metrics(finished / "metrics.jsonl") if "eval" in line]
    wanted = ["Loss per learnt token", "Throughput", "Gradient norm", "Learning rate", "Peak memory", "Time waiting for data"]
    wanted += [f"{evals[0]['loss']:.4f} before", f"{evals[-1]['loss']:.4f}", "documents apart", "export check", "Hi"]
    wanted += [f"{evals[-1]['tokens']:,}", f"{evals[-1]['loss'] - evals[0]['loss']:+.4f}"]
    wanted += [record["identity"][name] for name in ("data", "template", "tokenizer")]
    wanted += [*record["identity"]["files"].values(), *record["versions"].values(), *record["repairs"]]
    wanted += [f"{reason} (kept) {count}" for reason, count in record["data"]["drops"]["changed"].items()]
    wanted += list(record["identity"]["recipe"])
    assert record["data"]["drops"]["changed"]
    assert [word for word in wanted if word not in page.text] == []
    assert page.tags.count("svg") == page.tags.count("figure") == 6


def test_the_page_needs_nothing_from_outside(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert {"script", "link", "img", "iframe", "object", "form"} & set(page.tags) == set()
    assert [link for link in page.links if not re.fullmatch(r"use (xlink:)?href=#\w+", link)] == []
    assert "url(http" not in text
    assert "@import" not in text


def evil_run(finished: Path, folder: Path) -> Path:
    record = json.loads((finished / "run.json").read_text())
    drops = {"counts": {"empty_answer": 2}, "changed": {EVIL: 1}, "examples": {"empty_answer": [[EVIL, EVIL]]}}
    return edited(
        finished,
        folder,
        samples=[{"prompt": EVIL, "before": EVIL, "after": "\n \n"}],
        data=record["data"] | {"drops": drops},
        repairs=[EVIL],
        merge=EVIL,
        versions={EVIL: EVIL},
        plan=record["plan"] | {"equation": EVIL},
        serving=record["serving"] | {"template": EVIL, "stop_strings": [EVIL]},
        identity=record["identity"] | {"recipe": {EVIL: EVIL, "model.name_or_path": EVIL}, "files": {EVIL: EVIL}},
    )


def test_everything_from_data_is_text(finished: Path, tmp_path: Path) -> None:
    plain = (finished / "report.html").read_text(encoding="utf-8")
    text = write_report(evil_run(finished, tmp_path / "<b>run")).read_text(encoding="utf-8")
    page = Page(text)
    assert set(page.tags) <= set(Page(plain).tags) | {"ul", "li"}
    assert "{{ 7*7 }}" in page.text
    assert page.text.count("document.title") >= 2 * 12
    assert "<b>run" not in text
    assert html.escape("<b>run") in text
    assert "(nothing to see: 3 characters, all blank)" in page.text


def test_a_run_without_steps_or_held_out_rows_has_a_page(finished: Path, tmp_path: Path) -> None:
    folder = edited(finished, tmp_path / "run", samples=[])
    (folder / "metrics.jsonl").write_text("", encoding="utf-8")
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "No step was logged." in page.text
    assert "Held-out loss by source" not in page.text
    assert "Before and after" not in page.text


def test_many_steps_are_smoothed(finished: Path, tmp_path: Path) -> None:
    folder = edited(finished, tmp_path / "run")
    line = next(line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line)
    text = "".join(json.dumps(line | {"step": i + 1, "loss": 2 + i % 2}) + "\n" for i in range(5_000))
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    page = write_report(folder).read_text(encoding="utf-8")
    assert len(page) < 1_500_000
    assert smooth([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


def test_durations_are_readable() -> None:
    assert [duration(s) for s in (0.4, 75, 725, 12_000, 400_000)] == ["0 s", "75 s", "12 min 5 s", "3 h 20 min", "111 h 6 min"]


# -- in a browser ---------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<script>addEventListener("load", () => {
  const root = document.documentElement, wide = [...document.querySelectorAll("body *")].filter(
    e => !e.closest("svg") && e.getBoundingClientRect().right > root.clientWidth + 1).length;
  const flat = [...document.querySelectorAll("figure svg")].filter(e => e.getBoundingClientRect().height < 80).length;
  const found = {title: document.title, width: root.scrollWidth, client: root.clientWidth, height: root.scrollHeight, wide, flat};
  document.body.innerHTML = "<i id=found>" + JSON.stringify(found) + "</i>"; })</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="NOT TESTED: report.html in a browser; install chromium")
@pytest.mark.parametrize("width", [1200, 520])
def test_a_browser_shows_it_whole_and_obeys_nothing(finished: Path, tmp_path: Path, width: int) -> None:
    page = write_report(evil_run(finished, tmp_path / "records" / "run"))
    long = "\n".join(["line"] * 500) + "x" * 2000
    both = edited(finished, tmp_path / "more" / "run", samples=[{"prompt": "p" * 500, "before": long, "after": long}])
    for name, path in (("run", page), ("run", write_report(both))):
        probe = path.with_name("probe.html")
        probe.write_text(path.read_text(encoding="utf-8").replace("</html>", f"{MEASURE}</html>"), encoding="utf-8")
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
        command += [f"--window-size={width},900", "--virtual-time-budget=2000", probe.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        match = re.search(r'<i id="found">(.*?)</i>', shown)
        assert match is not None, shown[-500:]
        found = json.loads(html.unescape(match[1]))
        assert found["title"] == name
        assert (found["wide"], found["flat"]) == (0, 0)
        assert found["width"] <= found["client"]
        assert found["height"] < 8000
