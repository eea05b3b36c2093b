"""Tokenizers and conversations for the benchmarks of tokenising: trained on the files, or read from where the user has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.data.conversation import Conversation, Drops, fold_inputs
from sft.data.sources import read_source
from sft.model.sentencepiece_bpe import read_model
from sft.recipe import Source

if TYPE_CHECKING:
    from tokenizers import Tokenizer

QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
KINDS = ("sentencepiece", "gpt2", "smollm2", "qwen2", "llama3")


def conversations_of(files: Iterable[Path]) -> list[Conversation]:
    """All rows of some files, in order, as user and assistant turns."""
    rows = (row for file in files for row in read_source(Source(path=str(file), format="auto"), Drops()))
    return [fold_inputs(row) for row in rows]


def texts_of(files: Iterable[Path]) -> Iterator[str]:
    """All messages of some files."""
    return (turn.content for row in conversations_of(files) for turn in row.turns)


def load(path: str) -> Any:
    """A tokenizer from a folder, a tokenizer.json, or a sentencepiece model."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if Path(path).is_dir():
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    backend = read_model(Path(path)).backend() if path.endswith(".model") else Tokenizer.from_file(path)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} if backend.token_to_id("</s>") is not None else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **(names or {"eos_token": "<|endoftext|>"})
    )


def train_on(kind: str, texts: Sequence[str], folder: Path, vocab_size: int = 32_000) -> str:
    """Train a tokenizer of one of :data:`KINDS` on some texts; the file that it was written to."""
    if kind == "sentencepiece":
        return _train_sentencepiece(texts, folder, vocab_size)
    backend = byte_level(kind, texts, vocab_size)
    backend.save(str(folder / f"{kind}.json"))
    return str(folder / f"{kind}.json")


def byte_level(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with the rules of a model family; ``llama3`` takes whole pieces whatever the merges say."""
    import json

    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt2", "smollm2"))
    first = {
        "smollm2": pre_tokenizers.Digits(individual_digits=True),
        "qwen2": pre_tokenizers.Split(Regex(QWEN2), "isolated"),
        "llama3": pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
    }
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([first[kind], own]) if kind in first else own
    backend.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    if kind != "llama3":
        return backend
    spec = json.loads(backend.to_str())
    spec["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(spec))


def _train_sentencepiece(texts: Sequence[str], folder: Path, vocab_size: int) -> str:
    """A BPE with LLaMA's settings: digits apart, byte tokens, runs of spaces kept."""
    from sentencepiece import SentencePieceTrainer

    lines = (line for text in texts for line in text.splitlines() if line)
    SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_prefix=str(folder / "sentencepiece"),
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.99995,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return str(folder / "sentencepiece.model")
