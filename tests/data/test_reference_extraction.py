"""The references of the extraction questions: what can be computed from the text of the question or from the first answer is."""

from __future__ import annotations

import json
import re
from datetime import date, timedelta
from typing import Any

from tests.data.references import asked, reference


def test_every_json_reference_is_json() -> None:
    for number in (251, 256, 258):
        assert json.loads(reference(number, 1).partition("\nFor ")[0])


def test_orders_add_up() -> None:
    totals = {row["customer"]: row["quantity"] * row["price"] for row in json.loads(reference(251, 1))}
    lines = [f"{name},{total:g}" for name, total in sorted(totals.items(), key=lambda pair: -pair[1])]
    assert reference(251, 2) == "\n".join(["customer,total", *lines, f"all,{sum(totals.values()):g}"])


def test_recipe_is_scaled() -> None:
    def amounts(turn: int) -> dict[str, float]:
        found = re.findall(r"^\| ([a-z ]+) \| ([\d.]+) \|", reference(253, turn), re.MULTILINE)
        return {name: float(amount) for name, amount in found}

    first, second = amounts(1), amounts(2)
    assert first == {"onion": 2, "oil": 3 * 15, "carrots": 500, "stock": 1000, "red lentils": 150, "lemon": 1}
    assert list(second) == sorted(first)
    assert second == {name: amount * 6 / 4 for name, amount in first.items()}


def test_timeline_and_ages() -> None:
    opened, born = 1953, 1931
    child = opened + 10
    years = [born, born + 9, opened, opened + 3, child, born + 64, born + 81, born + 82]
    lines = re.findall(r"^(\d{4}): ", reference(255, 1), re.MULTILINE)
    assert [int(year) for year in lines] == years
    ages = [
        f"{year}: Marta {year - born if year <= born + 81 else '-'}, daughter {year - child if year >= child else '-'}"
        for year in years
    ]
    held = f"The workshop was in the family for {years[-1] - opened} years."
    assert reference(255, 2) == "\n".join([*ages, held])


def test_last_days() -> None:
    duties: dict[str, list[dict[str, Any]]] = json.loads(reference(256, 1))
    signed, found = date(2025, 3, 3), date(2025, 3, 20)
    start = {"have reported damage repaired": found + timedelta(days=2), "report damage": found}
    lines = ["| party | duty | last day |", "|---|---|---|"]
    for party, rows in duties.items():
        for row in rows:
            last = start.get(row["duty"], signed) + timedelta(days=row["days"] or 0)
            said = "always" if row["days"] is None else f"{last.day} {last:%B}"
            lines.append(f"| {party} | {row['duty']} | {said} |")
    assert reference(256, 2) == "\n".join(lines)


def test_log() -> None:
    rows: dict[str, list[tuple[int, int]]] = {}
    for service, status, took in re.findall(r"^[\d:]{8} (\w+) (\d+) (\d+)ms$", asked(257, 1), re.MULTILINE):
        rows.setdefault(service, []).append((int(status), int(took)))
    plain = {
        name: f"{name},{len(calls)},{sum(status >= 500 for status, _ in calls)},{max(took for _, took in calls)}ms"
        for name, calls in rows.items()
    }
    assert reference(257, 1) == "\n".join(["service,requests,failed,longest", *plain.values()])
    good = {name: [took for status, took in calls if status < 500] for name, calls in rows.items()}
    ranked = sorted(rows, key=lambda name: len(good[name]) / len(rows[name]))
    lines = [f"{plain[name]},{sum(good[name]) / len(good[name]):.1f}" for name in ranked]
    assert reference(257, 2) == "\n".join(["service,requests,failed,longest,mean", *lines])


def test_rents() -> None:
    head, *lines = reference(260, 1).splitlines()
    priced = sorted(((int(line.split(",")[3]) / int(line.split(",")[2]), line) for line in lines), key=lambda pair: pair[0])
    table = "\n".join([head + ",rent_per_m2", *(f"{line},{price:.2f}" for price, line in priced)])
    total = {line[0]: int(line.split(",")[3]) + int(line.split(",")[4] or 0) for line in lines}
    assert reference(260, 2) == (
        f"{table}\nAt most 1,000 in all: A ({total['A']}) and C ({total['C']}). D costs {total['D']:,}. "
        f"For B it cannot be said, because its heating is not given: it is {total['B']} without."
    )
    assert max(total["A"], total["B"], total["C"]) <= 1000 < total["D"]
