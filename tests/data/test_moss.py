"""MOSS's own rows and labels, restated: a row is its values one behind the other, and all is learnt but the meta instruction and results."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerFast

from sft.data.conversation import Conversation, Turn
from sft.data.formats import FORMATS
from sft.data.template import RenderRefused, load_template
from sft.data.tokenize import RowEncoder, Tokenized
from tests.builders import byte_level

ENDS = ("<eoh>", "<eom>", "<eot>", "<eoc>", "<eor>")
META = "You are an AI assistant whose name is MOSS.\n"
TURNS = [
    {
        "Human": "<|Human|>: 2+3?<eoh>\n",
        "Inner Thoughts": "<|Inner Thoughts|>: needs arithmetic<eot>\n",
        "Commands": '<|Commands|>: Calculate("2+3")<eoc>\n',
        "Tool Responses": '<|Results|>:\nCalculate("2+3") =>\n5\n<eor>\n',
        "MOSS": "<|MOSS|>: It is 5.<eom>\n",
    },
    {
        "Human": "<|Human|>: Thanks<eoh>\n",
        "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
        "Commands": "<|Commands|>: None<eoc>\n",
        "Tool Responses": "<|Results|>:\nNone<eor>\n",  # published with a space for the line break: not told apart here
        "MOSS": "<|MOSS|>: Gladly.<eom>\n",
    },
]
ROW = {"conversation_id": 1, "meta_instruction": META, "chat": {f"turn_{i}": turn for i, turn in enumerate(TURNS, 1)}}


def tokenizer() -> PreTrainedTokenizerFast:
    made = copy.deepcopy(byte_level(chatml=False))
    made.add_special_tokens({"additional_special_tokens": list(ENDS)})
    return made


def row_of(template: str, train_on: str, format_: str = "moss_plugin") -> Tokenized:
    (turns,) = FORMATS[format_](ROW, {}).conversations
    (made,) = RowEncoder(tokenizer(), load_template(template), train_on).encode([Conversation("1", turns, "x")])
    assert isinstance(made, Tokenized), made
    return made


def learnt(row: Tokenized) -> list[str]:
    """Texts of the runs of learnt tokens."""
    made, runs, before = tokenizer(), list[list[int]](), False
    for token, yes in zip(row.ids.tolist(), row.mask.tolist(), strict=True):
        if yes:
            runs = [*runs, []] if not before else runs
            runs[-1].append(token)
        before = yes
    return [made.decode(run) for run in runs]


@pytest.mark.parametrize("train_on", ["all", "assistant"])
def test_ids_are_those_of_the_values_one_behind_the_other(train_on: str) -> None:
    text = META + "".join("".join(turn.values()) for turn in TURNS)
    assert row_of("moss_plugin", train_on).ids.tolist() == tokenizer()(text)["input_ids"]


def test_all_is_learnt_but_the_meta_instruction_and_results() -> None:
    first, second = TURNS
    assert learnt(row_of("moss_plugin", "all")) == [
        first["Human"] + first["Inner Thoughts"] + first["Commands"] + "<|Results|>:\n",
        "<eor>\n" + first["MOSS"] + second["Human"] + second["Inner Thoughts"] + second["Commands"] + "<|Results|>:\n",
        "<eor>\n" + second["MOSS"],
    ]


def test_what_moss_writes_is_learnt_in_one_piece() -> None:
    """It writes thoughts and commands without being asked again, so what stands between them is learnt as well."""
    found = learnt(row_of("moss_plugin", "assistant"))
    assert found == [
        (TURNS[0]["Inner Thoughts"] + TURNS[0]["Commands"])[:-1],
        TURNS[0]["MOSS"][:-1],
        (TURNS[1]["Inner Thoughts"] + TURNS[1]["Commands"])[:-1],
        TURNS[1]["MOSS"][:-1],
    ]


def test_thoughts_do_not_stop_generation() -> None:
    made = tokenizer()
    encoder = RowEncoder(made, load_template("moss_plugin"))
    ids, strings = encoder.stops()
    assert set(ids) == set(made.convert_tokens_to_ids(["<eom>", "<|endoftext|>", "<eoc>"]))
    assert strings == []


@pytest.mark.parametrize("template", ["chatml", "moss", "chatglm3"])
def test_other_templates_refuse_two_answers_in_a_row(template: str) -> None:
    made = copy.deepcopy(byte_level())
    made.add_special_tokens({"additional_special_tokens": [*ENDS, *load_template(template).tokens]})
    turns = (Turn("user", "q"), Turn("assistant", "thought"), Turn("assistant", "command"))
    with pytest.raises(
        RenderRefused, match=f"the template {template} has no place for two answers in a row .*; join them, or name"
    ):
        RowEncoder(made, load_template(template)).renderer.render(Conversation("1", turns, "x"))
