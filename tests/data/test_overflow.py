"""Rows that are too long: exact outcomes of every policy, and the laws that splitting is greedy and loses no exchange."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data.conversation import Conversation, Drop, Drops, Turn, learnt_answers
from sft.data.overflow import Fitted, exchanges, fit
from sft.data.template import Rendered, builtin_names, load_template
from sft.data.tokenize import RowEncoder, Tokenized, Traced
from sft.errors import DataError, TokenizerError
from sft.model.tokenizer import repair_tokens
from tests.builders import TOKENIZERS, byte_level
from tests.data.slow_split import plain, slow_split


def talk(*texts: str, **train: bool) -> Conversation:
    """Users and assistants in turn; ``a1=False`` marks the second turn."""
    flags = {int(name[1:]): value for name, value in train.items()}
    turns = (Turn("assistant" if i % 2 else "user", text, flags.get(i)) for i, text in enumerate(texts))
    return Conversation("row", tuple(turns), "source")


def bring(conversation: Conversation, encoder: RowEncoder, length: int, overflow: str) -> tuple[list[Tokenized], Drops]:
    drops = Drops()
    row = encoder.trace([conversation])
    assert isinstance(row[0], Traced), row
    return [part.row for part in fit(row, [conversation], encoder, length, overflow, drops)[0]], drops


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
    assert drops.examples["nothing_trained"][0].detail.endswith("tokens; raise it")  # it is split already


def test_one_exchange_of_several_answers_is_cut_not_split(chatml: RowEncoder) -> None:
    turns = (Turn("user", "q"), Turn("assistant", "look"), Turn("tool", "found"), Turn("assistant", "done " * 9))
    conversation = Conversation("row", turns, "source")
    limit = size(chatml, conversation) - 4
    rows, drops = bring(conversation, chatml, limit, "split")
    assert [(row.id, len(row.ids)) for row in rows] == [("row", limit)]
    assert dict(drops.changed) == {"truncated": 1}


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
    conversation = Conversation("row", tuple(turns), "source")
    whole = encoder.encode([conversation])[0]
    if not isinstance(whole, Tokenized) or len(whole.ids) <= limit:
        return
    rows, drops = bring(conversation, encoder, limit, "split")
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


# --- against the definition --------------------------------------------------------------------------------------------

CHATML = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
END = "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
FOREIGN = {
    "unmarked": "{% for m in messages %}" + CHATML + END,
    # Exchanges are longer in the whole row than in a part, so the whole row's lengths mislead.
    "numbered": "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'no ' * loop.index0 }}{% endif %}" + CHATML + END,
    "closed": "{% for m in messages %}" + CHATML + "{% if loop.last and not add_generation_prompt %}The end{% endif %}" + END,
}
TEMPLATES = [*(name for name in builtin_names() if load_template(name).multi_turn), *FOREIGN]


@cache
def encoder_of(template: str, tokenizer: str, policy: str) -> RowEncoder:
    source = FOREIGN.get(template)
    loaded = load_template("tokenizer" if source else template, tokenizer_source=source)
    made = copy.deepcopy(byte_level() if source else TOKENIZERS[tokenizer]())
    if not source:
        repair_tokens(made, loaded)
    return RowEncoder(made, loaded, "last" if loaded.only_last else policy)


WORDS = ("ask", "say yes", "Ein Test.", "春天来了", "🎉", "\n", "  x", "</s>", "<|im_end|>", "Red, green and blue.")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)
EXCHANGES = st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from([None, None, True, False])), min_size=2, max_size=7)


@st.composite
def long_rows(draw: st.DrawFn) -> Conversation:
    turns = [Turn("system", draw(TEXTS))] if draw(st.booleans()) else []
    for asked, said, train in draw(EXCHANGES):
        turns += [Turn("user", asked), Turn("assistant", said, train)]
    if draw(st.integers(0, 9)) == 0:
        turns.append(Turn("user", draw(TEXTS)))  # no reader lets it through, but nothing here depends on that
    return Conversation("row", tuple(turns), "source")


def told(parts: Sequence[Fitted], drops: Drops) -> object:
    return [plain(part.row) for part in parts], dict(drops.changed), list(drops.counts)


@settings(max_examples=250)
@given(
    long_rows(),
    st.sampled_from(TEMPLATES),
    st.sampled_from(sorted(TOKENIZERS)),
    st.sampled_from(["assistant", "last", "all"]),
    st.floats(0.05, 1.0),
)
def test_splitting_is_what_it_is_defined_to_be(
    conversation: Conversation, template: str, tokenizer: str, policy: str, share: float
) -> None:
    encoder = encoder_of(template, tokenizer, policy)
    (whole,) = encoder.trace([conversation])
    if isinstance(whole, Drop):
        return
    limit, drops = max(1, round(share * (len(whole.row.ids) - 1))), Drops()
    (parts,) = fit([whole], [conversation], encoder, limit, "split", drops)
    wanted = slow_split(conversation, encoder, limit)
    assert told(parts, drops) == (wanted.rows, dict(wanted.changed), [wanted.dropped] if wanted.dropped else [])
    for part in parts:
        assert plain(part.whole.row) == plain(encoder.encode([part.conversation])[0])  # type: ignore[arg-type]
        assert part.row.ids.tolist() == part.whole.row.ids[: len(part.row.ids)].tolist()


@pytest.mark.parametrize("template", ["chatml", "vicuna_v0", "llama2", *FOREIGN])
def test_at_every_limit_a_part_takes_all_that_fits(template: str) -> None:
    encoder = encoder_of(template, "byte_level", "assistant")
    conversation = talk(*("Hello there " * (1 + i * 5 % 7) for i in range(12)))
    rows = encoder.trace([conversation])
    assert isinstance(rows[0], Traced)
    for limit in range(8, len(rows[0].row.ids), 2):
        (parts,) = fit(rows, [conversation], encoder, limit, "split", drops := Drops())
        wanted = slow_split(conversation, encoder, limit)
        assert told(parts, drops) == (wanted.rows, dict(wanted.changed), [wanted.dropped] if wanted.dropped else [])


@settings(max_examples=40)
@given(st.lists(long_rows(), min_size=2, max_size=6), st.sampled_from(["drop", "truncate", "split"]), st.integers(20, 120))
def test_a_batch_is_brought_under_the_limit_as_each_row_alone(rows: list[Conversation], overflow: str, limit: int) -> None:
    encoder = encoder_of("chatml", "byte_level", "assistant")
    together, apart = Drops(), Drops()
    found = encoder.trace(rows)
    alone = [fit([one], [row], encoder, limit, overflow, apart)[0] for one, row in zip(found, rows, strict=True)]
    batch = fit(found, rows, encoder, limit, overflow, together)
    assert [[plain(part.row) for part in parts] for parts in batch] == [[plain(part.row) for part in parts] for parts in alone]
    assert together == apart


class Counting(RowEncoder):
    """Counts the tokens that it encodes."""

    tokens = 0

    def trace(self, conversations: Sequence[Conversation]) -> list[Traced | Drop]:
        rows = super().trace(conversations)
        self.tokens += sum(len(row.row.ids) for row in rows if isinstance(row, Traced))
        return rows

    def lengths(self, texts: Sequence[Rendered]) -> list[int]:
        found = super().lengths(texts)
        self.tokens += sum(found)
        return found


@pytest.mark.parametrize(("template", "most"), [("chatml", 1.35), ("vicuna_v1.1", 1.35), ("vicuna_v0", 2.5)])
@pytest.mark.parametrize("policy", ["assistant", "last"])
def test_splitting_encodes_a_row_about_once_more(template: str, policy: str, most: float) -> None:
    tokenizer = copy.deepcopy(byte_level())
    loaded = load_template(template, system="Be brief.")
    repair_tokens(tokenizer, loaded)
    encoder, drops = Counting(tokenizer, loaded, policy), Drops()
    conversation = talk(*(f"{'ask' if i % 2 else 'say'} {i} " * (1 + i % 5) for i in range(400)))
    whole = encoder.trace([conversation])
    tokens, encoder.tokens = encoder.tokens, 0
    fit(whole, [conversation], encoder, 256, "split", drops)
    assert dict(drops.changed) == {"split": 1} | (
        {"split_untrained": drops.changed["split_untrained"]} if policy == "last" else {}
    )
    assert tokens > 36 * 256
    assert encoder.tokens < most * tokens
