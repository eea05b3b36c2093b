"""Cases for the programs of the last five coding questions."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable
from decimal import Decimal
from itertools import chain, combinations, count, product
from typing import Any

import pytest

from tests.data.programs import names, refused


def dictionaries(first: str, second: str) -> None:
    changes, apply = names(first)["changes"], names(second)["apply"]
    old = {"a": 1, "b": {"x": 1, "y": {"z": None}}, "c": {"k": 2}, "d": [1]}
    new = {"a": {"n": 1}, "b": {"x": 1, "y": {}, "e": {}}, "c": 5, "d": [1]}
    assert changes(old, new) == [
        ("changed", ("a",), {"n": 1}),
        ("added", ("b", "e"), {}),
        ("removed", ("b", "y", "z"), None),
        ("changed", ("c",), 5),
    ]
    assert changes({"a": None}, {}) == [("removed", ("a",), None)]
    misfits: list[tuple[str, tuple[str, ...], Any]] = [
        ("removed", ("n",), None), ("changed", ("n",), 1), ("added", ("a",), 1), ("removed", ("n", "m"), None), ("added", ("a", "m"), 1)
    ]  # fmt: skip
    assert all(refused(KeyError, apply, {"a": 1}, [misfit]) for misfit in misfits)
    chance = random.Random(4)

    def drawn(depth: int) -> dict[str, Any]:
        kept = chance.sample("abcd", chance.randrange(5))
        return {key: drawn(depth - 1) if depth and chance.random() < 0.5 else chance.choice([None, 0, 1, [2]]) for key in kept}

    for _ in range(500):
        before, after = drawn(3), drawn(3)
        kept = json.dumps(before)
        listed = changes(before, after)
        wanted = json.dumps(listed)
        result = apply(before, listed)
        assert result == after
        assert json.dumps(before) == kept
        assert listed == sorted(listed, key=lambda change: change[1])
        stack: list[Any] = [result]
        while stack:  # nothing is shared with the list
            value = stack.pop()
            stack.extend(value.values() if isinstance(value, dict) else ())
            if isinstance(value, dict | list):
                value.clear()
        assert json.dumps(listed) == wanted
        assert json.dumps(before) == kept


def amounts(first: str, second: str) -> None:
    expression = names(first)["AMOUNT"]
    right = ["0", "7.50", "1234.00", "1,234", "12,345,678.90", "0.05", "10", "999", "100,000"]
    wrong = [
        "",
        "01",
        "1,23",
        "1234,567",
        "1.5",
        "1,234,",
        ".50",
        "1.",
        "0,123",
        "00",
        "1,2345",
        "1.555",
        "1,,234",
        "-1",
        "٣",
        "1.5 ",
    ]
    assert [text for text in right + wrong if re.fullmatch(expression, text)] == right
    total = names(second)["total"]
    cases = {
        "Tea €3.50, cake €4 and a lamp for €1,234.05.": Decimal("1241.55"),
        "I paid €5.": Decimal(5),
        "€1,23 and €5.555 and €01 and 7.00": Decimal(0),
        "€2,€3": Decimal(5),
        "€0.10 €0.20": Decimal("0.30"),
        "€ 5": Decimal(0),
        "€1,234,56": Decimal(0),
    }
    for text, wanted in cases.items():
        assert total(text) == wanted, text
        assert isinstance(total(text), Decimal)


def weights(first: str, second: str) -> None:
    batches, packed = names(first)["batches"], names(second)["packed"]
    assert list(batches([], 5, int)) == []
    assert list(batches([2, 3, 1, 9, 1, 5, 4], 5, int)) == [[2, 3], [1], [9], [1], [5], [4]]
    seen: list[int] = []

    def weigh(item: int) -> int:
        seen.append(item)
        return item

    endless = batches(chain([3, 3], count(1)), 5, weigh)
    assert [next(endless) for _ in range(4)] == [[3], [3, 1], [2, 3], [4]]
    assert seen == [3, 3, 1, 2, 3, 4, 5]
    assert refused(ValueError, packed, [6], 5, int)
    assert packed([], 5, int) == []
    assert packed(["aa", "bbb", "c", "dd"], 4, len) == [["bbb", "c"], ["aa", "dd"]]
    chance = random.Random(5)
    for _ in range(200):
        items = [chance.randrange(1, 10) for _ in range(chance.randrange(12))]
        lists: list[list[int]] = []
        for item in sorted(items, reverse=True):
            fits = [one for one in lists if sum(one) + item <= 10]
            if fits:
                fits[0].append(item)
            else:
                lists.append([item])
        assert packed(items, 10, int) == lists


def fewest_lists(items: tuple[int, ...], limit: int) -> int:
    """By trying all sets for the list of the first item."""
    if not items:
        return 0
    best = len(items)
    others = range(1, len(items))
    for size in range(len(items)):
        for chosen in combinations(others, size):
            if items[0] + sum(items[i] for i in chosen) <= limit:
                rest = tuple(items[i] for i in others if i not in chosen)
                best = min(best, 1 + fewest_lists(rest, limit))
    return best


def gathering(first: str, second: str) -> None:
    for source in (first, second):
        asyncio.run(_gathered(names(source)["gather_limited"]))
    asyncio.run(_again(names(second)["gather_limited"]))


async def _gathered(gather_limited: Callable[..., Any]) -> None:
    log: list[str] = []
    running = [0, 0]

    def job(name: str, steps: int, fails: bool = False) -> Callable[[], Any]:
        async def run() -> str:
            log.append(f"start {name}")
            running[0] += 1
            running[1] = max(running)
            try:
                for _ in range(steps):
                    await asyncio.sleep(0)
                if fails:
                    raise LookupError(name)
                return name
            finally:
                running[0] -= 1
                try:
                    await asyncio.sleep(0)
                finally:
                    log.append(f"end {name}")

        return run

    assert await gather_limited(2, []) == []
    assert await gather_limited(2, [job(name, steps) for name, steps in zip("abcd", (9, 1, 5, 2), strict=True)]) == list("abcd")
    assert running == [0, 2]
    assert [line for line in log if line.startswith("start")] == [f"start {name}" for name in "abcd"]
    log.clear()
    with pytest.raises(LookupError, match=r"^b$"):
        await gather_limited(2, [job("a", 50), job("b", 2, fails=True), job("c", 1), job("d", 1)])
    assert sorted(log) == ["end a", "end b", "start a", "start b"]


async def _again(gather_limited: Callable[..., Any]) -> None:
    log: list[str] = []

    def job(name: str, failures: int) -> Callable[[], Any]:
        left = [failures]

        async def run() -> str:
            log.append(name)
            await asyncio.sleep(0)
            left[0] -= 1
            if left[0] >= 0:
                raise LookupError(name)
            return name

        return run

    assert await gather_limited(1, [job("a", 2), job("b", 0), job("c", 1)], attempts=3) == ["a", "b", "c"]
    assert log == ["a", "b", "c", "a", "c", "a"]
    log.clear()
    try:
        await gather_limited(1, [job("a", 3), job("b", 0)], attempts=3)
    except LookupError:
        assert log == ["a", "b", "a", "a"]
    else:
        raise AssertionError("the failure is lost")
    calls = []

    async def cancelled() -> None:
        calls.append(1)
        raise asyncio.CancelledError

    try:
        await gather_limited(1, [cancelled], attempts=3)
    except asyncio.CancelledError:
        assert calls == [1]
    else:
        raise AssertionError("the cancellation is lost")


def spreadsheet(first: str, second: str) -> None:
    evaluate, update = names(first)["evaluate"], names(second)["update"]
    assert evaluate({"A1": "3", "B1": "=A1+A1+4", "C1": "=B1+Z9+10", "D1": "-7"}) == {"A1": 3, "B1": 10, "C1": 20, "D1": -7}
    assert evaluate({}) == {}
    for cells in ({"A1": "=A1"}, {"A1": "=B1", "B1": "=C1+1", "C1": "=A1", "D1": "4"}):
        assert refused(ValueError, evaluate, cells)
    long = {"A0": "1", **{f"A{i}": f"=A{i - 1}+1" for i in range(1, 10_001)}}
    values = evaluate(long)
    assert values["A10000"] == 10_001
    assert len(update(long, values, "A0", "5")) == 10_001
    assert values["A10000"] == 10_005

    class Watched(dict[str, int]):
        """Values that cells that do not depend on the change must not be computed from."""

        def __getitem__(self, key: str) -> int:
            assert key != "SECRET1", "evaluated without need"
            return super().__getitem__(key)

        def get(self, key: str, default: Any = None) -> Any:
            assert key != "SECRET1", "evaluated without need"
            return super().get(key, default)

    cells = {"SECRET1": "1", "X1": "=SECRET1+1", "A1": "2", "B1": "=A1+1"}
    watched = Watched(evaluate(cells))
    assert update(cells, watched, "A1", "9") == {"A1", "B1"}
    assert dict(watched) == evaluate(cells)

    chance = random.Random(6)
    known = [a + b for a, b in product("AB", "123")]
    cycles = 0
    for _ in range(60):
        cells, values = {}, {}
        for _ in range(15):
            terms = [chance.choice([*known, "0", "2"]) for _ in range(chance.randrange(1, 3))]
            content = chance.choice(["-3", "0", "=" + "+".join(terms)])
            name, before = chance.choice(known), (dict(cells), dict(values))
            after = {**cells, name: content}
            if refused(ValueError, evaluate, after):
                cycles += 1
                assert refused(ValueError, update, cells, values, name, content)
                assert (cells, values) == before
                continue
            different = update(cells, values, name, content)
            assert cells == after
            assert values == evaluate(after)
            assert different == {cell for cell in values if cell not in before[1] or before[1][cell] != values[cell]}
    assert cycles > 50
