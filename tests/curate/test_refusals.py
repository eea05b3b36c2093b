"""What a curation refuses, before it reads a row and after a stage: which words, and that nothing is lost by it."""

from __future__ import annotations

import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from sft.curate import pipeline
from sft.curate.pipeline import RESULTS, Curation, Stage, curate
from sft.curate.recipe import CurateRecipe, load_curate_recipe
from sft.data.conversation import Drop, Drops
from sft.data.dataset import check_drops
from sft.data.sources import resolve_files
from sft.errors import DataError, InputError, RecipeError
from sft.recipe import DataSection, Source

LANGUAGES = ["zh", "en"]


def talk(i: int, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"Question {i}?"}, {"from": "gpt", "value": f"Answer number {i}, in words."}]
    return {"id": f"t{i}", "conversations": turns, **more}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with ten rows."""
    monkeypatch.chdir(tmp_path)
    write(Path("ten.jsonl"), [talk(i, lang=LANGUAGES[i % 2]) for i in range(10)])
    return tmp_path


def recipe(**changes: Any) -> CurateRecipe:
    values: dict[str, Any] = {"sources": [{"path": "ten.jsonl"}], "output": {"dir": "out", "workers": 1}, **changes}
    return CurateRecipe.model_validate(values, strict=False)


def go(until: Stage = "mix", **changes: Any) -> Curation:
    return curate(recipe(**changes), until=until, progress=False)


def listed(folder: str = "out") -> list[dict[str, str]]:
    return [json.loads(line) for line in (Path(folder) / "dropped.jsonl").read_text(encoding="utf-8").splitlines()]


# --- sources --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("broken", [0, 2, 150])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_breaks_off_stops_as_in_training(broken: int, workers: int) -> None:
    items = [json.dumps(talk(i)) for i in range(200)]
    items[broken] = '{"id": "x", "conversations": oh}'
    Path("list.json").write_text("[\n" + ",\n".join(items) + "\n]", encoding="utf-8")
    with pytest.raises(DataError) as found:
        go(
            sources=[{"path": "list.json", "format": "sharegpt"}],
            output={"dir": "out", "workers": workers, "rows_per_part": 20},
        )
    place, detail = (
        f"list.json:{broken + 2}",
        f"Expecting value at line {broken + 2} column 30; the rest of the file is not read",
    )
    drops = Drops()
    drops.add(Drop(place, "broken_file", detail))
    with pytest.raises(DataError) as trained:
        check_drops(
            drops, 200, DataSection.model_validate({"sources": [{"path": "list.json"}], "max_length": 9}, strict=False), []
        )
    assert str(found.value) == str(trained.value)
    assert str(found.value) == (
        f"The rows behind a broken one are lost, and nobody knows how many:\n{place}: {detail}\nMend the file."
    )
    assert not any(Path("out", name).exists() for name in RESULTS)


@pytest.mark.usefixtures("here")
def test_what_a_run_wrote_is_no_source_but_for_its_rows() -> None:
    go("split")
    wanted = r"is what a run wrote, its rows several times over; name the file of its rows: out/train\.jsonl"
    for path in ("out", "out/clean", "o*/*.jsonl", "."):
        with pytest.raises(DataError, match=wanted):
            resolve_files(Source(path=path))
    go()
    for path in ("out", "out/*.jsonl"):
        with pytest.raises(DataError, match=f"out {wanted}"):
            resolve_files(Source(path=path))
    assert resolve_files(Source(path="o*/train.jsonl")) == resolve_files(Source(path="out/train.jsonl"))
    assert resolve_files(Source(path="out/clean/00000.jsonl")) == [Path("out/clean/00000.jsonl")]
    Path("shards").mkdir()
    for number in range(2):
        write(Path(f"shards/{number:05}.jsonl"), [talk(number)])
    assert len(resolve_files(Source(path="shards"))) == 2
    Path("made").mkdir()
    for name in ("recipe.yaml", "ledger.jsonl", "dataset.jsonl"):
        Path("made", name).touch()
    with pytest.raises(DataError, match=r"name the file of its rows: made/dataset\.jsonl"):
        resolve_files(Source(path="made"))


@pytest.mark.usefixtures("here")
def test_a_source_in_the_run_directory_is_refused() -> None:
    go()
    before = Path("out/train.jsonl").read_bytes()
    with pytest.raises(
        RecipeError, match=r"sources\[0\]\.path: out/train\.jsonl lies in output\.dir \(out\), whose files this run"
    ):
        go(sources=[{"path": "out/train.jsonl"}])
    Path("link.jsonl").symlink_to("out/train.jsonl")
    with pytest.raises(RecipeError, match=r"link\.jsonl lies in output\.dir \(out\)"):
        go(sources=[{"path": "link.jsonl"}])
    assert Path("out/train.jsonl").read_bytes() == before


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (["empty.jsonl"], r"^empty\.jsonl: this source holds no rows\. Mend it, or take it out of the recipe\.$"),
        (["ten.jsonl", "empty.jsonl"], r"^empty\.jsonl: this source holds no rows\."),
        (
            ["ten.jsonl", "korean.jsonl"],
            r"^korean\.jsonl: no rows of this source are left after clean; out/dropped\.jsonl says why",
        ),
        (["korean.jsonl"], r"^no rows are left after clean; out/dropped\.jsonl says why each was left out"),
    ],
)
def test_every_source_gives_rows(sources: list[str], said: str) -> None:
    Path("empty.jsonl").touch()
    write(Path("korean.jsonl"), [talk(50, lang="ko")])
    with pytest.raises(DataError, match=said):
        go(sources=[{"path": path} for path in sources], rules=[{"kind": "field", "field": "lang", "skip": ["ko"]}])
    expected = ["korean.jsonl:1 (t50)"] if "korean.jsonl" in sources else []
    assert [entry["place"] for entry in listed()] == expected
    assert not any(Path("out", name).exists() for name in RESULTS if name != "dropped.jsonl")


@pytest.mark.usefixtures("here")
def test_a_file_of_another_shape_stops_unless_that_is_meant() -> None:
    with Path("ten.jsonl").open("a", encoding="utf-8") as file:
        file.write(
            'not json\n{"other": 1}\n' + json.dumps(talk(11) | {"conversations": [{"from": "nobody", "value": "x"}]}) + "\n"
        )
    with pytest.raises(DataError) as found:
        go()
    assert str(found.value) == (
        "2 of 13 rows (15.4%) cannot be read; max_unreadable_share allows 1.0%.\n"
        "  invalid_json: 1, such as ten.jsonl:11: Expecting value at column 1\n"
        "  missing_field: 1, such as ten.jsonl:12: 'conversations' must be a list of {from, value}\n"
        "Mend the rows, or raise max_unreadable_share."
    )
    assert [entry["reason"] for entry in listed()] == ["invalid_json", "missing_field", "unknown_role"]
    assert go(max_unreadable_share=0.2).mixed["ten.jsonl"]["written"] == 10


# --- other keys of the rows -----------------------------------------------------------------------------------------------

_SHAPES: dict[str, Any] = {
    "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "sharegpt items": lambda q, a: {"items": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "sharegpt roles": lambda q, a: {"conversations": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
    "messages": lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
    "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
    "prompt_completion": lambda q, a: {"prompt": q, "completion": a},
    "parallel_lists": lambda q, a: {"input": [q], "output": [a]},
    "history": lambda q, a: {"prompt": q, "response": a, "history": []},
    "moss": lambda q, a: {"chat": {"turn_1": {"Human": q, "MOSS": a}}},
    "src_tgt": lambda q, a: {"src": q, "tgt": a},
    "seed_tasks": lambda q, a: {"instruction": q, "instances": [{"input": "", "output": a}]},
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("shape", _SHAPES)
def test_rules_see_the_other_keys_of_every_shape(shape: str) -> None:
    rows = [
        {**_SHAPES[shape](f"Question {i}?", f"Answer number {i}."), "lang": LANGUAGES[i % 2], "model": f"gpt-{3 + i % 5}"}
        for i in range(10)
    ]
    write(Path("rows.jsonl"), rows)
    name = shape.partition(" ")[0]
    rules = [{"kind": "field", "field": "lang", "keep": ["zh"]}, {"kind": "model", "skip": ["gpt-3*"]}]
    done = go(sources=[{"path": "rows.jsonl", "format": name}], rules=rules, mix={"shuffle": False})
    assert dict(done.stages["clean"].counts) == {"field_value": 5, "other_model": 1}
    kept = [json.loads(line) for line in Path("out/train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["lang"], row["model"]) for row in kept] == [("zh", f"gpt-{3 + i % 5}") for i in (2, 4, 6, 8)]
    assert [row["conversations"] for row in kept] == [
        [{"from": "human", "value": f"Question {i}?"}, {"from": "gpt", "value": f"Answer number {i}."}] for i in (2, 4, 6, 8)
    ]
    assert {key for row in kept for key in row} == {"id", "model", "conversations", "lang"}


@pytest.mark.usefixtures("here")
def test_keys_that_would_change_the_written_row_are_not_carried() -> None:
    row = {**_SHAPES["messages"]("Why?", "For it is so."), "system": "Be rude.", "items": [], "note": 1}
    write(Path("rows.jsonl"), [row])
    go(sources=[{"path": "rows.jsonl", "format": "messages"}])
    found = json.loads(Path("out/train.jsonl").read_text(encoding="utf-8"))
    assert found.keys() == {"id", "conversations", "note"}
    assert [turn["from"] for turn in found["conversations"]] == ["human", "gpt"]


@pytest.mark.usefixtures("here")
def test_what_only_a_table_can_hold_is_carried_as_json_can() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "prompt": ["Why?"],
        "completion": ["For it is so."],
        "day": [date(2023, 3, 13)],
        "score": [math.nan],
        "n": [[1, 2]],
    }
    pq.write_table(pa.table(columns), "rows.parquet")
    go(sources=[{"path": "rows.parquet"}], rules=[{"kind": "field", "field": "day", "keep": ["2023-*"]}])
    found = json.loads(Path("out/train.jsonl").read_text(encoding="utf-8"))
    assert (found["day"], found["score"], found["n"]) == ("2023-03-13", None, [1, 2])


@pytest.mark.usefixtures("here")
def test_a_key_that_no_row_has_is_refused_unless_that_is_meant() -> None:
    rule = {"kind": "field", "field": "pluginz", "present": "drop"}
    with pytest.raises(
        RecipeError, match=r"^rules\[1\]\.field: no row has the field 'pluginz'; correct its name, or say required: false if"
    ):
        go(rules=[{"kind": "field", "field": "lang", "keep": ["*"]}, rule])
    assert go(rules=[{**rule, "required": False}]).stages["clean"].rows_out == 10
    write(Path("some.jsonl"), [talk(0, meta={"origin": None}), talk(1)])
    inner = {"kind": "field", "field": "meta.origin", "present": "drop"}
    assert go(sources=[{"path": "some.jsonl"}], rules=[inner]).stages["clean"].rows_out == 2
    with pytest.raises(RecipeError, match=r"no row has the field 'meta\.orgin'"):
        go(sources=[{"path": "some.jsonl"}], rules=[{**inner, "field": "meta.orgin"}])


# --- evaluation sets ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_evaluation_sets_may_be_folders_and_globs() -> None:
    Path("eval").mkdir()
    write(Path("eval/a.jsonl"), [{"question": "Question 3?"}])
    write(Path("eval/b.jsonl"), [{"question": "Question 4?"}])
    for name in ("eval", "eval/*.jsonl", "ev*"):
        done = go(rules=[{"kind": "contamination", "files": [name] if name != "ev*" else ["ev*/?.jsonl"]}])
        assert dict(done.stages["clean"].counts) == {"in_evaluation_set": 2}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.jsonl", r"rules\[0\]\.files\[0\]: none\.jsonl: no such file, and no file matches it"),
        ("none*.jsonl", r"rules\[0\]\.files\[0\]: none\*\.jsonl: no such file"),
        ("bare", r"rules\[0\]\.files\[0\]: bare: a folder without \.json, "),
        ("empty.jsonl", r"^empty\.jsonl: an evaluation set without rows guards nothing; give the whole set, or take it out$"),
        ("other.jsonl", r"^other\.jsonl:1: no text under any of question, .* name the keys of this file in 'fields'"),
    ],
)
def test_evaluation_sets_that_guard_nothing_are_refused_before_anything_is_written(name: str, said: str) -> None:
    Path("bare").mkdir()
    Path("empty.jsonl").touch()
    write(Path("other.jsonl"), [{"words": "x"}])
    with pytest.raises(InputError, match=said):
        go(rules=[{"kind": "contamination", "files": [name]}])
    assert not Path("out").exists()


# --- the run directory ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("ten.jsonl", r"output\.dir: ten\.jsonl is a file; choose another folder"),
        ("ten.jsonl/out", r"output\.dir: .*ten\.jsonl is a file; choose another folder"),
        ("/proc/nope", r"output\.dir: /proc/nope cannot be (made|written)"),
        ("n" * 300, r"output\.dir: n+ cannot be made: File name too long; choose another"),
        ("theirs", r"output\.dir: theirs is not empty and holds no run of ours; choose another"),
        ("trained", r"output\.dir: trained is not empty and holds no run of ours; choose another"),
    ],
)
def test_where_nothing_can_or_should_be_written(out: str, said: str) -> None:
    for folder in ("theirs", "trained"):
        Path(folder).mkdir()
    Path("theirs/train.jsonl").write_text("mine")
    Path("trained/recipe.yaml").write_text("model: {}\ndata: {}\noutput: {dir: trained}\n")
    with pytest.raises(InputError, match=said):
        go(output={"dir": out, "workers": 1})
    assert Path("theirs/train.jsonl").read_text() == "mine"
    assert [path.name for path in Path("trained").iterdir()] == ["recipe.yaml"]


def results() -> set[str]:
    return {name for name in RESULTS if Path("out", name).exists()}


@pytest.mark.usefixtures("here")
def test_no_result_of_another_recipe_stands_beside_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = {"name": "Ada", "organisation": "the Lab", "languages": ["en"]}
    full: dict[str, Any] = {"rules": [{"kind": "min_length"}], "mix": {"holdout": 2}, "identity": identity}
    go(**full)
    Path("out/report.html").write_text("of the first recipe")
    assert results() == set(RESULTS)
    with pytest.raises(RecipeError, match="no such file"):
        go(sources=[{"path": "none.jsonl"}])
    assert results() == set(RESULTS)  # what is refused at once costs nothing
    go("clean", rules=[{"kind": "field", "field": "lang", "keep": ["zh"]}])
    assert results() == {"run.json", "dropped.jsonl"}
    assert [entry["reason"] for entry in listed()] == ["field_value"] * 5
    assert json.loads(Path("out/run.json").read_text())["recipe"]["rules"][0]["keep"] == ["zh"]
    go(**full)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_parts", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            go()
    assert results() == set()
    assert load_curate_recipe("out")[0] == recipe()


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("here")
def test_drafts_of_killed_processes_are_removed() -> None:
    go()
    drafts = [
        Path("out/clean/.00009.jsonl.123.abcd.tmp"),
        Path("out/clean/.00009.json.partial"),
        Path("out/.train.jsonl.1.ab.tmp"),
    ]
    for draft in drafts:
        draft.write_text("torn")
    go()
    assert not any(draft.exists() for draft in drafts)


# --- what the mix leaves out ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_rows_that_limits_and_weights_leave_out_are_listed() -> None:
    write(Path("more.jsonl"), [talk(i) for i in range(100, 140)])
    done = go(sources=[{"path": "ten.jsonl"}, {"path": "more.jsonl", "weight": 0.5}], mix={"limits": {"ten.jsonl": 4}})
    thinned = done.mixed["more.jsonl"]["by_weight"]
    assert 10 < thinned < 30
    assert done.mixed["ten.jsonl"] == {"rows": 10, "within_limit": 4, "held_out": 0, "by_weight": 0, "written": 4}
    found = listed()
    assert [(entry["stage"], entry["reason"], entry["detail"]) for entry in found] == [
        *[("mix", "limit", "mix.limits: 4 rows of ten.jsonl")] * 6,
        *[("mix", "weight", "weight 0.5 of more.jsonl")] * thinned,
    ]
    kept = [json.loads(line)["id"] for line in Path("out/train.jsonl").read_text().splitlines()]
    assert sorted([*kept, *(entry["place"] for entry in found)]) == sorted(f"t{i}" for i in (*range(10), *range(100, 140)))
