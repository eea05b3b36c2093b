"""``sft serve``: the model behind an address."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from sft.errors import InputError
from sft.remote.address import KEY, own_key


def key_of(host: str) -> str | None:
    """The key of the server, None for none.

    Raises:
        InputError: others can reach this host and there is no key, or one that no header can carry.
    """
    key = own_key()
    if key is None and not _loopback(host):
        raise InputError(f"--host {host}: others can reach it, so it needs a key; set {KEY}, or leave --host out")
    return key


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(model: str, *, host: str, port: int, name: str | None, most_waiting: int, max_body: int, max_messages: int) -> None:
    """Serve a model until SIGTERM or SIGINT; answers under way are finished then, a second signal cuts them off.

    Args:
        model: run directory, exported folder or Hub name.
        host: address to listen at.
        port: 0 takes a free one.
        name: what requests call the model; None for the name of the folder, or the Hub name.
        most_waiting: requests that may wait.
        max_body: bytes of a request.
        max_messages: of a chat.

    Raises:
        InputError: the extra is not installed, no model, or an address that needs a key.
    """
    try:
        import uvicorn

        from sft.serve.app import Limits, make_app
    except ImportError as error:
        raise InputError(f"sft serve needs FastAPI and uvicorn ({error}): pip install 'vicugna[serve]'") from None
    from sft.serve.engine import Engine

    key = key_of(host)
    engine = Engine.load(model, most_waiting)
    called = name or (Path(model).resolve().name if Path(model).exists() else model)
    app = make_app(engine, called, key=key, limits=Limits(body=max_body, messages=max_messages))
    # no logs of requests: an address may be private
    uvicorn.run(app, host=host, port=port, log_level="info", access_log=False, server_header=False)
