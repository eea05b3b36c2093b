"""Rows that are too long: exact outcomes of every policy, and the law that splitting loses no exchange."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data.conversation import Conversation, Drops, Turn
from sft.data.overflow import exchanges, fit
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder, Tokenized, learnt_answers
from sft.errors import DataError, TokenizerError
from tests.builders import byte_level


def talk(*texts: str, **train: bool) -> Conversation:
    """Users and assistants in turn; ``a1=False`` marks the second turn."""
    flags = {int(name[1:]): value for name, value in train.items()}
    turns = (Turn("assistant" if i % 2 else "user", text, flags.get(i)) for i, text in enumerate(texts))
    return Conversation("row", tuple(turns), "source")


def bring(conversation: Conversation, encoder: RowEncoder, length: int, overflow: str) -> tuple[list[Tokenized], Drops]:
    drops = Drops()
    row = encoder.encode([conversation])[0]
    assert isinstance(row, Tokenized), row
    return fit(row, conversation, encoder, length, overflow, drops), drops


def size(encoder: RowEncoder, conversation: Conversation) -> int:
    return len(encoder.ids_of(encoder.renderer.render(conversation)))


@pytest.fixture(scope="module")
def chatml() -> RowEncoder:
    return RowEncoder(byte_level(), load_template("chatml"))


THREE = talk("one", "Red.", "two", "Green.", "three", "Blue.")


def test_a_row_that_fits_stays(chatml: RowEncoder) -> None:
    length = size(chatml, THREE)
    for overflow in ("drop", "truncate", "split", "error"):
        rows, drops = bring(THREE, chatml, length, overflow)
        assert [len(row.ids) for row in rows] == [length]
        assert drops == Drops()


def test_drop_and_error(chatml: RowEncoder) -> None:
    rows, drops = bring(THREE, chatml, 5, "drop")
    assert (rows, dict(drops.counts), dict(drops.changed)) == ([], {"too_long": 1}, {})
    with pytest.raises(DataError, match=r"max_length is 5; raise it"):
        bring(THREE, chatml, 5, "error")


def test_truncate_ends_inside_or_behind_an_answer(chatml: RowEncoder) -> None:
    whole = chatml.encode([THREE])[0]
    assert isinstance(whole, Tokenized)
    start, stop = whole.turns[1]
    for length, end in ((start + 1, start + 1), (stop, stop), (stop + 2, stop)):
        (row,), drops = bring(THREE, chatml, length, "truncate")
        assert row.ids.tolist() == whole.ids[:end].tolist()
        assert row.turns == (whole.turns[0], (start, end))
        assert dict(drops.changed) == {"truncated": 1}
    rows, drops = bring(THREE, chatml, whole.turns[0][0], "truncate")
    assert (rows, dict(drops.counts), dict(drops.changed)) == ([], {"nothing_trained": 1}, {})


def test_split_parts_are_the_rows_of_their_exchanges(chatml: RowEncoder) -> None:
    pair = talk("one", "Red.", "two", "Green.")
    rows, drops = bring(THREE, chatml, size(chatml, pair), "split")
    expected = [chatml.encode([part])[0] for part in (pair, talk("three", "Blue."))]
    assert [row.ids.tolist() for row in rows] == [row.ids.tolist() for row in expected if isinstance(row, Tokenized)]
    assert [row.id for row in rows] == ["row#0", "row#2"]
    assert (dict(drops.counts), dict(drops.changed)) == ({}, {"split": 1})


@pytest.mark.parametrize("template", ["chatml", "chinese_vicuna_chat"])
def test_under_last_only_the_last_answer_of_the_whole_row_is_learnt(template: str) -> None:
    encoder = RowEncoder(byte_level(), load_template(template), "last")
    rows, drops = bring(THREE, encoder, size(encoder, talk("three", "Blue.")) + 1, "split")
    assert [row.id for row in rows] == ["row#2"]
    assert dict(drops.changed) == {"split": 1, "split_untrained": 2}
    learnt = encoder.backend.decode(rows[0].ids[rows[0].mask].tolist(), skip_special_tokens=False)
    assert learnt.startswith("Blue.")


def test_parts_that_drop_and_rows_that_leave_nothing(chatml: RowEncoder) -> None:
    long = talk("one", "Red.", "two " * 60, "Green.")
    rows, drops = bring(long, chatml, 30, "split")
    assert [row.id for row in rows] == ["row#0"]
    assert (dict(drops.counts), dict(drops.changed)) == ({}, {"split": 1, "split_part_nothing_trained": 1})
    rows, drops = bring(talk("one " * 60, "Red.", "two " * 60, "Green."), chatml, 30, "split")
    assert (rows, dict(drops.counts), dict(drops.changed)) == ([], {"nothing_trained": 1}, {})
    assert drops.examples["nothing_trained"][0].id == "row"


def test_only_last_templates_refuse_other_policies() -> None:
    for policy in ("assistant", "all"):
        with pytest.raises(TokenizerError, match="train_on: last"):
            RowEncoder(byte_level(), load_template("chinese_vicuna_chat"), policy)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=2, max_size=5), st.integers(0, 40))
def test_split_loses_no_exchange(lengths: list[tuple[int, int]], spare: int) -> None:
    encoder = RowEncoder(byte_level(), load_template("chatml"))
    texts = [word * n for pair in lengths for word, n in zip(("ask ", "say "), pair, strict=True)]
    conversation = talk(*texts)
    _, pairs = exchanges(conversation)
    limit = spare + max(size(encoder, Conversation("part", pair, "source")) for pair in pairs)
    rows, drops = bring(conversation, encoder, limit, "split")
    assert not drops.counts
    assert all(len(row.ids) <= limit for row in rows)
    whole = encoder.encode([conversation])[0]
    assert isinstance(whole, Tokenized)
    assert [i for row in rows for i in row.ids.tolist()] == whole.ids.tolist()
    assert [i for row in rows for i in row.ids[row.mask].tolist()] == whole.ids[whole.mask].tolist()


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=2, max_size=5),
    flags=st.lists(st.sampled_from([None, True, False]), min_size=5, max_size=5),
    policy=st.sampled_from(["assistant", "last", "all"]),
    limit=st.integers(8, 60),
)
def test_every_exchange_is_in_one_part_or_counted(
    lengths: list[tuple[int, int]], flags: list[bool | None], policy: str, limit: int
) -> None:
    encoder = RowEncoder(byte_level(), load_template("chatml"), policy)
    turns: list[Turn] = []
    for i, (asks, says) in enumerate(lengths):
        turns += [Turn("user", f"{i}?" + " ask" * asks), Turn("assistant", f"{i}!" + " say" * says, flags[i])]
    conversation, drops = Conversation("row", tuple(turns), "source"), Drops()
    whole = encoder.encode([conversation])[0]
    if not isinstance(whole, Tokenized) or len(whole.ids) <= limit:
        return
    rows = fit(whole, conversation, encoder, limit, "split", drops)
    texts = [encoder.backend.decode(row.ids.tolist(), skip_special_tokens=False) for row in rows]
    taught = [encoder.backend.decode(row.ids[row.mask].tolist(), skip_special_tokens=False) for row in rows]
    found = [[i for i in range(len(lengths)) if f"{i}? ask" in text] for text in texts]
    assert [i for part in found for i in part] == sorted({i for part in found for i in part})
    missing = len(lengths) - sum(map(len, found))
    counted = sum(n for reason, n in drops.changed.items() if reason.startswith(("split_untrained", "split_part_")))
    if rows:
        assert not drops.counts
        assert drops.changed["split"] == 1
        assert counted <= missing
        assert bool(counted) is bool(missing)
    else:
        assert (drops.total, dict(drops.changed)) == (1, {})
    learnt = learnt_answers(conversation, policy)
    for row, part, text in zip(rows, found, taught, strict=True):
        assert len(row.ids) <= limit
        assert row.mask.any()
        assert not any(f"{i}! " in text for i in part if not learnt[i])
