"""Votes and saved dialogues as they stand in their files."""

from __future__ import annotations

import errno
import json
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sft.data.conversation import Turn
from sft.data.formats import detect_format
from sft.data.jsonl import read_rows
from sft.files import append_lines
from sft.recipe import Source
from sft.web.records import WINNERS, Battle, Keeper, language_of, row_of
from sft.web.servers import Piece
from sft.web.talk import Refused, Talk
from tests.web.test_talk import asked, written


def battle(*questions: str) -> Battle:
    return Battle(asked(*questions, strict=True, models=("alpha", "beta")))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().decode().splitlines()]


@pytest.mark.parametrize("winner", WINNERS)
def test_a_vote_is_a_line_of_the_arena(winner: str, tmp_path: Path) -> None:
    fight = battle("What is the capital of France?", "And of Spain?")
    fight.cast(winner, "human_1", tmp_path / "votes.jsonl")  # type: ignore[arg-type]
    (row,) = lines(tmp_path / "votes.jsonl")
    assert isinstance(row.pop("tstamp"), float)
    conversation = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "re What is the capital of France?"},
        {"role": "user", "content": "And of Spain?"},
        {"role": "assistant", "content": "re And of Spain?"},
    ]
    assert row == {
        "question_id": fight.talk.id,
        "turn": 2,
        "model_a": "alpha",
        "model_b": "beta",
        "winner": winner,
        "judge": "human_1",
        "conversation_a": conversation,
        "conversation_b": conversation,
        "anony": True,
        "language": "English",
    }


def test_there_is_one_vote_for_a_dialogue(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    fight = battle("a")
    fight.cast("tie", "human_1", path)
    for winner in WINNERS:
        with pytest.raises(Refused, match="voted"):
            fight.cast(winner, "human_1", path)
    fight.talk.new()
    with pytest.raises(Refused, match="not_finished"):
        fight.cast("tie", "human_1", path)
    fight.talk.undo("")  # back to the one that has its vote
    with pytest.raises(Refused, match="voted"):
        fight.cast("model_a", "human_1", path)
    assert len(lines(path)) == 1


def test_no_vote_before_both_answers_are_finished(tmp_path: Path) -> None:
    fight = battle("a")
    fight.talk.ask("b", "")
    for state in ("writing", "stopped", "broken"):
        fight.talk.exchanges[1].answers[1].state = state
        assert not fight.open
        with pytest.raises(Refused, match="not_finished"):
            fight.cast("model_a", "human_1", tmp_path / "votes.jsonl")
    assert not (tmp_path / "votes.jsonl").exists()


def test_a_vote_that_cannot_be_written_is_not_cast(tmp_path: Path) -> None:
    fight = battle("a")
    with pytest.raises(Refused, match="cannot_write") as refused:
        fight.cast("tie", "human_1", tmp_path / "absent" / "votes.jsonl")
    assert refused.value.values["why"] == "No such file or directory"
    assert fight.vote is None
    fight.cast("tie", "human_1", tmp_path / "votes.jsonl")
    assert fight.vote == "tie"


def test_models_and_sides_are_drawn_evenly() -> None:
    chance = random.Random(7)
    found: Counter[tuple[str, ...]] = Counter()
    for _ in range(3000):
        fight = Battle()
        fight.draw(["a", "b", "c"], chance)
        found[fight.talk.models] += 1
    assert len(found) == 6  # ordered pairs of two different ones
    assert max(abs(count - 500) for count in found.values()) < 100  # five deviations
    fight = Battle()
    with pytest.raises(Refused, match="two_models"):
        fight.draw(["a"], chance)


def test_a_dialogue_keeps_its_two_models() -> None:
    fight = battle("a")
    fight.draw(["x", "y"], random.Random(0))
    assert fight.talk.models == ("alpha", "beta")


def test_a_saved_dialogue_is_read_back_by_training(tmp_path: Path) -> None:
    path, keeper = tmp_path / "saved.jsonl", Keeper()
    talk = Talk(models=("m",))
    texts = [" Hi\u2028 there\n", "<b>\t\\u0041</b> 你好 😀 "]
    talk.ask(texts[0], "System:\n")
    written(talk, Piece(texts[1]), Piece("", "stop"))
    assert keeper.save(talk, path) == 1
    with pytest.raises(Refused, match="saved_already"):
        keeper.save(talk, path)
    talk.ask("more", "System:\n")
    written(talk, Piece("yes"), Piece("", "stop"))
    keeper.save(talk, path)
    values = [row.value for row in read_rows(path)]
    assert [detect_format(value) for value in values] == ["sharegpt", "sharegpt"]
    found = list(_conversations(path))
    assert found[0] == (Turn("system", "System:\n"), Turn("user", texts[0]), Turn("assistant", texts[1]))
    assert found[1] == (*found[0], Turn("user", "more"), Turn("assistant", "yes"))
    assert [value["id"] for value in values] == [f"{talk.id}_1", f"{talk.id}_2"]


def _conversations(path: Path) -> list[tuple[Turn, ...]]:
    from sft.data.conversation import Drops
    from sft.data.sources import read_source

    drops = Drops()
    found = [one.turns for one in read_source(Source(path=str(path)), drops)]
    assert drops.total == 0
    return found


@pytest.mark.parametrize("state", ["length", "stopped", "broken"])
def test_an_answer_without_an_end_is_no_training_row(state: str, tmp_path: Path) -> None:
    talk = asked("a", "b")
    talk.exchanges[0].answers[0].state = state  # type: ignore[assignment]
    with pytest.raises(Refused, match="cut_answer") as refused:
        row_of(talk)
    assert refused.value.values == {"number": 1}
    talk.edit_answer(0, "whole now")
    assert Keeper().save(talk, tmp_path / "saved.jsonl") == 2


def test_rows_that_training_could_not_use_are_not_written(tmp_path: Path) -> None:
    two = asked("a")
    two.ask("b", "Another system.")
    written(two, Piece("yes"), Piece("", "stop"))
    empty = Talk(models=("m",))
    empty.ask("a", "")
    written(empty, Piece("", "stop"))
    for talk, why in ((two, "two_systems"), (empty, "unreadable_row"), (Talk(), "nothing_to_save")):
        with pytest.raises(Refused, match=why):
            Keeper().save(talk, tmp_path / "saved.jsonl")
    assert not (tmp_path / "saved.jsonl").exists()


def test_the_language_of_a_vote() -> None:
    assert language_of("请用三句话介绍一下长城的历史。") == "Chinese"
    assert language_of("Wie spät ist es gerade in Berlin, bitte?") == "German"
    assert language_of("1 + 1") == "unknown"


def test_many_writers_leave_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append_lines(path, [{"n": number, "text": "é" * 5000}]), range(64)))
    assert sorted(row["n"] for row in lines(path)) == list(range(64))  # type: ignore[type-var]


def test_a_line_that_was_torn_keeps_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": ')
    append_lines(path, [{"n": 3, "half": "\ud800"}])
    assert path.read_bytes() == b'{"n": 1}\n{"n": \n{"n": 3, "half": "\\ud800"}\n'


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "votes.jsonl"
    append_lines(path, [{"n": 1}])
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:4]))
    with pytest.raises(OSError, match="No space left") as failed:
        append_lines(path, [{"n": 2}])
    assert failed.value.errno == errno.ENOSPC
    assert path.read_bytes() == b'{"n": 1}\n'
