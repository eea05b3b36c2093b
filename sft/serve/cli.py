"""The verb ``sft serve``. Heavy imports happen inside it."""

from __future__ import annotations

from typing import Annotated

import typer


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run directory, exported folder, or Hub name.")],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; another than loopback needs VICUGNA_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option("--name", help="What requests call the model; default: the folder's.")] = None,
    max_queue: Annotated[int, typer.Option("--max-queue", help="Requests that may wait; more get status 429.", min=1)] = 64,
    max_body: Annotated[int, typer.Option("--max-body", metavar="BYTES", help="Largest request.", min=1024)] = 4 << 20,
    max_messages: Annotated[int, typer.Option("--max-messages", help="Most messages of a chat.", min=1)] = 1024,
) -> None:
    """Serve a model with OpenAI's API, through the template and stops it was trained with. VICUGNA_API_KEY is the key to ask for."""
    from sft.serve.server import serve as run

    run(model, host=host, port=port, name=name, most_waiting=max_queue, max_body=max_body, max_messages=max_messages)
