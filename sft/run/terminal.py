"""What is typed: line by line from a pipe, with editing and history in a terminal.

A message may have several lines: a line that ends in a backslash goes on in the next one, and so does everything between two ``\"\"\"``;
in a terminal Alt+Enter (or Escape, then Enter) starts a new line, and a paste keeps its own. Enter sends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from sft.errors import InputError

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyPressEvent

PROMPT, FURTHER = "> ", "... "
_BLOCK = '"""'
_MOST_HISTORY = 1 << 20  # bytes; the older half is forgotten then


class Reader(Protocol):
    """Where messages come from.

    Attributes:
        interactive: somebody is there: a fault is told and the conversation goes on.
    """

    interactive: bool

    def read(self, given: str = "") -> str | None:
        """The next message, beginning with what is given for editing; None at the end. Ctrl-C raises ``KeyboardInterrupt``."""


def gather(line: Callable[[str], str]) -> str:
    """A message out of lines.

    Args:
        line: reads one after showing a prompt; raises ``EOFError`` at the end.

    Raises:
        EOFError: the input ended before the message began.
        InputError: it ended within the message.
    """
    text = line(PROMPT)
    try:
        if text.lstrip().startswith(_BLOCK):
            block = text.lstrip().removeprefix(_BLOCK)
            while not block.rstrip().endswith(_BLOCK):
                block += "\n" + line(FURTHER)
            return block.rstrip().removesuffix(_BLOCK).removeprefix("\n").removesuffix("\n")
        while text.endswith("\\"):
            text = text.removesuffix("\\") + "\n" + line(FURTHER)
    except EOFError:
        raise InputError('the input ended within a message: a backslash or """ was open') from None
    return text


class Plain:
    """Lines of a stream.

    Args:
        stream: what is read.
        echo: whether to show prompts, on stderr.
    """

    def __init__(self, stream: TextIO | None = None, *, echo: bool = False) -> None:
        self.interactive = echo
        self._stream = stream if stream is not None else sys.stdin

    def read(self, given: str = "") -> str | None:
        """The next message; what is given cannot be edited here.

        Raises:
            InputError: it was to be edited.
        """
        if given:
            raise InputError("/edit needs the new text behind it here: /edit TEXT")
        try:
            return gather(self._line)
        except EOFError:
            return None

    def _line(self, prompt: str) -> str:
        if self.interactive:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        try:
            text = self._stream.readline()
        except UnicodeDecodeError as error:
            raise InputError(f"the input is not {error.encoding.upper()} text") from None
        if not text:
            raise EOFError
        return text.removesuffix("\n").removesuffix("\r")


class Terminal:
    """A terminal, by prompt_toolkit.

    Args:
        history: file of what was typed before; None keeps nothing.
        words: what Tab completes.
    """

    interactive = True

    def __init__(self, history: Path | None, words: tuple[str, ...] = ()) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        @keys.add("enter")
        def send(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            history=InMemoryHistory() if history is None else FileHistory(private_file(history)),
            multiline=True,
            key_bindings=keys,
            prompt_continuation=FURTHER,
            completer=WordCompleter(list(words), sentence=True),
            complete_while_typing=False,
        )

    def read(self, given: str = "") -> str | None:
        """The next message."""
        start = [given]

        def line(prompt: str) -> str:
            return self._session.prompt(prompt, default=start.pop() if start else "")

        try:
            return gather(line)
        except (EOFError, InputError):
            return None


def private_file(path: Path) -> Path:
    """A file that nobody else can read, made where there is none; of one that has grown long, the older half is forgotten.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
        if path.stat().st_size > _MOST_HISTORY:
            data = path.read_bytes()
            path.write_bytes(data[data.find(b"\n#", len(data) // 2) :])  # an entry begins with a comment: when it was typed
    except OSError as error:
        raise InputError(f"{path}: what is typed cannot be kept there ({error.strerror}); --no-history keeps nothing") from None
    return path


def reader_of(history: Path | None, words: tuple[str, ...]) -> Reader:
    """A terminal if there is one, else lines."""
    if not sys.stdin.isatty():
        return Plain()
    return Terminal(history, words) if sys.stdout.isatty() else Plain(echo=True)
