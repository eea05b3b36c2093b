"""Reviews: the candidates that were asked for, the same ones every time, and none of their text obeyed."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from selfinstruct.results.review import Query, review, select
from selfinstruct.results.rundir import Judged, read_run
from sft.errors import InputError
from tests.selfinstruct.finished import FAILURES, KEPT, REFUSED, write_run


def _printed(run: Path, query: Query, html: Path | None = None) -> tuple[int, str]:
    out = io.StringIO()
    shown = review(run, Console(file=out, width=120, force_terminal=True, color_system="standard"), query, html=html)
    return shown, out.getvalue()


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        (Query(kept=True), [f"0-0-{item}" for item in range(len(KEPT))]),
        (Query(kept=False), ["ab", "ab", *(f"0-1-{item}" for item in range(len(REFUSED)))]),
        (Query(filter="novelty"), ["0-1-1", "0-1-2"]),
        (Query(reason="near_duplicate", filter="novelty", kept=False), ["0-1-1", "0-1-2"]),
        (Query(filter="length", reason="near_duplicate"), []),
        (Query(filter="parsing", reason="truncated"), ["ab"]),
        (Query(count=None), ["ab", "ab", *(f"0-0-{i}" for i in range(4)), *(f"0-1-{i}" for i in range(4))]),
    ],
)
def test_a_query_narrows(tmp_path: Path, query: Query, ids: list[str]) -> None:
    found = select(read_run(write_run(tmp_path / "run")), query)
    assert [entry.id if isinstance(entry, Judged) else entry.request_id for entry in found] == ids


def test_a_draw_is_repeatable(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", kept=[(f"Name thing {n}.", "", "x") for n in range(300)]))
    first = select(run, Query(kept=True, count=5, seed=1))
    assert len(first) == 5
    assert first == select(run, Query(kept=True, count=5, seed=1)) != select(run, Query(kept=True, count=5, seed=2))


def test_reasons_and_evidence_are_printed(tmp_path: Path) -> None:
    shown, text = _printed(write_run(tmp_path / "run"), Query(filter="novelty"))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert shown == 2
    assert "0-1-1: novelty, near_duplicate" in plain
    assert "nearest “Name three rivers of Asia.”, score 0.8" in plain
    assert re.search(r"accepted +4", plain)


def test_text_of_candidates_is_not_obeyed(tmp_path: Path) -> None:
    kept = [("Say [bold]this[/bold] \x1b]0;owned\x07 [/red]", "", "\x9b31m fine")]
    _, text = _printed(write_run(tmp_path / "run", kept=kept), Query(kept=True))
    assert "Say [bold]this[/bold] \\u001b]0;owned\\u0007 [/red]" in text
    assert "\x07" not in text
    assert "\x9b" not in text


def test_the_page_is_escaped_and_new(tmp_path: Path) -> None:
    run, page = write_run(tmp_path / "run"), tmp_path / "review.html"
    shown, _ = _printed(run, Query(count=None), page)
    html = page.read_text(encoding="utf-8")
    assert shown == len(KEPT) + len(REFUSED) + len(FAILURES) == html.count("<section")
    assert html.count('<section class="kept">') == len(KEPT)
    assert "<script" not in html
    assert "&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;" in html
    with pytest.raises(InputError, match="already there; nothing is overwritten"):
        _printed(run, Query(), page)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            Query(filter="blacklist"),
            "nothing was refused with filter 'blacklist' in this run; there are: length, novelty, parsing, target",
        ),
        (
            Query(reason="too_long"),
            "reason 'too_long' in this run; there are: missing_output, near_duplicate, surplus, too_short, truncated",
        ),
        (Query(kept=True, reason="too_short"), "kept candidates have no filter and no reason"),
        (Query(count=0), "0 candidates cannot be shown; ask for at least 1"),
    ],
)
def test_refusals(tmp_path: Path, query: Query, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        select(read_run(write_run(tmp_path / "run")), query)
