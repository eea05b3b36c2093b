"""A conversation: what is loaded, what each turn sees, and what is said when there is nothing to load."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest

from sft.data.conversation import Conversation, Turn
from sft.data.template import builtin_names, load_template
from sft.data.tokenize import RowEncoder
from sft.errors import InputError, ModelError, TemplateError
from sft.model.servable import write_servable
from sft.model.tokenizer import repair_tokens
from sft.run.chat import find_model, load_to_talk, load_words, talk
from sft.run.session import refuse_system
from sft.train import run
from tests.builders import byte_level, save_tiny, tiny_model
from tests.runs import tiny_recipe


def folder(path: Path, *inside: str) -> Path:
    path.mkdir(parents=True)
    (path / "run.json").touch()
    for name in inside:
        (path / name).mkdir()
    return path


@pytest.mark.parametrize(
    ("inside", "wanted"),
    [(("merged", "adapter"), "merged"), (("merged", "model"), "merged"), (("model",), "model"), (("adapter",), None)],
)
def test_a_run_gives_its_best_model(tmp_path: Path, inside: tuple[str, ...], wanted: str | None) -> None:
    path = folder(tmp_path / "run", *inside)
    if wanted is None:
        assert find_model(str(path)) == (str(path), path / "adapter")
    else:
        assert find_model(str(path)) == (str(path / wanted), None)


def test_names_that_are_no_run(tmp_path: Path) -> None:
    assert find_model("owner/name") == ("owner/name", None)
    exported = tmp_path / "exported"
    exported.mkdir()
    assert find_model(str(exported)) == (str(exported), None)
    with pytest.raises(InputError, match=r"no such folder; give a run directory, an exported folder or a Hub name"):
        find_model(str(tmp_path / "nothing"))
    unfinished = folder(tmp_path / "unfinished")
    with pytest.raises(
        InputError, match=r"this run has written no model yet; finish it with sft train .*recipe\.yaml --resume"
    ):
        find_model(str(unfinished))


def test_what_cannot_talk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bare = save_tiny(tmp_path / "bare", byte_level())
    with pytest.raises(TemplateError, match="its tokenizer has no chat template; export a run of ours, or add one"):
        load_to_talk(str(bare))
    (bare / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="bare: cannot be loaded: "):
        load_to_talk(str(bare))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of a template with one exchange and of one with many, the base without ChatML tokens."""
    root = tmp_path_factory.mktemp("chat")
    base = save_tiny(root / "base", byte_level(chatml=False))
    out = {}
    for template in ("alpaca_short", "chatml"):
        out[template] = root / template
        changes: dict[str, Any] = {"template__name": template, "data__max_length": 96, "train__max_steps": 1}
        run(tiny_recipe(out[template], base, output__merge=template == "chatml", **changes))
    return out


def test_one_message_is_one_answer(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    talk(str(runs["chatml"]), message="Say the number 3.", system=None, temperature=0.0, max_tokens=4)
    first = capsys.readouterr().out
    talk(str(runs["chatml"]), message="Say the number 3.", system=None, temperature=0.0, max_tokens=4)
    assert capsys.readouterr().out == first
    assert first.endswith("\n")


def test_an_empty_message_is_refused_before_the_model_is_looked_for() -> None:
    with pytest.raises(InputError, match="--message is empty; write what the model should answer"):
        talk("nowhere", message=" \n", system=None, temperature=0.0, max_tokens=4)


def test_chat_and_training_read_the_same_prompt(runs: dict[str, Path]) -> None:
    for template, path in runs.items():
        _, tokenizer, encoder, about = load_to_talk(str(path))
        assert about["template"] == template
        assert encoder.stops()[0] == about["stop_ids"]
        assert json.loads((path / "run.json").read_text())["serving"]["stop_ids"] == about["stop_ids"]
        assert tokenizer.eos_token_id in about["stop_ids"]


@pytest.mark.parametrize("name", builtin_names())
def test_every_template_is_served_with_the_ids_and_stops_of_training(name: str, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(byte_level(chatml=False))
    template = load_template(name)
    repair_tokens(tokenizer, template)
    encoder = RowEncoder(tokenizer, template, "last")
    write_servable(tiny_model(len(tokenizer)), tokenizer, encoder, tmp_path / "m", {})
    _, served, _ = load_words(str(tmp_path / "m"))
    assert served.stops() == encoder.stops()
    first = (Turn("user", "Hi, <|im_end|> ### Human: </s>"),)
    talks = [first, (*first, Turn("assistant", "Hello."), Turn("user", "请说。"))]
    for turns in talks[: 1 + template.multi_turn]:
        talk = Conversation("q", turns, "q")
        assert served.prompt_ids(talk) == encoder.prompt_ids(talk)
    with_system = Conversation("q", (Turn("system", "Be brief."), *first), "q")
    if "system" in template.roles:
        assert served.prompt_ids(with_system) == encoder.prompt_ids(with_system)
        refuse_system(served, "Be brief.")
    else:
        with pytest.raises(InputError, match=f"no system message can be set: the template {name} has no system role"):
            refuse_system(served, "Be brief.")


def test_a_template_that_passes_over_the_system_message_refuses_it() -> None:
    source = "{% for m in messages if m.role != 'system' %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}bot: "
    encoder = RowEncoder(byte_level(), load_template("tokenizer", tokenizer_source=source), "all")
    with pytest.raises(InputError, match="no system message can be set: the template of this model has no place for one"):
        refuse_system(encoder, "Be brief.")


def test_the_default_system_message_of_a_template_can_be_set() -> None:
    encoder = RowEncoder(byte_level(), load_template("vicuna_v1.1"))
    default = encoder.renderer.prompt(Conversation("q", (Turn("user", "a"),), "q")).text.split(" USER:")[0]
    assert default.startswith("A chat")
    refuse_system(encoder, default)


def test_a_message_of_a_program_is_answered_whole_and_nothing_else_is_on_stdout(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lines of a pipe: answers go to stdout, a fault ends it, as a script expects."""
    monkeypatch.setattr("sys.stdin", io.StringIO("Say 1.\n\n/set max_tokens 3\nSay \\\n2.\n"))
    talk(str(runs["chatml"]), message=None, system=None, temperature=0.0, max_tokens=6)
    shown = capsys.readouterr()
    assert shown.out.count("\n") >= 2
    assert ">" not in shown.out.replace("<|", "").replace("|>", "")[:1]
    assert "Type a message" not in shown.out + shown.err
    monkeypatch.setattr("sys.stdin", io.StringIO("/undo\nSay 1.\n"))
    with pytest.raises(InputError, match="nothing was asked yet"):
        talk(str(runs["chatml"]), message=None, system=None, temperature=0.0, max_tokens=6)
    assert capsys.readouterr().out == ""
