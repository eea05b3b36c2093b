"""Each filter's refused and accepted examples; the chain's order; the pool's resume."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from selfinstruct.filters.chain import FilterChain, Pool, make_chain
from selfinstruct.records import Candidate
from sft.config import Document, build
from sft.errors import RecipeError, RunError
from tests.selfinstruct.judged import SEED, OneSection, refusal, sections, task

LENGTH, BLACK, PROGRAM = {"kind": "length"}, {"kind": "blacklist"}, {"kind": "write_a_program"}


@pytest.mark.parametrize(
    ("section", "candidate", "expected"),
    [
        (LENGTH, task("Name a river"), ("too_short", {"words": 3, "least": 4})),
        (LENGTH, task("Name a long river"), None),
        (LENGTH, task("w " * 150), None),
        (LENGTH, task("w " * 151), ("too_long", {"words": 151, "most": 150})),
        (LENGTH, task("写诗"), ("too_short", {"characters": 2, "least": 4})),
        (LENGTH, task("写一首诗"), None),
        (LENGTH, task("写" * 301), ("too_long", {"characters": 301, "most": 300})),
        ({"kind": "output_length", "max_length": 2}, task(output="a b c"), ("output_too_long", {"words": 3, "most": 2})),
        ({"kind": "output_length"}, task(output=""), ("output_too_short", {"words": 0, "least": 1})),
        (BLACK, task("Draw a house for me."), ("blacklisted_word", {"word": "draw"})),
        (BLACK, task("Where should I GO TO eat?"), ("blacklisted_word", {"word": "go to"})),
        (BLACK, task("Write about drawing and mapping profiles"), None),
        (BLACK, task("请把这个file文件保存"), ("blacklisted_word", {"word": "file"})),
        (BLACK, task("描述这张图片的内容"), ("blacklisted_word", {"word": "图片"})),
        (BLACK | {"words": ["图片"]}, task("Draw a house for me."), None),
        (BLACK | {"also": ["house"]}, task("Paint a house for me."), ("blacklisted_word", {"word": "house"})),
        (BLACK | {"allowed": ["concept map"]}, task("Describe a Concept Map of cells"), None),
        (BLACK | {"allowed": ["concept map"]}, task("Describe a concept map as a map"), ("blacklisted_word", {"word": "map"})),
        (PROGRAM, task("Write a program to sort"), ("asks_for_a_program", {"opening": "write a program"})),
        (PROGRAM, task("编写一个程序计算平均数"), ("asks_for_a_program", {"opening": "编写一个程序"})),
        (PROGRAM, task("Explain how to write a program"), None),
        (PROGRAM, task("Write a program that reverses a list"), ("asks_for_a_program", {"opening": "write a program"})),
        (PROGRAM, task("Write a program."), ("asks_for_a_program", {"opening": "write a program"})),
        (PROGRAM, task("Write a program for sorting names"), ("asks_for_a_program", {"opening": "write a program"})),
        (PROGRAM, task("write a program for the concert hall"), ("asks_for_a_program", {"opening": "write a program"})),
        (PROGRAM, task("Write a program for a party that draws lots"), ("asks_for_a_program", {"opening": "write a program"})),
        (PROGRAM, task("Write a program for event booking"), ("asks_for_a_program", {"opening": "write a program"})),
        (
            PROGRAM,
            task("Write a program to print the notes of a scale"),
            ("asks_for_a_program", {"opening": "write a program"}),
        ),
        (PROGRAM, task("写一个程序，输出一到一百"), ("asks_for_a_program", {"opening": "写一个程序"})),
        (
            PROGRAM | {"openings": ["code a tool"]},
            task("Code a tool to count"),
            ("asks_for_a_program", {"opening": "code a tool"}),
        ),
        (PROGRAM | {"openings": []}, task("Write a program to sort"), None),
        (PROGRAM, task("Write a programme note for a concert."), None),
        (PROGRAM, task("Write a programme of three songs for the school assembly"), None),
        (PROGRAM, task("Write a program note of two sentences"), None),
        (PROGRAM, task("Write a program for our annual spring concert, three parts"), None),
        (PROGRAM, task("Write a program of events for a village fair"), None),
        (PROGRAM, task("Write a programming lesson for children"), None),
        (PROGRAM, task("写一个程序员的一天"), None),
        ({"kind": "first_character"}, task("(a) Sort these"), ("starts_with_punctuation", {"character": "("})),
        ({"kind": "first_character"}, task("$5 are how many euros"), ("starts_with_punctuation", {"character": "$"})),
        ({"kind": "first_character"}, task("，写一首诗"), ("starts_with_punctuation", {"character": "，"})),
        ({"kind": "first_character"}, task("《红楼梦》的作者是谁？"), None),
        (
            {"kind": "first_character", "ascii_only": True},
            task("Écris un poème"),
            ("starts_with_non_ascii", {"character": "É"}),
        ),
        ({"kind": "first_character"}, task("3 rivers, please"), None),
        (
            {"kind": "language", "keep": ["en"]},
            task("写一首关于春天的诗"),
            ("other_language", {"field": "instruction", "language": "zh"}),
        ),
        ({"kind": "language", "keep": ["zh"]}, task("写一首关于春天的诗"), None),
        ({"kind": "language", "keep": ["zh"]}, task("1 + 1"), None),
        (
            {"kind": "language", "keep": ["zh"], "unknown": "refuse"},
            task("1 + 1"),
            ("language_unknown", {"field": "instruction"}),
        ),
        (
            {"kind": "language", "keep": ["en"], "fields": ["input", "output"]},
            task(output="这是一首关于春天的诗"),
            ("other_language", {"field": "output", "language": "zh"}),
        ),
        ({"kind": "empty_output"}, task(output=" \n"), ("empty_output", {})),
        ({"kind": "empty_output"}, task(output="<noOutput>"), ("placeholder_output", {"output": "<noOutput>"})),
        ({"kind": "empty_output"}, task(output="!"), None),
        ({"kind": "echo"}, task("Name it!", output="name it"), ("echoes_instruction", {"output": "name it"})),
        ({"kind": "echo"}, task("Name it!", "Peru", "Name it: Peru"), ("echoes_task", {"output": "Name it: Peru"})),
        ({"kind": "echo"}, task("Name it!", output="Name it Lima"), None),
        ({"kind": "echo"}, task("!", output="?"), None),
        ({"kind": "input_is_output"}, task(given="a  b", output="a b\n"), ("input_is_output", {"output": "a b\n"})),
        ({"kind": "input_is_output"}, task(given="", output=""), None),
        ({"kind": "input_is_output"}, task(given="a b", output="A b"), None),
        (
            {"kind": "refusal"},
            task(output="Well, as  an AI language\nmodel, I cannot"),
            ("teacher_refused", {"phrase": "as an ai language model, i"}),
        ),
        ({"kind": "refusal"}, task(output="I’m sorry, but I can’t"), ("teacher_refused", {"phrase": "i'm sorry, but i can"})),
        ({"kind": "refusal"}, task(output="作为一个人工智能，我不能"), ("teacher_refused", {"phrase": "作为一个人工智能,我"})),
        ({"kind": "refusal"}, task(output="He said: \"I'm sorry, but I can't.\""), None),
        (
            {"kind": "refusal", "phrases": ["I REFUSE"], "openings": []},
            task(output="No, i refuse"),
            ("teacher_refused", {"phrase": "i refuse"}),
        ),
        (
            {"kind": "trailing_colon"},
            task(output="Here it is:\n"),
            ("ends_with_colon", {"field": "output", "end": "Here it is:"}),
        ),
        (
            {"kind": "trailing_colon"},
            task(given="文章：", output="好"),
            ("ends_with_colon", {"field": "input", "end": "文章："}),
        ),
        ({"kind": "trailing_colon"}, task(output="a: b"), None),
    ],
)
def test_filters_of_one_candidate(
    section: dict[str, Any], candidate: Candidate, expected: tuple[str, dict[str, Any]] | None
) -> None:
    assert refusal(section, candidate) == expected


ROW = task("Sort the words by their length.", "a bb", "bb a", id="row")


@pytest.mark.parametrize(
    ("section", "candidate", "expected"),
    [
        (
            {"kind": "exact_duplicate"},
            task("sort the  words by their LENGTH."),
            ("exact_duplicate", {"row": "row", "by": "instruction"}),
        ),
        ({"kind": "exact_duplicate"}, task(SEED.instruction), ("exact_duplicate", {"row": "seed_task_0", "by": "instruction"})),
        ({"kind": "exact_duplicate"}, task("Sort the words by their length"), None),
        ({"kind": "exact_duplicate", "by": "task"}, task(ROW.instruction, "a", "x"), None),
        (
            {"kind": "exact_duplicate", "by": "task"},
            task(ROW.instruction, "A bb", "x"),
            ("exact_duplicate", {"row": "row", "by": "task"}),
        ),
        ({"kind": "exact_duplicate", "by": "row"}, task(ROW.instruction, "a bb", "x"), None),
        (
            {"kind": "exact_duplicate", "by": "row"},
            task(ROW.instruction, "a bb", "bb a"),
            ("exact_duplicate", {"row": "row", "by": "row"}),
        ),
        (
            {"kind": "contradiction"},
            task(ROW.instruction, "a bb", "a bb"),
            ("contradicts_row", {"row": "row", "input": "a bb"}),
        ),
        (
            {"kind": "contradiction"},
            task(SEED.instruction, "tin", "fin"),
            ("contradicts_row", {"row": "seed_task_0", "input": "tin"}),
        ),
        ({"kind": "contradiction"}, task(ROW.instruction, "a bb", "BB a"), None),
        ({"kind": "contradiction"}, task(ROW.instruction, "", "x"), None),
        (
            {"kind": "novelty"},
            task("Sort all words by their length."),
            ("near_duplicate", {"row": "row", "text": ROW.instruction, "score": 0.833333}),
        ),
        ({"kind": "novelty"}, task("Name all rivers of that country."), None),
    ],
)
def test_filters_against_the_pool(
    section: dict[str, Any], candidate: Candidate, expected: tuple[str, dict[str, Any]] | None
) -> None:
    assert refusal(section, candidate, ROW) == expected


def test_novelty_is_strictly_above_the_threshold() -> None:
    """F = 2 * 3 / (5 + 7) = 0.5 exactly."""
    row, same = task("a b c d e", id="row"), task("a b c x y z w")
    assert refusal({"kind": "novelty", "threshold": 0.5}, same, row) is None
    assert refusal({"kind": "novelty", "threshold": 0.49}, same, row) is not None


def test_accepted_rows_carry_their_neighbours() -> None:
    chain = make_chain(sections({"kind": "novelty", "neighbours": 2, "mean": True}), [SEED])
    chain.judge(ROW)
    verdict = chain.judge(task("Sort the given words.", id="new"))
    near = [["row", 0.6], ["seed_task_0", 0.307692]]
    assert verdict.scores == {
        "nearest": 0.6,
        "nearest_seed": 0.307692,
        "neighbours": near,
        "mean": round((4 / 13 + 0.6) / 2, 6),
    }
    quiet = make_chain(sections({"kind": "novelty", "neighbours": 0}), [SEED])
    assert quiet.judge(ROW).scores == {}


def test_instances_of_one_instruction_are_not_measured_against_each_other() -> None:
    chain = make_chain(sections({"kind": "exact_duplicate"}, {"kind": "contradiction"}, {"kind": "novelty"}))
    first = task("Sort the words by length.", "a bb", "bb a", id="1", group="g")
    assert chain.judge(first).accepted
    assert chain.judge(task(first.instruction, "c dd", "dd c", id="2", group="g")).accepted
    assert chain.judge(task(first.instruction, "a bb", "bb a", id="3", group="g")).reason == "exact_duplicate"
    assert chain.judge(task(first.instruction, "a bb", "a bb", id="4", group="g")).reason == "contradicts_row"
    assert chain.judge(task(first.instruction, "e", "e", id="5", group="h")).reason == "exact_duplicate"
    assert chain.judge(task("Sort the words by their length.", "e", "e", id="6", group="h")).reason == "near_duplicate"
    assert chain.pool.index is not None
    assert list(chain.pool.index.ids) == ["1"]


# --- the chain


def test_the_first_refusal_in_recipe_order_decides() -> None:
    bad = task("Draw it", output="")
    for order in (["length", "blacklist", "empty_output"], ["empty_output", "blacklist", "length"], ["blacklist", "length"]):
        assert make_chain(sections(*({"kind": kind} for kind in order))).judge(bad).filter == order[0]


def test_an_accepted_candidate_joins_the_pool_once() -> None:
    chain = make_chain(sections({"kind": "exact_duplicate"}))
    assert chain.judge(ROW, keep=False).accepted
    assert chain.judge(ROW).accepted
    verdict = chain.judge(task(ROW.instruction, id="again"))
    assert (verdict.candidate_id, verdict.accepted, verdict.reason) == ("again", False, "exact_duplicate")
    assert len(chain.pool) == 1


def test_a_bare_instruction_is_screened_by_what_needs_no_more() -> None:
    chain = make_chain(sections({"kind": "empty_output"}, {"kind": "length"}, {"kind": "novelty"}), [SEED])
    assert chain.screen(task("Name the capital of the country.", output="")) is None
    refused = chain.screen(task(SEED.instruction.lower(), output=""))
    assert refused is not None
    assert (refused.filter, refused.reason) == ("novelty", "near_duplicate")
    assert len(chain.pool) == 1


def test_the_critic_is_asked_last() -> None:
    chain = make_chain(sections({"kind": "length"}, {"kind": "critic", "minimum": 4.0}))
    assert chain.needs_critic(ROW)
    assert not chain.needs_critic(task("Too short"))
    assert not make_chain(sections({"kind": "length"})).needs_critic(ROW)
    assert chain.judge(ROW, {"critic": 4}).scores == {"critic": 4}
    low = chain.judge(ROW, {"critic": 3.5})
    assert (low.filter, low.reason, low.evidence, low.scores) == (
        "critic",
        "low_score",
        {"critic": 3.5, "least": 4.0},
        {"critic": 3.5},
    )
    assert [chain.judge(ROW, {"critic": score}).reason for score in (None, 9, 0)] == ["no_score"] * 3
    assert chain.judge(task("Too short")).filter == "length"
    with pytest.raises(RunError, match=r"reached the critic without a score; ask the teacher first"):
        chain.judge(ROW)


def test_a_chain_needs_the_index_of_its_threshold() -> None:
    with pytest.raises(ValueError, match=r"the pool has no novelty index with the threshold 0\.7"):
        FilterChain(sections({"kind": "novelty"}), Pool((), 0.5))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "lenght"}, "lenght"),
        (
            {"kind": "length", "min_words": 9, "max_words": 3},
            r"filters\[0\].*9 is above max_words = 3: nothing would pass; lower it",
        ),
        ({"kind": "length", "min_characters": 400}, r"400 is above max_characters = 300"),
        ({"kind": "blacklist", "also": ["a", " "]}, "an empty word would match everywhere; remove it"),
        ({"kind": "language", "keep": ["xx"]}, "xx cannot be recognised; choose from en, zh"),
        ({"kind": "language", "keep": []}, "keep"),
        ({"kind": "novelty", "threshold": 1.5}, "less than or equal to 1"),
        ({"kind": "critic", "minimum": 7.0}, r"7\.0 is outside the scale from 1\.0 to 5\.0; change it"),
        ({"kind": "contamination"}, "is required"),
        ({"kind": "novelty", "treshold": 0.5}, "unknown key"),
    ],
)
def test_a_recipe_with_a_bad_filter_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(OneSection, Document({"filters": [section]}, {}, "recipe.yaml"))


# --- resume


def _stream() -> list[Candidate]:
    dice = random.Random(3)
    words = ["sort", "name", "write", "list", "rivers", "poems", "capital", "long", "the", "of", "for", "with"]
    out = []
    for i in range(300):
        group = dice.choice(["", f"g{i // 9}"])
        text = " ".join((random.Random(group) if group else dice).choices(words, k=6))
        out.append(task(text, dice.choice(["", "x", "y"]), dice.choice(["p", "q"]), id=f"0-{i}-0", group=group))
    return out


KINDS = ({"kind": "exact_duplicate"}, {"kind": "contradiction"}, {"kind": "novelty", "neighbours": 3})


@pytest.mark.parametrize("saved_at", [None, 0, 100, 150])
def test_a_resumed_chain_decides_as_one_that_never_stopped(tmp_path: Path, saved_at: int | None) -> None:
    stream = _stream()
    straight = make_chain(sections(*KINDS), [SEED])
    path = tmp_path / "novelty.bin"
    verdicts = []
    for i, candidate in enumerate(stream):
        if i == saved_at:
            straight.save(path)
        verdicts.append(straight.judge(candidate))
    rows = [c for c, v in zip(stream[:150], verdicts, strict=False) if v.accepted]
    assert 20 < len(rows) < 140
    resumed = make_chain(sections(*KINDS), [SEED])
    assert resumed.restore(rows, path) is (saved_at is not None)
    assert [resumed.judge(candidate) for candidate in stream[150:]] == verdicts[150:]
    resumed.save(tmp_path / "a.bin")
    straight.save(tmp_path / "b.bin")
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_an_index_of_other_rows_or_a_damaged_one_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "novelty.bin"
    chain = make_chain(sections(*KINDS), [SEED])
    chain.judge(ROW)
    chain.save(path)
    other = task("Explain the rules of chess.", id=ROW.id)
    fresh = make_chain(sections(*KINDS), [SEED])
    assert not fresh.restore([other], path)
    assert "not the index of these rows; it is built again" in caplog.text
    assert fresh.judge(task("Explain the rules of chess!", id="x")).evidence["row"] == ROW.id
    path.write_bytes(path.read_bytes()[:-1])
    again = make_chain(sections(*KINDS), [SEED])
    assert not again.restore([ROW], path)
    assert "the novelty index is damaged" in caplog.text
    assert again.judge(task("Sort the words by length.", id="x")).reason == "near_duplicate"
