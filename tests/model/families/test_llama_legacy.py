"""Old LLaMA folders: the weights are kept, the rotary table goes, the ids of BOS and EOS are set right, sentencepiece's ids hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sft.errors import ModelError, TokenizerError
from sft.model.families import llama
from sft.model.families.legacy import open_legacy
from sft.model.families.registry import family_of
from sft.model.sentencepiece_bpe import PROBES
from tests.model.families import equal, reference_llama
from tests.model.families.tiny import VOCABULARY, Case, meta_names, native_names, native_of, random_state, write_legacy
from tests.model.test_sentencepiece_bpe import TEXTS, sentencepiece_model, spaces_behind_all_scores

(LLAMA,) = llama.FAMILIES
TINY: dict[str, Any] = {
    "architectures": ["LLaMAForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": -1,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_sequence_length": 1024,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
}
REAL = TINY | {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_sequence_length": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}
CASES = {
    "llama": Case(
        LLAMA, TINY, random_state(reference_llama.shapes(TINY), seed=4), reference_llama.embed, reference_llama.logits
    )
}
CASE = CASES["llama"]
BOUND = 2e-5


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_of(CASE, tmp_path_factory.mktemp("llama"), files=2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_are_those_of_the_formula(native: Path, attention: str) -> None:
    assert equal.alone(CASE, native, (41, 2, 1), attention) < BOUND


def test_long_documents_too(native: Path) -> None:
    assert equal.alone(CASE, native, (700,), "sdpa") < BOUND


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(native: Path, side: str) -> None:
    assert equal.padded(CASE, native, side, "sdpa") < BOUND


def test_flat_rows_are_separate_documents(native: Path) -> None:
    assert equal.flat(CASE, native) < BOUND


def test_greedy_text_with_the_cache_is_the_formulas(native: Path) -> None:
    found, wanted = equal.greedy(CASE, native, "sdpa")
    assert found == wanted


def test_gradients_are_those_of_the_formula(native: Path) -> None:
    assert equal.gradient(CASE, native) < 1e-5


def test_adapters_on_all_linear_layers_are_merged(native: Path) -> None:
    targets, untouched, difference = equal.adapted(native)
    assert targets == set(LLAMA.facts.lora)
    assert untouched == []
    assert difference < BOUND


def test_the_real_shapes_are_the_native_ones() -> None:
    assert meta_names(reference_llama.shapes(REAL), LLAMA, REAL) == native_names(LLAMA, REAL)


def test_the_ids_of_old_configurations_are_not_taken() -> None:
    fields = LLAMA.config(REAL)
    assert (fields["bos_token_id"], fields["eos_token_id"], fields["pad_token_id"]) == (1, 2, None)
    assert fields["max_position_embeddings"] == 2048


def test_only_the_old_name_of_the_class_is_claimed() -> None:
    assert family_of(REAL) is LLAMA
    for names in (["LlamaForCausalLM"], [], None):
        assert not llama.recognises(REAL | {"architectures": names})
    with pytest.raises(
        ModelError, match=r"no legacy format that is known here\. What transformers has a class for needs no conversion"
    ):
        family_of(REAL | {"architectures": ["LlamaForCausalLM"]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "gelu"}, r"hidden_act = 'gelu', and only 'silu' is known"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_scaling = .*and only None is known"),
        ({"attention_bias": True}, r"attention_bias = True"),
        ({"mlp_bias": True}, r"mlp_bias = True"),
        ({"tie_word_embeddings": True}, r"tie_word_embeddings = True"),
    ],
)
def test_other_variants_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        LLAMA.config(REAL | change)


# -- the tokenizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", ["as trained", "spaces last"])
def test_ids_are_sentencepieces_with_bos_in_front(tmp_path: Path, scores: str) -> None:
    from sentencepiece import SentencePieceProcessor

    folder = sentencepiece_model(tmp_path / "legacy")
    if scores == "spaces last":
        spaces_behind_all_scores(folder)
    write_legacy(tmp_path / "weights", TINY, CASE.state)
    (folder / "pytorch_model.bin").write_bytes((tmp_path / "weights" / "pytorch_model.bin").read_bytes())
    tokenizer = llama.tokenizer_of(open_legacy(folder))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    reference = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [text for text in (*TEXTS, *PROBES) if "<unk" not in text]
    for made in (tokenizer, again):
        assert [made(text)["input_ids"] for text in texts] == [[1, *reference.encode(text)] for text in texts]
        assert (made.bos_token_id, made.eos_token_id, made.unk_token_id, made.pad_token_id) == (1, 2, 0, None)


def test_a_tokenizer_with_other_ids_is_refused(tmp_path: Path) -> None:
    folder = sentencepiece_model(tmp_path / "legacy", bos_id=2, eos_id=1)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        TokenizerError, match=r"BOS and EOS have the ids 2 and 1, LLaMA's are 1 and 2; is this another model's file\?"
    ):
        llama.tokenizer_of(open_legacy(folder))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.model here; fetch the whole checkpoint"):
        llama.tokenizer_of(open_legacy(write_legacy(tmp_path / "legacy", TINY, CASE.state)))


def test_ids_that_differ_from_sentencepieces_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sft.model.sentencepiece_bpe import SentencePieceModel

    folder = sentencepiece_model(tmp_path / "legacy")
    (folder / "pytorch_model.bin").write_bytes(b"")
    spaces_behind_all_scores(folder)
    merges = SentencePieceModel.merges
    monkeypatch.setattr(SentencePieceModel, "merges", lambda self: merges(self)[::-1])
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: '.*' has the ids \[.*\] here and \[.*\] in sentencepiece"):
        llama.tokenizer_of(open_legacy(folder))
