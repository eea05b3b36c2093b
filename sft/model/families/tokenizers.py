"""Tokenizers of legacy checkpoints, built from their own files as plain ``tokenizer.json`` ones; special ids are checked.

::

    Baichuan    sentencepiece BPE, no BOS written; ids 195 and 196 begin the words of a person and of the model
    ChatGLM     sentencepiece BPE of n pieces; n = [MASK], n + 1 = [gMASK], n + 2 = [sMASK], n + 3 = sop, n + 4 = eop, then, in ChatGLM3,
                <|system|> <|user|> <|assistant|> <|observation|>; every text begins with [gMASK] sop
    MOSS        GPT-2's byte BPE, then runs of spaces and tabs and <eoh> <eom> <eot> <eoc> <eor>
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.errors import ModelError, TokenizerError
from sft.model.families.legacy import Legacy
from sft.model.sentencepiece_bpe import SentencePieceModel, read_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

USER_ID, ASSISTANT_ID = 195, 196
SPECIAL_IDS = {"<unk>": 0, "<s>": 1, "</s>": 2}  # of every sentencepiece file here; the models' configurations say the same
CHATGLM_ROWS, CHATGLM_PIECES = 65_024, 64_789
BAICHUAN_MARKERS = {64_000: ("<reserved_102>", "<reserved_103>"), 125_696: ("<reserved_106>", "<reserved_107>")}
CHATGLM2_SPECIALS = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
CHATGLM3_SPECIALS = (*CHATGLM2_SPECIALS, "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
MOSS_SPECIALS = ("<|endoftext|>", "<eoh>", "<eom>", "<eot>", "<eoc>", "<eor>")


def baichuan(legacy: Legacy) -> PreTrainedTokenizerBase:
    """Of ``tokenizer.model``, as :mod:`sft.model.sentencepiece_bpe` builds it.

    Raises:
        TokenizerError: no BPE with known settings, one that cannot be built exactly, or special pieces or the markers of the chat
            format elsewhere than at 0, 1, 2, 195 and 196.
    """
    model = read_model(_file(legacy, "tokenizer.model"))
    backend = model.backend()
    _refuse_inexact(model, backend)
    # by the rows of the embedding too: a file that lost pieces has another length, and then no marker would be looked for
    rows = int(legacy.config.get("vocab_size", 0))
    markers = BAICHUAN_MARKERS.get(len(model.ids)) or BAICHUAN_MARKERS.get(rows) or ()
    for token, wanted in zip(markers, (USER_ID, ASSISTANT_ID), strict=False):
        if model.ids.get(token) != wanted:
            raise TokenizerError(
                f"{model.path}: {token} has the id {model.ids.get(token)}, and {wanted} is what the model was trained with; fetch it again"
            )
    return _wrapped(backend, legacy, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>")


def chatglm2(legacy: Legacy) -> PreTrainedTokenizerBase:
    """Of ``tokenizer.model`` and five special tokens behind its pieces.

    Raises:
        TokenizerError: no BPE with known settings, one that cannot be built exactly, special pieces elsewhere than at 0, 1 and 2, or
            another number of pieces than the model has rows for.
    """
    return _chatglm(legacy, CHATGLM2_SPECIALS)


def chatglm3(legacy: Legacy) -> PreTrainedTokenizerBase:
    """As :func:`chatglm2`, with four tokens for roles.

    Raises:
        TokenizerError: as there.
    """
    return _chatglm(legacy, CHATGLM3_SPECIALS)


def _chatglm(legacy: Legacy, specials: tuple[str, ...]) -> PreTrainedTokenizerBase:
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    model = read_model(_file(legacy, "tokenizer.model"))
    backend, count = model.backend(), len(model.ids)
    rows = int(legacy.config.get("padded_vocab_size", 0))
    if count + len(specials) > rows:
        raise TokenizerError(f"{model.path}: {count} pieces and {len(specials)} special tokens, but the model has {rows} rows")
    if rows == CHATGLM_ROWS and count != CHATGLM_PIECES:
        raise TokenizerError(
            f"{model.path}: {count} pieces, and a model of {rows} rows was trained with {CHATGLM_PIECES}: every special token would have "
            "another id; fetch it again"
        )
    # as plain words `sop` and `eop` would be found inside of others, and what people write is never read for them
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    first = {token: backend.token_to_id(token) for token in ("[gMASK]", "<sop>")}
    if list(first.values()) != [count + 1, count + 3]:
        raise TokenizerError(f"{model.path}: {', '.join(specials)} are pieces of it already; this is another family's file")
    _refuse_inexact(model, backend)
    backend.post_processor = TemplateProcessing(single="[gMASK] <sop> $A", special_tokens=list(first.items()))
    return _wrapped(backend, legacy, eos_token="</s>", unk_token="<unk>", pad_token="<unk>", padding_side="left")


def _refuse_inexact(model: SentencePieceModel, backend: Tokenizer) -> None:
    """Special pieces stand where the models look for them, and ids are the library's on texts that hold every piece that users defined.

    A file that puts a space before texts and has such pieces cannot be built: what follows one of them would get a space too.

    Raises:
        TokenizerError: either does not hold.
    """
    for token, wanted in SPECIAL_IDS.items():
        if model.ids.get(token) != wanted:
            raise TokenizerError(
                f"{model.path}: {token} has the id {model.ids.get(token)}, and {wanted} is what the model was trained with; fetch it again"
            )
    if wrong := model.differing(backend, model.probes()):
        text, ours, theirs = wrong[0]
        raise TokenizerError(
            f"{model.path}: no exact tokenizer can be built of it: {text!r} gives {ours[:12]}, sentencepiece {theirs[:12]} "
            f"({len(wrong)} texts differ)"
        )


def moss(legacy: Legacy) -> PreTrainedTokenizerBase:
    """Of ``vocab.json``, ``merges.txt`` and ``added_tokens.json``. Lossless: the old class removed blanks beside a run of spaces.

    Raises:
        TokenizerError: a file is no such list, or a special token is missing.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = _json(_file(legacy, "vocab.json"))
    lines = [line.split(" ") for line in _lines(_file(legacy, "merges.txt")) if line and not line.startswith("#version")]
    added = _json(_file(legacy, "added_tokens.json"))
    try:
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(first, second) for first, second in lines]))
    except Exception as error:  # the library's own kind
        raise TokenizerError(
            f"{legacy.path}: vocab.json and merges.txt do not belong together: {error}; fetch them again"
        ) from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    known = sorted(
        {**{token: vocabulary[token] for token in MOSS_SPECIALS if token in vocabulary}, **added}.items(),
        key=lambda one: one[1],
    )
    for token, index in known:
        add = backend.add_special_tokens if token in MOSS_SPECIALS else backend.add_tokens
        add([AddedToken(token, special=token in MOSS_SPECIALS, normalized=False)])
        if backend.token_to_id(token) != index:
            raise TokenizerError(
                f"{legacy.path}: {token!r} would get the id {backend.token_to_id(token)}, and added_tokens.json says {index}; fetch it again"
            )
    if missing := [token for token in MOSS_SPECIALS if backend.token_to_id(token) is None]:
        raise TokenizerError(f"{legacy.path}: no {', '.join(missing)} in vocab.json or added_tokens.json; fetch them again")
    return _wrapped(backend, legacy, bos_token="<|endoftext|>", eos_token="<eom>")


def _wrapped(backend: Tokenizer, legacy: Legacy, **names: Any) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    keys = ("seq_length", "model_max_length", "max_position_embeddings", "n_positions")
    length = next((legacy.config[key] for key in keys if legacy.config.get(key)), 4096)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, model_max_length=int(length), **names
    )


def _file(legacy: Legacy, name: str) -> Path:
    try:
        return legacy.file(name)
    except ModelError as error:
        raise TokenizerError(str(error)) from None


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")


def _json(path: Path) -> dict[str, int]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path}: no JSON: {error}; fetch it again") from None
    if not isinstance(value, dict) or not all(isinstance(index, int) for index in value.values()):
        raise TokenizerError(f"{path}: a table of tokens and ids was expected; fetch it again")
    return value
