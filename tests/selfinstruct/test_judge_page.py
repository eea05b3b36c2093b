"""The page of a judgment: all of it is shown, filtered and drawn, and nothing in it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from selfinstruct.judge.report import outcome
from tests.browser import BAIT, CHROMIUM, measured
from tests.selfinstruct.recorded_judge import a_recipe, fair, record, run

MEASURE = """<script>addEventListener("load", () => {
  const root = document.documentElement, shown = () => [...document.querySelectorAll(".game")].filter(e => e.offsetHeight > 0).length;
  const found = {width: root.scrollWidth, client: root.clientWidth, all: shown()};
  for (const name of ["win", "loss", "tie", "torn", "unread"]) { document.getElementById("only-" + name).click(); found[name] = shown(); }
  found.charts = Math.min(...[...document.querySelectorAll("figure svg")].map(e => e.getBoundingClientRect().width));
  found.span = Math.round(document.querySelector(".span i").getBoundingClientRect().width);
  parent.postMessage([window.name, document.title, found], "*"); })</script>"""


def test_the_page_shows_every_judgment_and_runs_nothing(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, ("good", "bad"))
    evil = tmp_path / "bad.jsonl"
    evil.write_text(
        evil.read_text(encoding="utf-8").replace("bad on 1.1", "<script>alert(1)</script> & {{ 7 * 7 }}"), encoding="utf-8"
    )
    record(
        recipe,
        lambda ask, attempt: (
            "[[A]]" if ask.question.id == 3 else fair(ask, attempt) + " <b>sure</b> [[" + fair(ask, 0)[-3] + "]]"
        ),
    )
    screen, found = run(recipe)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"report: {tmp_path / 'run' / 'report.html'}" in screen
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; {{ 7 * 7 }}" in page
    assert "&lt;b&gt;sure&lt;/b&gt;" in page
    assert "default-src &#39;none&#39;" not in page
    assert "default-src 'none'" in page
    assert [outcome(line) for line in found] == ["win", "win", "win", "torn"]
    assert page.count('class="game win"') == 3
    assert page.count('class="game torn"') == 1
    assert "bad against good: 16.7%" in page
    for text in ("How are you?", "Times two?", "good on 2.2", "bad on 3.1", "generic", "math"):
        assert text in page


@pytest.mark.skipif(CHROMIUM is None, reason="NOT TESTED: the page of a judgment in a browser; install chromium")
def test_a_browser_filters_it_and_obeys_nothing(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, retries=0)
    recipe = recipe.model_copy(update={"output": recipe.output.model_copy(update={"charts": True})})
    evil = tmp_path / "bad.jsonl"
    evil.write_text(
        evil.read_text(encoding="utf-8").replace("bad on 1.1", BAIT.replace('"', "'") + "W" * 3000), encoding="utf-8"
    )
    says = {1: None, 2: "[[A]]", 3: "nothing"}
    record(recipe, lambda ask, attempt: says[int(ask.question.id)] or fair(ask, 0))
    run(recipe)
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    ours = policy.sub("", text).replace("<details>", "<details open>").replace("</html>", f"{MEASURE}</html>")
    pages = {"wide": (ours, 1280), "narrow": (ours, 400), "shut": (text.replace("</html>", f"{BAIT}</html>"), 400)}
    pages["control"] = (f"<!doctype html><title>x</title>{BAIT}", 400)
    seen = measured(pages, tmp_path)
    assert set(seen) == {"wide", "narrow", "control"}  # of the shut page no script ran, of the control one did
    for name, width in (("wide", 1280), ("narrow", 400)):
        title, found = seen[name]
        assert title == "Judgment: good, bad, ugly"
        assert found is not None
        assert found["width"] <= found["client"] == width
        assert [found[key] for key in ("all", "win", "loss", "tie", "torn", "unread")] == [12, 2, 1, 0, 6, 3]
        assert found["span"] > 20
        assert found["charts"] > 300  # of points: what is drawn at 9 stays readable on a phone


def test_charts_stand_in_the_page_and_beside_it(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path)
    drawn = recipe.model_copy(update={"output": recipe.output.model_copy(update={"charts": True})})
    record(drawn, fair)
    run(drawn)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    names = ["bars_win_rate.png", "radar_win_rate.png"]
    assert sorted(path.name for path in (tmp_path / "run" / "charts").iterdir()) == names
    assert page.count("<svg") == page.count('<figure role="img" aria-label="') == 2
    assert 'aria-label="Bars. Win rate by category. good: generic 100%' in page
    assert not re.search(r'(src|href)="(?!#)', page)  # nothing is loaded
    found = json.loads((tmp_path / "run" / "standings.json").read_text(encoding="utf-8"))
    assert {(row["category"], row["questions"]) for row in found["categories"]} == {("generic", 1), ("math", 1), ("writing", 1)}
    assert [(row["ours"], row["theirs"], row["turn"], row["wins"]) for row in found["turns"]][-2:] == [
        ("good", "ugly", 1, 3),
        ("good", "ugly", 2, 1),
    ]
    assert found["pairs"][0]["length_controlled"] is None  # "good" is one character longer than "bad" everywhere
    lines = [json.loads(line) for line in (tmp_path / "run" / "judgments.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(one["model_1"], one["length_1"], one["model_2"], one["length_2"]) for one in lines[:3]} == {
        ("good", 11, "bad", 10),
        ("good", 11, "ugly", 11),
        ("bad", 10, "ugly", 11),
    }
