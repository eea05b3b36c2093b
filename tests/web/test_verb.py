"""``sft web`` before it serves: what it refuses, and the words of both languages."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sft.web.records import WINNERS
from sft.web.show import fenced
from sft.web.words import WORDS, preferred, say
from tests.cli import refused

ROOT = Path(__file__).resolve().parents[2]
CALL = ["web", "--server", "http://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--lang", "fr"], "--lang: 'fr' is none of auto, en, zh\n"),
        (
            ["--votes", "absent/votes.jsonl"],
            "--votes: absent/votes.jsonl cannot be a file there; name one in a folder that exists\n",
        ),
        (["--saved", "."], "--saved: . cannot be a file there; name one in a folder that exists\n"),
        (["--saved", "x.jsonl", "--votes", "./x.jsonl"], "--saved: x.jsonl is the file of the votes; name another\n"),
    ],
)
def test_refusals(
    more: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused([*CALL, *more], monkeypatch, capsys) == said


def _web(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.argv = ['sft', *{[*CALL, *arguments]!r}]\n{before}\nfrom sft.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("absent", [("gradio",), ("gradio", "fastapi", "starlette", "uvicorn")])
def test_without_gradio_it_says_what_to_install(absent: tuple[str, ...]) -> None:
    done = _web(before=f"sys.modules.update(dict.fromkeys({absent!r}))")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sft web needs gradio, which is not installed: pip install 'vicugna[web]'\n"


def test_a_port_that_is_taken_is_refused() -> None:
    pytest.importorskip("gradio", reason="NO GRADIO: pip install 'vicugna[web]'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = _web("--port", str(port))
    assert done.returncode == 2
    assert done.stderr == f"--host, --port: cannot listen on 127.0.0.1:{port}: Address already in use; choose another\n"


def test_the_page_and_its_verb_leave_torch_alone() -> None:
    code = "import sys, sft.web.cli, sft.web.desk; print(sorted({'torch', 'transformers', 'gradio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_both_languages_say_everything_with_the_same_values() -> None:
    for key, (english, chinese) in WORDS.items():
        assert set(re.findall(r"{(\w+)}", english)) == set(re.findall(r"{(\w+)}", chinese)), key
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "sft" / "web").glob("*.py")))
    used = set(re.findall(r'(?:Refused|say|button)\((?:language, |self\.language, )?"([\w ()]+)"', source)) | set(WINNERS)
    assert used <= set(WORDS)
    assert say("zh", "saved", answers=2, path="a{b}") == "已将 2 个回答存入 a{b}。"


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("", "en"), ("zh", "zh"), ("fr-FR, zh-TW;q=0.5, en;q=0.4", "zh"), ("en;q=0.1,zh;q=0.9", "zh"), ("de,*;q=x", "en")],
)
def test_the_language_that_a_browser_likes_best(accepted: str, language: str) -> None:
    assert preferred(accepted) == language


def test_nothing_closes_the_block_that_a_text_is_shown_in() -> None:
    assert fenced("a") == "```\na\n```"
    assert fenced("x\n````\ny") == "`````\nx\n````\ny\n`````"
