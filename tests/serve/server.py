"""A server over a tiny random model, in a thread."""

from __future__ import annotations

import copy
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.model.servable import write_servable
from sft.model.tokenizer import repair_tokens
from sft.serve.engine import Engine
from tests.builders import byte_level, tiny_model


def exported(folder: Path, template: str = "chatml", tokenizer: Any = None) -> Path:
    """A random model in the shape that ``sft export`` writes."""
    tokenizer = copy.deepcopy(tokenizer or byte_level(chatml=False))
    found = load_template(template)
    repair_tokens(tokenizer, found)
    write_servable(tiny_model(len(tokenizer)), tokenizer, RowEncoder(tokenizer, found, "last"), folder, {})
    return folder


@contextmanager
def served(engine: Engine, **options: Any) -> Iterator[tuple[str, Any]]:
    """The address of a running server, and the server itself; options as of ``make_app``."""
    uvicorn = pytest.importorskip("uvicorn")
    from sft.serve.app import make_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(make_app(engine, "tiny", **options), port=port, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
