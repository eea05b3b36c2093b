"""``sft web``: the verb of the page."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sft.errors import InputError
from sft.remote.address import own_key

if TYPE_CHECKING:
    from sft.web.words import Language


def web(
    server: Annotated[
        list[str], typer.Option("--server", metavar="URL", help="OpenAI-compatible server, such as sft serve's. Repeatable.")
    ],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; others than loopback let others in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.", min=0, max=65535)] = 7860,
    votes: Annotated[Path, typer.Option("--votes", metavar="FILE", help="Votes are appended here.")] = Path("votes.jsonl"),
    saved: Annotated[Path, typer.Option("--saved", metavar="FILE", help="Saved dialogues are appended here.")] = Path(
        "saved.jsonl"
    ),
    lang: Annotated[str, typer.Option("--lang", help="en, zh, or auto: the browser's.")] = "auto",
) -> None:
    """Open a page to talk to models, to compare two without their names, and to save dialogues as training rows."""
    language = _language(lang)
    for option, path in (("--votes", votes), ("--saved", saved)):
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"{option}: {path} cannot be a file there; name one in a folder that exists")
    if votes.absolute() == saved.absolute():
        raise InputError(f"--saved: {saved} is the file of the votes; name another")
    try:
        from sft.web.app import serve
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "fastapi", "starlette", "uvicorn"):  # it brings the others
            raise
        raise InputError("sft web needs gradio, which is not installed: pip install 'vicugna[web]'") from None
    from sft.web.desk import Desk
    from sft.web.servers import Servers

    desk = Desk(Servers(server, own_key()), votes, saved)
    with _listening(host, port) as opened:
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"http://{shown}:{opened.getsockname()[1]}/ (votes: {votes}, saved rows: {saved}; Ctrl-C stops it)")
        serve(desk, opened, host, language)


def _language(lang: str) -> Language | None:
    from sft.web.words import LANGUAGES

    if lang == "auto":
        return None
    for known in LANGUAGES:
        if lang == known:
            return known
    raise InputError(f"--lang: {lang!r} is none of auto, {', '.join(LANGUAGES)}")


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)
    except OSError as error:
        raise InputError(
            f"--host, --port: cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; choose another"
        ) from None
