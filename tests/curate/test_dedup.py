"""Which conversations are left out, and the laws: no order matters, nothing that stays repeats what stays, equal ones are always found."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.config import Document, Section, build
from sft.curate.chat import Chat, Message
from sft.curate.dedup import (
    Cluster,
    Decision,
    Deduplicator,
    DedupSection,
    Duplicate,
    NearSection,
    content_key,
    record_type,
    signature,
)
from sft.errors import RecipeError

DATA = Path(__file__).resolve().parent.parent.parent / "data"
EXACT = DedupSection(near=None, same_id="keep")


def chat(*texts: str, id: str = "a", roles: str = "uaua") -> Chat:
    names = {"u": "user", "a": "assistant", "s": "system"}
    return Chat(id, tuple(Message(names[role], text) for role, text in zip(roles, texts, strict=False)))


def decide(chats: Sequence[Chat], section: DedupSection, order: Sequence[int] | None = None) -> Decision:
    found = Deduplicator(section)
    for index in range(len(chats)) if order is None else order:
        found.add(index, signature(chats[index], section))
    return found.decide()


def kept(chats: Sequence[Chat], section: DedupSection, order: Sequence[int] | None = None) -> list[Chat]:
    found = decide(chats, section, order)
    left = [(index, c) for index, c in enumerate(chats) if index not in found.duplicates]
    return [replace(c, id=c.id + found.renamed.get(index, "")) for index, c in left]


@pytest.mark.parametrize(
    "twin",
    [
        chat("Hi there", "Hello.", id="b"),
        chat(" Hi \n there\t", "Hello.\n"),
        chat("Hi\u00a0there", "Hello."),
        replace(chat("Hi there", "Hello."), model="m", extra={"lang": "en"}),
    ],
)
def test_equal_up_to_white_space(twin: Chat) -> None:
    assert decide([chat("Hi there", "Hello."), twin], EXACT).counts == {"exact_duplicate": 1}
    assert content_key(twin) == content_key(chat("Hi there", "Hello."))


def test_composed_and_decomposed_characters_are_equal() -> None:
    assert content_key(chat("Café")) == content_key(chat("Cafe\u0301"))


@pytest.mark.parametrize(
    "other",
    [
        chat("Hi There", "Hello."),
        chat("Hi there Hello.", ""),
        chat("Hi there"),
        chat("Hi there", "Hello.", roles="us"),
        chat("", "Hi there", "Hello.", roles="sua"),
        chat("Hithere", "Hello."),
        chat("Hi there", "Hello", ".", roles="uaa"),
    ],
)
def test_unlike_conversations(other: Chat) -> None:
    assert decide([chat("Hi there", "Hello."), other], EXACT).duplicates == {}


SAME_START = [
    chat("Hi", "Hello.", "And?", "No."),
    chat("Hi", " Hello. "),
    chat("Hi", "Hey."),
    chat("Sys", "Hi", "Hello.", roles="sua"),
]


def test_the_first_exchange_is_a_question_and_the_answer_behind_it() -> None:
    section = EXACT.model_copy(update={"first_exchange": True})
    assert decide(SAME_START, EXACT).duplicates == {}
    found = decide(SAME_START, section)
    assert found.duplicates == {1: Duplicate(0, "first_exchange", None), 3: Duplicate(0, "first_exchange", None)}
    assert found.clusters == [Cluster(0, (1, 3))]
    lonely = [
        chat("Hi"),
        chat("Hi", "Ho", roles="uu"),
        chat("Hi", "You there?", "Hello.", roles="uua"),
        chat("Hi", "H", roles="au"),
    ]
    assert decide(lonely, section).duplicates == {}


def test_same_id() -> None:
    rows = [chat("One", "1"), chat("Number two", "2"), chat("Three", "3", id="b"), chat("Four!", "4")]
    assert decide(rows, EXACT).duplicates == {}
    drop = decide(rows, EXACT.model_copy(update={"same_id": "drop"}))
    assert drop.duplicates == {0: Duplicate(1, "same_id", None), 3: Duplicate(1, "same_id", None)}
    rename = EXACT.model_copy(update={"same_id": "rename"})
    found = decide(rows, rename)
    assert found.duplicates == {}
    assert found.renamed == {i: f"~{int.from_bytes(content_key(rows[i])[:8], 'little'):016x}"[:9] for i in (0, 3)}
    assert sorted(c.id for c in kept(rows[::-1], rename)) == sorted(c.id for c in kept(rows, rename))


def test_equal_rows_that_are_kept_get_different_ids() -> None:
    section = EXACT.model_copy(update={"exact": False, "same_id": "rename"})
    ids = [c.id for c in kept([chat("Hi", "Ho")] * 4, section)]
    assert len(set(ids)) == 4
    assert ids[0] == "a"


def test_the_longest_stays_or_the_first() -> None:
    rows = [chat("Hi", "Hello."), chat("Hi", "Hello.", "And?", "No."), chat("Hi", "Hello.", "So?", "Yes!")]
    longest = EXACT.model_copy(update={"first_exchange": True})
    assert kept(rows, longest) == [min(rows[1:], key=lambda c: int.from_bytes(content_key(c)[:8], "little"))]
    assert kept(rows, longest.model_copy(update={"keep": "first"})) == [rows[0]]


def test_white_space_makes_nothing_longer() -> None:
    rows = [chat("Hi", "Hello."), chat("Hi", "Hello." + " " * 50), chat("Hi", "Hello. ")]
    assert {kept(list(p), EXACT)[0].messages for p in (rows, rows[::-1], [rows[1], rows[2], rows[0]])} == {
        kept(rows, EXACT)[0].messages
    }


# Near duplicates over real texts: the seed tasks of this repository, three to a conversation.
_TOKEN = re.compile(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+")


def _tasks(name: str) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    return [(f"{r['instruction']}\n{r['instances'][0]['input']}", r["instances"][0]["output"]) for r in rows]


def _conversations(name: str) -> list[Chat]:
    tasks = _tasks(name)
    groups = [[text for task in tasks[i : i + 3] for text in task] for i in range(0, len(tasks) - 2, 3)]
    return [chat(*texts, id=f"{name}{i}", roles="uauaua") for i, texts in enumerate(groups)]


def edited(source: Chat, share: float, dice: random.Random) -> Chat:
    """So many of the words (characters of Chinese) replaced, taken out or followed by a new one."""
    messages = []
    for message in source.messages:
        spans = [found.span() for found in _TOKEN.finditer(message.text)]
        text = message.text
        for low, high in sorted(dice.sample(spans, round(len(spans) * share)), reverse=True):
            new = chr(dice.randrange(0x4E00, 0x9000)) if text[low] >= "\u4e00" else f" new{dice.randrange(10**6)} "
            text = text[:low] + dice.choice(["", new, text[low:high] + new]) + text[high:]
        messages.append(Message(message.role, text))
    return replace(source, messages=tuple(messages), id=f"{source.id}-edited")


@pytest.mark.parametrize("name", ["seed_tasks.jsonl", "seed_tasks_zh.jsonl"])
def test_three_per_cent_of_edits_are_found_and_nothing_else(name: str) -> None:
    dice = random.Random(3)
    originals = _conversations(name)
    assert len(originals) > 50
    assert decide(originals, DedupSection()).duplicates == {}
    found = pairs = 0
    for _ in range(4):
        rows = originals + [edited(c, 0.03, dice) for c in originals]
        clusters = decide(rows, DedupSection()).clusters
        wanted = {frozenset((i, i + len(originals))) for i in range(len(originals))}
        seen = {frozenset((c.kept, *c.dropped)) for c in clusters}
        assert seen <= wanted
        found, pairs = found + len(seen), pairs + len(wanted)
    assert found >= 0.99 * pairs


def test_single_tasks_do_not_repeat_each_other() -> None:
    rows = [
        chat(*task, id=f"{name}{i}")
        for name in ("seed_tasks.jsonl", "seed_tasks_zh.jsonl")
        for i, task in enumerate(_tasks(name))
    ]
    assert len(rows) == 350
    assert decide(rows, DedupSection()).duplicates == {}


def _chain() -> list[Chat]:
    """Three conversations: each like the next one (0.86), the ends unlike (0.75)."""
    words = [f"w{i:04}" for i in range(1300)]
    return [chat(" ".join(words[80 * i : 80 * i + 1100]) + " end" * (3 - i), id=str(i)) for i in range(3)]


def test_a_chain_of_near_duplicates() -> None:
    rows = _chain()
    direct = decide(rows, DedupSection())
    assert set(direct.duplicates) == {1}
    assert direct.duplicates[1].of == 0
    assert 0.8 <= (direct.duplicates[1].similarity or 0) < 0.9
    chain = decide(rows, DedupSection(near=NearSection(reach="chain")))
    assert chain.clusters == [Cluster(0, (1, 2))]
    assert (chain.duplicates[2].similarity or 1) < 0.8


def test_an_exact_duplicate_of_a_near_one_belongs_to_its_cluster() -> None:
    long = " ".join(f"w{i}" for i in range(200))
    rows = [chat(long, "Yes."), chat(long, "Yes. "), chat(long, "Yes, indeed.")]
    found = decide(rows, DedupSection())
    assert found.counts == {"exact_duplicate": 1, "near_duplicate": 1}
    assert found.clusters == [Cluster(2, (0, 1))]


_WORDS = st.sampled_from([f"word{i}" for i in range(30)] + list("读两遍中文"))
_TEXT = st.builds(" ".join, st.lists(_WORDS, max_size=12))
_CHAT = st.builds(
    lambda texts, id, roles: chat(*texts, id=id, roles=roles),
    st.lists(_TEXT, max_size=4),
    st.sampled_from("abcd"),
    st.sampled_from(["uaua", "suau", "uuaa"]),
)
_SECTION = st.builds(
    DedupSection,
    exact=st.booleans(),
    same_id=st.sampled_from(["drop", "keep", "rename"]),
    first_exchange=st.booleans(),
    near=st.none() | st.builds(NearSection, permutations=st.just(32), reach=st.sampled_from(["direct", "chain"])),
    keep=st.just("longest"),
)


@st.composite
def _pools(draw: st.DrawFn) -> list[Chat]:
    """Conversations with copies and slightly edited copies among them."""
    rows = draw(st.lists(_CHAT, max_size=12))
    dice = random.Random(draw(st.integers(0, 1000)))
    for row in draw(st.lists(st.sampled_from(rows), max_size=8)) if rows else []:
        how = dice.randrange(3)
        rows.append(edited(row, 0.1, dice) if how == 0 else replace(row, id=dice.choice("ab")) if how == 1 else row)
    return rows


def _contents(chats: Sequence[Chat]) -> list[Any]:
    """Texts and ids, in an order of their own."""
    return sorted(((c.messages, c.id) for c in chats), key=repr)


@settings(max_examples=70)
@given(_pools(), _SECTION, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows: list[Chat], section: DedupSection, dice: random.Random) -> None:
    shuffled = rows.copy()
    dice.shuffle(shuffled)
    assert _contents(kept(shuffled, section)) == _contents(kept(rows, section))


@settings(max_examples=40)
@given(_pools(), _SECTION, st.sampled_from(["longest", "first"]), st.randoms(use_true_random=False))
def test_the_order_in_which_signatures_come_does_not_matter(
    rows: list[Chat], section: DedupSection, keep: str, dice: random.Random
) -> None:
    section = section.model_copy(update={"keep": keep})
    order = list(range(len(rows)))
    dice.shuffle(order)
    assert decide(rows, section, order) == decide(rows, section)


@settings(max_examples=70)
@given(_pools(), _SECTION, st.sampled_from(["longest", "first"]))
def test_once_is_enough(rows: list[Chat], section: DedupSection, keep: str) -> None:
    section = section.model_copy(update={"keep": keep})
    once = kept(rows, section)
    again = decide(once, section)
    assert again.duplicates == {}
    assert again.renamed == {} or section.same_id != "rename"
    assert section.same_id == "keep" or len({c.id for c in once}) == len(once)


@settings(max_examples=40)
@given(_pools(), _SECTION)
def test_equal_conversations_are_always_found(rows: list[Chat], section: DedupSection) -> None:
    section = section.model_copy(update={"exact": True})
    found = decide(rows, section)
    keys = [content_key(c) for c in rows]
    left = [keys[i] for i in range(len(rows)) if i not in found.duplicates]
    assert len(left) == len(set(left))
    assert all(keys[i] == keys[d.of] for i, d in found.duplicates.items() if d.reason == "exact_duplicate")
    assert found.counts["exact_duplicate"] == len(rows) - len(set(keys))


@settings(max_examples=40)
@given(_pools())
def test_whoever_is_left_out_is_like_one_that_stays(rows: list[Chat]) -> None:
    found = decide(rows, DedupSection(near=NearSection(permutations=32)))
    for duplicate in found.duplicates.values():
        if duplicate.reason == "near_duplicate":
            assert duplicate.of not in found.duplicates
            assert (duplicate.similarity or 0) >= 0.8


def test_signatures_in_one_go_and_one_by_one() -> None:
    section = DedupSection(near=NearSection(permutations=16))
    rows = [chat(f"Question {i % 3000}", f"Answer {i % 3000}", id=str(i)) for i in range(5000)]
    signatures = [signature(c, section) for c in rows]
    assert {len(s) for s in signatures} == {record_type(section).itemsize} == {64 + 32}
    together, single = Deduplicator(section), Deduplicator(section)
    together.extend(range(2000), b"".join(signatures[:2000]))
    together.extend(range(2000, 5000), b"".join(signatures[2000:]))
    for index, found in enumerate(signatures):
        single.add(index, found)
    assert len(together) == len(single) == 5000
    assert together.decide() == single.decide()
    assert together.decide().counts["exact_duplicate"] == 2000


def test_nothing_in_nothing_out() -> None:
    assert Deduplicator(DedupSection()).decide() == Decision({}, {})
    assert decide([chat(), chat(" ", "\n")], DedupSection()).duplicates == {}  # nothing to compare, and not equal


def test_signatures_are_the_same_on_every_machine() -> None:
    record = np.frombuffer(signature(chat("Read it: 读两遍", "Twice."), DedupSection()), record_type(DedupSection()))[0]
    assert [f"{value:x}" for value in (*record["exact"], *record["first"], record["id"])] == [
        "43e09d037e6bee30",
        "db951c13a915cf19",
        "43e09d037e6bee30",
        "db951c13a915cf19",
        "d966e1dac9fc4c4a",
    ]
    assert (record["content"], record["length"], record["compared"]) == (record["exact"][0], 18, 1)


class _Whole(Section):
    dedup: DedupSection


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"near": {"threshold": 0.3}}, "dedup.near.threshold: input should be greater than or equal to 0.5, got 0.3"),
        ({"near": "off"}, 'dedup.near: must be a mapping, got "off"'),
        ({"same_id": "renam"}, "dedup.same_id: must be 'drop', 'keep' or 'rename', got \"renam\"; did you mean 'rename'?"),
        ({"near": {"shingles": "words"}}, "dedup.near.shingles: unknown key; did you mean 'dedup.near.shingle'?"),
    ],
)
def test_faults_of_the_section(value: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(_Whole, Document({"dedup": value}, {}, "a.yaml"))
    assert [f"{fault.key}: {fault.message}" for fault in caught.value.faults] == [message]
