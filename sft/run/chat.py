"""A conversation in the terminal, through the template that the model was trained with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sft.config import require
from sft.data.conversation import Conversation, Turn
from sft.data.template import RenderRefused, load_template
from sft.data.tokenize import RowEncoder
from sft.errors import InputError, ModelError, TemplateError
from sft.model.load import device_for_run
from sft.recipe import Recipe, load_recipe
from sft.run.finished import adapter_on_base
from sft.run.generate import Sampling, answer
from sft.run.screen import printable

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
    return model, tokenizer, talking_encoder(name, tokenizer), about


def talking_encoder(name: str, tokenizer: PreTrainedTokenizerBase) -> RowEncoder:
    """What writes prompts by the chat template that a tokenizer carries.

    Raises:
        TemplateError: it carries none.
    """
    if not isinstance(tokenizer.chat_template, str):
        raise TemplateError(f"{name}: its tokenizer has no chat template; export a run of ours, or add one")
    return RowEncoder(tokenizer, load_template("tokenizer", tokenizer_source=tokenizer.chat_template), "all")


def open_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Model, tokenizer and serving record (empty if nothing is recorded), with or without a chat template.

    Raises:
        InputError: nothing there.
    """
    from transformers import AutoTokenizer

    from sft.model.native import AutoModelForCausalLM

    where, adapter = find_model(name)
    device = device_for_run()
    source = str(adapter or where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if adapter is None:
            model = AutoModelForCausalLM.from_pretrained(
                where, dtype="auto", attn_implementation="sdpa", trust_remote_code=False, use_safetensors=True
            ).to(device)
        else:
            model = adapter_to_talk(load_recipe(Path(where))[0], adapter, tokenizer, device)
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: cannot be loaded: {str(error).splitlines()[0] if str(error) else error!r}") from None
    record = Path(source) / "vicugna.json"
    about = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return model, tokenizer, about


def adapter_to_talk(recipe: Recipe, adapter: Path, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> PreTrainedModel:
    """An adapter on its base, in the type that products were computed in."""
    section = recipe.model
    if section.quantization == "none":  # a quantised base keeps its types: it is then what was trained, and fits where it did
        section = section.model_copy(update={"dtype": section.compute_dtype or section.dtype})
    return adapter_on_base(recipe.model_copy(update={"model": section}), adapter, tokenizer, device)


def talk(name: str, *, message: str | None, system: str | None, temperature: float, max_tokens: int) -> None:
    """Answer one message, or hold a conversation until ``/quit`` or end of input. ``/new`` starts over.

    Raises:
        InputError: a message without a word in it, no such model, or one that cannot be talked to.
    """
    require(message is None or bool(message.strip()), "--message is empty; write what the model should answer")
    model, tokenizer, encoder, about = load_to_talk(name)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
    head = (Turn("system", system),) if system else ()
    multi_turn = bool(about.get("multi_turn", True))
    if message is None:
        hint = "" if multi_turn else " This template holds one exchange."
        sys.stdout.write(f"Type a message. /new starts over, /quit leaves.{hint}\n")
    turns = head
    while True:
        text = message if message is not None else _read()
        if text is None:
            return
        if message is None:  # commands are for whoever types
            if text.strip() == "/quit":
                return
            if text.strip() == "/new":
                turns = head
            if text.strip() in ("", "/new"):
                continue
        if not multi_turn:
            turns = head
        turns = (*turns, Turn("user", text))
        try:
            said = answer(model, tokenizer, encoder, Conversation("chat", turns, "chat"), sampling, on_text=_say)
        except RenderRefused as refusal:
            raise InputError(refusal.detail) from None
        sys.stdout.write("\n")
        turns = (*turns, Turn("assistant", said))
        if message is not None:
            return


def _read() -> str | None:
    try:
        return input("> ")
    except EOFError:
        return None


def _say(text: str) -> None:
    sys.stdout.write(printable(text))
    sys.stdout.flush()
