"""Tiny tokenizers and models, made in the test run: no network, no files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. USER: Hello there ASSISTANT: Hi, how are you?",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction:\nName three colours.\n\n### Response:Red, green and blue.",
    "User:Was ist das?\n\nAssistant:Ein Test.   def f(x):\n    return x + 1\n",
    "### Human: hi\n### Assistant: hello ASSISTANT: yes ASSISTANT: no Response:The Response:A Assistant:I",
    "请写一首关于春天的诗。春天来了，花儿开了。给出三个保持健康的秘诀。",
    "emoji 🎉 🚀 café naïve <tag> [INST] <<SYS>> 1234567890 ?!,.;:'\"(){}",
] * 4


def _wrap(backend: Tokenizer, **specials: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **specials)


@lru_cache
def sentencepiece_like(vocab_size: int = 900) -> PreTrainedTokenizerFast:
    """BPE over ``▁`` with a prefix space and byte fallback, BOS written by a post-processor: the LLaMA shape."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False, max_token_length=12
    )
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # only to train on words
    backend.train_from_iterator(CORPUS, trainer)
    backend.pre_tokenizer = None
    spec = __import__("json").loads(backend.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in ("<unk>", "<s>", "</s>")]
    backend = Tokenizer.from_str(__import__("json").dumps(spec))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return _wrap(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@lru_cache
def byte_level(vocab_size: int = 700, chatml: bool = True) -> PreTrainedTokenizerFast:
    """GPT-2 shaped byte-level BPE, no BOS of its own; with ChatML tokens unless told otherwise."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    if chatml:
        backend.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    return _wrap(backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


@lru_cache
def colon_crossing(vocab_size: int = 900) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges cross the colon and the space behind it (no word splitting at all)."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=24,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return _wrap(backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


TOKENIZERS = {"sentencepiece_like": sentencepiece_like, "byte_level": byte_level, "colon_crossing": colon_crossing}

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
OPT: dict[str, Any] = {
    "model_type": "opt",
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "dropout": 0.0,
    "activation_dropout": 0.0,
}


def tiny_model(
    vocab_size: int = 1000, config: dict[str, Any] | None = None, seed: int = 0, scale: float = 0.1
) -> PreTrainedModel:
    """A random float32 model on the CPU, small enough for a law, with weights large enough to make mistakes visible."""
    fields = dict(config or LLAMA)
    torch.manual_seed(seed)
    built = AutoConfig.for_model(fields.pop("model_type"), vocab_size=vocab_size, initializer_range=scale, **fields)
    return AutoModelForCausalLM.from_config(built, dtype=torch.float32)


def save_tiny(
    folder: Path, tokenizer: PreTrainedTokenizerFast, config: dict[str, Any] | None = None, seed: int = 0, scale: float = 0.1
) -> Path:
    """Write a tiny model with its tokenizer, as a user's local checkpoint."""
    model = tiny_model(len(tokenizer), config, seed, scale)
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
