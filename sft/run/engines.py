"""What can answer a file of questions: the model by transformers, by vLLM, or a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from sft.data.questions import Question, read_questions
from sft.errors import InputError
from sft.run.answer import Answerer, Concurrent, Settings, answer_file

if TYPE_CHECKING:
    from sft.run.local import LocalAnswerer
    from sft.run.vllm_engine import VllmAnswerer

Engine = Literal["transformers", "vllm", "endpoint"]


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is and how it is asked; None is the default of :class:`sft.run.endpoint.EndpointAnswerer`.

    Attributes:
        base_url: address up to ``/v1``.
        key_variable: name of the environment variable that holds its key.
        concurrency: most requests under way at once.
        timeout: seconds that one attempt may take.
    """

    base_url: str | None = None
    key_variable: str | None = None
    concurrency: int | None = None
    timeout: float | None = None

    def given(self) -> dict[str, str | int | float]:
        """What was said of it, by option."""
        options = {name: getattr(self, name) for name in ("base_url", "key_variable", "concurrency", "timeout")}
        return {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not None}


def run_answer(
    model: str,
    questions: Path,
    *,
    out: Path | None,
    name: str | None,
    max_tokens: int,
    temperature: float | None,
    engine: str = "transformers",
    server: Server | None = None,
) -> tuple[Path, int, int]:
    """Answer a file of questions with a model; see :func:`sft.run.answer.answer_file`.

    Args:
        model: run directory, exported folder or Hub name; for ``endpoint`` its name at the server.
        questions: JSONL.
        out: the file of answers; None for ``answers/NAME.jsonl``.
        name: of the model in that file; None for that of the folder.
        max_tokens: longest answer of a turn.
        temperature: for all questions; None takes that of the category.
        engine: one of :data:`Engine`.
        server: for ``endpoint``.

    Returns:
        The file, the questions, and how many were answered now.

    Raises:
        InputError: a model, a server, a question or an answer file that cannot be used.
        RunError: questions that failed for good.
    """
    if engine not in get_args(Engine):
        raise InputError(f"--engine: {engine!r} is none of {', '.join(get_args(Engine))}")
    server = server or Server()
    if engine != "endpoint" and (given := server.given()):
        raise InputError(f"{', '.join(given)}: for --engine endpoint only, and this is --engine {engine}")
    asked = read_questions(questions)
    model_id = name or (Path(model).resolve() if Path(model).exists() else Path(model)).name
    out = out or Path("answers") / f"{model_id}.jsonl"
    answerer: Answerer | Concurrent
    if engine == "endpoint":
        answerer, settings = _server(model, model_id, server, max_tokens, temperature)
    else:
        local = _local(model, engine)
        refuse_turns(asked, questions, multi_turn=bool(local.about.get("multi_turn", True)))
        made_by = "" if engine == "transformers" else engine
        settings = Settings(model_id, local.template, max_tokens, temperature, local.weights(), made_by)
        answerer = local
    return out, len(asked), answer_file(answerer, asked, settings, out)


def _server(
    model: str, model_id: str, server: Server, max_tokens: int, temperature: float | None
) -> tuple[Concurrent, Settings]:
    from sft.run.endpoint import EndpointAnswerer

    if server.base_url is None:
        raise InputError("--engine endpoint needs --base-url, such as http://127.0.0.1:8000/v1")
    told = {"key_variable": server.key_variable, "concurrency": server.concurrency, "timeout": server.timeout}
    made = EndpointAnswerer(server.base_url, model, **{key: value for key, value in told.items() if value is not None})  # type: ignore[arg-type]
    return made, Settings(model_id, server.base_url, max_tokens, temperature, model, "endpoint")


def _local(model: str, engine: str) -> LocalAnswerer | VllmAnswerer:
    if engine == "vllm":
        from sft.run.vllm_engine import VllmAnswerer

        return VllmAnswerer(model)
    from sft.run.local import LocalAnswerer

    return LocalAnswerer(model)


def refuse_turns(questions: Sequence[Question], path: Path, *, multi_turn: bool) -> None:
    """Refuse questions of several turns where the template holds one exchange.

    Raises:
        InputError: the first of them is named.
    """
    several = [question for question in questions if len(question.turns) > 1]
    if several and not multi_turn:
        raise InputError(
            f"{path}: question {several[0].id!r} has {len(several[0].turns)} turns, but the template of this model holds one exchange; give a "
            "file of single questions"
        )
