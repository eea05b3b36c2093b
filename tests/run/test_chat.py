"""A conversation: what is loaded, what each turn sees, and what is said when there is nothing to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sft.data.conversation import Conversation
from sft.errors import InputError, ModelError, TemplateError
from sft.run import chat
from sft.run.chat import find_model, load_to_talk, talk
from sft.train import run
from tests.builders import byte_level, save_tiny
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


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> list[Conversation]:
    """Type lines, then end of input. Returns what the model is asked each time; it answers ``answer N``."""
    waiting, asked = iter(lines), []

    def read(_: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    def say(model: Any, tokenizer: Any, encoder: Any, conversation: Conversation, *_: Any, on_text: Any) -> str:
        asked.append(conversation)
        encoder.prompt_ids(conversation)
        on_text(f"answer {len(asked)}\x1b[2J")
        return f"answer {len(asked)}"

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(chat, "answer", say)
    return asked


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in conversation.turns]


def test_a_conversation_goes_on_until_it_is_left(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = typed(monkeypatch, "one", "", "two", "/new", "three", "/quit", "never")
    talk(str(runs["chatml"]), message=None, system="Be brief.", temperature=0.0, max_tokens=4)
    system = ("system", "Be brief.")
    assert [turns(c) for c in asked] == [
        [system, ("user", "one")],
        [system, ("user", "one"), ("assistant", "answer 1"), ("user", "two")],
        [system, ("user", "three")],
    ]
    shown = capsys.readouterr().out
    assert "Type a message. /new starts over, /quit leaves.\n" in shown
    assert "\x1b" not in shown  # a model cannot write to the terminal's controls


def test_a_template_of_one_exchange_starts_over(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = typed(monkeypatch, "one", "two")
    talk(str(runs["alpaca_short"]), message=None, system=None, temperature=0.0, max_tokens=4)
    assert [turns(c) for c in asked] == [[("user", "one")], [("user", "two")]]
    assert "This template holds one exchange." in capsys.readouterr().out


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
