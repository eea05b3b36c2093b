"""A sentencepiece BPE as a fast tokenizer with sentencepiece's own ids, and the proof of it.

::

    tokenizer.model   pieces with scores: of two neighbours that make a piece, those with the best score are joined first
    tokenizers' BPE   a list of merges, the first one first: right only if sorted by the scores of what they make

transformers 5.23 lists the merges in the order of the pieces' ids. In LLaMA's vocabulary the runs of spaces have low ids and scores below
all others, so ``"    return"`` becomes ``▁▁▁▁ return`` where sentencepiece, and every LLaMA that was trained, has ``▁▁▁ ▁return``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sft.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4  # kinds of pieces
_BPE = 2
_SPACE = "▁"
_TOGETHER = 40

_CODE = (
    "def f(x):\n    if x > 0:\n        return x + 1\n\n    return  -x  # two  spaces\n",
    'for (int i = 0; i < 10; i++) {\n\tprintf("%d\\n", i);\n\t\t}\n',
    "class A:\n\n\n   odd = [1,  22,   333,    4444]\n     '''doc'''",
    "SELECT  *\n  FROM t\n WHERE a >= 3.14;   -- x",
    "<div>\n      <p>a  b</p>\n</div>",
)
PROBES: Final = (
    "Hello, world!",
    "    four leading spaces",
    " one",
    "a  b   c    d     e      f       g        h",
    "trailing   ",
    "                                   ",
    "\n\n\n x \r\n\t\t y",
    "中文分词：春天来了。  第二句，  有空格",
    "naïve café — “quotes” …",
    "🎉🚀 emoji 👩‍👩‍👧 \u200b",
    "1234567890 3.14 1,000,000 ٣Ⅷ½",
    "Привет, как дела? こんにちは 안녕하세요 שלום",
    "▁ literal ▁▁ and <0x0A> and <unk",
    "aaaaaaaaaaaaaaaa bbbbbbb .......... -------- ======== ______",
    "https://example.org/a_b?c=1&d=%20#e",
    "e\u0301 \ufb01 \u00bd \uff11 \u3000 \u00a0",
    "",
    *_CODE,
)


@dataclass(frozen=True)
class SentencePieceModel:
    """What a ``tokenizer.model`` says.

    Attributes:
        path: of the file.
        reference: sentencepiece's own processor of it.
        spec: the parsed file.
    """

    path: Path
    reference: Any
    spec: Any

    @cached_property
    def ids(self) -> dict[str, int]:
        """Piece -> id."""
        return {piece.piece: index for index, piece in enumerate(self.spec.pieces)}

    def pieces(self, *kinds: int) -> list[str]:
        """The pieces of some kinds, in the order of their ids."""
        return [piece.piece for piece in self.spec.pieces if piece.type in kinds]

    def merges(self) -> list[tuple[str, str]]:
        """Every way to make a piece of two, the best score first; of equal scores the piece with the lower id.

        Pieces that users defined are found before all merges and take part in none.
        """
        ids, found = self.ids, []
        parts = {piece.piece for piece in self.spec.pieces if piece.type == _NORMAL}
        for index, entry in enumerate(self.spec.pieces):
            if entry.type == _NORMAL:
                piece = entry.piece
                halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
                found += [(-entry.score, index, ids[a], ids[b], a, b) for a, b in halves if a in parts and b in parts]
        return [(a, b) for *_, a, b in sorted(found)]

    def unlike(self) -> str | None:
        """Why no BPE of the tokenizers library can be this model; None if one can."""
        trained, normal = self.spec.trainer_spec, self.spec.normalizer_spec
        reasons = {
            "it is no BPE": trained.model_type != _BPE,
            "it changes characters before it looks for pieces": bool(normal.precompiled_charsmap),
            "it removes spaces": bool(normal.remove_extra_whitespaces),
            "its spaces stand behind words": bool(trained.treat_whitespace_as_suffix),
            "it keeps spaces as they are": not normal.escape_whitespaces,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def backend(self) -> Tokenizer:
        """The tokenizers form, special pieces included.

        Raises:
            TokenizerError: no BPE of the tokenizers library can be this model.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

        if (reason := self.unlike()) is not None:
            raise TokenizerError(
                f"{self.path}: {reason}; only a BPE with LLaMA's settings can be built from its sentencepiece model"
            )
        unknown = self.pieces(_UNKNOWN)[0]
        byte_fallback = bool(self.spec.trainer_spec.byte_fallback)
        backend = Tokenizer(
            models.BPE(vocab=self.ids, merges=self.merges(), unk_token=unknown, byte_fallback=byte_fallback, fuse_unk=True)
        )
        prefix = bool(self.spec.normalizer_spec.add_dummy_prefix)
        replaced = normalizers.Replace(" ", _SPACE)
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replaced] if prefix else [replaced])
        steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
        special = self.pieces(_CONTROL, _UNKNOWN)
        backend.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
        backend.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in self.pieces(_USER)])
        return backend

    def vocabulary(self) -> Iterator[str]:
        """Texts that hold every piece, one behind the other and apart."""
        texts = [piece.replace(_SPACE, " ") for piece in self.pieces(_NORMAL, _USER)]
        for start in range(0, len(texts), _TOGETHER):
            some = texts[start : start + _TOGETHER]
            yield "".join(some)
            yield " ".join(some)

    def probes(self) -> list[str]:
        """:data:`PROBES`, and every piece that users defined: alone, and between letters, where no second prefix space may stand."""
        pieces = self.pieces(_USER)
        return [*PROBES, *pieces, *(f"a{piece}b" for piece in pieces)]

    def differing(self, backend: Tokenizer, texts: Iterable[str]) -> list[tuple[str, list[int], list[int]]]:
        """Texts whose ids differ, each with the tokenizer's ids and sentencepiece's.

        A control piece spelt in a text is left out of the comparison: sentencepiece reads it as text, a fast tokenizer as the token (rows
        are made from text in which no token can be spelt: :mod:`sft.data.stand_in`).
        """
        controls = self.pieces(_CONTROL, _UNKNOWN)
        asked = [text for text in texts if not any(piece in text for piece in controls)]
        found = backend.encode_batch(asked, add_special_tokens=False)
        pairs = zip(asked, (encoding.ids for encoding in found), self.reference.encode(asked), strict=True)
        return [(text, ours, theirs) for text, ours, theirs in pairs if ours != theirs]


def read_model(path: Path) -> SentencePieceModel:
    """Read a ``tokenizer.model``.

    Raises:
        TokenizerError: sentencepiece or protobuf is not installed, or the file is no sentencepiece model.
    """
    try:
        from sentencepiece import SentencePieceProcessor
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except ImportError:
        raise TokenizerError(
            f"{path}: a sentencepiece model can be checked only with its library; pip install sentencepiece protobuf"
        ) from None
    except Exception as error:  # protobuf's own kind, where it is older than the one that sentencepiece was made with
        raise TokenizerError(f"{path}: sentencepiece cannot be used ({error}); pip install -U protobuf") from None
    content = path.read_bytes()
    try:
        spec = ModelProto.FromString(content)
        return SentencePieceModel(path, SentencePieceProcessor(model_proto=content), spec)
    except Exception as error:  # the library's own kinds have no common parent
        raise TokenizerError(f"{path}: this is no sentencepiece model ({type(error).__name__}); fetch it again") from None


def with_merges_of(backend: Tokenizer, exact: Tokenizer, *, normalised: bool) -> Tokenizer:
    """A copy of a fast tokenizer that has another one's merges; its special tokens, added ones and post-processor stay.

    Args:
        backend: the copied one.
        exact: whose pieces and merges are taken.
        normalised: take the other one's treatment of spaces too.
    """
    from tokenizers import Tokenizer

    spec, other = json.loads(backend.to_str()), json.loads(exact.to_str())
    spec["model"] = other["model"]
    if normalised:
        spec |= {"normalizer": other["normalizer"], "pre_tokenizer": None, "decoder": other["decoder"]}
    known = {token["content"] for token in spec["added_tokens"]}
    spec["added_tokens"] += [token for token in other["added_tokens"] if token["content"] not in known]
    spec["added_tokens"].sort(key=lambda token: token["id"])
    return Tokenizer.from_str(json.dumps(spec))


def held_to(loaded: Tokenizer, model: SentencePieceModel, *, legacy: bool, own_json: bool) -> tuple[Tokenizer | None, str]:
    """What must take the place of a loaded tokenizer so that its ids are those of its sentencepiece model.

    Args:
        loaded: as transformers made it.
        model: the checkpoint's.
        legacy: sentencepiece is asked for every stretch of text between special tokens, so each of them begins with ``▁``; else the
            loaded one's treatment of spaces stays, and only the merges are held to the model.
        own_json: the checkpoint has a ``tokenizer.json`` too. It stands if it has other pieces, or if nothing better can be built.

    Returns:
        The tokenizer to take, or None if the loaded one is right; and what was found, one sentence.

    Raises:
        TokenizerError: no ``tokenizer.json``, and neither the loaded tokenizer nor any that can be built gives sentencepiece's ids.
    """
    if legacy and not model.differing(loaded, PROBES) and _ids(loaded, _between(model)) == _ids_between(model):
        return None, ""
    vocabulary = loaded.get_vocab(with_added_tokens=True)
    if own_json and any(vocabulary.get(piece) != index for piece, index in model.ids.items()):
        return None, ""
    exact = mended = None
    if model.unlike() is None:
        exact = model.backend()
        mended = with_merges_of(loaded, exact, normalised=legacy)
        if model.differing(mended if legacy else exact, [*PROBES, *model.vocabulary()]):
            mended = None
    if mended is None:
        if own_json:
            return None, ""
        text, ours, theirs = (model.differing(loaded, PROBES) or model.differing(exact or loaded, model.vocabulary()))[0]
        raise TokenizerError(
            f"{model.path}: transformers rebuilds this tokenizer wrongly: {text!r} gives {ours[:12]}, sentencepiece {theirs[:12]}"
            f"{_why(model)}; put the tokenizer.json of the checkpoint beside it"
        )
    texts = [*PROBES, _between(model)]
    wrong = sum(_ids(loaded, text) != _ids(mended, text) for text in texts)
    if not wrong:
        return None, ""
    return mended, (
        f"the tokenizer that transformers made of {model.path.name} reads {wrong} of {len(texts)} texts otherwise than sentencepiece: "
        "built again, with sentencepiece's order of merges" + (" and its prefix space" if legacy else "")
    )


def _ids(backend: Tokenizer, text: str) -> list[int]:
    return list(backend.encode(text, add_special_tokens=False).ids)


def _between(model: SentencePieceModel) -> str:
    """Text on both sides of a special token."""
    return f"a b{_last_control(model)}a b"


def _ids_between(model: SentencePieceModel) -> list[int]:
    """Its ids where each side is sentencepiece's own."""
    side = model.reference.encode("a b")
    return [*side, model.ids[_last_control(model)], *side]


def _last_control(model: SentencePieceModel) -> str:
    return [piece for piece in model.pieces(_CONTROL, _UNKNOWN) if piece][-1]


def _why(model: SentencePieceModel) -> str:
    reason = model.unlike()
    return f", and it cannot be built again ({reason})" if reason else ""
