"""What is typed: messages of several lines, a terminal's keys, and a history that is nobody else's."""

from __future__ import annotations

import io
import os
import pty
import select
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from sft.errors import InputError
from sft.run import terminal
from sft.run.terminal import Plain, Terminal, private_file

ENTER, ALT_ENTER, CTRL_C, CTRL_D, UP = "\r", "\x1b\r", "\x03", "\x04", "\x1b[A"


def read(text: str) -> list[str]:
    reader, found = Plain(io.StringIO(text)), []
    while (message := reader.read()) is not None:
        found.append(message)
    return found


@pytest.mark.parametrize(
    ("typed", "messages"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\r\n\ntwo", ["one", "", "two"]),
        ("one\\\ntwo\\\n\\\nthree\n", ["one\ntwo\n\nthree"]),
        ('"""one\n\n two\\\n"""\nthree\n', ["one\n\n two\\", "three"]),
        ('"""\none\n"""\n"""two"""\n""""""\n', ["one", "two", ""]),
        ("  中文\n", ["  中文"]),
        ("", []),
    ],
)
def test_messages_of_several_lines(typed: str, messages: list[str]) -> None:
    assert read(typed) == messages


@pytest.mark.parametrize("typed", ["one\\\n", '"""one\ntwo\n'])
def test_an_open_message_at_the_end_is_told(typed: str) -> None:
    with pytest.raises(InputError, match=r'the input ended within a message: a backslash or """ was open'):
        read(typed)


def test_a_plain_reader_cannot_edit_and_shows_prompts_only_to_somebody(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="/edit needs the new text behind it here: /edit TEXT"):
        Plain(io.StringIO("x\n")).read("old")
    assert Plain(io.StringIO("x\\\ny\n"), echo=True).read() == "x\ny"
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "> ... ")
    with pytest.raises(InputError, match="the input is not UTF-8 text"):
        Plain(io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8")).read()


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def test_the_keys_of_a_terminal(keyboard: PipeInput, tmp_path: Path) -> None:
    history = tmp_path / "cache" / "chat_history"
    reader = Terminal(history, ("/help", "/history"))
    assert reader.interactive
    keyboard.send_text(f"one{ALT_ENTER}two{ENTER}")
    assert reader.read() == "one\ntwo"
    keyboard.send_text(f"\x1b[200~pasted\nlines\x1b[201~{ENTER}")
    assert reader.read() == "pasted\nlines"
    keyboard.send_text(f'"""a{ENTER}b"""{ENTER}')
    assert reader.read() == "a\nb"
    keyboard.send_text(f"c\\{ENTER}d{ENTER}")
    assert reader.read() == "c\nd"
    keyboard.send_text(f" new{ENTER}")
    assert reader.read("old") == "old new"
    keyboard.send_text(f"half{CTRL_C}")
    with pytest.raises(KeyboardInterrupt):
        reader.read()
    keyboard.send_text(CTRL_D)
    assert reader.read() is None


def test_what_was_typed_is_there_the_next_time_and_for_nobody_else(keyboard: PipeInput, tmp_path: Path) -> None:
    history = tmp_path / "chat_history"
    history.write_text("", encoding="utf-8")
    history.chmod(0o644)
    first = Terminal(history)
    keyboard.send_text(f"请写{ALT_ENTER}一首诗{ENTER}")
    first.read()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    before = history.read_bytes()
    keyboard.send_text(f"{UP}{UP}!{ENTER}")
    assert Terminal(history).read() == "请写!\n一首诗"  # up into its last line, then into its first
    assert history.read_bytes().startswith(before)
    keyboard.send_text(f"secret{ENTER}")
    Terminal(None).read()
    assert b"secret" not in history.read_bytes()


def test_a_history_grows_to_a_bound_and_loses_its_older_half(
    keyboard: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = tmp_path / "chat_history"
    reader = Terminal(history)
    for i in range(20):
        keyboard.send_text(f"entry {i}{ENTER}")
        reader.read()
    whole = history.read_bytes()
    monkeypatch.setattr(terminal, "_MOST_HISTORY", len(whole) - 1)
    private_file(history)
    kept = history.read_bytes()
    assert whole.endswith(kept)
    assert len(whole) // 4 < len(kept) <= len(whole) // 2
    keyboard.send_text(f"{UP}{ENTER}")
    assert Terminal(history).read() == "entry 19"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match=r"what is typed cannot be kept there \(.*\); --no-history keeps nothing"):
        private_file(tmp_path / "file" / "chat_history")


SCRIPT = """
import sys
from sft.run.terminal import reader_of
reader = reader_of(None, ())
while (text := reader.read()) is not None:
    print(repr(text), type(reader).__name__, flush=True)
"""


def test_a_real_terminal_and_a_pipe(tmp_path: Path) -> None:
    environment = os.environ | {"TERM": "xterm"}
    piped = subprocess.run(
        [sys.executable, "-c", SCRIPT], input="a\\\nb\n", capture_output=True, text=True, env=environment, check=True
    )
    assert (piped.stdout, piped.stderr) == ("'a\\nb' Plain\n", "")
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    try:
        os.close(theirs)
        wait_for(ours, b">")
        os.write(ours, "诗\x1b\rb\r".encode())
        rest = wait_for(ours, "'诗\\nb' Terminal".encode()).partition(b" Terminal")[2]
        if b">" not in rest:  # until it asks again, a Ctrl-D is the line discipline's
            wait_for(ours, b">")
        os.write(ours, b"\x04")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def wait_for(descriptor: int, wanted: bytes) -> bytes:
    seen, end = b"", time.monotonic() + 10
    while wanted not in seen and time.monotonic() < end:
        if select.select([descriptor], [], [], 0.1)[0]:
            seen += os.read(descriptor, 4096)
    assert wanted in seen, seen
    return seen
