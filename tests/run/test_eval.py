"""``sft eval`` beyond the held-out loss: figures that are known beforehand, a base on the same rows, conditions, the record and the page."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from sft.cli import app, main
from sft.data.questions import Question
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.errors import ConditionError, DataError, InputError, TemplateError
from sft.model.servable import write_servable
from sft.run.checks import conditions
from sft.run.checks.answers import check_answers, loop, measure_answers, repetition
from sft.run.checks.estimates import Estimate, Quantity, estimate, flat
from sft.run.checks.sets import named_sets
from sft.train import run
from tests.builders import LLAMA, OPT, byte_level, colon_crossing, save_tiny, sentencepiece_like, tiny_model
from tests.runs import tiny_recipe

QUESTIONS = [Question(1, "math", ("How are you?",)), Question(2, "math", ("Write.", "Again."))]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def servable(folder: Path, *, always: str | None = None, seed: int = 0) -> Path:
    """A model that is exported as ours are; ``always`` is the token that it says at every place, whatever it reads."""
    tokenizer = copy.deepcopy(byte_level())
    model = tiny_model(len(tokenizer), OPT if always else LLAMA, seed, scale=0.3).eval()
    if always:
        wanted = tokenizer.convert_tokens_to_ids(always)
        with torch.no_grad():
            norm = model.model.decoder.final_layer_norm
            norm.weight.zero_()
            norm.bias.fill_(1.0)
            model.lm_head.weight.clamp_(-0.1, 0.1)[wanted] = 1.0
    encoder = RowEncoder(tokenizer, load_template("chatml"))
    write_servable(model, tokenizer, encoder, folder, {})
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, questions, and sets of both kinds."""
    folder = tmp_path_factory.mktemp("eval")
    servable(folder / "tuned")
    servable(folder / "base", seed=4)
    write_jsonl(
        folder / "questions.jsonl",
        [{"question_id": 1, "text": "How are you?"}, {"question_id": 2, "turns": ["<b>Write</b>.", "Again, shorter."]}],
    )
    write_jsonl(
        folder / "qa.jsonl", [{"instruction": f"Say {i}.", "output": "yes " * (1 + 9 * (i % 5)) + str(i)} for i in range(12)]
    )
    write_jsonl(folder / "wiki.jsonl", [{"text": f"A text about the number {i}, and more. " * (1 + i % 4)} for i in range(9)])
    (folder / "notes.txt").write_text("One long document </s> with a spelt token. " * 30, encoding="utf-8")
    return folder


def called(place: Path, out: Path, *arguments: str) -> tuple[Result, dict[str, Any]]:
    words = [str(place / word[1:]) if word.startswith("@") else word for word in arguments]
    result = CliRunner().invoke(app, ["eval", *words, "--out", str(out)], env={"COLUMNS": "140", "NO_COLOR": "1"})
    record = json.loads((out / "eval.json").read_text(encoding="utf-8")) if (out / "eval.json").is_file() else {}
    return result, record


# -- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("says", "stops", "tokens"), [("<|im_end|>", 1.0, 0.0), ("e", 0.0, 24.0)])
def test_a_model_that_always_stops_and_one_that_never_does(
    tmp_path: Path, place: Path, says: str, stops: float, tokens: float
) -> None:
    servable(tmp_path / "model", always=says)
    arguments = (str(tmp_path / "model"), "--questions", "@questions.jsonl", "--max-tokens", "24")
    _, record = called(place, tmp_path / "out", *arguments)
    figures = {name: figure["value"] for name, figure in record["figures"].items()}
    assert figures["stop_rate"] == stops
    assert figures["empty_rate"] == stops
    assert figures["loop_rate"] == 1 - stops
    assert figures["refusal_rate"] == 0
    assert (figures["mean_tokens"] > 0) == (tokens > 0)
    assert record["figures"]["stop_rate"]["counted"] == 3
    assert record["figures"]["stop_rate"]["units"] == 2


def test_repetition_and_loops_are_those_counted_by_hand() -> None:
    assert repetition([1, 2, 3]) == 0.0
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([7] * 8) == pytest.approx(1 - 1 / 5)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)
    assert loop([9, 1, 2, 1, 2, 1, 2]) == 2
    assert loop([9, 1, 2, 1, 2]) == 0  # twice is no loop
    assert loop([1, 2, 1, 2, 1, 2, 9]) == 0  # it came out of it
    assert loop([5] * 6) == 2
    assert loop([5] * 5) == 0
    assert loop([*range(90)] * 3) == 90
    assert loop([*range(91)] * 3) == 0


def test_refusals_are_told_in_both_languages_and_units_are_questions() -> None:
    texts = [
        ["I'm sorry, but I can't assist with that request."],
        ["很抱歉，我无法回答这个问题。", "Fine. Here is a short one."],
    ]
    records = [{"choices": [{"turns": turns, "finish": ["stop", "length"][: len(turns)]}]} for turns in texts]
    checked = check_answers(records, QUESTIONS, byte_level())
    assert [bool(one.refuses) for one in checked] == [True, True, False]
    found = measure_answers(checked).estimates()
    assert found["refusal_rate"].value == pytest.approx(2 / 3)
    assert found["stop_rate"].value == pytest.approx(2 / 3)
    assert (found["refusal_rate"].units, found["refusal_rate"].counted) == (2, 3)


# -- losses ---------------------------------------------------------------------------------------------------------

SETS = ("--on", "@qa.jsonl", "--on", "wiki=@wiki.jsonl", "--on", "@notes.txt")


def sets(place: Path) -> tuple[str, ...]:
    return tuple(word.replace("@", f"{place}/") for word in SETS)


def test_a_model_beside_itself_has_not_changed(tmp_path: Path, place: Path) -> None:
    asked = ("--questions", "@questions.jsonl", "--max-tokens", "6")
    result, record = called(place, tmp_path / "out", "@tuned", "--base", "@tuned", *sets(place), *asked)
    assert result.exit_code == 0, result.output
    assert {name for name in record["figures"] if name.startswith("loss.")} == {"loss.qa", "loss.wiki", "loss.notes"}
    assert record["changes"].keys() == record["figures"].keys() == record["base_figures"].keys()
    for name, change in record["changes"].items():
        assert change["value"] == 0.0, name
        assert {change["low"], change["high"]} <= {0.0, None}, name


def test_a_base_is_measured_as_it_is_alone(tmp_path: Path, place: Path) -> None:
    asked = ("--questions", "@questions.jsonl", "--max-tokens", "6")
    _, both = called(place, tmp_path / "both", "@tuned", "--base", "@base", *sets(place), *asked)
    _, alone = called(place, tmp_path / "alone", "@base", *sets(place), *asked)
    assert both["base_figures"] == alone["figures"]
    assert both["untuned"]["answers"] == alone["tuned"]["answers"]
    for name, change in both["changes"].items():
        assert change["value"] == pytest.approx(both["figures"][name]["value"] - alone["figures"][name]["value"], abs=1e-12)
    assert both["changes"]["loss.qa"]["low"] < both["changes"]["loss.qa"]["value"] < both["changes"]["loss.qa"]["high"]


@torch.no_grad()
def test_the_loss_of_plain_text_is_that_of_all_its_tokens(tmp_path: Path, place: Path) -> None:
    """By hand, text by text; a spelt special token stays text; windows cover a document once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place / "tuned")
    model = AutoModelForCausalLM.from_pretrained(place / "tuned", dtype=torch.float32).eval()
    total, count = 0.0, 0
    for line in (place / "wiki.jsonl").read_text().splitlines():
        ids = tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
        told = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
        total -= sum(float(told[i - 1, ids[i]]) for i in range(1, len(ids)))
        count += len(ids) - 1
    _, record = called(place, tmp_path / "out", "@tuned", "--max-length", "32", *sets(place))
    _, whole = called(place, tmp_path / "whole", "@tuned", *sets(place))
    assert whole["figures"]["loss.wiki"]["value"] == pytest.approx(total / count, rel=1e-5)
    assert (whole["figures"]["loss.wiki"]["counted"], whole["figures"]["loss.wiki"]["units"]) == (count, 9)
    notes = tokenizer((place / "notes.txt").read_text(), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.eos_token_id not in notes
    windows = math.ceil(len(notes) / 32)
    about = {one["name"]: one for one in record["sets"]}
    assert about["notes"]["rows"] == windows
    assert record["figures"]["loss.notes"]["counted"] == len(notes) - windows
    assert about["wiki"]["units"] == 9
    assert about["qa"]["changed"].get("truncated", 0) > 0


def test_a_base_of_other_tokens_is_refused(tmp_path: Path, place: Path) -> None:
    save_tiny(tmp_path / "other", sentencepiece_like())
    result, _ = called(place, tmp_path / "out", "@tuned", "--base", str(tmp_path / "other"), "--on", "@wiki.jsonl")
    assert isinstance(result.exception, InputError)
    assert "losses per token of different tokens cannot be compared" in str(result.exception)


def test_held_out_rows_are_compared_too(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", colon_crossing())  # nothing is added to its vocabulary
    about = run(tiny_recipe(tmp_path / "run", base, data__holdout=6))
    result, record = called(tmp_path, tmp_path / "run" / "eval", str(tmp_path / "run"), "--base", str(base))
    assert result.exit_code == 0, result.output
    assert record["base_figures"]["loss.held_out"]["value"] == pytest.approx(about["holdout"]["before"], abs=1e-5)
    assert record["figures"]["loss.held_out"]["value"] == pytest.approx(about["holdout"]["after"], abs=1e-5)
    assert record["changes"]["loss.held_out"]["high"] < 0
    assert record["changes"]["loss.held_out"]["units"] == 6


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (["a.jsonl", "b/a.jsonl"], InputError, r"the name 'a' is that of a\.jsonl too; write NAME=b/a\.jsonl"),
        (["held_out=a.jsonl"], InputError, r"the name 'held_out' is that of the recipe's held-out rows"),
        (["no.txt"], DataError, r"no\.txt: no such file"),
        (["no.jsonl"], DataError, r"no\.jsonl: no such file"),
        (["empty.jsonl"], DataError, r"there is no row in it that can be read"),
    ],
)
def test_sets_that_cannot_be_used_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], error: type[Exception], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    for name in ("a.jsonl", "b/a.jsonl"):
        write_jsonl(tmp_path / name, [{"text": "x"}])
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(error, match=said):
        named_sets(given)


@pytest.mark.parametrize(
    ("name", "said"),
    [("blank.jsonl", r"nothing in it can be used \(empty_text 1, missing_field 1\)"), ("latin.txt", r"byte 3 is not UTF-8")],
)
def test_texts_that_cannot_be_used_are_refused(tmp_path: Path, place: Path, name: str, said: str) -> None:
    write_jsonl(tmp_path / "blank.jsonl", [{"text": " "}, {"words": "x"}])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    result, _ = called(place, tmp_path / "out", "@tuned", "--on", str(tmp_path / name))
    with pytest.raises(DataError, match=said):
        raise result.exception or AssertionError(result.output)


def test_conversations_need_a_template_and_text_does_not(tmp_path: Path, place: Path) -> None:
    save_tiny(tmp_path / "plain", byte_level())
    plain = str(tmp_path / "plain")
    assert called(place, tmp_path / "out", plain, "--on", "@wiki.jsonl")[0].exit_code == 0
    result, _ = called(place, tmp_path / "out", plain, "--on", "@qa.jsonl")
    assert "its rows are conversations, and the model has no chat template" in str(result.exception)
    result, _ = called(place, tmp_path / "out", plain, "--questions", "@questions.jsonl")
    assert isinstance(result.exception, TemplateError)


# -- estimates ------------------------------------------------------------------------------------------------------


def test_intervals() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(5, 50, 1_999).astype(np.float64)
    sums = counts * rng.normal(3.0, 0.5, len(counts))
    resampled = estimate(sums, counts)
    more = estimate(np.append(sums, [0.0, 0.0]), np.append(counts, [1e-9, 1e-9]))  # two units without weight: above the limit
    assert resampled.value == pytest.approx(sums.sum() / counts.sum())
    assert more.low == pytest.approx(resampled.low, abs=2e-3)
    assert more.high == pytest.approx(resampled.high, abs=2e-3)
    assert estimate(sums, counts) == resampled
    none = estimate(np.zeros(20), np.ones(20), share=True)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert estimate(np.ones(20), np.ones(20), share=True).high == 1.0
    assert estimate(np.ones(3), np.ones(3)) == Estimate(1.0, 1.0, 1.0, 3, 3)
    assert estimate(np.ones(1), np.ones(1)).low is None
    assert math.isnan(estimate(np.zeros(2), np.zeros(2)).value)
    with pytest.raises(ValueError, match="on the same units"):
        Quantity(sums, counts).change_from(Quantity(sums[:5], counts[:5]))


def test_a_change_is_paired() -> None:
    """Rows differ far more from each other than the two models do."""
    rng = np.random.default_rng(2)
    level, counts = rng.normal(0, 10, 60), np.ones(60)
    change = Quantity(level + 0.1 + rng.normal(0, 0.01, 60), counts).change_from(Quantity(level, counts))
    assert change.low is not None
    assert change.high is not None
    assert 0.09 < change.low < change.value < change.high < 0.11


# -- conditions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["stop_rate", "stop_rate=0.9", ">=0.9", "stop_rate>=much", "stop_rate>=nan", ""])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no condition; write NAME>=NUMBER"):
        conditions.read_condition(text)


@pytest.mark.parametrize(("sign", "holds"), [(">=", True), ("<=", True), (">", False), ("<", False)])
def test_signs(sign: str, holds: bool) -> None:
    condition = conditions.read_condition(f" loss.a b {sign} 0.5 ")
    assert (condition.name, condition.holds(0.5), condition.holds(math.nan)) == ("loss.a b", holds, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stop_rat>=1", r"stop_rat is not measured here; what is: loss\.qa"),
        ("stop_rate>=1", r"stop_rate is not measured here; what is: loss\.qa\. --generate, --on and --lm-eval measure more"),
        ("change.loss.qa<=0", r"there is no base to compare with; name one with --base"),
    ],
)
def test_conditions_on_what_is_not_measured_are_refused_before_anything_is(
    tmp_path: Path, place: Path, text: str, said: str
) -> None:
    result, record = called(place, tmp_path / "out", "@tuned", "--on", "@qa.jsonl", "--require", text)
    with pytest.raises(InputError, match=said):
        raise result.exception or AssertionError(result.output)
    assert record == {}


def test_a_gate(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1 and one line for each condition that fails; the record is there all the same."""
    arguments = ["eval", str(place / "tuned"), "--on", str(place / "qa.jsonl"), "--out", str(tmp_path / "out")]
    arguments += ["--json", str(tmp_path / "copy.json"), "--require", "loss.qa>=0"]
    monkeypatch.setattr("sys.argv", ["sft", *arguments])
    main_status = _status()
    assert main_status == 0
    assert "loss.qa>=0: met, measured" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["sft", *arguments, "--require", "loss.qa.high<0.5"])
    assert _status() == 1
    assert "--require loss.qa.high<0.5: not met, measured " in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert [one["holds"] for one in record["conditions"]] == [True, False]
    assert json.loads((tmp_path / "copy.json").read_text()) == record


def _status() -> int | str | None:
    try:
        main()
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


def test_a_figure_that_was_not_measured_after_all() -> None:
    with pytest.raises(InputError, match=r"no such figure was measured; there are a, a\.low, a\.high, base\.a, change\.a"):
        conditions.judge(
            [conditions.read_condition("lm.x>=0")],
            flat({"a": Estimate(1.0, 0.5, 2.0)}, {"a": Estimate(1.0)}, {"a": Estimate(0.0)}),
        )
    with pytest.raises(ConditionError, match="--require a>0: not met, measured nothing"):
        conditions.refuse_failed(conditions.judge([conditions.read_condition("a>0")], {"a": math.nan}))


# -- the verb -------------------------------------------------------------------------------------------------------


def test_the_same_again_gives_the_same_and_answers_nothing_twice(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("@tuned", "--questions", "@questions.jsonl", "--max-tokens", "6", "--temperature", "0.8")
    _, first = called(place, tmp_path / "out", *asked)
    _, other = called(place, tmp_path / "other", *asked)
    assert first["tuned"]["answers"] == other["tuned"]["answers"]
    monkeypatch.setattr("sft.run.checks.subject.answer_batch", lambda *_: pytest.fail("answered again"))
    assert called(place, tmp_path / "out", *asked)[1] == first


def test_the_page_obeys_nothing_of_the_data(tmp_path: Path, place: Path) -> None:
    called(place, tmp_path / "out", "@tuned", "--base", "@base", "--questions", "@questions.jsonl", "--max-tokens", "4")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;Write&lt;/b&gt;." in page
    assert "<b>Write" not in page
    assert "<script" not in page
    assert "stop_rate" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["@tuned", "--set", "train.epochs=1"], "--set goes with a recipe, and .*tuned is a model"),
        (["@tuned", "--model", "x"], "--model goes with a recipe, and .*tuned is a model"),
        (["@tuned", "--lm-eval-limit", "3"], "--lm-eval-limit goes with --lm-eval TASKS"),
        (["@tuned", "--lm-eval", " , "], "--lm-eval is empty; name tasks"),
        (["@tuned"], r"data/questions\.jsonl: not there .* name a file of questions with --questions"),
        (["@tuned", "--on", "@wiki.jsonl", "--out", "@"], "holds something else than an evaluation; choose another with --out"),
        (["./absent", "--on", "@wiki.jsonl"], "absent: no such folder"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(place / word[1:]) if word.startswith("@") else word for word in arguments]
    result = CliRunner().invoke(app, ["eval", *words])
    with pytest.raises(InputError, match=said):
        raise result.exception or AssertionError(result.output)


def test_a_recipe_without_held_out_rows_needs_something_else_to_measure(tmp_path: Path) -> None:
    run(tiny_recipe(tmp_path / "run"))
    result = CliRunner().invoke(app, ["eval", str(tmp_path / "run")])
    with pytest.raises(InputError, match=r"holds no rows out; .* or ask for --generate, --on or --lm-eval"):
        raise result.exception or AssertionError(result.output)
