"""Which rows go in, how often, on which side and in which order: by content and seed alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.curate.chat import Chat, Message
from sft.curate.mix import MixedRows, MixSection, MixSource, content_mark, copies_of, hashes, order_keys, plan_mix
from sft.errors import DataError

U64 = npt.NDArray[np.uint64]


def marks(values: Sequence[int]) -> U64:
    return np.array(values, np.uint64)


def contents(rows: MixedRows, sources: Sequence[MixSource]) -> list[tuple[int, int, int]]:
    """(source, mark, copy) in order."""
    found = zip(rows.source.tolist(), rows.row.tolist(), rows.copy.tolist(), strict=True)
    return [(source, int(sources[source].marks[row]), copy) for source, row, copy in found]


def test_the_mark_is_of_the_content() -> None:
    one = Chat("a", (Message("user", "Hi"), Message("assistant", "Hello.")))
    same = Chat("b", (Message("user", "Hi "), Message("assistant", "Hello.\n")), model="m")
    assert content_mark(one) == content_mark(same) == 7456799130774308278
    assert content_mark(one) != content_mark(Chat("a", (Message("assistant", "Hi"), Message("user", "Hello."))))


def test_hashes_are_the_same_on_every_machine() -> None:
    assert [f"{value:x}" for value in hashes(marks([0, 1, 2**64 - 1]), 0, "order").tolist()] == [
        "3fad0bef591a5898",
        "bbacccdddf35fb9a",
        "c584bb9b7bc4cbde",
    ]
    assert [f"{value:x}" for value in order_keys(marks([7, 7]), np.array([0, 1]), 5).tolist()] == [
        "2a22c6f0a1d16b77",
        "29fa3209a4fc38a5",
    ]


def test_everything_once_in_the_order_of_the_sources() -> None:
    sources = [MixSource("a", marks([5, 3, 5])), MixSource("b", marks([1]))]
    plan = plan_mix(MixSection(shuffle=False), sources)
    assert contents(plan.train, sources) == [(0, 5, 0), (0, 3, 0), (0, 5, 0), (1, 1, 0)]
    assert plan.train.row.tolist() == [0, 1, 2, 0]
    assert len(plan.holdout) == 0
    assert plan.counts == {
        "a": {"rows": 3, "within_limit": 3, "held_out": 0, "by_weight": 0, "written": 3},
        "b": {"rows": 1, "within_limit": 1, "held_out": 0, "by_weight": 0, "written": 1},
    }


def test_weights_repeat_and_thin_out() -> None:
    source = marks(range(10_000))
    assert set(copies_of(source, 1.0, 0).tolist()) == {1}
    assert set(copies_of(source, 3.0, 0).tolist()) == {3}
    assert Counter(copies_of(source, 2.25, 0).tolist()).keys() == {2, 3}
    assert abs(copies_of(source, 2.25, 0).mean() - 2.25) < 0.02
    assert abs(copies_of(source, 0.1, 0).mean() - 0.1) < 0.015
    assert (copies_of(source, 0.1, 0) != copies_of(source, 0.1, 1)).any()
    plan = plan_mix(MixSection(shuffle=False), [MixSource("a", marks([5, 3]), 2.0)])
    assert list(zip(plan.train.row.tolist(), plan.train.copy.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@given(st.floats(0.01, 3), st.floats(0.01, 3), st.integers(0, 5))
def test_a_smaller_weight_takes_a_part_of_what_a_larger_one_takes(one: float, other: float, seed: int) -> None:
    low, high = sorted((one, other))
    source = marks(range(200))
    assert (copies_of(source, low, seed) <= copies_of(source, high, seed)).all()


def test_a_smaller_limit_takes_a_part_of_what_a_larger_one_takes() -> None:
    source = MixSource("a", marks(range(100, 200)))
    taken = [set(plan_mix(MixSection(limits={"a": limit}), [source]).train.row.tolist()) for limit in (1, 10, 60, 100, 500)]
    assert [len(rows) for rows in taken] == [1, 10, 60, 100, 100]
    assert all(small <= large for small, large in pairwise(taken))
    assert taken[1] != set(range(10))


def test_the_limit_counts_before_the_weight() -> None:
    plan = plan_mix(MixSection(limits={"a": 3}), [MixSource("a", marks(range(9)), 2.0), MixSource("b", marks([1]))])
    assert plan.counts["a"] == {"rows": 9, "within_limit": 3, "held_out": 0, "by_weight": 0, "written": 6}


_SOURCES = st.lists(
    st.tuples(st.lists(st.integers(0, 60), max_size=30), st.sampled_from([0.3, 1.0, 1.5, 2.0])), min_size=1, max_size=3
)


@given(
    _SOURCES, st.sampled_from([0, 1, 5, 0.2]), st.sampled_from([None, 4]), st.integers(0, 3), st.randoms(use_true_random=False)
)
def test_the_order_of_the_rows_does_not_matter(
    parts: list[tuple[list[int], float]], holdout: int | float, limit: int | None, seed: int, dice: np.random.Generator
) -> None:
    section = MixSection(holdout=holdout, limits={"0": limit} if limit else {}, seed=seed)
    sources = [MixSource(str(i), marks(values), weight) for i, (values, weight) in enumerate(parts)]
    shuffled = [MixSource(s.label, marks(sorted(s.marks.tolist(), key=lambda _: dice.random())), s.weight) for s in sources]
    try:
        plan = plan_mix(section, sources)
    except DataError:
        with pytest.raises(DataError):
            plan_mix(section, shuffled)
        return
    other = plan_mix(section, shuffled)
    for side in ("train", "holdout"):
        found = contents(getattr(plan, side), sources)
        assert sorted(found) == sorted(contents(getattr(other, side), shuffled))
        assert [mark for _, mark, _ in found] == [mark for _, mark, _ in contents(getattr(other, side), shuffled)]
        keys = getattr(plan, side).key
        assert (keys[1:] >= keys[:-1]).all()
    train, held = ({mark for _, mark, _ in contents(rows, sources)} for rows in (plan.train, plan.holdout))
    assert not train & held
    assert max(plan.holdout.copy.tolist(), default=0) == 0
    rows = sum(count["within_limit"] for count in plan.counts.values())
    assert len(plan.holdout) >= (round(holdout * rows) if isinstance(holdout, float) else holdout)


def test_whole_numbers_and_shares_are_held_out() -> None:
    source = MixSource("a", marks(range(1000)))
    assert len(plan_mix(MixSection(holdout=35), [source]).holdout) == 35
    assert len(plan_mix(MixSection(holdout=0.1), [source]).holdout) == 100
    some, more = (set(plan_mix(MixSection(holdout=n), [source]).holdout.row.tolist()) for n in (35, 100))
    assert some < more


def test_parts_of_one_conversation_stay_on_one_side() -> None:
    groups = marks([number // 4 for number in range(400)])
    plan = plan_mix(MixSection(holdout=0.1), [MixSource("a", marks(range(1000, 1400)), groups=groups)])
    assert len(plan.holdout) == 40
    assert set((plan.holdout.row // 4).tolist()).isdisjoint((plan.train.row // 4).tolist())


def test_holding_out_says_nothing_about_thinning_out() -> None:
    source = MixSource("a", marks(range(20_000)), 0.5)
    plan = plan_mix(MixSection(holdout=0.5), [source])
    assert abs(plan.counts["a"]["written"] - 5000) < 250
    assert abs(copies_of(plan.holdout.row.astype(np.uint64), 0.5, 0).mean() - 0.5) < 0.025


def test_a_key_needs_nothing_but_its_row() -> None:
    source = marks(range(50))
    whole = plan_mix(MixSection(seed=3), [MixSource("a", source, 2.0)]).train
    parts = [
        order_keys(source[at : at + 7], np.full(len(source[at : at + 7]), copy), 3) for at in range(0, 50, 7) for copy in (0, 1)
    ]
    assert np.sort(np.concatenate(parts)).tolist() == whole.key.tolist()
    assert len(set(whole.key.tolist())) == 100


def test_copies_of_a_row_are_spread() -> None:
    rows = plan_mix(MixSection(), [MixSource("a", marks(range(500)), 2.0)]).train.row.tolist()
    gaps = [abs(first - second) for first, second in ([i for i, r in enumerate(rows) if r == row] for row in range(500))]
    assert 250 < float(np.mean(gaps)) < 420  # a third of 1,000 if they fall anywhere


def test_another_seed_is_another_order() -> None:
    source = MixSource("a", marks(range(100)))
    first, second = (plan_mix(MixSection(seed=seed), [source]).train.row.tolist() for seed in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(100))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"limits": {"c": 5}}, "mix.limits names 'c'; the sources are a"),
        ({"holdout": 4}, "mix.holdout asks for 4 rows, and there are only 4: nothing would be left; lower it"),
        (
            {"holdout": 0.99},
            "mix.holdout asks for 0.99 of 4 rows, which is 4, and there are only 4: nothing would be left; lower it",
        ),
        (
            {"holdout": 3},
            "mix.holdout asks for 3 rows, and rows of equal content stay together: nothing would be left; lower it",
        ),
    ],
)
def test_faults_found_in_the_rows(section: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_mix(MixSection.model_validate(section), [MixSource("a", marks([1, 1, 2, 2]))])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"holdout": 1.0}, "must be a number of rows, or a share of at least 0 and below 1"),
        ({"holdout": -1}, "must be a number of rows"),
        ({"limits": {"a": 0}}, "a: a limit is at least 1"),
        ({"seed": -1}, "greater than or equal to 0"),
    ],
)
def test_faults_of_the_section(section: dict[str, object], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        MixSection.model_validate(section)
