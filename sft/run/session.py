"""A conversation with a model: what was said so far, and the commands that change it.

What a question sees is always the dialogue as ``/history`` shows it, rendered by the template of the training; ``/save`` writes that
same dialogue, so that its prompt has the same ids.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.data.conversation import Conversation, Turn
from sft.data.template import RenderRefused
from sft.data.tokenize import RowEncoder
from sft.errors import InputError, VicugnaError
from sft.run.answer import Said
from sft.run.generate import ContextFull, Sampling, cut_off, reply
from sft.run.rows import append_row, read_turns, row_of
from sft.run.screen import printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sft.run.terminal import Reader

HELP = """\
/save FILE         add this dialogue to a .jsonl file as a training row (ShareGPT)
/load FILE [ROW]   go on with a dialogue of a file of rows; the last one, or row number ROW
/system TEXT       set the system message, from now on; without TEXT remove it
/undo              take the last question and its answer back
/retry             answer the last question again
/edit [TEXT]       change the last question and answer it again
/set [KEY VALUE]   temperature, top_p or max_tokens; alone, show them
/history           show the dialogue
/reset, /new       start over
/quit, /exit       leave, as does Ctrl-D
A message of several lines: Alt+Enter, or a backslash at the end of a line, or \"\"\" before and behind it.
/help              this list
//...              a message that begins with /
Ctrl-C stops an answer; what was said of it stays.
"""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer. ``whole`` is False where the answer was stopped or cut: it is saved, but not learnt."""

    question: str
    answer: str
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Talker:
    """A loaded model.

    Attributes:
        model: a causal language model.
        tokenizer: its tokenizer.
        encoder: its template.
        multi_turn: whether the template holds more than one exchange.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoder: RowEncoder
    multi_turn: bool = True


class Session:
    """One conversation.

    Args:
        talker: who answers.
        sampling: how, until ``/set``.
        system: system message.

    Raises:
        InputError: the template has no place for a system message.
    """

    def __init__(self, talker: Talker, sampling: Sampling, system: str | None = None) -> None:
        self.talker, self.sampling = talker, sampling
        self.system: str | None = None
        self.exchanges: list[Exchange] = []
        if system:
            self._system(system)
        self._commands: dict[str, Callable[[str], object]] = {
            "/help": lambda rest: sys.stdout.write(HELP),
            "/save": self._save,
            "/load": self._load,
            "/system": self._system,
            "/undo": self._undo,
            "/retry": lambda rest: self._again(self._last().question),
            "/edit": self._edit,
            "/set": self._set,
            "/history": self._history,
            **dict.fromkeys(("/reset", "/new"), self._reset),
        }
        self._reader: Reader | None = None

    @property
    def commands(self) -> tuple[str, ...]:
        """Every command."""
        return (*self._commands, "/quit", "/exit")

    def turns(self) -> tuple[Turn, ...]:
        """The dialogue; an answer that is not whole is marked as not to be learnt."""
        turns = [Turn("system", self.system)] if self.system else []
        for one in self.exchanges:
            turns += [Turn("user", one.question), Turn("assistant", one.answer, None if one.whole else False)]
        return tuple(turns)

    def run(self, reader: Reader) -> None:
        """Answer what is typed until it ends, or ``/quit``.

        Raises:
            InputError: something that cannot be done, where nobody is there to be told.
        """
        self._reader = reader
        while True:
            try:
                text = reader.read()
                if text is None or text.strip() in ("/quit", "/exit"):
                    return
                self.take(text)
            except KeyboardInterrupt:
                if not reader.interactive:
                    raise
                note("Ctrl-D or /quit leaves")
            except VicugnaError as error:
                if not reader.interactive:
                    raise
                note(str(error))

    def take(self, text: str) -> None:
        """Do what a line says, or answer it.

        Raises:
            InputError: an unknown command, or one that cannot be carried out; the dialogue is as it was.
        """
        if not text.strip():
            return
        if text.startswith("//"):
            self.ask(text[1:])
        elif text.startswith("/"):
            name, _, rest = text.partition(" ")
            if "\n" in name:
                name, _, rest = text.partition("\n")
            if name not in self._commands:
                raise InputError(f"{name}: no such command; /help lists them, and // begins a message with /")
            self._commands[name](rest.strip())
        else:
            self.ask(text)

    def say(self, text: str) -> None:
        """Answer one message, whatever it begins with.

        Raises:
            InputError: it does not fit, or the template cannot write it.
            KeyboardInterrupt: Ctrl-C.
        """
        said = self._answer(Conversation("chat", (*self.turns(), Turn("user", text)), "chat"))
        sys.stdout.write("\n")
        if said.finish == "stopped":
            raise KeyboardInterrupt
        if said.finish == "length":
            note(f"cut at {self.sampling.max_tokens} tokens or the end of the model's positions; --max-tokens N allows more")

    def ask(self, text: str) -> bool:
        """Answer a question, and write the answer as it comes. Whether there was one; if not, the dialogue is as it was.

        Raises:
            InputError: the question does not fit behind the dialogue, or the template cannot write it.
        """
        before = self.exchanges
        if not self.talker.multi_turn:
            self.exchanges = []
        conversation = Conversation("chat", (*self.turns(), Turn("user", text)), "chat")
        self.exchanges = before
        try:
            said = self._answer(conversation)
        except ContextFull as full:
            raise InputError(
                f"{full.fact}: nothing was asked. /undo takes the last exchange back, /reset starts over (/save FILE keeps the dialogue)"
            ) from None
        sys.stdout.write("\n")
        sys.stdout.flush()
        if not said.text.strip():
            note("no answer: the question is not kept" if said.finish != "stopped" else "stopped: the question is not kept")
            return False
        self.exchanges = [*(before if self.talker.multi_turn else []), Exchange(text, said.text, said.finish == "stop")]
        if said.finish == "stopped":
            note("stopped; what was said stays, and is not learnt if it is saved. /retry answers again, /undo takes it back")
        elif said.finish == "length":
            note(f"cut at {self.sampling.max_tokens} tokens or the end of the model's positions; /set max_tokens N allows more")
        return True

    def _answer(self, conversation: Conversation) -> Said:
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            sys.stdout.write(printable(piece))
            sys.stdout.flush()

        one = self.talker
        with stopping() as pressed:
            try:
                return reply(
                    one.model, one.tokenizer, one.encoder, conversation, self.sampling, on_text=show, stopped=pressed.is_set
                )
            except KeyboardInterrupt:  # pressed twice: not even the token under way is waited for
                return cut_off("".join(pieces), "stopped")

    # --- commands

    def _last(self) -> Exchange:
        if not self.exchanges:
            raise InputError("nothing was asked yet")
        return self.exchanges[-1]

    def _again(self, question: str) -> None:
        if question == self._last().question and self.sampling.temperature == 0:
            note("temperature is 0, so the answer is the same; /set temperature 0.7 draws another")
        before = self.exchanges
        self.exchanges = before[:-1]
        try:
            if not self.ask(question):
                self.exchanges = before
        except BaseException:
            self.exchanges = before
            raise

    def _edit(self, rest: str) -> None:
        text: str | None = rest
        if not rest:
            if self._reader is None:
                raise InputError("/edit needs the new text behind it: /edit TEXT")
            text = self._reader.read(self._last().question)
        if text is not None and text.strip():
            self._again(text)

    def _undo(self, rest: str) -> None:
        last = self._last()
        self.exchanges = self.exchanges[:-1]
        note(f"taken back: {_short(last.question)}")

    def _reset(self, rest: str) -> None:
        self.exchanges = []
        note("a new dialogue" + (", the system message stays" if self.system else ""))

    def _system(self, rest: str) -> None:
        if rest:
            refuse_system(self.talker.encoder, rest)
        self.system = rest or None

    def _set(self, rest: str) -> None:
        key, _, value = rest.partition(" ")
        if not rest:
            for name in ("temperature", "top_p", "max_tokens"):
                sys.stdout.write(f"{name} {getattr(self.sampling, name):g}\n")
            return
        self.sampling = with_setting(self.sampling, key, value.strip())

    def _history(self, rest: str) -> None:
        for turn in self.turns():
            end = " [not whole]" if turn.train is False else ""
            sys.stdout.write(printable(f"{turn.role}: {turn.content}{end}\n"))

    def _save(self, rest: str) -> None:
        path = _path(rest, "/save FILE.jsonl")
        append_row(path, row_of(self.turns()))
        note(f"{path}: one row added, {len(self.exchanges)} exchange{'s' * (len(self.exchanges) != 1)}")

    def _load(self, rest: str) -> None:
        name, _, number = rest.rpartition(" ")
        row = int(number) if name and number.isdigit() else None
        turns = read_turns(_path(name if row is not None else rest, "/load FILE [ROW]"), row)
        system = turns[0].content if turns[0].role == "system" else None
        said = turns[1:] if system is not None else turns
        if len(said) > 2 and not self.talker.multi_turn:
            raise InputError(f"this dialogue has {len(said) // 2} exchanges, and the template of the model holds one")
        if system:
            refuse_system(self.talker.encoder, system)
        try:
            self.talker.encoder.prompt_ids(Conversation("chat", turns[:-1], "chat"))
        except RenderRefused as refusal:
            raise InputError(refusal.detail) from None
        self.system = system or None
        pairs = zip(said[::2], said[1::2], strict=True)
        self.exchanges = [Exchange(asked.content, told.content, told.train is not False) for asked, told in pairs]
        note(f"{len(self.exchanges)} exchange{'s' * (len(self.exchanges) != 1)}; /history shows them")


def note(text: str) -> None:
    """Something about the conversation, on stderr: only answers go to stdout."""
    sys.stderr.write(f"[{printable(text)}]\n")
    sys.stderr.flush()


def refuse_system(encoder: RowEncoder, text: str) -> None:
    """Refuse a system message that the template refuses, or would pass over.

    Raises:
        InputError: it does.
    """
    asked = Turn("user", "a")
    try:
        without = encoder.prompt_ids(Conversation("chat", (asked,), "chat"))
        # a template may write this very message by itself, so two are tried
        written = [encoder.prompt_ids(Conversation("chat", (Turn("system", t), asked), "chat")) for t in (text, f"{text} b")]
    except RenderRefused as refusal:
        raise InputError(f"no system message can be set: {refusal.detail}") from None
    if all(ids == without for ids in written):
        raise InputError("no system message can be set: the template of this model has no place for one and would pass it over")


def with_setting(sampling: Sampling, key: str, value: str) -> Sampling:
    """The sampling with one setting changed.

    Raises:
        InputError: no such setting, or a value out of its range.
    """
    ranges: dict[str, tuple[Callable[[str], Any], Callable[[Any], bool], str]] = {
        "temperature": (float, lambda x: 0 <= x <= 5, "a number from 0 (greedy) to 5"),
        "top_p": (float, lambda x: 0 < x <= 1, "a number above 0, up to 1"),
        "max_tokens": (int, lambda x: x >= 1, "a whole number of at least 1"),
    }
    if key not in ranges:
        raise InputError(f"/set {key}: no such setting; there are {', '.join(ranges)}")
    kind, sound, said = ranges[key]
    try:
        number = kind(value)
    except ValueError:
        number = None
    if number is None or not sound(number):
        raise InputError(f"/set {key}: {value!r} is not {said}")
    return replace(sampling, **{key: number})


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, and only the second time raises ``KeyboardInterrupt``."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield pressed
        return

    def press(number: int, frame: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _path(text: str, usage: str) -> Path:
    if not text:
        raise InputError(f"which file? {usage}")
    return Path(text).expanduser()


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
