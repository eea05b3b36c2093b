"""The verbs that ask a model: ``sft chat`` and ``sft answer``. Heavy imports happen inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Longest answer of a turn.", min=1)]


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run directory, exported folder, or Hub name.")],
    message: Annotated[str | None, typer.Option("--message", "-m", help="Answer this and exit.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.", min=0.0, max=5.0)] = 0.0,
    max_tokens: MaxTokens = 512,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Keep nothing of what is typed; else ~/.cache/vicugna/chat_history has it.")
    ] = False,
) -> None:
    """Talk to a model through the template and stops it was trained with. /help in it lists its commands: save, load, undo, retry ..."""
    from sft.run.chat import talk

    talk(model, message=message, system=system, temperature=temperature, max_tokens=max_tokens, history=not no_history)


def answer(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Run directory, exported folder, or Hub name; with --engine endpoint, its name there."
        ),
    ],
    questions: Annotated[Path, typer.Argument(metavar="QUESTIONS", help="JSONL of question_id, and text or turns.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Answers, gone on with if begun; default: answers/NAME.jsonl.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The model's name in the file; default: the folder's.")] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="For all questions; default: by category.", min=0.0, max=5.0)
    ] = None,
    max_tokens: MaxTokens = 1024,
    engine: Annotated[
        str,
        typer.Option(
            "--engine", metavar="ENGINE", help="transformers, vllm (extra vllm), or endpoint: an OpenAI-compatible server."
        ),
    ] = "transformers",
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="Of the endpoint, such as http://127.0.0.1:8000/v1.")
    ] = None,
    key_variable: Annotated[
        str | None,
        typer.Option("--key-variable", metavar="NAME", help="Environment variable with the endpoint's key; default: no key."),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", help="Most requests under way at the endpoint; default: 16.", min=1, max=1024)
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="Seconds that an attempt at the endpoint may take; default: 600.", min=0.1)
    ] = None,
) -> None:
    """Answer a file of questions, in FastChat's format, through the template and stops that the model was trained with."""
    from sft.run.engines import Server, run_answer

    file, asked, now = run_answer(
        model,
        questions,
        out=out,
        name=name,
        max_tokens=max_tokens,
        temperature=temperature,
        engine=engine,
        server=Server(base_url, key_variable, concurrency, timeout),
    )
    typer.echo(f"{file}: {asked} questions, {now} answered now")
