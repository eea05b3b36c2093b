"""EOS is learnt where the next turn's first token stands: the labels of Baichuan2's own trainer, restated here."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from sft.config import Document, build
from sft.data.dataset import Prepared, prepare
from sft.data.preview import run_preview
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.engine.batches import PlannedBatches
from sft.engine.evaluate import evaluate_rows
from sft.errors import RecipeError, TemplateError
from sft.recipe import Recipe
from sft.train import step_plan
from tests.builders import byte_level, tiny_model
from tests.runs import tiny_recipe

MARKS = ("<reserved_106>", "<reserved_107>")
TALKS = [[("Hi", "Hello."), ("And?", "Yes <reserved_106>."), ("So?", "No.")], [("One", "1")]]


def tokenizer() -> PreTrainedTokenizerFast:
    made = copy.deepcopy(byte_level())
    made.add_special_tokens({"additional_special_tokens": list(MARKS)})
    return made


def published(talk: list[tuple[str, str]], made: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Ids and labels: a person's marker is labelled with EOS, its text with nothing; an answer's marker with nothing, its text with itself."""
    user, assistant = made.convert_tokens_to_ids(MARKS)
    ids, labels = list[int](), list[int]()
    for said, answer in talk:
        for marker, text, own in ((user, said, False), (assistant, answer, True)):
            value = made(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ids += [marker, *value]
            labels += [-100, *value] if own else [made.eos_token_id, *[-100] * len(value)]
    return [*ids, made.eos_token_id], [*labels, made.eos_token_id]


def a_recipe(tmp_path: Path, **changes: Any) -> Recipe:
    rows = tmp_path / "rows.jsonl"
    turns = [
        [{"from": who, "value": v} for pair in talk for who, v in zip(("human", "gpt"), pair, strict=True)] for talk in TALKS
    ]
    rows.write_text("".join(json.dumps({"id": str(i), "conversations": talk}) + "\n" for i, talk in enumerate(turns)))
    recipe = tiny_recipe(tmp_path / "run", **{"template__name": "baichuan2", **changes})
    source = recipe.data.sources[0].model_copy(update={"path": str(rows), "format": "sharegpt"})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": (source,)})})


def prepared(recipe: Recipe) -> Prepared:
    made = tokenizer()
    return prepare(recipe, made, RowEncoder(made, load_template(recipe.template.name)))


@pytest.mark.parametrize("batching", ["flat", "padded"])
def test_labels_are_the_published_ones(tmp_path: Path, batching: str) -> None:
    recipe, made = a_recipe(tmp_path, template__end_label="eos", train__batching=batching), tokenizer()
    rows = prepared(recipe)
    wanted = dict(map(tuple_of_both, (published(talk, made) for talk in TALKS)))
    plan = step_plan(recipe, rows, 1)
    batch = PlannedBatches(rows.train, plan, 0 if batching == "padded" else None)[0]
    ids = batch["input_ids"].flatten()
    labels = torch.full_like(ids, -100)
    labels[batch["predict_at"] + 1] = batch["targets"]
    given, told = ids.tolist(), labels.tolist()
    places = {0} if batching == "padded" else set()
    begin, found = 0, 0
    while begin < len(given) and given[begin] not in places:
        row = next(ids for ids in wanted if given[begin : begin + len(ids)] == list(ids))
        # what the first token is labelled with nothing predicts
        assert told[begin + 1 : begin + len(row)] == wanted[row][1:]
        begin, found = begin + len(row), found + 1
        if batching == "padded":
            begin = -(-begin // batch["input_ids"].shape[1]) * batch["input_ids"].shape[1]
    assert found == 2


def tuple_of_both(row: tuple[list[int], list[int]]) -> tuple[tuple[int, ...], list[int]]:
    return tuple(row[0]), row[1]


def test_evaluation_learns_the_same(tmp_path: Path) -> None:
    """The held-out loss is of the labels that training has: of EOS, not of the marker."""
    made = tokenizer()
    model = tiny_model(len(made))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = {}
    for label in ("token", "eos"):
        rows = prepared(a_recipe(tmp_path, template__end_label=label))
        assert rows.train.learnt_as == ({} if label == "token" else {made.convert_tokens_to_ids(MARKS[0]): made.eos_token_id})
        assert rows.train.select(torch.arange(1).numpy()).learnt_as == rows.train.learnt_as
        model.lm_head.weight.data[made.eos_token_id] = model.lm_head.weight.data.new_ones(32)
        found[label] = evaluate_rows(model, rows.train, capacity=256, pad_id=None, dtype=torch.float32)
    assert found["token"].tokens == found["eos"].tokens
    assert found["token"].loss != found["eos"].loss


def test_preview_tells(tmp_path: Path) -> None:
    recipe, made, screen = a_recipe(tmp_path, template__end_label="eos"), tokenizer(), io.StringIO()
    encoder = RowEncoder(made, load_template("baichuan2"))
    run_preview(recipe, made, encoder, count=1, html=None, console=Console(file=screen, width=200))
    assert "learnt where <reserved_106> ends an answer: <|endoftext|> in its place" in screen.getvalue()


def test_templates_with_an_end_of_their_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TemplateError, match=r"the answers of alpaca_short end with a token of their own, which is learnt; remove"
    ):
        prepared(a_recipe(tmp_path, template__name="alpaca_short", template__end_label="eos"))


def test_the_end_of_mosss_commands_is_no_turns_first_token(tmp_path: Path) -> None:
    made, template = tokenizer(), load_template("moss_plugin")
    made.add_special_tokens({"additional_special_tokens": list(template.tokens)}, replace_extra_special_tokens=False)
    recipe = a_recipe(tmp_path, template__name="moss_plugin", template__end_label="eos")
    with pytest.raises(TemplateError, match="the answers of moss_plugin end with a token of their own"):
        prepare(recipe, made, RowEncoder(made, template))


def test_learning_all_is_refused(tmp_path: Path) -> None:
    value = a_recipe(tmp_path, template__end_label="eos").model_dump(mode="json")
    value["template"]["train_on"] = "all"
    with pytest.raises(RecipeError, match="the first token of a turn is learnt as itself; set end_label: token"):
        build(Recipe, Document(value, {}, "test.yaml"))
