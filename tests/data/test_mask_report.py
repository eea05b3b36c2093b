"""The report on masks: counts that a person can add up by hand, and the faults that it exists to find."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sft.data import mask_report as counting
from sft.data.conversation import Conversation, Drop, Turn
from sft.data.mask_report import mask_report
from sft.data.preview import print_report
from sft.data.template import ChatTemplate, builtin_names, load_template
from sft.data.tokenize import RowEncoder, Traced
from sft.model.tokenizer import repair_tokens
from tests.builders import TOKENIZERS, byte_level, sentencepiece_like
from tests.data.talks import MANY, chatml, encoded, hand_made, letters, screen, section, talk


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

    def trace(self, conversations: Sequence[Conversation]) -> list[Traced | Drop]:
        rows = super().trace(conversations)
        for found in rows:
            if isinstance(found, Traced):
                found.row.mask[[stop - 1 for _, stop in found.row.turns]] = False
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
    scan = counting._Scan(encoder, section(), None)
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


def test_a_part_learns_what_the_whole_row_would_have() -> None:
    row = talk("a", "q", "x" * 20, "r", "y" * 20, "t", "z" * 20, "u", "end")
    report = mask_report([row], chatml("last"), section(max_length=60, overflow="split"), progress=False)
    turns = report.turns
    assert (report.rows_out, turns.total, turns.trained, turns.untrained, turns.lost, turns.stopped) == (1, 4, 1, 0, 3, 1)
    assert dict(report.drops.changed) == {"split": 1, "split_untrained": 3}
    assert report.total.trained == 4


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
    template, tokenizer = load_template(name), letters()
    repair_tokens(tokenizer, template)
    encoder = RowEncoder(tokenizer, template, "last" if template.only_last else "assistant")
    report = mask_report([talk("a", "Hello there", "Ein Test, 春天 🎉")], encoder, section(), progress=False)
    assert report.kept == 1
    assert {place: share.share for place, share in report.places.items() if share.trained} == {"assistant": 1.0, "stop": 1.0}
    assert report.places["assistant"].tokens == len("Ein Test, 春天 🎉".encode())
    assert sum(share.tokens for share in report.places.values()) == report.total.tokens


def test_a_token_belongs_to_most_of_its_characters() -> None:
    user, template = counting.PLACES.index("user"), counting.PLACES.index("template")
    code = np.asarray([template, template, user, user, template])
    offsets = np.asarray([[0, 0], [0, 2], [0, 3], [1, 3], [2, 2], [1, 4], [4, 5], [5, 5]])  # [1, 3] is a tie
    assert counting._places(code, offsets).tolist() == [template, template, template, user, user, user, template, template]


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
