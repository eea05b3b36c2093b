"""Self-Instruct's stage 4."""

from __future__ import annotations

import random

from selfinstruct.postprocess import tidy, vary_input
from selfinstruct.records import Instance


def test_instances_of_one_reply_are_tidied() -> None:
    good, other = Instance("tin", "pin"), Instance("", "x")
    kept, out = tidy([good, good, Instance("a", "a"), Instance("a", " "), Instance("Text:", "b"), Instance("a", "b："), other])
    assert kept == [good, other]
    assert [code for _, code in out] == ["repeated", "input_is_output", "empty_output", "ends_with_colon", "ends_with_colon"]
    assert tidy([good, other, Instance("tin", "win")]) == (
        [],
        [(i, "contradictory") for i in (good, other, Instance("tin", "win"))],
    )
    assert tidy([other, Instance("", "y")])[1] == []


def test_inputs_vary_by_the_dice_given() -> None:
    one, two = "Text: a b\n\nc", "Text: a\nTitle: b"
    assert {vary_input(one, random.Random(i)) for i in range(40)} == {one, "a b\n\nc", "Text: a b\nc", "a b\nc"}
    assert {vary_input(two, random.Random(i)) for i in range(40)} == {two}
    assert [vary_input(one, random.Random(5)) for _ in range(2)] == [vary_input(one, random.Random(5))] * 2
