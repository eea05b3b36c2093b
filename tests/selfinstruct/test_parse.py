"""Replies become candidates. The law: a reply cut anywhere yields nothing that the whole reply does not yield."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct.parse import TASKS_SCHEMA, parse_classification, parse_instances, parse_instructions, parse_tasks
from selfinstruct.records import Candidate, Instance, Message, ParseFailure, Request, Sampling

CHAT = Request(
    model="m",
    messages=(Message("user", "Write tasks."),),
    sampling=Sampling(max_tokens=100),
    round=3,
    index=7,
    demonstrations=("seed_task_1", "seed_task_5"),
    prompt_fingerprint="f00d",
)
LEGACY = Request(model="m", messages=(Message("user", "1. x\n2."),), sampling=Sampling(max_tokens=100), kind="completion")
Format = Literal["numbered", "json"]

TRICKY = (
    "### Heading\nIn 2020.\n20. twentieth\n21. next",
    "1. one\n2. two\n\n3. three",
    "```python\nprint('<<<END 4>>>')\n```",
    "The mark <<<END 4>>> inside a line, and <<<TASK 5>>> too",
    "<<END 4>> <<<OUTPUTS>>> <<< TASK>>>",
    "Output: none\nInput: none\nInstruction: none",
    "你好。\n作为例子：🎉",
    "",
)


def block(number: int, instruction: str = "Name it.", given: str = "Peru", output: str = "Lima.") -> str:
    return f"<<<TASK {number}>>>\n<<<INSTRUCTION>>>\n{instruction}\n<<<INPUT>>>\n{given}\n<<<OUTPUT>>>\n{output}\n<<<END {number}>>>"


def read(text: str, format: Format = "numbered", finish: str = "stop") -> tuple[list[tuple[str, str, str]], list[str]]:
    """Fields of the candidates, and codes of the failures."""
    found, failures = parse_tasks(text, finish, CHAT, format=format)
    assert all(len(f.detail) <= 200 and f.request_id == CHAT.id for f in failures)
    return [(c.instruction, c.input, c.output) for c in found], [f.reason for f in failures]


def test_a_candidate_knows_where_it_came_from() -> None:
    found, failures = parse_tasks(f"{block(4)}\n{block(5, 'Again.', '<NoInput>', 'B')}", "stop", CHAT, format="numbered")
    assert failures == []
    assert found[1] == Candidate(
        id="3-7-1",
        request_id=CHAT.id,
        instruction="Again.",
        input="",
        output="B",
        round=3,
        item=1,
        demonstrations=("seed_task_1", "seed_task_5"),
        prompt_fingerprint="f00d",
    )


@pytest.mark.parametrize("tricky", TRICKY)
def test_prose_does_no_harm(tricky: str) -> None:
    text = f"Sure, here they are!\n\n{block(4, output=tricky)}\n\n{block(5, given=tricky or '<noinput>')}\n"
    assert read(text) == ([("Name it.", "Peru", tricky), ("Name it.", tricky, "Lima.")], [])
    assert read(text.replace("\n", "\r\n")) == read(text)
    rows = [
        {"instruction": "Name it.", "input": "Peru", "output": tricky},
        {"instruction": "B", "input": tricky, "output": "C"},
    ]
    for made in (
        json.dumps({"tasks": rows}),
        f"```json\n{json.dumps({'tasks': rows}, indent=1, ensure_ascii=False)}\n```",
        json.dumps(rows),
    ):
        assert read(made, "json") == ([("Name it.", "Peru", tricky), ("B", tricky, "C")], [])


@pytest.mark.parametrize("finish", ["stop", "length", "content_filter"])
def test_the_last_item_is_kept_if_and_only_if_it_ended(finish: str) -> None:
    whole = f"{block(4)}\n{block(5, output='In 2020.')}"
    assert read(whole, finish=finish) == ([("Name it.", "Peru", "Lima."), ("Name it.", "Peru", "In 2020.")], [])
    assert read(whole[: whole.rindex("<<<END")], finish=finish) == ([("Name it.", "Peru", "Lima.")], ["truncated"])
    rows = json.dumps({"tasks": [{"instruction": "A", "input": "", "output": "B"}] * 2})
    assert read(rows, "json", finish) == ([("A", "", "B")] * 2, [])
    assert read(rows[:-5], "json", finish) == ([("A", "", "B")], ["truncated"])
    assert read(rows[:-2], "json", finish) == ([("A", "", "B")] * 2, ["truncated"])


@pytest.mark.parametrize(
    ("text", "kept", "codes"),
    [
        ("", 0, ["empty_reply"]),
        ("  \n", 0, ["empty_reply"]),
        ("I cannot help with that.", 0, ["no_tasks"]),
        (block(4)[: -len("<<<END 4>>>")], 0, ["truncated"]),
        (f"{block(4)[: -len('<<<END 4>>>')]}{block(5)}", 1, ["unclosed"]),
        (f"{block(4, output='<<<TASK 9>>>')}\n{block(5)}", 1, ["stray_mark"]),
        (f"{block(4, output='<<<END 9>>>')}\n{block(5)}", 1, ["stray_mark"]),
        (f"{block(4, output=block(9))}\n{block(5)}", 1, ["stray_mark"]),
        (block(4).replace("<<<END 4>>>", "<<<END 5>>>") + "\n" + block(5), 1, ["stray_mark"]),
        (f"<<<END 3>>>\n{block(4)}", 1, ["stray_mark"]),
        (block(4).replace("<<<INPUT>>>\nPeru\n", ""), 0, ["missing_field"]),
        (block(4, output="a\n<<<OUTPUT>>>\nb"), 0, ["repeated_field"]),
        (block(4).replace("INPUT", "X").replace("OUTPUT", "INPUT").replace("X", "OUTPUT"), 0, ["wrong_order"]),
        (block(4, instruction=" "), 0, ["empty_instruction"]),
        (block(4, output="\ud800"), 0, ["lone_surrogate"]),
        (f"{block(4)}\nI hope this helps!", 1, ["outside_text"]),
        (f"{block(4)}\nlost words\n{block(5)}", 2, ["outside_text"]),
        (block(4).replace("<<<TASK 4>>>", "<<<TASK 4>>> a title"), 0, ["outside_text"]),
        (block(4).removeprefix("<<<TASK 4>>>\n"), 1, []),
    ],
)
def test_every_failure_of_the_numbered_format_has_a_code(text: str, kept: int, codes: list[str]) -> None:
    found, failed = read(text)
    assert (len(found), failed) == (kept, codes)


ROW = '{"instruction": "A", "input": "", "output": "B"}'


@pytest.mark.parametrize(
    ("text", "kept", "codes"),
    [
        ("", 0, ["empty_reply"]),
        ("No.", 0, ["no_tasks"]),
        ('{"tasks": []}', 0, ["no_tasks"]),
        (f'{{"note": {{"x": [1]}}, "tasks": [{ROW}]}} Bye [1] {{"a": 2}}', 1, []),
        (f'{{"tasks": [{ROW}, {ROW} {ROW}]}}', 2, ["invalid_json"]),
        (f'{{"tasks": [{ROW}, {{"instruction": NOPE}}]}}', 1, ["invalid_json"]),
        ('{"tasks": [' + "[" * 100_000, 0, ["invalid_json"]),
        ('{"tasks": [' + "9" * 5000 + "]}", 0, ["invalid_json"]),
        (f'{{"tasks": [7, null, "x", {ROW}]}}', 1, ["not_an_object"] * 3),
        (f'{{"tasks": [{{"instruction": "A", "input": ""}}, {ROW}]}}', 1, ["missing_field"]),
        (f'{{"tasks": [{{"instruction": "A", "output": "", "x": 1}}, {ROW}]}}', 1, ["unknown_field"]),
        (f'{{"tasks": [{{"instruction": "A", "instruction": "B", "output": ""}}, {ROW}]}}', 1, ["repeated_field"]),
        (f'{{"tasks": [{{"instruction": "A", "output": 5}}, {ROW}]}}', 1, ["not_text"]),
        (f'{{"tasks": [{{"instruction": " ", "output": "x"}}, {ROW}]}}', 1, ["empty_instruction"]),
        ('{"tasks": [{"instruction": "A", "output": "\\ud800"}]}', 0, ["lone_surrogate"]),
        ('{"tasks": [{"instruction": "A", "input": null, "output": "B"}]}', 1, []),
    ],
)
def test_every_failure_of_the_json_format_has_a_code(text: str, kept: int, codes: list[str]) -> None:
    found, failed = read(text, "json")
    assert (len(found), failed) == (kept, codes)


def test_the_item_number_counts_failures_too() -> None:
    found, failures = parse_tasks(f'{{"tasks": [{ROW}, 3, {ROW}]}}', "stop", CHAT, format="json")
    assert [c.id for c in found] == ["3-7-0", "3-7-2"]
    assert failures == [ParseFailure(CHAT.id, 1, "not_an_object", "3")]


def test_the_schema_is_strict() -> None:
    item = TASKS_SCHEMA["properties"]["tasks"]["items"]
    assert item["additionalProperties"] is False
    assert set(item["required"]) == set(item["properties"]) == {"instruction", "input", "output"}


# --- the law

_PIECES = st.sampled_from(
    [
        *(
            "<<<TASK 4>>>\n",
            "<<<TASK 5>>>\n",
            "<<<TASK 45>>>\n",
            "<<<END 4>>>\n",
            "<<<END 4>>>",
            "<<<END 5>>>\n",
            "<<<END 45>>>",
        ),
        *(
            "<<<INSTRUCTION>>>\n",
            "<<<INPUT>>>\n",
            "<<<OUTPUT>>>\n",
            "<<<END>>>\n",
            "<<<END>>>",
            "\n",
            " ",
            "x\n",
            "é🎉\n",
            "### a\n",
        ),
        *(
            "20. b\n",
            "2020.\n",
            "1. a\n",
            "2. b\n",
            "3. c\n",
            "3.5 kg\n",
            "Example 1\n",
            "Example 2\n",
            "Example 22 of\n",
            "Input: p\n",
        ),
        *("Output: q\n", "Class label: r\n", "{", "}", "[", "]", ",", '"', "\\", ROW, ROW + ",", '{"tasks": [', "12", "\r\n"),
        *(block(4) + "\n", block(5) + "\n", block(4, output=block(5)) + "\n"),
    ]
)
_TEXTS = st.lists(_PIECES, min_size=1, max_size=10).map("".join)


def _cuts(text: str) -> list[str]:
    data = text.encode()
    return [data[:end].decode("utf-8", "replace") for end in range(len(data))]


@settings(max_examples=50)
@given(_TEXTS, st.sampled_from(["stop", "length"]))
def test_a_cut_reply_yields_nothing_that_the_whole_one_does_not(text: str, finish: str) -> None:
    for format in ("numbered", "json"):
        whole = parse_tasks(text, "stop", CHAT, format=format)[0]
        for cut in _cuts(text):
            assert [c for c in parse_tasks(cut, finish, CHAT, format=format)[0] if c not in whole] == []


@settings(max_examples=50)
@given(_TEXTS, st.sampled_from(["stop", "length"]), st.sampled_from([CHAT, LEGACY]))
def test_a_cut_stage_yields_nothing_that_the_whole_one_does_not(text: str, finish: str, request: Request) -> None:
    whole = parse_instructions(text, "stop", request)[0]
    for cut in _cuts(text):
        assert [c for c in parse_instructions(cut, finish, request)[0] if c not in whole] == []
    for kind in (True, False):
        instances = parse_instances(text, "stop", request, is_classification=kind)[0]
        for cut in _cuts(text):
            assert [i for i in parse_instances(cut, finish, request, is_classification=kind)[0] if i not in instances] == []


def test_every_cut_of_a_real_reply() -> None:
    text = "\n".join(block(n, f"Task number {n}.", tricky or "-", tricky) for n, tricky in enumerate(TRICKY, 4))
    whole = read(text)[0]
    assert len(whole) == len(TRICKY)
    for cut in _cuts(text):
        found, failed = read(cut)
        assert found == whole[: len(found)]
        assert len(failed) <= 1


# --- stages


def test_numbered_instructions() -> None:
    text = "9. translate for NASA\n 2020. is\n3.5 kg\n10. b  c\n11.\n12. cut"
    found, failures = parse_instructions(text, "stop", CHAT)
    assert [(c.instruction, c.output, c.id) for c in found] == [
        ("Translate for NASA 2020. is 3.5 kg", "", "3-7-0"),
        ("B c", "", "3-7-1"),
    ]
    assert [(f.reason, f.item) for f in failures] == [("empty_instruction", 2), ("truncated", 3)]
    found, failures = parse_instructions(text + "\n<<<END>>>\nThat is all.", "length", CHAT)
    assert [c.instruction for c in found][-1] == "Cut"


def test_text_before_the_first_number() -> None:
    text = " first\n3. second\n<<<END>>>"
    assert [c.instruction for c in parse_instructions(text, "stop", LEGACY)[0]] == ["First", "Second"]
    found, failures = parse_instructions(text, "stop", CHAT)
    assert ([c.instruction for c in found], [f.reason for f in failures]) == (["Second"], ["outside_text"])
    assert [f.reason for f in parse_instructions(" ", "stop", CHAT)[1]] == ["empty_reply"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(
            ("Yes", True),
            (" yes.", True),
            ("YES, it is", True),
            ("是", True),
            ("是的，", True),
            ("- **No**", False),
            ("不是。", False),
        ),
        *(("否", False), ("Nope", None), ("是否", None), ("It is", None), ("", None), ("Yesterday", None)),
    ],
)
def test_yes_or_no(text: str, expected: bool | None) -> None:
    assert parse_classification(text) is expected


@pytest.mark.parametrize(
    ("text", "expected", "codes"),
    [
        (
            "Example 1\nInput: tin\nOutput: pin\nExample 2\nInput: <noinput>\nOutput: win\n<<<END>>>",
            [("tin", "pin"), ("", "win")],
            [],
        ),
        ("Example 1\nInput: tin\nOutput: pin\nExample 2\nInput: a\nOutput: b", [("tin", "pin")], ["truncated"]),
        ("Output: alone\n<<<END>>>", [("", "alone")], []),
        ("Just text.\n<<<END>>>", [("", "Just text.")], []),
        ("Output: alone", [], ["truncated"]),
        ("Example 1\nOutput: a\nOutput: b\n<<<END>>>", [], ["repeated_field"]),
        ("Example 1\nText: a\nB: c\nOutput:\n<<<END>>>", [], ["empty_output"]),
        ("Here:\nExample 1\nInput: a\nExample 2 is\nOutput: b\n<<<END>>>", [("a\nExample 2 is", "b")], ["outside_text"]),
        ("示例1\n输入：锡\n输出：铁\n<<<END>>>", [("锡", "铁")], []),
        ("", [], ["empty_reply"]),
    ],
)
def test_input_first(text: str, expected: list[tuple[str, str]], codes: list[str]) -> None:
    found, failures = parse_instances(text, "stop", CHAT, is_classification=False)
    assert (found, [f.reason for f in failures]) == ([Instance(*pair) for pair in expected], codes)


def test_label_first() -> None:
    text = "Class label: Spam\nInput: You have won!\nReally.\nClass label: Ham\nSee you at six.\n<<<END>>>"
    found, failures = parse_instances(text, "stop", CHAT, is_classification=True)
    assert (found, failures) == ([Instance("You have won!\nReally.", "Spam"), Instance("See you at six.", "Ham")], [])
    found, failures = parse_instances(text[: text.index("<<<")], "stop", CHAT, is_classification=True)
    assert ([i.output for i in found], [f.reason for f in failures]) == (["Spam"], ["truncated"])
