"""report.html of a curation: the numbers of the record, changes side by side, nothing in the data obeyed, and a browser shows it whole."""

from __future__ import annotations

import html
import json
import re
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sft.curate.pipeline import curate
from sft.curate.recipe import CurateRecipe
from sft.curate.results import charts
from sft.curate.results.report import REASONS, write_report
from sft.curate.screen import mix_line
from sft.errors import DataError
from tests.browser import BAIT, CHROMIUM, chromium, measured

SCRIPT = "</pre><script>document.title='obeyed'</script><img src=x onerror=\"document.title='obeyed'\">{{ 7*7 }}&lt;"
TURNED = "pay \u202e000,1\u202c now \u2066hidden\u2069 \ud83d שלום עולם مرحبا \u200b."
HUGE = "W" * 5000
EVIL = f"{SCRIPT} {TURNED} {HUGE}"


class Page(HTMLParser):
    """Elements, their attributes, and text outside style sheets and drawings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.marked: list[tuple[str, str]] = []
        self._inside, self._mark = "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._mark = tag if tag in ("del", "ins") else ""
        if tag in ("style", "svg"):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._mark = ""
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.words.append(data)
        if self._mark:
            self.marked.append((self._mark, data))

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def read(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_holds_what_the_record_holds(quickstart: Path) -> None:
    run = json.loads((quickstart / "run.json").read_text(encoding="utf-8"))
    page = read(quickstart)
    wanted = ["72rows read", "23rows and exchanges left out by clean, dedup and split", "4rows held out"]
    wanted += ["51rows to train on, copies by weight included", "characters in the 55 rows behind split"]
    wanted += ["clean721755", "dedup55649", "split49055"]
    wanted += ["sourcereadbehind cleanbehind dedupbehind splitheld outto train on talks72554955451"]
    wanted += ["html clean17", "role_repair clean3", "same_id_renamed dedup1", "split split5"]
    wanted += ["other_language clean3", "near_duplicate dedup3", "it is in de (100% sure)", "Wie lange muss ich Nudeln kochen"]
    wanted += ["2 conversations: near_duplicate 1", "left out (near_duplicate, similarity 0.96)", "The same text."]
    wanted += ["talks: sharegpt_quickstart.jsonl", run["fingerprints"]["sources"][0]["files"][0]["sha256"]]
    wanted += [run["fingerprints"][name] for name in ("rules", "code", "tokenizer", "template")]
    wanted += ["rules[9].keep[0]en", "split.max_length256", "dedup.near.threshold0.8"]
    assert [word for word in wanted if word not in page.text] == []
    totals = run["stages"]["split"]["histograms"]["totals"]
    assert (totals["tokens"], totals["learnt tokens"]) == (6546, 4728)
    assert "6,546tokens in the 55 rows behind split, 72.2% of them learnt" in page.text
    assert page.tags.count("svg") == page.tags.count("figure") == 8


def test_changes_stand_side_by_side_with_their_words_marked(quickstart: Path) -> None:
    page = read(quickstart)
    assert ("del", "dana.reed@mailbox.org") in page.marked
    assert ("ins", "[EMAIL]") in page.marked
    assert [text for tag, text in page.marked if "assistant: Hello! How can I help you today?" in text] != []
    assert ("del", "child of ") in page.marked  # of a near duplicate
    assert ("ins", "-year-old") in page.marked


def test_the_page_needs_nothing_from_outside(quickstart: Path) -> None:
    text = (quickstart / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert {"script", "link", "img", "iframe", "object", "form", "base"} & set(page.tags) == set()
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    assert [v for name, v in page.attributes if name in ("src", "href", "xlink:href") and not v.startswith("#")] == []
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert "url(http" not in text
    assert "@import" not in text
    assert len(text) < 400_000


def test_the_ids_of_drawings_differ(quickstart: Path) -> None:
    text = (quickstart / "report.html").read_text(encoding="utf-8")
    clips = [re.findall(r'<clipPath id="(\w+)"', svg) for svg in text.split("<svg")[1:]]
    found = [name for names in clips for name in set(names)]
    assert len(found) == len(set(found)) == 8


def test_the_same_record_gives_the_same_page(quickstart: Path, tmp_path: Path) -> None:
    shutil.copy(quickstart / "run.json", tmp_path / "run.json")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert text.replace(tmp_path.name, "run") == (quickstart / "report.html").read_text(encoding="utf-8")


def test_every_rule_stands_there_with_what_it_did_or_that_it_did_nothing(quickstart: Path, tmp_path: Path) -> None:
    wanted = "html170 field01 role_repair31 notice22 empty_turn11 refusal12 vendor_names03 repetition02 broken_list10 language03 pii20"
    assert f"{wanted} min_length01" in read(quickstart).text
    run = json.loads((quickstart / "run.json").read_text(encoding="utf-8"))
    run["recipe"]["rules"] += [{"kind": "model"}, {"kind": "field"}, {"kind": "single_round"}]
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    write_report(tmp_path)
    text = read(tmp_path).text
    assert "field, 2 rules together01 role_repair31" in text
    assert text.count("modeldid nothing single_rounddid nothing") == 1  # no_exchange counts for role_repair, which comes first


def test_the_reasons_of_every_rule_are_those_of_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "curate_rules.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## `(\w+)`\n(.*?)(?=^## )", page, re.M | re.S)
    told = {
        kind: {r for drops in re.findall(r"Drops?: (.*?)\.(?:\s|$)", text, re.S) for r in re.findall(r"`(\w+)`", drops)}
        - {"drop_chat"}
        for kind, text in sections
    }
    assert {kind: set(reasons) for kind, reasons in REASONS.items()} == {"html": set(), **told}


def test_sources_are_followed_to_the_end(tmp_path: Path) -> None:
    def rows(name: str, count: int) -> str:
        talks = (
            [{"from": "human", "value": f"{name} {i}?"}, {"from": "gpt", "value": f"It is {name} {i}."}] for i in range(count)
        )
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"conversations": talk}) + "\n" for talk in talks), encoding="utf-8")
        return str(path)

    values = {
        "sources": [{"path": rows("ash", 6), "name": "ash", "weight": 2.0}, {"path": rows("oak", 5), "name": "oak"}],
        "rules": [{"kind": "language", "keep": ["en"]}],
        "dedup": {"near": None},
        "identity": {"name": "Ada", "organisation": "the Lab", "languages": ["en"]},
        "mix": {"limits": {"oak": 2}},
        "output": {"dir": str(tmp_path / "run"), "workers": 1, "rows_per_part": 4},
    }
    curate(CurateRecipe.model_validate(values, strict=False), progress=False)
    write_report(tmp_path / "run")
    text = read(tmp_path / "run").text
    made = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["mixed"]["identity"]["written"]
    assert "sourcereadbehind cleanbehind dedupwithin its limitheld outto train on ash666" + "6012" in text
    assert f"oak555202 identity–––{made}0{made} all111111{made + 8}0{made + 14}" in text
    assert "identity joins behind the other stages." in text
    assert "languagedid nothing" in text
    assert "Left out limit mix3 Up to 4 examples" in text


def test_rows_that_a_weight_leaves_out_are_counted(quickstart: Path, tmp_path: Path) -> None:
    run = json.loads((quickstart / "run.json").read_text(encoding="utf-8"))
    run["mixed"]["talks"] |= {"by_weight": 20, "written": 31}
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    write_report(tmp_path)
    text = read(tmp_path).text
    assert "behind splitheld outleft out by weightto train on talks7255495542031" in text
    assert "near_duplicate dedup3" in text
    assert "weight mix20" in text
    assert mix_line(run["mixed"]["talks"]) == "55 rows, 4 held out, 20 left out by its weight, 31 to train on"


def test_changes_without_a_text_to_show_say_what_they_are(quickstart: Path) -> None:
    text = read(quickstart).text
    assert "same_id_renamed dedup1 Another conversation has the same id; this one's got an ending made of its content" in text
    assert (
        "split split5 Longer than split.max_length: cut between exchanges into rows called id#0, id#2, ... No text changed."
        in text
    )
    assert "exchange_too_long_kept split1 One exchange is longer than split.max_length by itself." in text


def test_a_record_without_sources_gives_a_page_without_their_table(quickstart: Path, tmp_path: Path) -> None:
    run = json.loads((quickstart / "run.json").read_text(encoding="utf-8"))
    for stage in run["stages"].values():
        del stage["sources"]
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    write_report(tmp_path)
    assert "Rows by source" not in read(tmp_path).text


# --- hostile rows -------------------------------------------------------------------------------------------------------


def evil_row(i: int, *turns: str, **extra: Any) -> dict[str, Any]:
    who = ("human", "gpt")
    talk = [{"from": who[k % 2], "value": text} for k, text in enumerate(turns)]
    return {"id": f"{SCRIPT}{TURNED}{i}", "conversations": talk, **extra}


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curation of rows whose every text wants to be markup: changed, left out, and near duplicates of each other."""
    base = tmp_path_factory.mktemp("evil")
    rows = [
        evil_row(0, f"My mail is {SCRIPT} dana@mailbox.org {TURNED}", EVIL, SCRIPT),
        evil_row(1, f"{EVIL} one two three four five", f"{EVIL} six seven eight nine ten"),
        evil_row(2, f"{EVIL} one two three four fife", f"{EVIL} six seven eight nine ten"),
        evil_row(3, SCRIPT, TURNED, plugins=[EVIL]),
        {"conversations": [{"from": SCRIPT, "value": "x"}]},
    ]
    (base / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "sources": [{"path": str(base / "a.jsonl"), "name": f"{SCRIPT}{TURNED}"}],
        "rules": [
            {"kind": "role_repair"},
            {"kind": "field", "field": "plugins", "present": "drop"},
            {"kind": "pii"},
            {"kind": "notice", "also": [SCRIPT + "never"]},
        ],
        "dedup": {"near": {"threshold": 0.8}},
        "output": {"dir": str(base / "<b>run"), "workers": 1},
    }
    curate(CurateRecipe.model_validate(values, strict=False), progress=False)
    write_report(base / "<b>run")
    return base / "<b>run"


def test_everything_from_data_is_text(quickstart: Path, evil: Path) -> None:
    run = json.loads((evil / "run.json").read_text(encoding="utf-8"))
    assert {name: stage["counts"] for name, stage in run["stages"].items()} == {
        "clean": {"field_set": 1, "unknown_role": 1},
        "signatures": {},
        "dedup": {"near_duplicate": 1},
    }
    assert run["stages"]["clean"]["changed"] == {"pii": 1, "role_repair": 1}
    text = (evil / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert set(page.tags) <= set(read(quickstart).tags)
    assert "{{ 7*7 }}" in page.text
    assert page.text.count("document.title") >= 12
    assert "<b>run" not in text
    assert html.escape("<b>run") in text
    assert re.search("[\u200b-\u200f\u202a-\u202e\u2066-\u2069]", text) is None
    for spelled in (r"pay \u202e000,1\u202c now", r"\u2066hidden\u2069", r"\ud83d", "שלום עולם مرحبا"):
        assert spelled in page.text


def test_stages_that_were_not_asked_for_are_not_on_the_page(evil: Path) -> None:
    page = read(evil)
    assert "Tokens per character" not in page.text
    assert page.tags.count("figure") == 5


def test_a_curation_that_changes_nothing_says_so(tmp_path: Path) -> None:
    row = {"id": "a", "conversations": [{"from": "human", "value": "Hello there"}, {"from": "gpt", "value": "Hello to you."}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    values = {"sources": [{"path": str(tmp_path / "a.jsonl")}], "output": {"dir": str(tmp_path / "run"), "workers": 1}}
    curate(CurateRecipe.model_validate(values, strict=False), progress=False)
    write_report(tmp_path / "run")
    text = read(tmp_path / "run").text
    assert "Nothing: every row that stays is as it came." in text
    assert "Nothing. Everything that was read is in the rows." in text


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run\.json here; give the directory that sft data run wrote"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text('{"identity": {}}', encoding="utf-8")
    with pytest.raises(DataError, match=r"run\.json: not the record of a curation"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"run\.json: cannot be read: .*; run the curation again"):
        write_report(tmp_path)


# --- charts -------------------------------------------------------------------------------------------------------------


def test_columns_beyond_the_last_are_counted_in_it() -> None:
    counts = {"2": 5, "4": 1, "26": 1, "27": 2, "900": 4}
    svg = charts.columns("Turns", "messages", "conversations", counts).svg
    assert "26+</text>" in svg
    assert "900" not in svg


def test_charts_of_large_numbers_are_drawn_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = [("before", {"0": 1, "1073741824": 10**9}), ("after", {"3": 2})]
        svg = charts.ranges("Length", "characters", "conversations", both, mark=2048).svg
        assert svg == charts.ranges("Length", "characters", "conversations", both, mark=2048).svg
        charts.bars("Languages", "conversations", [(code, 10.0**i) for i, code in enumerate("abcdefg")])
    assert "2,048 characters" in svg
    assert "1G</text>" in svg


# --- in a browser -------------------------------------------------------------------------------------------------------

MEASURE = """<script>addEventListener("load", () => {
  const root = document.documentElement, wide = [...document.querySelectorAll("body *")].filter(
    e => !e.closest("svg") && !e.closest(".scroll > *") && e.getBoundingClientRect().right > root.clientWidth + 1).length;
  const flat = [...document.querySelectorAll("figure svg")].filter(e => e.getBoundingClientRect().height < 80).length;
  const hidden = [...document.querySelectorAll("td, th, small, b, span")].filter(e => e.getBoundingClientRect().width === 0).length;
  const stuck = [...document.querySelectorAll(".scroll")].filter(
    e => e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX !== "auto").length;
  const pairs = [...document.querySelectorAll(".pair")].map(p => [...p.querySelectorAll("pre")].map(e => e.getBoundingClientRect()));
  const beside = pairs.filter(([a, b]) => a.right <= b.left && Math.abs(a.top - b.top) < 2).length;
  const found = {width: root.scrollWidth, client: root.clientWidth, wide, flat, hidden, stuck, pairs: pairs.length, beside};
  parent.postMessage([window.name, document.title, found], "*"); })</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="NOT TESTED: report.html of a curation in a browser; install chromium")
def test_a_browser_shows_it_whole_and_obeys_nothing(quickstart: Path, evil: Path, tmp_path: Path) -> None:
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    pages: dict[str, tuple[str, int]] = {}
    for folder, kind in ((quickstart, "plain"), (evil, "evil")):
        text = (folder / "report.html").read_text(encoding="utf-8")
        open_to_ours = policy.sub("", text).replace("<details>", "<details open>").replace("</html>", f"{MEASURE}</html>")
        pages |= {f"{kind}{width}": (open_to_ours, width) for width in (1280, 400)}
        # a planted script does not run under the page's own policy; the control: without it, it does
        pages[f"{kind}shut"] = (text.replace("</html>", f"{BAIT}</html>"), 400)
    pages["control"] = (f"<!doctype html><title>x</title>{BAIT}", 400)
    seen = measured(pages, tmp_path)
    assert set(seen) == {"plain1280", "plain400", "evil1280", "evil400", "control"}
    assert seen.pop("control") == ("obeyed", None)
    for name, (title, found) in seen.items():
        assert title == ("run" if name.startswith("plain") else "<b>run")
        assert found is not None
        assert [found[fault] for fault in ("wide", "flat", "hidden", "stuck")] == [0, 0, 0, 0], name
        assert found["width"] <= found["client"] == int(name.removeprefix("plain").removeprefix("evil"))
        assert found["pairs"] > 1
        assert found["beside"] == (found["pairs"] if name.endswith("1280") else 0)


@pytest.mark.skipif(CHROMIUM is None, reason="NOT TESTED: the screenshot of a curation's report; install chromium")
def test_a_screenshot_is_drawn(quickstart: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    shot = tmp_path / "shot.png"
    chromium("--window-size=1280,2400", f"--screenshot={shot}", (quickstart / "report.html").as_uri(), home=tmp_path)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (2400, 1280, 3)
    assert float((abs(pixels - pixels[2, 2]).max(axis=2) > 40).mean()) > 0.02
    assert int((abs(pixels - (76, 120, 168)).max(axis=2) < 30).sum()) > 20_000  # bars of the funnel and the charts
