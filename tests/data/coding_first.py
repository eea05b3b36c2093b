"""Cases for the programs of the first five coding questions."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from itertools import chain

from tests.data.programs import names, refused


def durations(first: str, second: str) -> None:
    parse, back = names(first)["parse_duration"], names(second)["format_duration"]
    cases = {"1h30m": 5400, "45s": 45, "2d4h": 187_200, "90m": 5400, "0s": 0, "1d1h1m1s": 90_061, "007s": 7, "3d1s": 259_201}
    assert {text: parse(text) for text in cases} == cases
    for text in ("", "5", "s", "30m1h", "1h1h", "1h ", " 1h", "1h 5m", "-5s", "1.5h", "1h\n", "٣s", "1H", "5s3", "1w"):
        assert refused(ValueError, parse, text), text
    written = {0: "0s", 59: "59s", 60: "1m", 3599: "59m59s", 3600: "1h", 86_399: "23h59m59s", 86_400: "1d", 90_060: "1d1h1m"}
    assert {number: back(number) for number in written} == written
    assert refused(ValueError, back, -1)
    assert all(parse(back(number)) == number for number in chain(range(4000), range(86_000, 87_000), (10**9 + 7,)))


def cache_with_clock(first: str, second: str) -> None:
    now = [100]
    plain = names(first)["ExpiringCache"](lambda: now[0])
    plain.set("a", None, 10)
    plain.set("b", 1, 5)
    assert plain.get("a", "x") is None
    assert plain.get("c", "x") == "x"
    assert plain.get("c") is None
    now[0] = 104
    assert plain.get("b") == 1
    plain.set("b", 2, 5)
    now[0] = 108
    assert plain.get("b") == 2
    now[0] = 109
    assert plain.get("b", "gone") == "gone"
    assert plain.get("a", "x") is None
    now[0] = 110
    assert plain.get("a", "gone") == "gone"

    assert refused(ValueError, names(second)["ExpiringCache"], lambda: 0, 0)
    chance = random.Random(1)
    for size in (1, 2, 5):
        now[0] = 0
        made = names(second)["ExpiringCache"](lambda: now[0], size)
        model: dict[int, tuple[int, int, int]] = {}
        for turn in range(3000):
            now[0] += chance.randrange(2)
            key, ttl = chance.randrange(8), chance.randrange(1, 12)
            if chance.random() < 0.5:
                model.pop(key, None)
                model = {k: entry for k, entry in model.items() if entry[0] > now[0]}
                if len(model) == size:
                    del model[min(model, key=lambda k: model[k][:2])]
                model[key] = (now[0] + ttl, turn, turn)
                made.set(key, turn, ttl)
            for k in range(8):
                entry = model.get(k, (-1, 0, 0))
                assert made.get(k, "none") == (entry[2] if entry[0] > now[0] else "none")
        kept = [value for value in vars(made).values() if isinstance(value, list)]
        assert all(len(value) <= 2 * size for value in kept)
    many = names(second)["ExpiringCache"](lambda: 0, 20_000)
    start = time.perf_counter()
    for key in range(60_000):
        many.set(key, key, 10)
    assert time.perf_counter() - start < 2
    assert many.get(39_999) is None
    assert many.get(40_000) == 40_000


def windows(first: str, second: str) -> None:
    averages, ranges = names(first)["moving_averages"], names(second)["moving_ranges"]
    chance = random.Random(2)
    for _ in range(300):
        values = [chance.randrange(-9, 10) for _ in range(chance.randrange(0, 12))]
        for size in range(1, 14):
            runs = [values[i : i + size] for i in range(len(values) - size + 1)]
            assert averages(values, size) == [sum(run) / size for run in runs]
            assert ranges(values, size) == [max(run) - min(run) for run in runs]
    start = time.perf_counter()
    assert len(ranges(list(range(60_000)), 30_000)) == 30_001
    assert time.perf_counter() - start < 1


BOOKS = [(1, "Zinnia"), (2, "Amber"), (3, "Moss"), (4, "Birch"), (5, "Moss")]
LOANS = [
    (1, "2024-12-20", "2025-01-04"),  # 3 days in 2025
    (1, "2025-03-01", "2025-03-01"),  # none
    (1, "2025-12-30", None),  # 2 days; the pause before it is 304 days
    (2, "2024-02-01", "2025-01-01"),  # none: the day of return does not count
    (2, "2026-01-01", None),  # none
    (3, "2024-06-01", None),  # 365 days
    (4, "2025-02-27", "2025-03-01"),  # 2 days
    (4, "2025-03-01", "2025-03-04"),  # 3 days, right after it
]


def library(first: str, second: str) -> None:
    base = sqlite3.connect(":memory:")
    base.execute("CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT)")
    base.execute("CREATE TABLE loans (book_id INTEGER, taken TEXT, returned TEXT)")
    base.executemany("INSERT INTO books VALUES (?, ?)", BOOKS)
    base.executemany("INSERT INTO loans VALUES (?, ?, ?)", LOANS)
    plain = [("Moss", 1, 365), ("Birch", 2, 5), ("Zinnia", 2, 5), ("Amber", 0, 0), ("Moss", 0, 0)]
    assert base.execute(first).fetchall() == plain
    pauses = [None, 0, 304, 365, None]
    assert base.execute(second).fetchall() == [(*row, pause) for row, pause in zip(plain, pauses, strict=True)]


Bus = tuple[str, str, int, str, int]


def buses(first: str, second: str) -> None:
    earliest, itinerary = names(first)["earliest_arrival"], names(second)["best_itinerary"]
    line: list[Bus] = [
        ("1", "a", 0, "b", 10),
        ("2", "a", 0, "b", 8),
        ("1", "b", 10, "c", 20),
        ("3", "b", 12, "c", 15),
        ("3", "b", 13, "c", 16),
    ]
    assert earliest(line, "a", "c", 0) == 16  # 8 + 5 = 13: missed by a minute at 12
    assert earliest(line, "a", "c", 0, 0) == 15
    assert earliest(line, "a", "c", 0, 6) == 20
    assert itinerary(line, "a", "c", 0, 6) == [line[0], line[2]]  # line 2 is earlier at b and cannot go on
    slow: list[Bus] = [("1", "a", 0, "b", 10), ("1", "a", 9, "b", 30), ("1", "b", 12, "c", 14)]
    assert earliest(slow, "a", "c", 0) == 14  # the line goes on with the first of its two
    assert itinerary(slow, "a", "c", 0) == [slow[0], slow[2]]
    assert earliest(line, "a", "a", 7) == 7
    assert itinerary(line, "a", "a", 7) == []
    assert earliest(line, "a", "c", 1) is None
    assert itinerary(line, "a", "c", 1) is None

    def ways(timetable: list[Bus], at: str, end: str, after: int, change: int, last: str | None) -> Iterator[list[Bus]]:
        if at == end and last is not None:
            yield []
        for bus in timetable:
            wait = 0 if last in (None, bus[0]) else change
            if bus[1] == at and bus[2] >= after + wait:
                for rest in ways(timetable, bus[3], end, bus[4], change, bus[0]):
                    yield [bus, *rest]

    chance = random.Random(3)
    for _ in range(800):
        timetable: list[Bus] = []
        for _ in range(chance.randrange(1, 11)):
            start, end = chance.sample("abd", 2)
            leaves = chance.randrange(16)
            timetable.append((chance.choice("12"), start, leaves, end, leaves + chance.randrange(1, 7)))
        change = chance.randrange(5)
        found = list(ways(timetable, "a", "d", 2, change, None))
        best = min(((way[-1][4], len(way)) for way in found), default=(None, 0))
        assert earliest(timetable, "a", "d", 2, change) == best[0]
        chosen = itinerary(timetable, "a", "d", 2, change)
        assert chosen is None if not found else chosen in found and (chosen[-1][4], len(chosen)) == best
