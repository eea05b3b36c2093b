"""The report: numbers equal to the files', a page that a browser draws, and nothing in the data that it runs."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from selfinstruct.results import plots
from selfinstruct.results.report import find_roots, nearest_seed, write_report
from selfinstruct.results.rundir import read_run
from tests.selfinstruct.finished import KEPT, SEEDS, write_run

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))), None
)
FIGURES = {"funnel", "instruction_length", "input_length", "output_length", "nearest_seed", "roots"}


class _Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with its report, to look at and not to touch."""
    run = write_run(tmp_path_factory.mktemp("report") / "run")
    write_report(run)
    return run


def test_numbers_are_those_of_the_files(reported: Path) -> None:
    run, page = reported, reported / "report.html"
    numbers = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert (numbers["rows"], numbers["accepted"], numbers["candidates"], numbers["pieces"]) == (4, 4, 8, 10)
    assert numbers["yield"] == 0.4
    assert [step["left"] for step in numbers["funnel"]] == [8, 7, 7, 5, 4]
    assert numbers["roots"]["found"] == 3  # the fourth is a question
    assert numbers["length"]["input"] == {"mean": 3, "median": 3, "p95": 3}
    text = _Page(page.read_text(encoding="utf-8")).text
    for line in (
        "40.0%: 4 accepted of 10 pieces",
        "2, 1 of them paid for in this run",
        "0.5 USD of at most 2; 125 per 1,000 rows",
    ):
        assert line in text
    assert "nearest “Name three rivers of Asia.”, score 0.8" in text


def test_the_page_holds_no_script_and_reaches_for_nothing(reported: Path) -> None:
    html = (reported / "report.html").read_text(encoding="utf-8")
    page = _Page(html)
    assert not {"script", "img", "iframe", "object", "embed", "link", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [value for name, value in page.attributes if name in {"src", "href", "xlink:href"} and not value.startswith("#")]
    assert "default-src 'none'; style-src 'unsafe-inline'" in html
    assert KEPT[0][0] in page.text  # whole, as text
    assert KEPT[0][2] in page.text
    assert "They sleep. They purr.\\u001b[31m" in page.text


def test_equal_runs_give_equal_pages(reported: Path, tmp_path: Path) -> None:
    again = write_run(tmp_path / "run")
    page = write_report(again)
    assert page == again / "report.html"
    assert page.read_bytes() == (reported / "report.html").read_bytes()
    pictures = {path.name: path.read_bytes() for path in (reported / "plots").iterdir()}
    assert {path.name: path.read_bytes() for path in (again / "plots").iterdir()} == pictures
    assert {Path(name).stem for name in pictures} == FIGURES
    assert all(png.startswith(b"\x89PNG") for png in pictures.values())


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", kept=[])
    text = _Page(write_report(run).read_text(encoding="utf-8")).text
    assert "0 of 4 wanted" in text
    assert {path.stem for path in (run / "plots").iterdir()} == {"funnel"}


def test_bare_facts_are_enough(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "run.json").write_text("{}", encoding="utf-8")
    page = _Page(write_report(run).read_text(encoding="utf-8"))
    assert "not recorded" in page.text
    assert not (run / "plots" / "nearest_seed.png").exists()


def test_names_that_look_like_mathematics_or_markup_are_drawn_as_they_are() -> None:
    figure = plots.funnel([("$\\frac{<b>$", 3, 1), ("novelty", 2, 1)])
    assert "$\\frac{&lt;b&gt;$" in figure.svg()


def test_nearest_seed_is_rouge_l(tmp_path: Path) -> None:
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    run = read_run(write_run(tmp_path / "run"))
    wanted = [max(scorer.score(seed, row.instruction)["rougeL"].fmeasure for seed in SEEDS) for row in run.rows]
    assert nearest_seed(run) == pytest.approx(wanted, abs=1e-12)


def test_chinese_rows_get_chinese_rules_and_a_chinese_figure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = [("请写一首关于春天的诗。", "", "春风又绿江南岸。"), ("列出五种常见的水果。", "", "苹果、梨、桃、李、杏。")]
    run = write_run(tmp_path / "run", kept=kept, changes={"language": "zh"})
    roots = find_roots([instruction for instruction, _, _ in kept])
    assert roots.language == "zh"
    assert roots.pairs == {("写", "诗"): 1, ("列出", "水果"): 1}
    with caplog.at_level(logging.WARNING):
        html = write_report(run).read_text(encoding="utf-8")
    assert "水果</text>" in html
    # without a Chinese font the PNG has boxes, and a log line says so
    assert ("roots.png" in caplog.text) == (not plots.cjk_fonts())


def test_reading_a_run_leaves_matplotlib_and_torch_alone() -> None:
    code = "import sys, selfinstruct.results.report, selfinstruct.results.review, selfinstruct.results.export as _; "
    code += "print({'matplotlib', 'torch', 'jinja2', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH: the page was not looked at"
)
def test_a_browser_draws_the_page_and_runs_nothing(reported: Path, tmp_path: Path) -> None:
    page = reported / "report.html"
    # the control: were the planted script markup, the title would be its own
    bait = tmp_path / "bait.html"
    bait.write_text("<!doctype html><title>small</title><p>x<script>document.title='owned'</script>", encoding="utf-8")
    assert "<title>owned</title>" in _dom(bait, tmp_path)
    dom = _dom(page, tmp_path)
    seen = _Page(dom)
    assert "<title>small</title>" in dom
    assert "script" not in seen.tags
    assert KEPT[0][0] in seen.text
    assert seen.tags.count("svg") == len(FIGURES) - 1  # the funnel is a table
    assert _inked(page, tmp_path / "shot.png") > 0.02


def _chromium(*arguments: str, home: Path) -> bytes:
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={home / 'profile'}",
    ]
    return subprocess.run([*command, *arguments], check=True, capture_output=True, timeout=120).stdout


def _dom(page: Path, home: Path) -> str:
    return _chromium("--dump-dom", page.as_uri(), home=home).decode()


def _inked(page: Path, shot: Path) -> float:
    """The share of pixels of the drawn page that differ from its background."""
    import numpy as np
    from PIL import Image

    _chromium("--window-size=1000,2400", f"--screenshot={shot}", page.as_uri(), home=shot.parent)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (2400, 1000, 3)
    return float((abs(pixels - pixels[2, 2]).max(axis=2) > 40).mean())
