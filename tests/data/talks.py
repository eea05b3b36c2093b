"""Conversations whose tokens can be counted by hand, and a console to print them on."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft.data.conversation import Conversation, Drop, Drops, Role, Turn
from sft.data.mask_report import MaskReport, mask_report
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder, Tokenized
from sft.recipe import DataSection

SGR = re.compile(r"\x1b\[[0-9;]*m")  # what rich itself writes: colours, no cursor movement


def talk(name: str, *texts: str, source: str = "s", system: str | None = None, muted: Sequence[int] = ()) -> Conversation:
    """User and assistant by turns; ``muted`` are indices of texts that are not to be learnt."""
    head = () if system is None else (Turn("system", system),)
    roles: tuple[Role, Role] = ("user", "assistant")
    turns = (Turn(roles[i % 2], text, False if i in muted else None) for i, text in enumerate(texts))
    return Conversation(name, (*head, *turns), source)


def section(*names: str, max_length: int = 512, overflow: str = "truncate") -> DataSection:
    sources = [{"path": name} for name in names or ("s",)]
    return DataSection.model_validate({"sources": tuple(sources), "max_length": max_length, "overflow": overflow})


def letters() -> PreTrainedTokenizerFast:
    """One token per byte, and the ChatML tokens: lengths can be counted by hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, eos_token="<|endoftext|>")


def chatml(train_on: str = "assistant") -> RowEncoder:
    return RowEncoder(letters(), load_template("chatml"), train_on)


def encoded(encoder: RowEncoder, conversation: Conversation) -> Tokenized:
    row = encoder.encode([conversation])[0]
    assert isinstance(row, Tokenized), row
    return row


def screen(colour: bool = True) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=colour, color_system="standard" if colour else None, width=400), out


MANY = [talk(f"r{i}", f"question {i}", "yes") for i in range(40)]

# A ChatML message in one-byte tokens: <|im_start|> role \n content <|im_end|> \n = 4 + len(role) + len(content);
# of an answer, the content and <|im_end|> are learnt.
HAND_MADE = [
    talk("short", "abc", "defgh", source="one"),  # 11 + 18 = 29, learnt 6
    talk("muted", "q", "no", "r", "yes", source="one", system="be", muted=[1]),  # 12 + 9 + 15 + 9 + 16 = 61, learnt 4
    talk("cut", "uuu", "x" * 100, source="two"),  # 11 + 11 + 42 of 100 = 64, learnt 42
    talk("lost", "hi", "yo", "u", "x" * 100, "z", "k", source="two"),  # 10 + 15 + 9 + 11 + 19 of 100 = 64, learnt 3 + 19
    talk("late", "p" * 100, "yes", source="two"),  # the answer begins behind the cut
    talk("plane16", "\U00100000", "yes", source="two"),
    talk("silent", "q", "no", source="two", muted=[1]),
]


def hand_made(train_on: str = "assistant", sample: int | None = None) -> MaskReport:
    unread = Drops()
    unread.add(Drop("f:1", "invalid_json", "a comma is missing"))
    data = section("one", "two", max_length=64)
    return mask_report(HAND_MADE, chatml(train_on), data, unread=unread, sample=sample, progress=False)
