"""A conversation: what each question sees, what each command does, and that nothing is lost or learnt by accident."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sft.data.conversation import Conversation, Drops, Turn
from sft.data.sources import read_source
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder, Tokenized
from sft.errors import InputError
from sft.recipe import Source
from sft.run import session as module
from sft.run.answer import Said
from sft.run.generate import Sampling, cut_off
from sft.run.session import HELP, Exchange, Session, Talker
from tests.builders import LLAMA, byte_level, sentencepiece_like, tiny_model
from tests.run.test_generate import Scripted


class Replies:
    """Stands in for the model: answers by number, keeps what it was asked, meets the template and the room for real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Conversation] = []
        self.sampling: list[Sampling] = []
        self.say: Callable[[int], Said] = lambda n: Said(f"answer {n}", "stop")
        monkeypatch.setattr(module, "reply", self)

    def __call__(
        self, model: Any, tokenizer: Any, encoder: RowEncoder, conversation: Conversation, sampling: Sampling, **options: Any
    ) -> Said:
        encoder.prompt_ids(conversation)
        self.asked.append(conversation)
        self.sampling.append(sampling)
        said = self.say(len(self.asked))
        options["on_text"](said.text)
        return said


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> Replies:
    return Replies(monkeypatch)


def session(template: str = "chatml", **options: Any) -> Session:
    loaded = load_template(template)
    encoder = RowEncoder(byte_level(), loaded, "last")
    return Session(Talker(None, byte_level(), encoder, loaded.multi_turn), Sampling(16), **options)


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in conversation.turns]


class Typed:
    """A reader of given messages."""

    def __init__(self, *lines: str | type[BaseException], interactive: bool = True) -> None:
        self.lines, self.interactive, self.given = iter(lines), interactive, list[str]()

    def read(self, given: str = "") -> str | None:
        self.given.append(given)
        line = next(self.lines, None)
        if isinstance(line, type):
            raise line
        return line


def test_a_conversation_goes_on_until_it_is_left(replies: Replies, capsys: pytest.CaptureFixture[str]) -> None:
    replies.say = lambda n: Said(f"answer {n}\x1b[2J", "stop")
    session(system="Be brief.").run(Typed("one", "", "two", KeyboardInterrupt, "/new", "three", "//quit", "/quit", "never"))
    system = ("system", "Be brief.")
    assert [turns(c) for c in replies.asked] == [
        [system, ("user", "one")],
        [system, ("user", "one"), ("assistant", "answer 1\x1b[2J"), ("user", "two")],
        [system, ("user", "three")],
        [system, ("user", "three"), ("assistant", "answer 3\x1b[2J"), ("user", "/quit")],
    ]
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err  # a model cannot write to the terminal's controls
    assert "[Ctrl-D or /quit leaves]\n[a new dialogue, the system message stays]" in shown.err


def test_a_template_of_one_exchange_starts_over(replies: Replies) -> None:
    one = session("alpaca_short")
    one.run(Typed("one", "two", "/retry"))
    assert [turns(c) for c in replies.asked] == [[("user", "one")], [("user", "two")], [("user", "two")]]
    assert one.exchanges == [Exchange("two", "answer 3")]


def test_undo_retry_and_edit(replies: Replies, capsys: pytest.CaptureFixture[str]) -> None:
    one = session()
    one.run(Typed("one", "two", "/undo", "three", "/retry", "/edit four"))
    assert one.exchanges == [Exchange("one", "answer 1"), Exchange("four", "answer 5")]
    before = [("user", "one"), ("assistant", "answer 1")]
    assert [turns(c) for c in replies.asked[2:]] == [[*before, ("user", text)] for text in ("three", "three", "four")]
    assert "[temperature is 0, so the answer is the same; /set temperature 0.7 draws another]" in capsys.readouterr().err
    reader = Typed("/edit", "five", "/edit", "")
    one.run(reader)
    assert reader.given == ["", "four", "", "five", ""]
    assert one.exchanges[-1] == Exchange("five", "answer 6")
    replies.say = lambda n: Said("", "stop")
    one.run(Typed("/retry", "six"))  # no answer: what stood before stands
    assert one.exchanges == [Exchange("one", "answer 1"), Exchange("five", "answer 6")]


def test_settings(replies: Replies, capsys: pytest.CaptureFixture[str]) -> None:
    session().run(Typed("/set temperature 0.7", "/set top_p 0.9", "/set max_tokens 5", "/set", "hi"))
    assert replies.sampling == [Sampling(5, 0.7, 0.9)]
    assert capsys.readouterr().out.startswith("temperature 0.7\ntop_p 0.9\nmax_tokens 5\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/sav x", "/sav: no such command; /help lists them, and // begins a message with /"),
        ("/undo", "nothing was asked yet"),
        ("/retry", "nothing was asked yet"),
        ("/edit", "nothing was asked yet"),
        ("/save", "which file? /save FILE.jsonl"),
        ("/save x.jsonl", "there is no whole answer to save yet"),
        ("/load", r"which file? /load FILE [ROW]"),
        ("/load nowhere.jsonl", "nowhere.jsonl: no such file of rows; give a .json, .jsonl or .parquet file"),
        ("/set heat 1", "/set heat: no such setting; there are temperature, top_p, max_tokens"),
        ("/set temperature hot", "/set temperature: 'hot' is not a number from 0 (greedy) to 5"),
        ("/set temperature nan", "/set temperature: 'nan' is not a number from 0 (greedy) to 5"),
        ("/set top_p 0", "/set top_p: '0' is not a number above 0, up to 1"),
        ("/set max_tokens 0.5", "/set max_tokens: '0.5' is not a whole number of at least 1"),
    ],
)
def test_what_cannot_be_done_is_told_or_ends_a_script(
    line: str, said: str, replies: Replies, capsys: pytest.CaptureFixture[str]
) -> None:
    session().run(Typed(line, "and on"))
    assert capsys.readouterr().err == f"[{said}]\n"
    assert len(replies.asked) == 1
    with pytest.raises(InputError) as stopped:
        session().run(Typed(line, "never", interactive=False))
    assert str(stopped.value) == said
    assert len(replies.asked) == 1


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    one = session()
    one.take("/help")
    assert capsys.readouterr().out == HELP
    assert [name for name in one.commands if name not in HELP] == []


def test_a_system_message_that_the_template_has_no_place_for_is_refused() -> None:
    with pytest.raises(InputError, match="no system message can be set: the template plain has no system role"):
        session("plain", system="Be brief.")
    one = session("plain")
    with pytest.raises(InputError, match="no system message can be set"):
        one.take("/system Be brief.")
    assert one.system is None


def test_history_shows_the_dialogue(replies: Replies, capsys: pytest.CaptureFixture[str]) -> None:
    one = session(system="Be brief.")
    replies.say = lambda n: cut_off("half", "length")
    one.take("hi")
    capsys.readouterr()
    one.take("/history")
    assert capsys.readouterr().out == "system: Be brief.\nuser: hi\nassistant: half [not whole]\n"
    one.take("/system")
    assert one.turns()[0].role == "user"


# -- the model itself -----------------------------------------------------------------------------------------------


def talking(text: str, positions: int = 512) -> tuple[Session, Scripted]:
    tokenizer = sentencepiece_like()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    encoder = RowEncoder(tokenizer, load_template("vicuna_v1.1"))
    model = Scripted(tiny_model(len(tokenizer), LLAMA | {"max_position_embeddings": positions}), [*ids, encoder.stops()[0][0]])
    return Session(Talker(model, tokenizer, encoder), Sampling(64)), model


def test_a_dialogue_that_fills_the_context_is_an_error_and_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    one, _ = talking("Fine.", positions=140)
    one.take("Hi")
    before = list(one.exchanges)
    prompt = len(one.talker.encoder.prompt_ids(Conversation("c", (*one.turns(), Turn("user", "word " * 60)), "c")))
    with pytest.raises(InputError) as full:
        one.take("word " * 60)
    assert str(full.value) == (
        f"the conversation is {prompt} tokens long and the model knows 140 positions: nothing was asked. /undo takes the last exchange "
        "back, /reset starts over (/save FILE keeps the dialogue)"
    )
    assert one.exchanges == before == [Exchange("Hi", "Fine.")]
    one.sampling = Sampling(2)
    one.take("Hi")
    assert one.exchanges[-1].whole is False
    assert "[cut at 2 tokens or the end of the model's positions; /set max_tokens N allows more]" in capsys.readouterr().err


class Pressing(Scripted):
    """Presses Ctrl-C when the ``at``-th token comes, and asks the criteria as ``generate`` does."""

    at, times = 3, 1

    def generate(self, input_ids: Any, max_new_tokens: int, streamer: Any = None, **options: Any) -> Any:
        import torch

        made: list[int] = []
        streamer.put(input_ids)
        for token in self.says[:max_new_tokens]:
            made.append(token)
            streamer.put(torch.tensor([token]))
            if len(made) == self.at:
                for _ in range(self.times):
                    os.kill(os.getpid(), signal.SIGINT)
            if options["stopping_criteria"](input_ids, None).all():
                break
        return torch.cat([input_ids, torch.tensor([made])], dim=1)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(times: int, capsys: pytest.CaptureFixture[str]) -> None:
    one, model = talking("一二三四五六七八九十")
    model.__class__, model.times = Pressing, times  # type: ignore[assignment]
    handler = signal.getsignal(signal.SIGINT)
    one.take("Count.")
    assert signal.getsignal(signal.SIGINT) is handler
    shown = capsys.readouterr()
    (kept,) = one.exchanges
    assert not kept.whole
    assert "一二三四五六七八九十".startswith(kept.answer)
    assert 0 < len(kept.answer) < 10
    assert shown.out == kept.answer + "\n"
    assert "\ufffd" not in shown.out
    assert "[stopped; what was said stays, and is not learnt if it is saved." in shown.err


def test_ctrl_c_before_the_first_character_keeps_nothing(replies: Replies, capsys: pytest.CaptureFixture[str]) -> None:
    replies.say = lambda n: Said("", "stopped")
    one = session()
    one.take("hi")
    assert one.exchanges == []
    assert "[stopped: the question is not kept]" in capsys.readouterr().err


# -- rows -----------------------------------------------------------------------------------------------------------


def read_back(path: Path) -> list[Conversation]:
    drops = Drops()
    found = list(read_source(Source(path=str(path)), drops))
    assert drops.total == 0
    return found


TEMPLATES = ("chatml", "vicuna_v0", "vicuna_v1.1", "llama2")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_saved_dialogue_is_trained_on_with_the_ids_of_the_chat(template: str, replies: Replies, tmp_path: Path) -> None:
    loaded = load_template(template)
    one = session(template, system="Sei knapp.\n" if "system" in loaded.roles else None)
    texts = ["  Hi <|im_end|>\n", "### Human: \\ und {{ so }}", "中文，🎉"]
    replies.say = lambda n: Said([" red\n\n", "café </s>", "好。"][n - 1], "stop")
    for text in texts:
        one.take(text)
    one.take(f"/save {tmp_path / 'my rows.jsonl'}")
    (conversation,) = read_back(tmp_path / "my rows.jsonl")
    encoder = one.talker.encoder
    (row,) = RowEncoder(byte_level(), loaded).encode([conversation])
    assert isinstance(row, Tokenized)
    for asked in replies.asked:  # each prompt of the chat begins the row, and what is learnt starts behind it
        prompt = encoder.prompt_ids(asked)
        assert row.ids[: len(prompt)].tolist() == prompt
        assert row.mask[len(prompt) :].any()
    assert not row.mask[: len(encoder.prompt_ids(replies.asked[0]))].any()


def test_answers_that_did_not_end_are_never_learnt(replies: Replies, tmp_path: Path) -> None:
    one, path = session(), tmp_path / "rows.jsonl"
    replies.say = lambda n: Said("one two", "stop") if n == 2 else cut_off("one tw", "stopped" if n == 1 else "length")
    one.take("a")
    with pytest.raises(InputError, match="there is no whole answer to save yet"):
        one.take(f"/save {path}")
    assert not path.exists()
    one.take("b")
    one.take("c")
    one.take(f"/save {path}")
    (conversation,) = read_back(path)
    assert [turn.train for turn in conversation.turns if turn.role == "assistant"] == [False, None, False]
    other = session()
    other.take(f"/load {path}")
    assert other.exchanges == one.exchanges


def test_rows_are_added_one_by_one_and_loaded_by_number(
    replies: Replies, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, path = session(), tmp_path / "rows.jsonl"
    for text in ("a", "b"):
        one.take(text)
        one.take(f"/save {path}")
    assert path.read_text(encoding="utf-8").splitlines()[0] == json.dumps(
        {
            "id": read_back(path)[0].id,
            "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "answer 1"}],
        }
    )
    assert len({conversation.id for conversation in read_back(path)}) == 2
    path.write_text(path.read_text(encoding="utf-8").removesuffix("\n"), encoding="utf-8")  # as some editors leave it
    one.take(f"/save {path}")
    assert [len(conversation.turns) for conversation in read_back(path)] == [2, 4, 4]
    other = session()
    other.take(f"/load {path} 1")
    assert other.exchanges == [Exchange("a", "answer 1")]
    other.take("c")
    assert turns(replies.asked[-1]) == [("user", "a"), ("assistant", "answer 1"), ("user", "c")]
    other.take(f"/load {path}")
    assert len(other.exchanges) == 2
    assert "[2 exchanges; /history shows them]" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"rows\.jsonl: there are 3 rows in it"):
        other.take(f"/load {path} 4")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.txt", "mine", "rows are added to a .jsonl file; give such a name"),
        ("rows.jsonl", "my notes\n", "holds other things than rows of ShareGPT's shape; it is left as it is"),
        ("rows.jsonl", '{"instruction": "a", "output": "b"}\n', "holds other things than rows of ShareGPT's shape"),
        ("rows.jsonl", '{"conversations": []}\n{"conversa', "holds other things than rows of ShareGPT's shape"),
    ],
)
def test_other_files_are_left_as_they_are(replies: Replies, tmp_path: Path, name: str, content: str, said: str) -> None:
    path, one = tmp_path / name, session()
    path.write_text(content, encoding="utf-8")
    one.take("a")
    with pytest.raises(InputError, match=rf"{name}: {said}"):
        one.take(f"/save {path}")
    assert path.read_text(encoding="utf-8") == content
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(InputError, match=r"d\.jsonl: not a file; give another name"):
        one.take(f"/save {tmp_path / 'd.jsonl'}")
    with pytest.raises(InputError, match=r"x\.jsonl: cannot be written: No such file or directory"):
        one.take(f"/save {tmp_path / 'nowhere' / 'x.jsonl'}")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": [{"from": "human", "value": "a"}]}, r"rows\.jsonl:1: there is no answer to learn"),
        ({"x": 1}, r"rows\.jsonl:1: the shape of this row is not known"),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("user", "assistant", "tool", "assistant")]},
            r"a dialogue here is user and assistant in turn; this row has user, assistant, tool, assistant",
        ),
        (
            {"conversations": [{"from": w, "value": "x"} for w in ("system", "human", "gpt")]},
            "no system message can be set: the template plain has no system role",
        ),
        (
            {"conversations": [{"from": w, "value": "x"} for w in ("human", "gpt", "human", "gpt")]},
            "this dialogue has 2 exchanges, and the template of the model holds one",
        ),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(row: Any, said: str, replies: Replies, tmp_path: Path) -> None:
    path, one = tmp_path / "rows.jsonl", session("plain")
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    one.take("a")
    before = one.turns()
    with pytest.raises(InputError, match=said):
        one.take(f"/load {path}")
    assert one.turns() == before


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before
