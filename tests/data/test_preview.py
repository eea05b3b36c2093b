"""Preview: pieces decoded whole, counts that a person can add up by hand, and nothing from the data obeyed by a screen."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft.data import preview
from sft.data.conversation import Conversation, Drop, Drops, Role, Turn
from sft.data.preview import (
    MarkedRow,
    MaskReport,
    Piece,
    marked_pieces,
    marked_rows,
    mask_report,
    print_report,
    print_rows,
    printable,
    run_preview,
    write_html,
)
from sft.data.template import ChatTemplate, builtin_names, load_template
from sft.data.tokenize import RowEncoder, Tokenized
from sft.errors import DataError
from sft.recipe import DataSection, Recipe
from tests.builders import TOKENIZERS, byte_level, sentencepiece_like

SGR = re.compile(r"\x1b\[[0-9;]*m")  # what rich itself writes: colours, no cursor movement


def talk(name: str, *texts: str, source: str = "s", system: str | None = None, muted: Sequence[int] = ()) -> Conversation:
    """User and assistant by turns; ``muted`` are indices of texts that are not to be learnt."""
    head = () if system is None else (Turn("system", system),)
    roles: tuple[Role, Role] = ("user", "assistant")
    turns = (Turn(roles[i % 2], text, False if i in muted else None) for i, text in enumerate(texts))
    return Conversation(name, (*head, *turns), source)


def section(*names: str, max_length: int = 512, overflow: str = "truncate") -> DataSection:
    sources = [{"path": name} for name in names or ("s",)]
    return DataSection.model_validate({"sources": tuple(sources), "max_length": max_length, "overflow": overflow})


def letters() -> PreTrainedTokenizerFast:
    """One token per byte, and the ChatML tokens: lengths can be counted by hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, eos_token="<|endoftext|>")


def chatml(train_on: str = "assistant") -> RowEncoder:
    return RowEncoder(letters(), load_template("chatml"), train_on)


def encoded(encoder: RowEncoder, conversation: Conversation) -> Tokenized:
    row = encoder.encode([conversation])[0]
    assert isinstance(row, Tokenized), row
    return row


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
    whole = encoder._backend.decode(row.ids.tolist(), skip_special_tokens=False)
    for name, stand_in in encoder._names.items():
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

MANY = [talk(f"r{i}", f"question {i}", "yes") for i in range(40)]


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


# --- the report --------------------------------------------------------------------------------------------------------

# A ChatML message in one-byte tokens: <|im_start|> role \n content <|im_end|> \n = 4 + len(role) + len(content);
# of an answer, the content and <|im_end|> are learnt.
HAND_MADE = [
    talk("short", "abc", "defgh", source="one"),  # 11 + 18 = 29, learnt 6
    talk("muted", "q", "no", "r", "yes", source="one", system="be", muted=[1]),  # 12 + 9 + 15 + 9 + 16 = 61, learnt 4
    talk("cut", "uuu", "x" * 100, source="two"),  # 11 + 11 + 42 of 100 = 64, learnt 42
    talk("lost", "hi", "yo", "u", "x" * 100, "z", "k", source="two"),  # 10 + 15 + 9 + 11 + 19 of 100 = 64, learnt 3 + 19
    talk("late", "p" * 100, "yes", source="two"),  # the answer begins behind the cut
    talk("plane16", "\U00100000", "yes", source="two"),
    talk("silent", "q", "no", source="two", muted=[1]),
]


def hand_made(train_on: str = "assistant", sample: int | None = None) -> MaskReport:
    unread = Drops()
    unread.add(Drop("f:1", "invalid_json", "a comma is missing"))
    data = section("one", "two", max_length=64)
    return mask_report(HAND_MADE, chatml(train_on), data, unread=unread, sample=sample, progress=False)


def test_the_report_counts_rows_drops_and_changes() -> None:
    report = hand_made()
    assert (report.rows_in, report.kept, report.rows_out) == (8, 4, 4)
    assert dict(report.drops.counts) == {"nothing_trained": 2, "private_use_character": 1, "invalid_json": 1}
    assert dict(report.drops.changed) == {"truncated": 2}
    assert (report.nothing_trained, report.all_trained, report.refusal) == (0, 0, "")


def test_the_report_counts_tokens_by_source_and_place() -> None:
    report = hand_made()
    assert {k: (s.rows, s.tokens, s.trained) for k, s in report.sources.items()} == {"one": (2, 90, 10), "two": (2, 128, 64)}
    assert (report.total.rows, report.total.tokens, report.total.trained) == (4, 218, 74)
    assert {k: (s.rows, s.tokens, s.trained) for k, s in report.places.items()} == {
        "system": (1, 2, 0),
        "user": (4, 11, 0),
        "input": (0, 0, 0),
        "assistant": (4, 73, 71),
        "tool": (0, 0, 0),
        "stop": (3, 4, 3),
        "template": (4, 128, 0),
    }
    assert report.placed_rows == 4
    assert report.places["assistant"].share == 71 / 73


def test_the_report_counts_turns_and_stops() -> None:
    turns = hand_made().turns
    assert (turns.total, turns.trained, turns.untrained, turns.lost) == (7, 5, 1, 1)
    assert (turns.stopped, turns.cut, turns.unstopped, turns.stop_share) == (3, 2, 0, 0.6)


def test_the_report_counts_lengths() -> None:
    bins = hand_made().histogram
    assert [longest for longest, _ in bins] == list(range(2, 65, 2))
    assert {longest: rows for longest, rows in bins if rows} == {30: 1, 62: 1, 64: 2}
    uneven = mask_report(MANY, chatml(), section(max_length=100), progress=False).histogram
    assert uneven[-2:] == [(96, 0), (100, 0)]
    assert sum(rows for _, rows in uneven) == 40


def test_train_on_last_counts_only_the_last_answer() -> None:
    report = hand_made("last")
    turns = report.turns
    assert dict(report.drops.counts) == {"nothing_trained": 3, "private_use_character": 1, "invalid_json": 1}  # 'lost', too
    assert (turns.total, turns.trained, turns.untrained, turns.lost) == (4, 3, 1, 0)
    assert (turns.stopped, turns.cut, turns.unstopped) == (2, 1, 0)
    kept = mask_report([talk("a", "q", "no", "r", "yes")], chatml("last"), section(), progress=False)
    assert (kept.places["assistant"].tokens, kept.places["assistant"].trained) == (5, 3)
    assert (kept.places["stop"].tokens, kept.places["stop"].trained) == (2, 1)


def test_train_on_all_is_seen_as_such() -> None:
    report = mask_report(MANY, chatml("all"), section(), progress=False)
    assert report.all_trained == report.rows_out == 40
    assert report.total.trained == report.total.tokens - 40
    assert report.places["user"].share == 1.0
    assert report.turns.stop_share == 1.0


def test_a_sample_counts_places_on_fewer_rows_and_everything_else_on_all() -> None:
    whole, some = hand_made(), hand_made(sample=2)
    assert some.placed_rows == 2
    assert max(share.rows for share in some.places.values()) == 2
    assert sum(share.tokens for share in some.places.values()) < 218
    assert (some.total, some.turns, some.histogram) == (whole.total, whole.turns, whole.histogram)
    assert hand_made(sample=2).places == some.places
    assert hand_made(sample=99).places == whole.places


class Forgetful(RowEncoder):
    """Masks the last token of every answer: the fault that the stop count exists for."""

    def encode(self, conversations: Sequence[Conversation]) -> list[Tokenized | Drop]:
        rows = super().encode(conversations)
        for row in rows:
            if isinstance(row, Tokenized):
                row.mask[[stop - 1 for _, stop in row.turns]] = False
        return rows


@pytest.mark.parametrize(
    ("tokenizer", "template"), [("byte_level", "chatml"), ("byte_level", "vicuna_v0"), ("sentencepiece_like", "vicuna_v1.1")]
)
def test_a_stop_that_is_not_learnt_is_found(tokenizer: str, template: str) -> None:
    made = TOKENIZERS[tokenizer](), load_template(template)
    rows = [talk("a", "Hello there", "Hi, how are you?", "q", "Red."), talk("b", "q", "no\n")]
    sound = mask_report(rows, RowEncoder(*made), section(), progress=False).turns
    assert (sound.trained, sound.stopped, sound.cut, sound.unstopped, sound.stop_share) == (3, 3, 0, 0, 1.0)
    broken = mask_report(rows, Forgetful(*made), section(), progress=False).turns
    assert (broken.trained, broken.stopped, broken.cut, broken.unstopped, broken.stop_share) == (3, 0, 0, 3, 0.0)


def test_every_length_of_a_cut_answer_is_cut_until_its_stop_is_whole() -> None:
    encoder = RowEncoder(letters(), load_template("vicuna_v0", system="s"))
    row = encoded(encoder, talk("a", "q", "yes"))
    total = len(row.ids)
    assert row.turns[0][1] == total  # "yes", then the four bytes of "\n###"
    for length in range(total - 7, total + 1):
        turns = mask_report([talk("a", "q", "yes")], encoder, section(max_length=length), progress=False).turns
        assert (turns.stopped, turns.cut, turns.unstopped) == ((1, 0, 0) if length == total else (0, 1, 0))


def test_an_answer_that_only_spells_the_stop_has_not_stopped() -> None:
    encoder = chatml()
    scan = preview._Scan(encoder, section(), None)
    row = encoded(encoder, talk("a", "q", "x<|im_end|>"))
    first, stop = row.turns[0]
    assert scan._stops(row.ids[first:stop].tolist(), row.mask[first:stop])
    assert not scan._stops(row.ids[first : stop - 1].tolist(), row.mask[first : stop - 1])


@pytest.mark.parametrize("tokenizer", [byte_level, sentencepiece_like])
def test_parts_of_split_rows_are_counted_as_the_rows_that_they_are(tokenizer: Any) -> None:
    encoder = RowEncoder(tokenizer(), load_template("alpaca_newline"))
    assert mask_report([talk("a", "q", "a", "q", "a")], encoder, section(), progress=False).drops.counts == {
        "template_refused": 1
    }
    encoder = RowEncoder(tokenizer(), load_template("vicuna_v1.1", system="s"))
    texts = ["Hello there", "Hi", "Was ist das?", "Ein Test. " * 30, "q", "yes"]
    for extra in ((), ("and then?",)):  # a last question without an answer stays with the last exchange, or alone
        data = section(max_length=60, overflow="split")
        report = mask_report([talk("a#1", *texts, *extra)], encoder, data, progress=False)
        assert report.turns.total == report.turns.trained == 3
        assert (report.turns.stopped, report.turns.cut, report.turns.lost) == (2, 1, 0)
        assert (report.rows_in, report.kept, report.rows_out) == (1, 1, 3)
        assert sum(share.tokens for share in report.places.values()) == report.total.tokens
        assert sum(share.trained for share in report.places.values()) == report.total.trained
        assert report.places["user"].trained == report.places["template"].trained == 0


def test_words_of_the_template_inside_messages_are_counted_as_messages() -> None:
    report = mask_report([talk("a", "user", "assistant", system="m")], chatml(), section(), progress=False)
    assert [report.places[name].tokens for name in ("system", "user", "assistant")] == [1, 4, 9]
    rows = [talk("a", "USER:", " ASSISTANT:"), talk("b", "", "a")]
    encoder = RowEncoder(letters(), load_template("vicuna_v1.1", system="s"))
    report = mask_report(rows, encoder, section(), progress=False)
    assert [report.places[name].tokens for name in ("user", "assistant", "stop")] == [5, 11 + 1, 2 * 2]


def test_inputs_are_a_place_of_their_own_folded_or_not() -> None:
    row = Conversation("a", (Turn("user", "Add."), Turn("input", "2+2"), Turn("assistant", "4")), "s")
    for template in ("alpaca_short", "chatml"):
        report = mask_report([row], RowEncoder(letters(), load_template(template)), section(), progress=False)
        assert [report.places[name].tokens for name in ("user", "input", "assistant", "stop")] == [4, 3, 1, 1]


@pytest.mark.parametrize("name", builtin_names())
def test_with_every_template_the_loss_falls_on_answers_and_their_stops_alone(name: str) -> None:
    template = load_template(name)
    encoder = RowEncoder(letters(), template, "last" if template.only_last else "assistant")
    report = mask_report([talk("a", "Hello there", "Ein Test, 春天 🎉")], encoder, section(), progress=False)
    assert report.kept == 1
    assert {place: share.share for place, share in report.places.items() if share.trained} == {"assistant": 1.0, "stop": 1.0}
    assert report.places["assistant"].tokens == len("Ein Test, 春天 🎉".encode())
    assert sum(share.tokens for share in report.places.values()) == report.total.tokens


def test_a_token_belongs_to_most_of_its_characters() -> None:
    user, template = preview.PLACES.index("user"), preview.PLACES.index("template")
    code = np.asarray([template, template, user, user, template])
    offsets = np.asarray([[0, 0], [0, 2], [0, 3], [1, 3], [2, 2], [1, 4], [4, 5], [5, 5]])  # [1, 3] is a tie
    assert preview._places(code, offsets).tolist() == [template, template, template, user, user, user, template, template]


def test_a_template_that_trims_its_messages_is_searched() -> None:
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] | trim + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] | trim + '<|im_end|>' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    encoder = RowEncoder(letters(), ChatTemplate("own", source, "<|im_end|>"))
    report = mask_report([talk("a", "  say a ", " yes ")], encoder, section(), progress=False)
    assert [report.places[name].tokens for name in ("user", "assistant", "stop")] == [5, 3, 1]
    assert report.turns.stop_share == 1.0


def test_no_rows_at_all() -> None:
    report = mask_report([], chatml(), section("one"), progress=False)
    assert (report.rows_in, report.total.tokens, report.total.share, report.turns.stop_share) == (0, 0, 0.0, 0.0)
    console, out = screen()
    print_report(console, report)
    assert "0 read" in out.getvalue()


def test_the_report_is_plain_data() -> None:
    told = json.loads(json.dumps(hand_made().to_json()))
    assert told["turns"] == {
        "total": 7,
        "trained": 5,
        "untrained": 1,
        "lost": 1,
        "stopped": 3,
        "cut": 2,
        "unstopped": 0,
        "stop_share": 0.6,
    }
    assert told["sources"]["one"] == {"rows": 2, "tokens": 90, "trained": 10, "share": 10 / 90}
    assert told["drops"]["counts"] == {"invalid_json": 1, "nothing_trained": 2, "private_use_character": 1}
    assert told["histogram"][31] == {"up_to": 64, "rows": 2}


# --- on the screen -----------------------------------------------------------------------------------------------------

NASTY = "a\x1b[2J\x1b]0;owned\x07 [bold]not markup[/bold] [/] :smile: \x00\x9b31m\r\x7f\u202egnp\u2066 <script>alert(1)</script> </style> \"'&"


def screen(colour: bool = True) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=colour, color_system="standard" if colour else None, width=400), out


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
