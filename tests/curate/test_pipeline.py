"""Curations from end to end: the bytes do not depend on workers, parts, stops or a second run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sft.curate import parts, pipeline
from sft.curate.chat import Chat, Message, Rule
from sft.curate.clean import Cleaner
from sft.curate.parts import PartReport
from sft.curate.pipeline import Curation, curate
from sft.curate.recipe import CurateRecipe, load_curate_recipe
from sft.data.conversation import Drop
from sft.errors import DataError, RecipeError
from tests.builders import LLAMA, save_tiny, sentencepiece_like
from tests.curate.conftest import told

RULES = [{"kind": "role_repair"}, {"kind": "empty_turn"}, {"kind": "notice"}, {"kind": "min_length"}]


def row(i: int) -> dict[str, Any]:
    """Talks of 1 to 4 rounds; some begin with an answer, end with a question, are empty, or repeat another."""
    rounds = [("human", f"Question {i} part {k}: what is {i} times {k}?") for k in range(1 + i % 4)]
    turns = [
        turn for k, turn in enumerate(rounds) for turn in (turn, ("gpt", f"It is {i * k}. " + f"word{i} " * (3 + 9 * (i % 3))))
    ]
    if i % 7 == 0:
        turns.insert(0, ("gpt", "How can I help?"))
    if i % 5 == 0:
        turns.append(("human", "And then?"))
    if i % 11 == 0:
        turns = [("human", "Hi"), ("gpt", "")]
    return {"id": f"r{i % 37}", "conversations": [{"from": who, "value": text} for who, text in turns]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_tiny(folder / "model", sentencepiece_like(), LLAMA)
    (folder / "a.jsonl").write_text(
        "".join(json.dumps(row(i)) + "\n" for i in range(60)) + "not json\n" + json.dumps(row(3)) + "\n"
    )
    (folder / "b.json").write_text(json.dumps([row(i) for i in range(100, 130)]))
    return folder


def recipe(base: Path, out: Path, **changes: Any) -> CurateRecipe:
    values: dict[str, Any] = {
        "sources": [{"path": str(base / "a.jsonl"), "name": "a"}, {"path": str(base / "b.json"), "name": "b", "weight": 1.5}],
        "rules": RULES,
        "dedup": {},
        "split": {"model": {"name_or_path": str(base / "model")}, "template": {"name": "vicuna_v1.1"}, "max_length": 256},
        "mix": {"holdout": 5},
        "max_unreadable_share": 0.02,
        "output": {"dir": str(out), "rows_per_part": 16, "workers": 1},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = {**values[section], name: value} if name else value
    return CurateRecipe.model_validate(values, strict=False)


def go(base: Path, out: Path, **changes: Any) -> Curation:
    return curate(recipe(base, out, **changes), progress=False)


def result(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jsonl"))}


@pytest.fixture(scope="module")
def straight(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    go(base, out)
    return out


def test_counts_add_up_and_everything_left_out_is_listed(base: Path, straight: Path) -> None:
    about = json.loads((straight / "run.json").read_text())
    clean, dedup, split = (about["stages"][name] for name in ("clean", "dedup", "split"))
    assert clean["rows_in"] == 92
    assert clean["rows_in"] == clean["rows_out"] + sum(clean["counts"].values())
    assert clean["counts"]["invalid_json"] == 1
    assert dedup["rows_in"] == clean["rows_out"] == dedup["rows_out"] + sum(dedup["counts"].values())
    assert dedup["counts"]["exact_duplicate"] == 1  # row 3 stands twice
    assert split["rows_in"] == dedup["rows_out"]
    listed = [json.loads(line) for line in (straight / "dropped.jsonl").read_text().splitlines()]
    assert len(listed) == sum(sum(stage["counts"].values()) for stage in about["stages"].values())
    assert {"stage", "place", "reason", "detail"} == set(listed[0])
    assert [entry["place"] for entry in listed if entry["reason"] == "invalid_json"] == [f"{base / 'a.jsonl'}:61"]
    rows = [json.loads(line) for line in (straight / "train.jsonl").read_text().splitlines()]
    assert len(rows) == sum(counts["written"] for counts in about["mixed"].values())
    assert sum(counts["held_out"] for counts in about["mixed"].values()) == len(
        (straight / "holdout.jsonl").read_text().splitlines()
    )


def test_parts_of_a_split_conversation_stay_on_one_side(straight: Path) -> None:
    sides = [
        {json.loads(line)["id"].partition("#")[0] for line in (straight / name).read_text().splitlines()}
        for name in ("train.jsonl", "holdout.jsonl")
    ]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize("changes", [{"output__rows_per_part": 5}, {"output__rows_per_part": 1000}, {"output__workers": 2}])
def test_parts_and_workers_change_no_byte(base: Path, straight: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    go(base, tmp_path, **changes)
    assert result(tmp_path) == result(straight)
    assert told(tmp_path) == told(straight)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 4, 9, 17, 23])
def test_stopped_and_run_again_is_the_same(
    base: Path, straight: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def dies(folder: Path, batch: parts.Batch, work: parts.Work) -> PartReport:
        nonlocal made
        made += 1
        if made > after:
            parts.part_path(folder, batch.index).write_bytes(
                b'{"torn'
            )  # what a kill leaves of a file that is no draft any more
            raise Stopped
        return whole(folder, batch, work)

    whole = parts.make_part
    with monkeypatch.context() as patch:
        patch.setattr(parts, "make_part", dies)
        with pytest.raises(Stopped):
            go(base, tmp_path)
    done = go(base, tmp_path)
    assert sum(reused for _, reused in done.parts.values()) == after
    assert result(tmp_path) == result(straight)


def test_what_changed_is_made_again_and_nothing_else(base: Path, straight: Path, tmp_path: Path) -> None:
    go(base, tmp_path)
    again = go(base, tmp_path)
    assert all(count == reused for count, reused in again.parts.values())
    damaged = tmp_path / "clean" / "00001.jsonl"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    mended = go(base, tmp_path)
    assert mended.parts["clean"] == (6, 5)
    assert result(tmp_path) == result(straight)
    shorter = go(base, tmp_path, split__max_length=200)
    assert [shorter.parts[name][1] for name in ("clean", "dedup", "split")] == [6, 6, 0]
    fewer = go(base, tmp_path, sources=[{"path": str(base / "b.json"), "name": "b"}], mix={})
    assert [fewer.parts[name][0] for name in ("clean", "split")] == [2, 2]
    assert sorted(path.name for path in (tmp_path / "clean").glob("*.jsonl")) == ["00000.jsonl", "00001.jsonl"]
    assert not (tmp_path / "holdout.jsonl").exists()


def test_code_is_part_of_every_key(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(base, tmp_path, split=None, dedup=None)
    monkeypatch.setattr(pipeline, "code_fingerprint", lambda: "another")
    assert go(base, tmp_path, split=None, dedup=None).parts == {"clean": (6, 0)}


def test_what_came_out_comes_out_again(base: Path, straight: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (straight / "train.jsonl").read_text().splitlines()]
    single = {json.dumps(found["conversations"]): found for found in rows}  # some stand twice, by their weight
    (tmp_path / "again.jsonl").write_text("".join(json.dumps(found) + "\n" for found in single.values()))
    source = [{"path": str(tmp_path / "again.jsonl"), "name": "again"}]
    done = go(base, tmp_path / "out", sources=source, dedup={"near": None}, mix={"shuffle": False})
    assert (tmp_path / "out" / "train.jsonl").read_text() == "".join(json.dumps(found) + "\n" for found in single.values())
    assert not any(stage.counts for stage in done.stages.values())
    assert {reason for stage in done.stages.values() for reason in stage.changed} == {
        "exchange_too_long_kept"
    }  # a note, no change


def test_rows_about_the_models_own_name_join_behind_dedup(base: Path, straight: Path, tmp_path: Path) -> None:
    who = {"name": "Ada", "organisation": "the Language Lab", "languages": ["en"], "weight": 2.0}
    done = go(base, tmp_path, identity=who)
    counts = done.mixed["identity"]
    pairs = (tmp_path / "identity.jsonl").read_text().splitlines()
    assert counts["rows"] == len(pairs) > 200
    assert counts["written"] == 2 * (counts["rows"] - counts["held_out"])
    assert {name: done.mixed[name]["rows"] for name in "ab"} == {
        name: json.loads((straight / "run.json").read_text())["mixed"][name]["rows"] for name in "ab"
    }
    go(base, tmp_path)
    assert result(tmp_path) == result(straight)
    with pytest.raises(
        ValueError, match="two sources are called 'identity' \\(the label of the rows of 'identity'\\); give one"
    ):
        recipe(base, tmp_path, identity=who, sources=[{"path": str(base / "a.jsonl"), "name": "identity"}])
    with pytest.raises(ValueError, match="must say something; it stands in every answer"):
        recipe(base, tmp_path, identity={**who, "name": " "})


def test_nothing_left_is_an_error(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no rows are left after clean; .*dropped\.jsonl says why each was left out"):
        go(base, tmp_path, rules=[{"kind": "min_length", "characters": 100_000}])


def test_two_sources_with_one_name_are_refused(base: Path, tmp_path: Path) -> None:
    text = f"sources:\n  - {{path: {base / 'a.jsonl'}}}\n  - {{path: {base / 'a.jsonl'}}}\noutput: {{dir: {tmp_path}}}\n"
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"two sources are called 'a\.jsonl'; give one of them another name"):
        load_curate_recipe(tmp_path / "r.yaml")


class _Undo:
    """Two rules that undo each other."""

    def __init__(self, kind: str, old: str, new: str) -> None:
        self.kind, self._old, self._new = kind, old, new

    def apply(self, chat: Chat) -> Chat | Drop:
        texts = (Message(m.role, m.text.replace(self._old, self._new)) for m in chat.messages)
        return chat.with_messages(tuple(texts))


def test_rules_that_never_settle_leave_the_conversation_out() -> None:
    rules: list[Rule] = [_Undo("there", "a", "b"), _Undo("back", "b", "a")]
    report = PartReport("", 0, "s")
    chat = Chat("c", (Message("user", "a"), Message("assistant", "x")))
    settled = Cleaner(rules[:1], {}).clean(chat, PartReport("", 0, "s"))
    assert settled is not None
    assert settled.messages[0].text == "b"
    odd: list[Rule] = [_Undo("there", "a", "bc"), _Undo("back", "b", "a")]
    assert Cleaner(odd, {}).clean(chat, report) is None
    assert report.dropped == [["c", "unstable", "the rules still change it after 8 rounds; two of them undo each other"]]
