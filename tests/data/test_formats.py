"""Row shapes: exact turns for each format, the right reason for each row that cannot be used, no text ever changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.conversation import Turn
from sft.data.fields import RowFault
from sft.data.formats import FORMATS, ParsedRow, check_columns, detect_format
from sft.errors import DataError
from sft.recipe import FormatName


def _moss_turn(
    human: str, answer: str, thoughts: str = "None", commands: str = "None", results: str = "None"
) -> dict[str, str]:
    return {
        "Human": f"<|Human|>: {human}<eoh>\n",
        "Inner Thoughts": f"<|Inner Thoughts|>: {thoughts}<eot>\n",
        "Commands": f"<|Commands|>: {commands}<eoc>\n",
        "Tool Responses": f"<|Results|>:{' ' if results == 'None' else chr(10)}{results}<eor>\n",
        "MOSS": f"<|MOSS|>: {answer}<eom>\n",
    }


CALL = _moss_turn("2+3?", "It is 5.", "needs arithmetic", 'Calculate("2+3")', 'Calculate("2+3") =>\n5\n')

# Per format three lines: two rows, and what both become. Text keeps its spaces; roles are written user|... for short.
FIXTURES: dict[str, tuple[Any, Any, list[list[str]]]] = {
    "alpaca": (
        {"id": 7, "instruction": "Add.", "input": "2+2", "output": " 4\n"},
        {"instruction": "Hi", "input": "", "output": "Ho", "system": "Be brief.", "history": [["a", "b"]]},
        [
            ["user|Add.", "input|2+2", "assistant| 4\n"],
            ["system|Be brief.", "user|a", "assistant|b", "user|Hi", "assistant|Ho"],
        ],
    ),
    "sharegpt": (
        {
            "id": "x",
            "system": "S",
            "model": "m",
            "conversations": [{"from": "human", "value": "q"}, {"from": "bard", "value": "r"}],
        },
        {
            "items": [
                {"role": "system", "content": ""},
                {"role": "user", "content": " q"},
                {"role": "assistant", "content": "r "},
            ]
        },
        [["system|S", "user|q", "assistant|r"], ["system|", "user| q", "assistant|r "]],
    ),
    "messages": (
        {
            "messages": [
                {"role": "developer", "content": "S"},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "r"},
            ]
        },
        {
            "messages": [
                {"role": r, "content": [{"type": "text", "text": r}, {"type": "text", "text": "!"}]}
                for r in ("user", "assistant", "tool", "assistant")
            ]
        },
        [["system|S", "user|q", "assistant|r"], ["user|user!", "assistant|assistant!", "tool|tool!", "assistant|assistant!"]],
    ),
    "prompt_completion": (
        {"prompt": "2+3=", "completion": "5"},
        {
            "prompt": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ],
            "completion": [{"role": "assistant", "content": "d"}],
        },
        [["user|2+3=", "assistant|5"], ["user|a", "assistant-|b", "user|c", "assistant|d"]],
    ),
    "parallel_lists": (
        {"input": ["Hi", "And 2+3?"], "output": ["Hello.", "5"]},
        {"input": ["你好"], "output": ["您好"], "system": "S"},
        [["user|Hi", "assistant|Hello.", "user|And 2+3?", "assistant|5"], ["system|S", "user|你好", "assistant|您好"]],
    ),
    "history": (
        {"prompt": "and 3+4?", "response": "7", "history": [["1+1?", "2"]]},
        {"prompt": "q", "response": "r", "history": []},
        [["user|1+1?", "assistant|2", "user|and 3+4?", "assistant|7"], ["user|q", "assistant|r"]],
    ),
    "moss": (
        {
            "conversation_id": 3,
            "meta_instruction": "M\n",
            "num_turns": 1,
            "chat": {"turn_1": _moss_turn("Hi", "Hello <|1|>:  x")},
        },
        {"chat": {"turn_2": CALL, "turn_1": _moss_turn(" a\n", "b"), "turn_3": None}},
        [
            ["system-|M\n", "user|Hi", "assistant|Hello <|1|>:  x"],
            [
                "user| a\n",
                "assistant|b",
                "user|2+3?",
                'assistant|needs arithmetic\nCalculate("2+3")',
                'tool-|Calculate("2+3") =>\n5\n',
                "assistant|It is 5.",
            ],
        ],
    ),
    "moss_plugin": (
        {"conversation_id": 3, "meta_instruction": "M\n", "chat": {"turn_1": _moss_turn("Hi", "Hello")}},
        {"chat": {"turn_1": {"Human": "q", "MOSS": "r"}, "turn_2": CALL}},
        [
            ["system-|M\n", "user|Hi", "assistant|None", "assistant|None", "tool-|None", "assistant|Hello"],
            [
                *("user|q", "assistant|None", "assistant|None", "tool-|None", "assistant|r"),
                *("user|2+3?", "assistant|needs arithmetic", 'assistant|Calculate("2+3")'),
                *('tool-|Calculate("2+3") =>\n5\n', "assistant|It is 5."),
            ],
        ],
    ),
    "src_tgt": (
        {"src": "Premise: x", "tgt": "yes"},
        {"src": "\tq", "tgt": "r", "id": ""},
        [["user|Premise: x", "assistant|yes"], ["user|\tq", "assistant|r"]],
    ),
    "seed_tasks": (
        {
            "id": "seed_task_0",
            "name": "n",
            "instruction": "Do.",
            "instances": [{"input": "", "output": "a"}],
            "is_classification": False,
        },
        {"instruction": "Do.", "instances": [{"input": "i", "output": "b"}]},
        [["user|Do.", "assistant|a"], ["user|Do.", "input|i", "assistant|b"]],
    ),
}
IDS = {"alpaca": "7", "sharegpt": "x", "moss": "3", "moss_plugin": "3", "seed_tasks": "seed_task_0"}


def _brief(turns: tuple[Turn, ...]) -> list[str]:
    return [f"{turn.role}{ {None: '', True: '+', False: '-'}[turn.train] }|{turn.content}" for turn in turns]


def _parse(name: str, row: Any, columns: Mapping[str, str] | None = None) -> ParsedRow:
    return FORMATS[name](row, columns or {})


def _talk(*turns: str) -> dict[str, Any]:
    """``human q`` -> a ShareGPT row."""
    parts = [turn.partition(" ") for turn in turns]
    return {"conversations": [{"from": role, "value": text} for role, _, text in parts]}


def _chat(**message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r", **message}]}


def test_every_format_of_the_recipe_is_here_and_has_a_fixture() -> None:
    assert set(FORMATS) == set(get_args(FormatName)) - {"auto"} == set(FIXTURES)


@pytest.mark.parametrize("name", FIXTURES)
def test_fixture(name: str) -> None:
    first, second, expected = FIXTURES[name]
    assert [_brief(_parse(name, row).conversations[0]) for row in (first, second)] == expected
    assert (_parse(name, first).id, _parse(name, second).id) == (IDS.get(name), None)


@pytest.mark.parametrize("name", FIXTURES)
def test_detection_knows_its_own_fixtures(name: str) -> None:
    told = "moss" if name == "moss_plugin" else name  # the same rows, read in another way
    assert [detect_format(row) for row in FIXTURES[name][:2]] == [told, told]


def test_a_seed_task_gives_one_conversation_per_instance() -> None:
    row = {"id": 0, "instruction": "Do.", "instances": [{"input": "", "output": "a"}, {"input": "i", "output": "b"}]}
    parsed = _parse("seed_tasks", row)
    assert parsed.id == "0"
    assert [_brief(turns) for turns in parsed.conversations] == [
        ["user|Do.", "assistant|a"],
        ["user|Do.", "input|i", "assistant|b"],
    ]


@pytest.mark.parametrize(
    ("mark", "train"),
    [({}, None), ({"train": True}, True), ({"train": False}, False), ({"weight": 1}, True), ({"weight": 0.0}, False),
     ({"train": True, "weight": 1}, True), ({"train": None, "weight": None}, None)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["messages", "sharegpt"])
def test_training_marks_of_a_turn(name: str, mark: dict[str, Any], train: bool | None) -> None:
    row = _chat(**mark) if name == "messages" else {"conversations": _chat(**mark)["messages"]}
    assert [turn.train for turn in _parse(name, row).conversations[0]] == [None, train]


def test_a_prompt_keeps_a_training_mark_of_its_own() -> None:
    said = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 1},
        {"role": "user", "content": "c"},
    ]
    parsed = _parse("prompt_completion", {"prompt": said, "completion": "d"})
    assert _brief(parsed.conversations[0]) == ["user|a", "assistant+|b", "user|c", "assistant|d"]


def test_null_counts_as_absent_as_arrow_fills_it_in() -> None:
    assert _brief(
        _parse("alpaca", {"instruction": "q", "input": None, "output": "r", "system": None, "id": None}).conversations[0]
    ) == ["user|q", "assistant|r"]
    row = _chat(tool_calls=None, weight=None, function_call=[])
    assert _brief(_parse("messages", row).conversations[0]) == ["user|q", "assistant|r"]


def test_moss_turns_without_markup_or_plugin_fields() -> None:
    row = {"chat": {"turn_1": {"Human": "q", "MOSS": "r <eom> s"}}}
    assert _brief(_parse("moss", row).conversations[0]) == ["user|q", "assistant|r <eom> s"]


def test_a_moss_turn_that_only_thinks_keeps_its_none_results() -> None:
    row = {"chat": {"turn_1": _moss_turn("q", "r", thoughts="easy")}}
    assert _brief(_parse("moss", row).conversations[0]) == ["user|q", "assistant|easy", "tool-|None", "assistant|r"]


def test_columns() -> None:
    row = {"question": "q", "answer": "r", "n": 5}
    columns = {"prompt": "question", "response": "answer", "id": "n"}
    assert _parse("history", row, columns) == ParsedRow("5", ((Turn("user", "q"), Turn("assistant", "r")),))
    assert detect_format(row) is None
    assert detect_format(row, columns) == "history"
    talk = {"dialog": [{"who": "human", "text": "q"}, {"who": "gpt", "text": "r"}]}
    columns = {"conversations": "dialog", "from": "who", "value": "text"}
    assert _brief(_parse("sharegpt", talk, columns).conversations[0]) == ["user|q", "assistant|r"]
    check_columns("sharegpt", columns)
    with pytest.raises(DataError, match="'columns' maps 'promt', but the fields of format src_tgt are src, tgt, id"):
        check_columns("src_tgt", {"src": "a", "promt": "b"})


ALPACA = {"instruction": "q", "input": "", "output": "r"}
REFUSED: list[tuple[str, Any, str, str]] = [
    ("alpaca", [1], "not_an_object", "the row is a list; write an object with named fields"),
    ("alpaca", None, "not_an_object", "the row is null"),
    ("alpaca", {"instruction": "q"}, "missing_field", "'output' is missing or null; 'columns' can map another name to it"),
    ("alpaca", {**ALPACA, "output": 4}, "wrong_type", "'output' is a number; it must be text"),
    ("alpaca", {**ALPACA, "input": ["x"]}, "wrong_type", "'input' is a list; it must be text"),
    ("alpaca", {**ALPACA, "output": True}, "wrong_type", "'output' is true or false; it must be text"),
    ("alpaca", {**ALPACA, "output": " \n\u3000"}, "empty_answer", r"turn 2 \(assistant\) is empty or white space only; fill it or"),
    ("alpaca", {**ALPACA, "instruction": ""}, "empty_prompt", r"turn 1 \(user\) is empty or white space only"),
    ("alpaca", {**ALPACA, "output": "a\ud83d"}, "unpaired_surrogate", r"turn 2 \(assistant\) holds half a character, U\+D83D"),
    ("alpaca", {**ALPACA, "input": "a\0"}, "nul_character", r"turn 2 \(input\) holds a NUL character; remove it"),
    ("alpaca", {**ALPACA, "history": "a"}, "wrong_type", "'history' is text; it must be a list"),
    ("sharegpt", {"text": "x"}, "missing_field", r"'conversations' \(or 'items', 'messages'\) is missing or null"),
    ("sharegpt", {"conversations": []}, "empty_conversation", "there are no turns"),
    ("sharegpt", {"conversations": {}}, "wrong_type", "is an object; it must be a list"),
    ("sharegpt", {"conversations": ["hi"]}, "not_an_object", "entry 1 of 'conversations' .* is text; write an object"),
    ("sharegpt", {"conversations": [{"value": "x"}]}, "missing_field", r"'from' \(or 'role'\) of entry 1 of 'conversations'"),
    ("sharegpt", {"conversations": [{"from": "human"}]}, "missing_field", r"'value' \(or 'content'\) of entry 1"),
    ("sharegpt", _talk("human a", "Robot b"), "unknown_role", "the role 'Robot' of entry 2 .* is not known; use one of human, user, gpt"),
    ("sharegpt", _talk("human a", "tool b"), "unknown_role", "the role 'tool' of entry 2"),
    ("sharegpt", _talk("human a"), "no_assistant_turn", "there is no answer to learn; the roles are user"),
    ("sharegpt", _talk("gpt a", "human b", "gpt c"), "role_order", r"turn 1 \(assistant\) comes after the start; system or user must"),
    ("sharegpt", _talk("human a", "human b", "gpt c"), "role_order", r"turn 2 \(user\) comes after user; assistant or tool must"),
    ("sharegpt", _talk("human a", "gpt b", "gpt c"), "role_order", r"turn 3 \(assistant\) comes after assistant; tool or user must"),
    ("sharegpt", _talk("human a", "gpt b", "system c", "human d", "gpt e"), "role_order", r"turn 3 \(system\) comes after assistant"),
    ("sharegpt", _talk("system a", "gpt b"), "role_order", r"turn 2 \(assistant\) comes after system; user must"),
    ("sharegpt", _talk("human a", "gpt b", "human c"), "trailing_user", r"the last turn \(user\) has no answer; remove it or add one"),
    ("sharegpt", {"system": "S", **_talk("system a", "human b", "gpt c")}, "two_systems", "two system messages; keep one, at the start"),
    ("sharegpt", _talk("human a", "gpt "), "empty_answer", r"turn 2 \(assistant\)"),
    ("messages", _chat(role="function"), "unknown_role", "the role 'function' of entry 2 of 'messages' is not known"),
    ("messages", _chat(role="gpt"), "unknown_role", "use one of system, user, assistant, tool, developer"),
    ("messages", _chat(tool_calls=[{"id": 1}]), "unsupported_content", "'tool_calls' of entry 2 of 'messages' is not supported; write"),
    ("messages", _chat(content=None, function_call={"name": "f"}), "unsupported_content", "'function_call' of entry 2"),
    ("messages", _chat(content=None), "missing_field", "'content' of entry 2 of 'messages' is missing or null"),
    ("messages", _chat(content=[{"type": "image_url"}]), "unsupported_content", "a part of type 'image_url'; only text can be read"),
    ("messages", _chat(content=[]), "empty_answer", "turn 2"),
    ("messages", _chat(train="yes"), "wrong_type", "'train' of entry 2 of 'messages' is text; it must be true or false"),
    ("messages", _chat(weight=2), "wrong_type", "'weight' of entry 2 of 'messages' is 2; it must be 0 or 1"),
    ("messages", _chat(weight=True), "wrong_type", "is True; it must be 0 or 1"),
    ("messages", _chat(weight=0, train=True), "contradiction", "'train' and 'weight' of entry 2 .* disagree; keep one"),
    ("prompt_completion", {"prompt": "a", "completion": 5}, "wrong_type", "'completion' is a number; it must be text"),
    ("prompt_completion", {"prompt": "a", "completion": [{"role": "user", "content": "b"}]}, "no_assistant_turn", "user, user"),
    ("parallel_lists", {"input": ["a", "b"], "output": ["c"]}, "length_mismatch", "2 inputs but 1 outputs; each input needs one output"),
    ("parallel_lists", {"input": [], "output": []}, "empty_conversation", "there are no turns"),
    ("parallel_lists", {"input": ["a"], "output": [None]}, "wrong_type", r"pair 1 of 'input' \(or 'output'\) is not a question and an"),
    ("history", {"prompt": "a", "response": "b", "history": [["c"]]}, "wrong_type", "pair 1 of 'history' is not a question and an answer"),
    ("history", {"prompt": "a", "response": "b", "history": [["c", ""]]}, "empty_answer", r"turn 2 \(assistant\)"),
    ("moss", {"chat": []}, "wrong_type", "'chat' is a list; it must be an object of turn_1, turn_2"),
    ("moss", {"chat": {"turn_1": CALL, "turn_3": CALL}}, "missing_field", r"has the keys \['turn_1', 'turn_3'\]; it must have turn_1, turn_2"),
    ("moss", {"chat": {"turn_1": {"Human": "q"}}}, "missing_field", "'MOSS' of turn_1 is missing or null"),
    ("moss", {"chat": {"turn_1": _moss_turn("q", " ")}}, "empty_answer", r"turn 2 \(assistant\)"),
    ("moss", {"chat": {}}, "empty_conversation", "there are no turns"),
    ("src_tgt", {"src": "a", "tgt": None}, "missing_field", "'tgt' is missing or null"),
    ("seed_tasks", {"instruction": "a", "instances": []}, "empty_conversation", "'instances' is empty; a seed task needs at least one"),
    ("seed_tasks", {"instruction": "a", "instances": [{"input": "b", "output": "c"}, {"input": "d"}]}, "missing_field",
     "'output' of entry 2 of 'instances' is missing"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "row", "reason", "detail"), REFUSED, ids=[f"{n}-{r}-{i}" for i, (n, _, r, _) in enumerate(REFUSED)]
)
def test_refusals(name: str, row: Any, reason: str, detail: str) -> None:
    with pytest.raises(RowFault, match=detail) as caught:
        _parse(name, row)
    assert caught.value.reason == reason


def test_detection_names_the_candidates_of_an_ambiguous_row() -> None:
    row = {"prompt": "a", "completion": "b", "response": "c"}
    with pytest.raises(
        DataError, match=r"the keys prompt, completion, response fit several formats \(prompt_completion, history\)"
    ):
        detect_format(row)


@pytest.mark.parametrize("row", [{}, [], None, "text", {"text": "x"}, {"messages": []}, {"instruction": "a", "output": None}])
def test_detection_does_not_guess(row: Any) -> None:
    assert detect_format(row) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", " ", "a", "human", "gpt", "user", "system", "text", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([f for known in FORMATS.values() for f in known.fields] + ["turn_1", "id", "type"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
@given(row=JSON)
def test_no_row_crashes_a_format(name: str, row: Any) -> None:
    """Whatever the JSON, a format gives sound turns or a fault; detection gives a name, None or a refusal."""
    try:
        detect_format(row)
    except DataError:
        assert isinstance(row, dict)
    conversations: tuple[tuple[Turn, ...], ...] = ()
    fault: RowFault | None = None
    try:
        conversations = _parse(name, row).conversations
    except RowFault as caught:
        fault = caught
    assert bool(conversations) == (fault is None)
    assert all(turns[-1].role == "assistant" and turns[-1].content.strip() for turns in conversations)
    if fault is not None:
        assert fault.reason.isidentifier()
        assert fault.detail.encode()  # a report can hold it, whatever the row did


SAID = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@given(pairs=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4))
def test_text_is_never_changed_and_shapes_agree(pairs: list[tuple[str, str]]) -> None:
    """One conversation in every shape that can hold it gives the same turns."""
    *earlier, (prompt, response) = pairs
    said = [{"role": role, "content": text} for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    turns = tuple(Turn(m["role"], m["content"]) for m in said)  # type: ignore[arg-type]
    rows = {
        "sharegpt": {"conversations": [{"from": m["role"], "value": m["content"]} for m in said]},
        "messages": {"messages": said},
        "parallel_lists": {"input": [q for q, _ in pairs], "output": [a for _, a in pairs]},
        "history": {"prompt": prompt, "response": response, "history": [list(pair) for pair in earlier]},
        "moss": {"chat": {f"turn_{n}": _moss_turn(q, a) for n, (q, a) in enumerate(pairs, 1)}},
    }
    for name, row in rows.items():
        assert _parse(name, row).conversations == (turns,), name
