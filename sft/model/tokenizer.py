"""Tokenizers, with the faults of old checkpoints mended or refused, and every repair recorded.

The faults (empty EOS, pad equal to EOS, tokens outside the embedding, a BPE rebuilt wrongly from ``tokenizer.model``) are those that
made published models never stop, stop too early, or read other tokens than they were trained on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.data.template import ChatTemplate, load_template
from sft.errors import TokenizerError
from sft.model.extending import extended
from sft.recipe import ModelSection, Recipe, TemplateSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that checkpoints reserve for padding, in order of preference.
_SPARE_PADS = ("<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|fim_pad|>", "<|endoftext|>", "<|reserved_special_token_0|>")


def load_tokenizer(section: ModelSection) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Load a tokenizer by the native classes of transformers.

    Returns:
        The tokenizer, and what was mended in it, one sentence each.

    Raises:
        TokenizerError: not loadable without code from the checkpoint, without a Rust backend, or different from sentencepiece.
    """
    from transformers import AutoTokenizer

    assert section.name_or_path is not None
    try:
        tokenizer = AutoTokenizer.from_pretrained(section.name_or_path, revision=section.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise TokenizerError(
            f"model.name_or_path: no tokenizer can be loaded from {section.name_or_path!r}: {_first_line(error)}{_hint(error)}"
        ) from None
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise TokenizerError(f"{section.name_or_path}: {type(tokenizer).__name__} has no tokenizer.json form; convert it first")
    return _held_to_sentencepiece(tokenizer, section)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _hint(error: BaseException) -> str:
    """transformers names tiktoken where it means that sentencepiece or protobuf is missing."""
    named = any(name in str(error).lower() for name in ("tiktoken", "sentencepiece", "protobuf"))
    return "; a checkpoint with only a tokenizer.model needs: pip install sentencepiece protobuf" if named else ""


def _held_to_sentencepiece(
    tokenizer: PreTrainedTokenizerBase, section: ModelSection
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """A tokenizer whose checkpoint has a ``tokenizer.model``, with the ids of that model: see :mod:`sft.model.sentencepiece_bpe`.

    The LLaMA class of transformers 5 ranks merges by ids instead of scores where it reads the model, and it leaves out the prefix space
    before a text that begins with a space even where it reads a ``tokenizer.json`` that has it.

    Returns:
        The tokenizer, and what was mended.

    Raises:
        TokenizerError: the model cannot be read, or nothing that can be built agrees with it.
    """
    from sft.model.sentencepiece_bpe import held_to, read_model

    file = _checkpoint_file(section, "tokenizer.model")
    if file is None:
        return tokenizer, []
    own_json = _checkpoint_file(section, "tokenizer.json") is not None
    try:
        model = read_model(file)
    except TokenizerError:
        if own_json and not _is_llama(tokenizer):
            return (
                tokenizer,
                [],
            )  # other families keep other things under this name, and their tokenizer.json is read as it stands
        raise
    config = _checkpoint_file(section, "tokenizer_config.json")
    said = json.loads(config.read_text(encoding="utf-8")) if config else {}
    legacy = said.get("legacy") is not False and said.get("add_prefix_space") is not False
    backend, what = held_to(tokenizer.backend_tokenizer, model, legacy=legacy, own_json=own_json)
    return (tokenizer, []) if backend is None else (as_plain(tokenizer, backend), [what])


def _is_llama(tokenizer: PreTrainedTokenizerBase) -> bool:
    return "Llama" in type(tokenizer).__name__


def _checkpoint_file(section: ModelSection, name: str) -> Path | None:
    """A file of a checkpoint, in its folder or on the Hub."""
    from transformers.utils import cached_file

    found = cached_file(
        section.name_or_path,
        name,
        revision=section.revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


def as_plain(tokenizer: PreTrainedTokenizerBase, backend: Any) -> PreTrainedTokenizerBase:
    """A plain tokenizer.json with the names of another tokenizer: its own class would undo what was mended when loaded again."""
    from transformers import PreTrainedTokenizerFast

    named = ("bos_token", "eos_token", "unk_token", "pad_token")
    plain = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{name: getattr(tokenizer, name) for name in named},
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
    )
    more = [token for token in tokenizer.all_special_tokens if token not in plain.all_special_tokens]
    if more:
        plain.add_special_tokens({"additional_special_tokens": more}, replace_extra_special_tokens=False)
    return plain


def train_tokenizer(texts: Iterable[str], vocab_size: int, extra: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE (GPT-2's pre-tokeniser) with ``<s> </s> <pad>`` and the template's own tokens.

    Every text is representable; BOS is written by a post-processor, as LLaMA tokenizers do.

    Args:
        texts: to train on; the same texts in the same order give the same tokenizer.
        vocab_size: entries, special tokens included.
        extra: further special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>", *extra],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def repair_tokens(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, config_eos: int | None = None) -> list[str]:
    """Give the tokenizer a usable EOS, a pad token that is not EOS, and the template's own tokens. In place.

    The order for padding: its own, ``unk`` or a reserved token, a new one (see docs/decisions.md).

    Args:
        tokenizer: to mend.
        template: whose ``tokens`` must exist.
        config_eos: ``eos_token_id`` of the model's configuration, to mend an empty EOS.

    Returns:
        What was changed, one sentence each, for the run record.

    Raises:
        TokenizerError: no EOS that could be found.
    """
    done: list[str] = []
    if not tokenizer.eos_token:
        name = tokenizer.convert_ids_to_tokens(config_eos) if config_eos is not None else None
        if not name:
            raise TokenizerError(
                "the tokenizer's eos_token is missing or empty, and the model's configuration names none: "
                "no answer could ever end; set eos_token in tokenizer_config.json"
            )
        tokenizer.eos_token = name
        done.append(f"eos_token was missing or empty: set to {name!r} (id {config_eos} of the model's configuration)")
    for name in ("bos_token", "unk_token"):
        if getattr(tokenizer, name) == "":
            setattr(tokenizer, name, None)
            done.append(f"{name} was empty: removed")
    missing = [token for token in template.tokens if token not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
        done.append(f"the template's tokens {' '.join(missing)} were added to the vocabulary")
    plain = [t for t in template.tokens if t in tokenizer.get_vocab() and t not in tokenizer.all_special_tokens]
    known = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    plain = [t for t in plain if t not in known]
    if plain:
        tokenizer.add_special_tokens({"additional_special_tokens": plain}, replace_extra_special_tokens=False)
        done.append(f"{' '.join(plain)} are now special tokens, so that they stay whole")
    if not tokenizer.pad_token or tokenizer.pad_token == tokenizer.eos_token:
        done.append(_mend_pad(tokenizer))
    return done


def _mend_pad(tokenizer: PreTrainedTokenizerBase) -> str:
    before = "missing" if not tokenizer.pad_token else "the same as eos_token"
    vocabulary = tokenizer.get_vocab()
    spare = [t for t in (tokenizer.unk_token, *_SPARE_PADS) if t and t in vocabulary and t != tokenizer.eos_token]
    spare = [t for t in spare if t != tokenizer.bos_token]
    if spare:
        tokenizer.pad_token = spare[0]
        return f"pad_token was {before}: set to {spare[0]!r}, which is in the vocabulary"
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return f"pad_token was {before}: '<pad>' was added to the vocabulary"


def conversation_texts(recipe: Recipe) -> Iterator[str]:
    """Texts of all training conversations, to train a scratch tokenizer on."""
    from sft.data.conversation import Drops
    from sft.data.dataset import iterate_sources

    for _, conversation in iterate_sources(recipe.data.sources, Drops(), progress=False):
        for turn in conversation.turns:
            yield turn.content


def tokenizer_for(recipe: Recipe) -> tuple[PreTrainedTokenizerBase, ChatTemplate, list[str]]:
    """Tokenizer, template and repairs of a recipe: what ``preview``, ``plan``, ``train`` and ``chat`` all start from."""
    section = recipe.model
    if section.scratch is not None:
        template = load_template(recipe.template.name, system=recipe.template.system)
        tokenizer = train_tokenizer(conversation_texts(recipe), section.scratch.vocab_size, template.tokens)
        return tokenizer, template, []
    return row_tokenizer(section, recipe.template, lambda backend: extended(recipe, backend))


def row_tokenizer(
    section: ModelSection,
    wanted: TemplateSection,
    extend: Callable[[Any], tuple[Any, list[str]]] = lambda backend: (backend, []),
) -> tuple[PreTrainedTokenizerBase, ChatTemplate, list[str]]:
    """Tokenizer, template and repairs of a model that is not made from scratch: all that the ids of a row depend on."""
    tokenizer, mended = load_tokenizer(section)
    backend, added = extend(tokenizer.backend_tokenizer)
    if added:
        tokenizer = as_plain(tokenizer, backend)
        mended += added
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    template = load_template(wanted.name, system=wanted.system, tokenizer_source=own)
    return tokenizer, template, [*mended, *repair_tokens(tokenizer, template, _config_eos(section))]


def _config_eos(section: ModelSection) -> int | None:
    from sft.model.native import AutoConfig

    try:
        eos = AutoConfig.from_pretrained(section.name_or_path, revision=section.revision, trust_remote_code=False).eos_token_id
    except (OSError, ValueError, KeyError, AttributeError):
        return None  # the model loader will say what is wrong with the configuration
    return eos[0] if isinstance(eos, list) else eos


def saved_tokenizer(recipe: Recipe, folder: Path) -> tuple[PreTrainedTokenizerBase, ChatTemplate]:
    """The tokenizer that a run saved, with the template it was trained with.

    Raises:
        TokenizerError: the folder holds none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{folder}: its tokenizer cannot be loaded: {_first_line(error)}") from None
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    return tokenizer, load_template(recipe.template.name, system=recipe.template.system, tokenizer_source=own)
