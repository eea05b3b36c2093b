"""Each method's requests and candidates: what they depend on, what they show, what they throw away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from selfinstruct.parse import TASKS_SCHEMA
from selfinstruct.records import (
    Candidate,
    Completion,
    Instance,
    ParseFailure,
    Request,
    Sampling,
    SeedTask,
    Usage,
    Verdict,
    canonical,
)
from selfinstruct.strategies import make_strategy
from selfinstruct.strategies.base import Asking, Item, Stage, Strategy, View
from selfinstruct.strategies.sections import AlpacaSection, ClassicSection, EvolveSection
from sft.errors import InputError
from tests.selfinstruct.teachers import texts

SEEDS = [
    SeedTask(f"s{i}", "", f"Seed instruction number {i}.", (Instance(f"in{i}" if i % 2 else "", f"out{i}"),), i % 3 == 0)
    for i in range(40)
]
ASKING = Asking("m", "chat", Sampling(4000), 7)
View_ = Callable[[Candidate], Verdict | None]


def view(rows: Sequence[Candidate] = (), screen: View_ = lambda candidate: None) -> View:
    return View(SEEDS, rows, screen)


def row(id_: str, instruction: str, parent: str = "", group: str = "") -> Candidate:
    return Candidate(
        id=id_, request_id="r", instruction=instruction, input="", output="x", round=0, item=0, parent=parent, group=group
    )


def answer(request: Request, text: str, finish_reason: str = "stop") -> Completion:
    return Completion(request_id=request.id, text=text, finish_reason=finish_reason, usage=Usage(1, 1), cost=1.0)


def play(stage: Stage, *replies: Sequence[tuple[str, str] | str]) -> list[Item]:
    """Answer stage after stage: the replies of each, a text or (text, finish_reason)."""
    batch = next(stage)
    for given in replies:
        assert len(given) == len(batch)
        answers = [answer(r, *([g] if isinstance(g, str) else g)) for r, g in zip(batch, given, strict=True)]
        try:
            batch = stage.send(answers)
        except StopIteration as done:
            found: list[Item] = done.value
            return found
    raise AssertionError(f"{len(batch)} requests more")


def ended(stage: Stage, replies: Any) -> list[Item]:
    """What a stage returns if nothing more is asked after these replies."""
    try:
        while True:
            assert stage.send(replies) == []
            replies = []
    except StopIteration as done:
        found: list[Item] = done.value
        return found


def codes(items: Sequence[Item]) -> list[str]:
    return [item.reason for item in items if isinstance(item, ParseFailure)]


def alpaca(**knobs: Any) -> Strategy:
    return make_strategy(AlpacaSection(kind="alpaca", **knobs), ASKING, SEEDS)


# --- alpaca ----------------------------------------------------------------------------------------------------------------


def test_alpaca_depends_on_seed_and_round_only() -> None:
    first = alpaca(requests_per_round=5).requests(3, view())
    assert first == alpaca(requests_per_round=5).requests(3, view([row("1", "x")]))
    assert first == alpaca(requests_per_round=50).requests(3, view())[:5], "a shorter round is a prefix"
    assert not {r.id for r in first} & {r.id for r in alpaca(requests_per_round=5).requests(4, view())}
    other = make_strategy(AlpacaSection(kind="alpaca", requests_per_round=5), Asking("m", "chat", Sampling(4000), 8), SEEDS)
    assert texts(first) != texts(other.requests(3, view()))


def test_alpaca_shows_seeds_and_asks_for_the_next_numbers() -> None:
    (request,) = alpaca(requests_per_round=1, tasks_per_call=5).requests(0, view())
    text = request.messages[0].content
    assert len(set(request.demonstrations)) == 3
    for n, id_ in enumerate(request.demonstrations, 1):
        seed = SEEDS[int(id_[1:])]
        given = seed.instances[0].input or "<noinput>"
        fields = f"<<<INSTRUCTION>>>\n{seed.instruction}\n<<<INPUT>>>\n{given}\n<<<OUTPUT>>>\n{seed.instances[0].output}\n"
        block = f"<<<TASK {n}>>>\n{fields}<<<END {n}>>>\n"
        assert block in text
    assert "Write tasks 4 to 8, " in text
    assert request.sampling.stop == ("<<<TASK 9>>>",)
    assert (request.schema, request.purpose, request.round, request.index) == (None, "tasks", 0, 0)
    assert text.endswith("<<<END 3>>>\n")


def test_alpaca_json_asks_with_the_schema() -> None:
    (request,) = alpaca(requests_per_round=1, format="json", prompt="alpaca_json_en").requests(0, view())
    assert request.schema == canonical(TASKS_SCHEMA)
    assert request.sampling.stop == ()


def test_alpaca_never_asks_the_same_twice_even_with_few_seeds() -> None:
    few = make_strategy(AlpacaSection(kind="alpaca", requests_per_round=30), ASKING, SEEDS[:3])
    ids = [r.id for n in range(3) for r in few.requests(n, View(SEEDS[:3], [], lambda c: None))]
    assert len(set(ids)) == 90


def test_alpaca_splits_the_cost_and_keeps_the_order() -> None:
    strategy = alpaca(requests_per_round=2)
    one = "<<<TASK 4>>>\n<<<INSTRUCTION>>>\nDo A.\n<<<INPUT>>>\n<noinput>\n<<<OUTPUT>>>\na\n<<<END 4>>>\n"
    two = one.replace("4>>>", "5>>>").replace("Do A.", "")
    items = play(strategy.propose(strategy.requests(0, view()), view()), [one + two + one.replace("4>>>", "6>>>"), "nothing"])
    assert [i.reason if isinstance(i, ParseFailure) else i.id for i in items] == [
        "0-0-0",
        "empty_instruction",
        "0-0-2",
        "no_tasks",
    ]
    assert [i.cost for i in items if isinstance(i, Candidate)] == [0.5, 0.5]


def test_alpaca_refusals() -> None:
    with pytest.raises(InputError, match="3 demonstrations are wanted but there are 2 seeds; add seeds"):
        make_strategy(AlpacaSection(kind="alpaca"), ASKING, SEEDS[:2])
    marked = [*SEEDS[:5], SeedTask("odd", "", "x", (Instance("", "<<<END 4>>>"),), False)]
    with pytest.raises(InputError, match="seed odd: its text holds '<<<END 4>>>'"):
        make_strategy(AlpacaSection(kind="alpaca"), ASKING, marked)
    make_strategy(AlpacaSection(kind="alpaca", format="json", prompt="alpaca_json_en"), ASKING, marked)


# --- classic ---------------------------------------------------------------------------------------------------------------


def classic(asking: Asking = ASKING, **knobs: Any) -> Strategy:
    return make_strategy(ClassicSection(kind="classic", **{"requests_per_round": 1, **knobs}), asking, SEEDS)


def test_classic_shows_six_seeds_and_two_rows() -> None:
    rows = [
        row("1", "Machine one."),
        row("2", "Machine two.", group="g"),
        row("3", "Machine two.", group="g"),
        row("4", "Machine three."),
    ]
    requests = classic(requests_per_round=50).requests(0, view(rows))
    for request in requests:
        machine = [id_ for id_ in request.demonstrations if not id_.startswith("s")]
        assert len(request.demonstrations) == 8
        assert len(machine) == 2
        assert not {"3"} & set(machine), "one row stands for a group"
    assert {id_ for r in requests for id_ in r.demonstrations} >= {"1", "2", "4"}
    (alone,) = classic().requests(0, view())
    assert len([id_ for id_ in alone.demonstrations if id_.startswith("s")]) == 8, "seeds stand in while there are no rows"
    assert "Go on from number 9 to number 16" in alone.messages[0].content


def test_classic_only_classification() -> None:
    (request,) = classic(classification_only=True).requests(0, view())
    assert all(int(id_[1:]) % 3 == 0 for id_ in request.demonstrations)
    assert "classification tasks" in request.messages[0].content


def test_classic_goes_through_its_stages() -> None:
    strategy = classic()
    first = strategy.requests(0, view())
    stage = strategy.propose(
        first, view(screen=lambda c: Verdict(candidate_id=c.id, accepted=False) if "spam" in c.instruction else None)
    )
    assert next(stage) == first
    listed = "9. Sort the mail.\n10. write spam\n11. Name a tall tree.\n12. Compose a tune.\n13. Say if it is late.\n<<<END>>>"
    questions = stage.send([answer(first[0], listed)])
    assert [q.purpose for q in questions] == ["classification"] * 4
    assert questions[0].messages[0].content.endswith("Task: Sort the mail.\nIs it classification?")
    assert (questions[0].sampling.max_tokens, questions[0].sampling.temperature) == (3, 0.0)
    shown = questions[0].messages[0].content
    assert (shown.count("? Yes"), shown.count("? No")) == (12, 19)
    demands = stage.send([answer(q, t) for q, t in zip(questions, ["Yes", "No", "Perhaps", "no"], strict=True)])
    assert ["Class label:" in d.messages[0].content for d in demands] == [True, False, False]
    labels = "Class label: Letter\nInput: a card\nClass label: Parcel\nInput: a box\n<<<END>>>"
    contradictory = "Example 1\nInput: a\nOutput: b\nExample 2\nInput: a\nOutput: c\n<<<END>>>"
    with pytest.raises(StopIteration) as done:
        stage.send(
            [answer(demands[0], labels), answer(demands[1], "Output: A sequoia.\n<<<END>>>"), answer(demands[2], contradictory)]
        )
    items: list[Item] = done.value.value
    rows = [(i.id, i.instruction, i.input, i.output, i.is_classification) for i in items if isinstance(i, Candidate)]
    assert rows == [
        ("0-0-5", "Write spam", "", "", None),
        ("0-0-0", "Sort the mail.", "a card", "Letter", True),
        ("0-0-1", "Sort the mail.", "a box", "Parcel", True),
        ("0-0-10", "Name a tall tree.", "", "A sequoia.", False),
    ]
    assert codes(items) == ["neither_yes_nor_no", "contradictory", "contradictory"]
    kept = [i for i in items if isinstance(i, Candidate)][1:]
    assert [i.group for i in kept] == ["0-0-0", "0-0-0", "0-0-10"]
    assert kept[0].via == (first[0].id, questions[0].id)
    assert kept[0].request_id == demands[0].id
    assert [round(i.cost, 6) for i in kept] == [1.1, 1.1, 2.2]  # (a fifth of stage 1, stage 2, stage 3) over the instances


def test_classic_does_not_pay_for_near_duplicates_of_a_round() -> None:
    strategy = classic()
    stage = strategy.propose(strategy.requests(0, view()), view())
    next(stage)
    questions = stage.send(
        [answer(strategy.requests(0, view())[0], "9. Name the two tall trees.\n10. Name the two tall trees!\n<<<END>>>")]
    )
    assert len(questions) == 1


def test_classic_keeps_at_most_so_many_instances_and_varies_their_format() -> None:
    def tried(**knobs: Any) -> list[Candidate]:
        strategy = classic(**knobs)
        examples = "".join(f"Example {i}\nInput: Word: w{i}\n\nmore\nOutput: o{i}\n" for i in range(1, 9)) + "<<<END>>>"
        items = play(strategy.propose(strategy.requests(0, view()), view()), ["9. Do it well.\n<<<END>>>"], ["No"], [examples])
        return [item for item in items if isinstance(item, Candidate)]

    plain = tried()
    assert len(plain) == 5
    assert [c.output for c in plain] == sorted(c.output for c in plain)
    assert {c.input[:5] for c in plain} == {"Word:"}
    varied = tried(augment=True)
    assert [c.output for c in varied] == [c.output for c in plain]
    assert {c.input.startswith("Word:") for c in varied} == {True, False}
    assert {"\n\n" in c.input for c in varied} == {True, False}
    assert varied == tried(augment=True)


def test_classic_for_models_that_only_continue() -> None:
    asking = Asking("m", "completion", Sampling(100), 7)
    (request,) = classic(asking).requests(0, view())
    assert request.kind == "completion"
    assert request.messages[0].content.endswith("\n9.")
    assert request.sampling.stop == ("\n18.",)


def test_classic_refusals() -> None:
    with pytest.raises(InputError, match="8 demonstrations are wanted but there are 7 seeds"):
        make_strategy(ClassicSection(kind="classic"), ASKING, SEEDS[:7])
    with pytest.raises(InputError, match="the seeds have only one kind; add the other"):
        make_strategy(ClassicSection(kind="classic"), ASKING, [s for s in SEEDS if not s.is_classification])


# --- evolve ----------------------------------------------------------------------------------------------------------------


def evolve(**knobs: Any) -> Strategy:
    return make_strategy(EvolveSection(kind="evolve", **{"requests_per_round": 40, "generations": 2, **knobs}), ASKING, SEEDS)


def block(instruction: str, given: str = "<noinput>") -> str:
    return f"<<<INSTRUCTION>>>\n{instruction}\n<<<INPUT>>>\n{given}\n<<<END>>>"


def test_evolve_takes_every_task_once_per_generation_then_ends() -> None:
    strategy = evolve(requests_per_round=15)
    rounds = [strategy.requests(n, view()) for n in range(7)]
    assert [len(r) for r in rounds] == [15, 15, 10, 15, 15, 10, 0]
    for generation in (rounds[:3], rounds[3:6]):
        assert sorted(r.demonstrations[0] for found in generation for r in found) == sorted(s.id for s in SEEDS)
    operators = {r.purpose for found in rounds for r in found}
    assert operators == {f"evolve:{name}" for name in ("constraints", "deepen", "concretize", "reasoning", "broaden")}
    assert len({r.id for found in rounds for r in found}) == 80


def test_evolve_goes_on_from_the_newest_accepted_form() -> None:
    strategy = evolve()
    rows = [row("0-1-0", "First form.", "s5"), row("1-1-0", "Second form.", "0-1-0"), row("9-9-9", "Stray.", "unknown")]
    shown = {r.demonstrations[0]: r.messages[0].content for r in strategy.requests(1, view(rows))}
    assert "s5" not in shown
    assert "<<<INSTRUCTION>>>\nSecond form.\n" in shown["1-1-0"]
    assert len(shown) == 40


def test_evolve_eliminates() -> None:
    strategy = evolve(requests_per_round=9)
    requests = strategy.requests(0, view())
    same = SEEDS[int(requests[3].demonstrations[0][1:])]
    rewritten: Any = [
        block("Explain the tides with two examples."),
        (block("Explain tides.")[:-10], "length"),
        "I would rather not.",
        block(same.instruction, same.instances[0].input or "<noinput>"),
        block("Answer the rewritten task: name a river."),
        block("Compare two rivers.", "Po, Rhine"),
        block("Name nine lakes by depth."),
        block("Name ten lakes by depth."),
        block("Name the lakes of Mars."),
    ]
    stage = strategy.propose(
        requests, view(screen=lambda c: Verdict(candidate_id=c.id, accepted=False) if "Mars" in c.instruction else None)
    )
    answers: Any = (
        ["Yes", "Yes, more depth", "No, they are alike", "yes"],
        ["The moon pulls.", "I am sorry, I cannot.", ("Baikal and", "length")],
    )
    items = play(stage, rewritten, *answers)
    found = [i for i in items if isinstance(i, Candidate)]
    assert [(c.instruction, c.input, c.output) for c in found] == [
        ("Name the lakes of Mars.", "", ""),  # for the judge, which finds the same reason
        ("Explain the tides with two examples.", "", "The moon pulls."),
    ]
    assert codes(items) == [
        "truncated",
        "no_task",
        "unchanged",
        "copied_prompt_words",
        "no_gain",
        "hard_to_answer",
        "truncated",
    ]
    assert found[1].parent == requests[0].demonstrations[0]
    assert found[1].cost == 3.0
    assert len(found[1].via) == 2


def test_evolve_asks_the_task_itself_and_may_leave_the_gain_out() -> None:
    strategy = evolve(gain_prompt=None, requests_per_round=1)
    stage = strategy.propose(strategy.requests(0, view()), view())
    next(stage)
    (request,) = stage.send([answer(strategy.requests(0, view())[0], block("Sum up.", "A text."))])
    assert (request.purpose, request.messages[0].content) == ("answer", "Sum up.\n\nA text.")
    assert request.sampling.max_tokens == 4000


def test_a_request_without_a_reply_gives_nothing() -> None:
    from selfinstruct.records import Failure

    for strategy in (alpaca(requests_per_round=1), classic(), evolve(requests_per_round=1)):
        requests = strategy.requests(0, view())
        stage = strategy.propose(requests, view())
        next(stage)
        replies: Any = [Failure(requests[0].id, "content_filter")]
        assert ended(stage, replies) == []
