"""Preview: pieces decoded whole, counts that a person can add up by hand, and nothing from the data obeyed by a screen."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.data import preview
from sft.data.conversation import Drop
from sft.data.mask_report import MaskReport, mask_report
from sft.data.preview import (
    MarkedRow,
    Piece,
    marked_pieces,
    marked_rows,
    print_report,
    print_rows,
    printable,
    run_preview,
    write_html,
)
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.errors import DataError
from sft.recipe import Recipe
from tests.builders import TOKENIZERS
from tests.data.talks import MANY, SGR, chatml, encoded, hand_made, letters, screen, section, talk

# --- pieces ------------------------------------------------------------------------------------------------------------

ASKED, ANSWERED = "诗 👩‍🚀?", "春天 é🎉🚀"
DISPLAY = {
    ("byte_level", "chatml"): [
        (("<|im_start|>",), False, True),
        (("user", "\n", "诗", " 👩", "\u200d", "🚀", "?"), False, False),
        (("<|im_end|>",), False, True),
        (("\n",), False, False),
        (("<|im_start|>",), False, True),
        (("a", "ssistant", "\n"), False, False),
        (("春天", " ", "é", "🎉", "🚀"), True, False),
        (("<|im_end|>",), True, True),
        (("\n",), False, False),
    ],
    ("sentencepiece_like", "vicuna_v1.1"): [
        (("<s>",), False, True),
        ((" H", "i", ".", " USER:", " ", "诗", " ", "👩", "\u200d", "🚀", "?", " ASSISTANT:"), False, False),
        ((" ", "春天", " ", "é", "🎉", "🚀"), True, False),
        (("</s>",), True, True),
    ],
    ("colon_crossing", "alpaca_short"): [
        (("### In", "struction", ":\n", "诗", " 👩", "\u200d", "🚀", "?\n\n", "### Response:", "\n"), False, False),
        (("春天", " ", "é", "🎉", "🚀"), True, False),
        (("</s>",), True, True),
    ],
}


@pytest.mark.parametrize(("tokenizer", "template"), DISPLAY)
def test_pieces_are_exact_and_no_character_is_broken(tokenizer: str, template: str) -> None:
    system = "Hi." if template.startswith("vicuna") else None
    encoder = RowEncoder(TOKENIZERS[tokenizer](), load_template(template, system=system))
    (row,) = marked_rows([talk("a", ASKED, ANSWERED)], encoder, section())
    assert row.pieces == tuple(Piece(*piece) for piece in DISPLAY[tokenizer, template])
    assert (row.id, row.source, row.drop, row.encoded) == ("a", "s", None, row.tokens)
    assert row.trained == int(encoded(encoder, talk("a", ASKED, ANSWERED)).mask.sum())


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_pieces_together_are_what_the_ids_decode_to(tokenizer: str) -> None:
    encoder = RowEncoder(TOKENIZERS[tokenizer](), load_template("alpaca_newline"))
    row = encoded(encoder, talk("a", "naïve  spaces\n\tand \ufffd signs 🎉🎉", "\ufffd 春天\ufffd", system="<s>pelt out"))
    text = "".join(piece.text for piece in marked_pieces(row.ids.tolist(), row.mask.tolist(), encoder))
    whole = encoder.backend.decode(row.ids.tolist(), skip_special_tokens=False)
    for name, stand_in in encoder.stand_ins.items():
        whole = whole.replace(stand_in, name)
    assert text == whole


def test_a_row_cut_inside_a_character_says_so() -> None:
    encoder = chatml()
    (row,) = marked_rows([talk("a", "q", "ab🎉")], encoder, section(max_length=24))  # 9 + 11 + 'ab' + 2 of 4 bytes
    assert row.pieces[-1] == Piece(("a", "b", "\ufffd"), trained=True, special=False)
    assert (row.tokens, row.trained, row.encoded) == (24, 4, 28)


def test_special_tokens_spelt_in_a_message_are_not_special_pieces() -> None:
    (row,) = marked_rows([talk("a", "say <|im_end|>", "<|im_start|>")], chatml(), section())
    assert [p.text for p in row.pieces if p.special] == ["<|im_start|>", "<|im_end|>"] * 2
    assert [(p.text, len(p.texts)) for p in row.pieces if p.trained] == [("<|im_start|>", 12), ("<|im_end|>", 1)]


def test_the_mask_alone_decides_what_is_marked() -> None:
    encoder = chatml()
    row = encoded(encoder, talk("a", "q", "yes"))
    mask = np.zeros_like(row.mask)
    mask[1:3] = True
    pieces = marked_pieces(row.ids.tolist(), mask.tolist(), encoder)
    assert [piece.text for piece in pieces if piece.trained] == ["us"]


def test_empty_row() -> None:
    assert marked_pieces([], [], chatml()) == ()


# --- which rows are shown ----------------------------------------------------------------------------------------------


def test_the_first_rows_are_read_and_no_more() -> None:
    stream = iter(MANY)
    assert [row.id for row in marked_rows(stream, chatml(), section(), count=3)] == ["r0", "r1", "r2"]
    assert next(stream).id == "r3"


def test_a_seeded_sample_is_repeatable_in_file_order_and_differs_by_seed() -> None:
    def drawn(seed: int, count: int = 6) -> list[str]:
        return [row.id for row in marked_rows(MANY, chatml(), section(), count=count, seed=seed)]

    assert drawn(1) == drawn(1) == sorted(drawn(1), key=lambda name: int(name[1:]))
    assert len(set(drawn(1))) == 6
    assert drawn(1) != drawn(2)
    assert drawn(1, count=100) == [c.id for c in MANY]


def test_rows_by_id_and_an_unknown_id() -> None:
    assert [row.id for row in marked_rows(MANY, chatml(), section(), ids=["r7", "r3"])] == ["r3", "r7"]
    with pytest.raises(DataError, match="no row has the id nope"):
        marked_rows(MANY, chatml(), section(), ids=["r7", "nope"])


def test_a_dropped_row_is_shown_with_its_reason() -> None:
    (row,) = marked_rows([talk("a", "q" * 100, "yes")], chatml(), section(max_length=40))
    assert row.drop is not None
    assert (row.drop.reason, row.tokens, row.encoded, row.pieces) == ("nothing_trained", 0, 124, ())
    (row,) = marked_rows([talk("a", "\U00100005", "yes")], chatml(), section(max_length=40))
    assert row.drop is not None
    assert row.drop.reason == "private_use_character"


def test_a_split_row_is_shown_in_parts_and_a_long_one_refused() -> None:
    long = talk("a", "q", "yes", "r", "no")
    rows = marked_rows([long], chatml(), section(max_length=30, overflow="split"))
    assert [(row.id, row.tokens, row.trained, row.encoded) for row in rows] == [("a#0", 25, 4, 49), ("a#1", 24, 3, 49)]
    with pytest.raises(DataError, match=r"data\.max_length is 30"):
        marked_rows([long], chatml(), section(max_length=30, overflow="error"))


# --- on the screen -----------------------------------------------------------------------------------------------------

NASTY = "a\x1b[2J\x1b]0;owned\x07 [bold]not markup[/bold] [/] :smile: \x00\x9b31m\r\x7f\u202egnp\u2066 <script>alert(1)</script> </style> \"'&"


def nasty() -> tuple[list[MarkedRow], MaskReport]:
    conversation = talk(NASTY, NASTY, NASTY, source=NASTY)
    rows = marked_rows([conversation, talk(NASTY, "q" * 600, "a", source=NASTY)], chatml(), section(max_length=500))
    report = mask_report([conversation], chatml(), section(), progress=False)
    report.drops.add(Drop(NASTY, "odd", NASTY))
    report.refusal = NASTY
    return rows, report


def test_printable_escapes_what_would_be_obeyed_and_keeps_the_rest() -> None:
    assert printable("\x00\x1b\x07\r\x7f\x9b") == r"\x00\x1b\x07\r\x7f\x9b"
    assert printable("\u202e\u2066\ufeff\ud800\u2028\U000e0041") == r"\u202e\u2066\ufeff\ud800\u2028\U000e0041"
    assert printable("tab\there\nline 春天 👩‍🚀 é [bold]") == "tab\there\nline 春天 👩‍🚀 é [bold]"


def test_nothing_in_the_data_reaches_the_terminal_raw() -> None:
    console, out = screen()
    rows, report = nasty()
    print_rows(console, rows)
    print_report(console, report)
    shown = SGR.sub("", out.getvalue())
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert shown.count(r"\x1b[2J\x1b]0;owned\x07 [bold]not markup[/bold] [/] :smile: \x00\x9b31m\r\x7f\u202egnp\u2066") >= 6
    assert printable(NASTY) in shown


def test_styles_tell_the_three_kinds_apart() -> None:
    console, out = screen()
    print_rows(console, marked_rows([talk("a", "q", "yes\nno")], chatml(), section()))
    lines = out.getvalue().splitlines()
    assert lines[0].count("\x1b[") == 8  # the legend
    assert SGR.sub("", lines[2]) == "a · s · 28 tokens, 7 trained"
    assert lines[3:] == [
        "\x1b[2;7m<|im_start|>\x1b[0m\x1b[2muser↵\x1b[0m",
        "\x1b[2mq\x1b[0m\x1b[2;7m<|im_end|>\x1b[0m\x1b[2m↵\x1b[0m",
        "\x1b[2;7m<|im_start|>\x1b[0m\x1b[2massistant↵\x1b[0m",
        "\x1b[1;32myes↵\x1b[0m",
        "\x1b[1;32mno\x1b[0m\x1b[1;7;32m<|im_end|>\x1b[0m\x1b[2m↵\x1b[0m",
        "",
    ]


def test_without_colours_brackets_say_what_is_learnt() -> None:
    console, out = screen(colour=False)
    print_rows(console, marked_rows([talk("a", "q", "yes")], chatml(), section()))
    assert "\x1b" not in out.getvalue()
    assert "⟦yes⟧⟦<|im_end|>⟧" in out.getvalue()
    assert "⟦q" not in out.getvalue()


def test_the_printed_report_adds_up() -> None:
    console, out = screen()
    print_report(console, hand_made(sample=2))
    shown = SGR.sub("", out.getvalue())
    assert "4 = 2 nothing_trained + 1 invalid_json + 1 private_use_character" in shown
    assert "7 = 5 trained + 1 untrained + 1 left out by overflow" in shown
    assert "5 trained = 3 with stop + 2 cut + 0 without stop" in shown
    assert "60.00% of the trained answers" in shown
    assert "place (2 of 4 rows)" in shown
    assert "invalid_json: such as f:1: a comma is missing" in shown


def test_rounding_never_makes_a_share_perfect() -> None:
    assert [preview._percent(x) for x in (0.0, 0.000001, 0.5, 0.9999999, 1.0)] == [
        "0.00%",
        "0.01%",
        "50.00%",
        "99.99%",
        "100.00%",
    ]


# --- on a page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags and text as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_everything_on_the_page_is_escaped(tmp_path: Path) -> None:
    rows, report = nasty()
    write_html(tmp_path / "deep" / "page.html", rows, report, NASTY)
    text = (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert text.count("</style>") == page.tags.count("style") == 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    seen = "".join(page.words)
    assert seen.count(printable(NASTY)) >= 9  # title twice, refusal, source, drop and its example, headers, prompt and answer
    assert "&amp;amp;" not in text


def test_the_page_needs_no_network_and_follows_the_scheme(tmp_path: Path) -> None:
    rows, report = nasty()
    write_html(tmp_path / "page.html", rows, report, "t")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in page.attributes}
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "url(" not in text
    assert "@import" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert "prefers-color-scheme: dark" in text


def test_the_page_shows_pieces_as_they_are(tmp_path: Path) -> None:
    rows = marked_rows([talk("a", "\nq  q", "<b>春</b>")], chatml(), section())
    write_html(tmp_path / "page.html", rows, hand_made(), "t")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<span class="special trained"><i>&lt;|im_end|&gt;</i></span>' in text
    assert '<span class="trained"><i>&lt;</i><i>b</i><i>&gt;</i><i>春</i>' in text
    inside = text.split('<div class="row">')[1].split("</div>")[0]
    assert "".join(Page(inside).words).replace("↵", "") == "".join(piece.text for piece in rows[0].pieces)


# --- the whole verb ----------------------------------------------------------------------------------------------------


def recipe_for(path: Path, **data: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"scratch": {"config": {"model_type": "llama"}}},
            "template": {"name": "chatml"},
            "data": {"sources": ({"path": str(path), "format": "alpaca", "name": "set"},), "max_length": 64, **data},
            "train": {"epochs": 1.0, "examples_per_step": 2, "tokens_per_device": 64, "learning_rate": 1e-3},
            "output": {"dir": "runs/x"},
        }
    )


def test_run_preview_reads_prints_reports_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    lines = [json.dumps({"id": f"r{i}", "instruction": "say", "input": "", "output": "yes" * (1 + i)}) for i in range(8)]
    path.write_text("\n".join([*lines, '{"instruction": 1}']), encoding="utf-8")
    encoder, (console, out) = chatml(), screen()
    recipe = recipe_for(path)
    report = run_preview(recipe, letters(), encoder, count=2, html=tmp_path / "p.html", console=console)
    assert (report.rows_in, report.kept, report.drops.total, list(report.sources)) == (9, 8, 1, ["set"])
    assert report.turns.stop_share == 1.0
    assert "1 of 9 rows (11.1%) cannot be used" in report.refusal
    shown = SGR.sub("", out.getvalue())
    assert "yesyes" in shown
    assert "yesyesyes" not in shown
    assert "Training would refuse this data." in shown
    assert "chatml on" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_run_preview_by_id_without_a_page(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(
        "\n".join(json.dumps({"instruction": f"say {i}", "input": "", "output": "yes"}) for i in range(4)), encoding="utf-8"
    )
    console, out = screen()
    wanted = f"{path}:3"
    report = run_preview(recipe_for(path), letters(), chatml(), count=1, html=None, console=console, ids=[wanted])
    assert report.refusal == ""
    assert "say 2" in out.getvalue()
    assert "say 0" not in out.getvalue()
    assert list(tmp_path.iterdir()) == [path]
