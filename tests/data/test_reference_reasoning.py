"""The references of the questions in reasoning: all cases are gone through, and the answer is put together from what remains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import combinations, permutations, product

from tests.data.references import asked, reference


def listed(values: Iterable[object], last: str = "and") -> str:
    """``a, b and c``."""
    *first, end = [str(value) for value in values]
    return f"{', '.join(first)} {last} {end}" if first else end


def test_concert() -> None:
    names = asked(221, 1).partition(" play ")[0].replace(" and", ",").split(", ")
    rules: list[Callable[[Sequence[str]], bool]] = [
        lambda p: p.index("Bruno") == p.index("Carla") + 1,
        lambda p: p.index("Dev") not in (0, len(names) - 1),
        lambda p: p.index("Ada") - p.index("Esra") == 3,
        lambda p: p.index("Finn") < p.index("Dev"),
        lambda p: abs(p.index("Dev") - p.index("Bruno")) != 1,
    ]

    def orders(left_out: int | None = None) -> list[tuple[str, ...]]:
        kept = [rule for i, rule in enumerate(rules) if i != left_out]
        return [order for order in permutations(names) if all(rule(order) for rule in kept)]

    found = orders()
    assert len(found) == 3
    assert reference(221, 1) == "\n".join(["Three orders are possible:", *(", ".join(order) for order in sorted(found))])
    without = [len(orders(i)) for i in range(len(rules))]
    [idle] = [i for i, count in enumerate(without) if count == len(found)]
    others = ", ".join(f"without rule {i} there are {count}" for i, count in enumerate(without[1:-1], 2))
    assert idle == len(rules) - 1
    assert reference(221, 2) == (
        f"Rule {idle + 1} can go. Without rule 1 there are {without[0]} orders, {others}, "
        f"and without rule {idle + 1} there are {without[idle]} as before."
    )


def test_larks_and_owls() -> None:
    names = ("Pia", "Quin", "Rosa", "Sam")

    def worlds(more: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
        for half, kinds in product(("before", "after"), product(("lark", "owl"), repeat=4)):
            honest = [(kind == "lark") == (half == "before") for kind in kinds]
            said = [half == "before", kinds[0] == "lark", kinds[1] == kinds[2], kinds.count("owl") == 1]
            if honest == said and (not more or honest[3] == (half == "after")):
                yield half, kinds

    first = list(worlds(more=False))
    lines = [f"{half} noon: " + ", ".join(map(" ".join, zip(names, kinds, strict=True))) for half, kinds in first]
    sure = [names[i] for i in range(4) if len({kinds[i] for _, kinds in first}) == 1]
    assert sure == ["Pia", "Rosa"]
    assert len({half for half, _ in first}) == 2
    assert reference(222, 1) == "\n".join(
        [
            f"Pia is a {first[0][1][0]} and Rosa is an {first[0][1][2]}. The kinds of Quin and Sam and the time remain open. "
            "What is possible:",
            *lines,
        ]
    )
    [(half, kinds)] = worlds(more=True)
    kin = {kind: listed(name for name, of in zip(names, kinds, strict=True) if of == kind) for kind in ("lark", "owl")}
    assert reference(222, 2) == (
        f"Everything: it is {half} noon, {kin['lark']} are larks, {kin['owl']} are owls. "
        "Only an owl can ever say that it is after noon, so Sam is an owl."
    )
    for kind, before in product(("lark", "owl"), (True, False)):  # says that it is after noon
        honest = (kind == "lark") == before
        assert (honest == (not before)) == (kind == "owl")


def test_parcels() -> None:
    names = "ABCDEF"
    heavier = [("A", "B"), ("A", "C"), ("C", "D"), ("E", "D"), ("B", "E"), ("F", "C"), ("A", "F")]
    orders = frozenset(p for p in permutations(names) if all(p.index(a) < p.index(b) for a, b in heavier))
    places = {name: {order.index(name) for order in orders} for name in names}
    assert {name: at for name, at in places.items() if len(at) == 1} == {"A": {0}, "D": {5}}
    assert {order for order in permutations(names) if order[0] == "A" and order[5] == "D" and order.index("B") < order.index("E")
            and order.index("F") < order.index("C")} == orders  # fmt: skip
    assert reference(223, 1) == (
        f"A is the heaviest and D the lightest; no other place is certain. {len(orders)} orders are possible: "
        "B comes before E and F before C, and these two chains can be merged in any way."
    )

    @cache
    def needed(left: frozenset[tuple[str, ...]]) -> int:
        return 0 if len(left) == 1 else min(first(left).values())

    def first(left: frozenset[tuple[str, ...]]) -> dict[str, int]:
        """How many weighings it takes at worst, by the pair that is weighed first."""
        found = {}
        for a, b in combinations(names, 2):
            one = frozenset(order for order in left if order.index(a) < order.index(b))
            if one and one != left:
                found[a + b] = 1 + max(needed(one), needed(left - one))
        return found

    choices = first(orders)
    best = min(choices.values())
    assert {pair for pair, count in choices.items() if count == best} == {"BF", "CE"}
    assert reference(223, 2) == (
        f"{best} weighings. The first one must be B against F or C against E; each other choice can take "
        f"{max(choices.values())}."
    )
    assert {count for pair, count in choices.items() if pair not in ("BF", "CE")} == {max(choices.values())}


Die = tuple[int, int, int]
"""What is on top, north and east."""
STEPS = {"N": (0, 1), "S": (0, -1), "E": (1, 0), "W": (-1, 0)}


def roll(die: Die, way: str) -> Die:
    top, north, east = die
    return {
        "N": (7 - north, top, east),
        "S": (north, 7 - top, east),
        "E": (7 - east, north, top),
        "W": (east, north, 7 - top),
    }[way]


def rolled(die: Die, ways: Iterable[str]) -> tuple[Die, tuple[int, int]]:
    x = y = 0
    for way in ways:
        die, x, y = roll(die, way), x + STEPS[way][0], y + STEPS[way][1]
    return die, (x, y)


def test_rolling_die() -> None:
    start = (1, 5, 3)
    top, north, east = rolled(start, "NEESWN")[0]
    assert reference(224, 1) == f"On top is {top}, facing north is {north}, facing east is {east}."

    def home(count: int) -> list[str]:
        """All walks of so many rolls that bring it back with the 6 on top."""
        found = ((ways, rolled(start, ways)) for ways in product("NESW", repeat=count))
        return ["".join(ways) for ways, (die, at) in found if at == (0, 0) and die[0] == 6]

    fewest = next(count for count in range(1, 9) if home(count))
    assert fewest == 6
    assert "NNESSW" in home(fewest)
    assert reference(224, 2) == (
        f"{fewest} rolls, for instance N, N, E, S, S, W. A walk that comes back has an even number of rolls, and none of 2 or of 4 "
        "rolls leaves the 6 on top."
    )


def test_keys() -> None:
    """Only which kinds of keys there are matters: all 2^16 sets of kinds are gone through."""
    kinds = list(product((False, True), repeat=4))  # on the board, of brass, bent, opens the shed

    def mask(test: Callable[[bool, bool, bool, bool], bool]) -> int:
        return sum(1 << i for i, kind in enumerate(kinds) if test(*kind))

    def some(test: Callable[[bool, bool, bool, bool], bool]) -> Callable[[int], bool]:
        hits = mask(test)
        return lambda there: bool(there & hits)

    def none(test: Callable[[bool, bool, bool, bool], bool]) -> Callable[[int], bool]:
        hits = mask(test)
        return lambda there: not there & hits

    known = (
        none(lambda board, brass, bent, shed: board and not brass),
        some(lambda board, brass, bent, shed: brass and bent),
        none(lambda board, brass, bent, shed: bent and shed),
    )
    closed = none(lambda board, brass, bent, shed: board and shed)
    all_bent = none(lambda board, brass, bent, shed: brass and not bent)
    claims = {
        "(a)": some(lambda board, brass, bent, shed: brass and not shed),
        "(b)": some(lambda board, brass, bent, shed: board and bent),
        "(c)": closed,
        "(d)": none(lambda board, brass, bent, shed: shed and bent),
        "(e)": lambda there: not all_bent(there) or closed(there),
    }
    facts = {
        "(i)": none(lambda board, brass, bent, shed: brass and not board),
        "(ii)": none(lambda board, brass, bent, shed: not bent and brass),
        "(iii)": some(lambda board, brass, bent, shed: board and shed),
        "(iv)": none(lambda board, brass, bent, shed: shed and not brass),
    }
    models = [there for there in range(1 << len(kinds)) if all(rule(there) for rule in known)]
    follow = [name for name, claim in claims.items() if all(claim(there) for there in models)]
    open_ones = [name for name in claims if name not in follow]
    assert reference(225, 1) == f"{listed(follow)} follow; {listed(open_ones)} do not."
    settled = {
        name: [fact for fact, rule in facts.items() if all(claims[name](there) for there in models if rule(there))]
        for name in open_ones
    }
    idle = [fact for fact in facts if not any(fact in found for found in settled.values())]
    said = "; ".join(f"{name} follows with {fact} alone" for name, [fact] in settled.items())
    assert reference(225, 2) == (
        f"{said}. {listed(idle)} make neither follow; (ii) leaves (b) open because the board might be empty."
    )
    open_with_ii = [there for there in models if facts["(ii)"](there) and not claims["(b)"](there)]
    assert open_with_ii
    assert not any(there & mask(lambda board, *_: board) for there in open_with_ii)


Jobs = dict[str, tuple[int, tuple[str, ...]]]
"""Hours, and the jobs before it."""
JOBS: Jobs = {
    "priming the walls": (3, ()),
    "painting the walls": (4, ("priming the walls",)),
    "sanding the floor": (2, ()),
    "varnishing the floor": (3, ("sanding the floor", "painting the walls")),
    "taking off the doors": (1, ()),
    "painting the doors": (5, ("taking off the doors",)),
    "hanging the doors": (1, ("painting the doors", "varnishing the floor")),
}


def shortest(jobs: Jobs, painters: int) -> int:
    """Hours of the best plan; each hour any set of ready jobs may be begun, or nothing."""
    best = sum(hours for hours, _ in jobs.values())

    def plan(now: int, running: tuple[tuple[int, str], ...], done: frozenset[str], left: frozenset[str]) -> None:
        nonlocal best
        if not left:
            best = min(best, max((end for end, _ in running), default=now))
        if not left or now >= best:
            return
        ready = sorted(job for job in left if done.issuperset(jobs[job][1]))
        for count in range(min(painters - len(running), len(ready)) + 1):
            for chosen in combinations(ready, count):
                busy = running + tuple((now + jobs[job][0], job) for job in chosen)
                if busy:
                    then = min(end for end, _ in busy)
                    over = {job for end, job in busy if end == then}
                    plan(then, tuple(work for work in busy if work[0] > then), done | over, left.difference(chosen))

    plan(0, (), frozenset(), frozenset(jobs))
    return best


def test_painters() -> None:
    hours = {job: time for job, (time, _) in JOBS.items()}
    assert all(f"- {job}: {time} hour" in asked(226, 1) for job, time in hours.items())
    two, three = shortest(JOBS, 2), shortest(JOBS, 3)
    chain = [hours[job] for job in ("priming the walls", "painting the walls", "varnishing the floor", "hanging the doors")]
    assert sum(chain) == two == three
    assert reference(226, 1) == (
        f"{two} hours. Priming, painting the walls, varnishing and hanging the doors have to follow one another: "
        f"{' + '.join(map(str, chain))} = {two}; the second painter does the other jobs meanwhile."
    )
    quicker = {job: shortest(JOBS | {job: (time - 1, JOBS[job][1])}, 2) for job, time in hours.items()}
    helps = [job for job in JOBS if quicker[job] < two]
    idle = [job for job in JOBS if quicker[job] == two]
    [less] = {quicker[job] for job in helps}
    assert reference(226, 2) == (
        f"No, with three it takes {three} hours as well. An hour less for {listed(helps, 'or')} brings it down to {less} hours; "
        f"an hour less for {listed(idle, 'or')} changes nothing."
    )


def winning(stones: int, most: int) -> list[int]:
    """First moves that win."""

    @cache
    def moves(left: int, taken: int) -> list[int]:
        return [k for k in range(1, min(most, left) + 1) if k != taken and not moves(left - k, k)]

    return moves(stones, 0)


def test_stones() -> None:
    assert "has 14 stones" in asked(227, 1)
    assert winning(14, 3) == [1, 2, 3]
    assert reference(227, 1) == f"All of them: {listed(f'taking {k}' for k in winning(14, 3))} wins."
    [only] = winning(14, 4)
    lost = [n for n in range(1, 21) if not winning(n, 4)]
    assert reference(227, 2) == f"Only taking {only} wins. The first player loses with {listed(lost)} stones."


Deal = tuple[int, int, int]


def after_two_statements(cards: int) -> list[Deal]:
    """Deals to Ana, Ben and Cleo that are left when Ana could not tell and Ben could."""

    def sure(deals: list[Deal], deal: Deal, who: int, test: Callable[[Deal], bool]) -> bool:
        return all(test(other) for other in deals if other[who] == deal[who])

    deals: list[Deal] = [(a, b, c) for a, b, c in permutations(range(1, cards + 1), 3)]
    open_to_ana = [
        deal for deal in deals if not any(sure(deals, deal, 0, test) for test in (lambda d: d[0] < d[1], lambda d: d[0] > d[1]))
    ]
    return [deal for deal in open_to_ana if sure(open_to_ana, deal, 1, lambda d: d[1] > d[0])]


def cleo_knows(deals: list[Deal], deal: Deal, *whom: int) -> bool:
    return len({tuple(other[i] for i in whom) for other in deals if other[2] == deal[2]}) == 1


def test_three_cards() -> None:
    deals = after_two_statements(6)
    left = [deal for deal in deals if cleo_knows(deals, deal, 1)]
    ana, ben, cleo = (sorted({deal[i] for deal in left}) for i in range(3))
    assert ben == cleo
    assert len(left) == len(ana) * len(ben)
    assert reference(228, 1) == (
        f"Ben has {listed(ben, 'or')} and Cleo has the other one of these two; Ana has {listed(ana, 'or')}. "
        f"That makes {len(left)} deals."
    )
    deals = after_two_statements(4)
    left = [deal for deal in deals if cleo_knows(deals, deal, 0, 1)]
    [undrawn] = {card for deal in left for card in range(1, 5) if card not in deal}
    lines = [f"Ana {a}, Ben {b}, Cleo {c}" for a, b, c in sorted(left)]
    assert len(lines) == 3
    assert reference(228, 2) == "\n".join(
        [f"Three deals are possible, and the card that was not drawn is {undrawn} in each:", *lines]
    )


LOANS: dict[int, tuple[str | None, str | None, bool | None]] = {
    1: ("child", None, False),
    2: ("adult", None, True),
    3: (None, "white", True),
    4: ("adult", "white", None),
    5: (None, "green", False),
    6: ("child", None, True),
}


def looked_at(broken: Callable[[str, str, bool], bool]) -> tuple[list[int], list[int], list[int]]:
    """Loans to look at, loans that break a rule for certain, and loans that cannot."""
    found: tuple[list[int], list[int], list[int]] = ([], [], [])
    for number, (who, card, stamp) in LOANS.items():
        cases = {
            broken(w, c, s)
            for w, c, s in product(
                [who] if who else ["child", "adult"],
                [card] if card else ["green", "white"],
                [True, False] if stamp is None else [stamp],
            )
        }
        found[0 if len(cases) == 2 else 1 if cases == {True} else 2].append(number)
    return found


def test_library() -> None:
    for number, row in LOANS.items():
        told = [
            "stamp" if x is True else "no stamp" if x is False else f"{x} card" if x in ("white", "green") else x for x in row
        ]
        assert f"{number}: {', '.join(text for text in told if text)}\n" in asked(229, 1)
    look, certain, fine = looked_at(
        lambda who, card, stamp: (who == "child" and card == "white") or (card == "green" and stamp)
    )
    assert reference(229, 1) == (
        f"You must look at loans {listed(look)}. With loan {listed(certain)} a rule is certainly broken, whatever the card; "
        f"with loans {listed(fine)} none can be."
    )
    look, certain, fine = looked_at(lambda who, card, stamp: (who == "child") != (card == "green"))
    assert not certain
    assert reference(229, 2) == (
        f"You must look at loans {listed(look)}. No rule is certainly broken anywhere; loan {listed(fine)} is certainly in order."
    )


def test_lock() -> None:
    counts = {"none": 0, "one": 1, "two": 2}
    tries: list[tuple[tuple[str, ...], tuple[int, int]]] = []
    for line in asked(230, 1).splitlines():
        digits, colon, reply = line.partition(": ")
        if colon and digits.replace(" ", "").isdigit():
            right, wrong = reply.split(", ")
            tries.append((tuple(digits.split()), (counts[right.split()[0]], counts[wrong.split()[0]])))
    assert len(tries) == 4

    def replies(code: tuple[str, ...], tried: tuple[str, ...]) -> tuple[int, int]:
        right = sum(a == b for a, b in zip(code, tried, strict=True))
        return right, len(set(code) & set(tried)) - right

    fit = {code: [replies(code, tried) == said for tried, said in tries] for code in permutations("12345678", 3)}
    [code] = [code for code, held in fit.items() if all(held)]
    assert reference(230, 1) == f"The code is {' '.join(code)}. No other code fits the four replies."
    [(code, held)] = [(code, held) for code, held in fit.items() if held.count(False) == 1]
    place = ("first", "second", "third", "fourth")[held.index(False)]
    assert reference(230, 2) == (
        f"The {place} reply was false, and the code is {' '.join(code)}. No code fits if another one was false."
    )
