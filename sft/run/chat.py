"""A conversation in the terminal, through the template that the model was trained with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sft.config import require
from sft.data.conversation import ROLES
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.errors import InputError, ModelError, TemplateError
from sft.files import user_cache
from sft.model.load import device_for_run
from sft.recipe import Recipe, load_recipe
from sft.run.finished import adapter_on_base
from sft.run.generate import Sampling
from sft.run.session import Session, Talker
from sft.run.terminal import reader_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def find_model(name: str) -> tuple[str, Path | None]:
    """What to load for a name: ``(model folder or Hub name, None)``, or ``(run directory, its adapter folder)``.

    A run directory gives its merged model, else its full model, else its adapter on the base.
    """
    folder = Path(name)
    if not folder.exists() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise InputError(f"{name}: no such folder; give a run directory, an exported folder or a Hub name (owner/name)")
    if not (folder / "run.json").is_file():
        return name, None
    for inside in ("merged", "model"):
        if (folder / inside).is_dir():
            return str(folder / inside), None
    if (folder / "adapter").is_dir():
        return name, folder / "adapter"
    raise InputError(f"{folder}: this run has written no model yet; finish it with sft train {folder / 'recipe.yaml'} --resume")


def load_to_talk(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, RowEncoder, dict[str, Any]]:
    """Model, tokenizer, encoder and serving record of a run directory, an exported folder or a Hub name.

    Raises:
        InputError: nothing there, or no chat template.
    """
    model, tokenizer, about = open_model(name)
    return model, tokenizer, talking_encoder(name, tokenizer, about), about


def open_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Model, tokenizer and serving record (empty if nothing is recorded), with or without a chat template.

    Raises:
        InputError: nothing there.
    """
    from sft.model.native import AutoModelForCausalLM

    where, adapter = find_model(name)
    device = device_for_run()
    with _loading(name):
        tokenizer = _tokenizer(str(adapter or where))
        if adapter is None:
            model = AutoModelForCausalLM.from_pretrained(
                where, dtype="auto", attn_implementation="sdpa", trust_remote_code=False, use_safetensors=True
            ).to(device)
        else:
            model = adapter_to_talk(load_recipe(Path(where))[0], adapter, tokenizer, device)
    return model, tokenizer, _record(str(adapter or where))


def load_words(name: str) -> tuple[PreTrainedTokenizerBase, RowEncoder, dict[str, Any]]:
    """What :func:`load_to_talk` gives, without the model."""
    where, adapter = find_model(name)
    with _loading(name):
        tokenizer = _tokenizer(str(adapter or where))
    about = _record(str(adapter or where))
    return tokenizer, talking_encoder(name, tokenizer, about), about


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: cannot be loaded: {str(error).splitlines()[0] if str(error) else error!r}") from None


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def _record(source: str) -> dict[str, Any]:
    record = Path(source) / "vicugna.json"
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}


def talking_encoder(name: str, tokenizer: PreTrainedTokenizerBase, about: dict[str, Any]) -> RowEncoder:
    """What writes prompts by the chat template that a tokenizer carries, and stops as the serving record says.

    Raises:
        TemplateError: it carries none.
    """
    if not isinstance(tokenizer.chat_template, str):
        raise TemplateError(f"{name}: its tokenizer has no chat template; export a run of ours, or add one")
    template = load_template("tokenizer", tokenizer_source=tokenizer.chat_template)
    if roles := tuple(role for role in ROLES if role in about.get("roles", ())):
        template = replace(template, name=str(about["template"]), roles=roles)
    encoder = RowEncoder(tokenizer, template, "all")
    if about.get("stop_ids"):  # text, and tokens of another speaker, cannot be told from a template without its marks
        encoder.known_stops = ([int(i) for i in about["stop_ids"]], [str(stop) for stop in about.get("stop_strings", ())])
    return encoder


def adapter_to_talk(recipe: Recipe, adapter: Path, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> PreTrainedModel:
    """An adapter on its base, in the type that products were computed in."""
    section = recipe.model
    if section.quantization == "none":  # a quantised base keeps its types: it is then what was trained, and fits where it did
        section = section.model_copy(update={"dtype": section.compute_dtype or section.dtype})
    return adapter_on_base(recipe.model_copy(update={"model": section}), adapter, tokenizer, device)


def talk(
    name: str,
    *,
    message: str | None,
    system: str | None,
    temperature: float,
    max_tokens: int,
    history: bool = True,
) -> None:
    """Answer one message, or hold a conversation until ``/quit`` or end of input; its commands: :data:`sft.run.session.HELP`.

    Args:
        name: run directory, exported folder or Hub name.
        message: to be answered, alone; None for a conversation.
        system: system message.
        temperature: 0 is greedy.
        max_tokens: longest answer.
        history: keep what is typed in a terminal for the next time, in a file of the user alone.

    Raises:
        InputError: a message without a word in it, no such model, or one that cannot be talked to.
    """
    require(message is None or bool(message.strip()), "--message is empty; write what the model should answer")
    model, tokenizer, encoder, about = load_to_talk(name)
    talker = Talker(model, tokenizer, encoder, bool(about.get("multi_turn", True)))
    session = Session(talker, Sampling(max_tokens=max_tokens, temperature=temperature), system)
    if message is not None:
        session.say(message)
        return
    reader = reader_of(user_cache() / "chat_history" if history else None, session.commands)
    if reader.interactive:
        hint = "" if talker.multi_turn else " This template holds one exchange: each question starts over."
        sys.stderr.write(f"Type a message. /help lists the commands, /quit leaves.{hint}\n")
    session.run(reader)
