"""ChatGLM2 and ChatGLM3 become GLM: equal to their formula, and every wrong reading of their tensors is caught."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sft.errors import ModelError
from sft.model.families.chatglm import FAMILIES
from sft.model.families.registry import family_of
from tests.model.families import equal, reference_chatglm
from tests.model.families.tiny import VOCABULARY, Case, meta_names, native_names, native_of, random_state

BY_NAME = {family.name: family for family in FAMILIES}
SWITCHES: dict[str, Any] = {
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "original_rope": True,
    "post_layer_norm": True,
    "rmsnorm": True,
    "pre_seq_len": None,
    "quantization_bit": 0,
    "tie_word_embeddings": False,
}
TINY: dict[str, Any] = SWITCHES | {
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_layers": 3,
    "num_attention_heads": 4,
    "kv_channels": 16,
    "multi_query_group_num": 2,
    "padded_vocab_size": VOCABULARY,
    "seq_length": 1024,
}
REAL: dict[str, Any] = SWITCHES | {
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "num_layers": 28,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "multi_query_group_num": 2,
    "padded_vocab_size": 65024,
    "seq_length": 32768,
}


def case_of(version: int, ratio: int | None = None, *, rotary: int | None = None) -> Case:
    config = TINY | ({} if ratio is None else {"rope_ratio": ratio})
    formula = partial(reference_chatglm.logits, version=version, rotary=rotary)
    state = random_state(reference_chatglm.shapes(config), seed=version)
    return Case(BY_NAME[f"chatglm{version}"], config, state, reference_chatglm.embed, formula)


CASES = {"2": case_of(2), "3": case_of(3), "2-32k": case_of(2, 8), "3-32k": case_of(3, 50)}
BOUND = 2e-5


@pytest.fixture(scope="module", params=CASES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    case = CASES[request.param]
    return case, native_of(case, tmp_path_factory.mktemp("chatglm"), files=3)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_are_those_of_the_formula(both: tuple[Case, Path], attention: str) -> None:
    assert equal.alone(*both, (41, 2, 1), attention) < BOUND


def test_long_documents_too(both: tuple[Case, Path]) -> None:
    assert equal.alone(*both, (700,), "sdpa") < BOUND


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(both: tuple[Case, Path], side: str) -> None:
    assert equal.padded(*both, side, "sdpa") < BOUND


def test_flat_rows_are_separate_documents(both: tuple[Case, Path]) -> None:
    assert equal.flat(*both) < BOUND


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_greedy_text_with_the_cache_is_the_formulas(both: tuple[Case, Path], attention: str) -> None:
    found, wanted = equal.greedy(*both, attention)
    assert found == wanted


def test_gradients_are_those_of_the_formula(both: tuple[Case, Path]) -> None:
    assert equal.gradient(*both) < 1e-5


def test_adapters_on_all_linear_layers_are_merged(tmp_path: Path) -> None:
    targets, untouched, difference = equal.adapted(native_of(CASES["2"], tmp_path))
    assert targets == set(BY_NAME["chatglm2"].facts.lora)
    assert untouched == []
    assert difference < BOUND


# -- mistakes that must be seen -------------------------------------------------------------------------------------


def test_full_rotary_would_be_seen(both: tuple[Case, Path]) -> None:
    case, native = both
    version = int(case.kind.name[-1])
    wrong = case_of(version, case.config.get("rope_ratio"), rotary=TINY["kv_channels"])
    assert equal.alone(wrong, native, (41,), "sdpa") > 1e-2


def test_gate_and_up_exchanged_would_be_seen(tmp_path: Path) -> None:
    case = CASES["2"]
    exchanged = {
        name: torch.cat(value.chunk(2)[::-1]) if "dense_h_to_4h" in name else value for name, value in case.state.items()
    }
    wrong = Case(case.kind, case.config, exchanged, case.embed, case.logits)
    assert equal.alone(case, native_of(wrong, tmp_path), (41,), "sdpa") > 1e-2


def test_long_variants_taken_for_the_other_or_for_none_would_be_seen(tmp_path: Path) -> None:
    """Positions that are not divided, and a theta multiplied in their place."""
    case = CASES["2-32k"]
    for name, kind, config in (("none", case.kind, TINY), ("third", BY_NAME["chatglm3"], case.config)):
        (tmp_path / name).mkdir()
        wrong = Case(kind, config, case.state, case.embed, case.logits)
        assert equal.alone(case, native_of(wrong, tmp_path / name), (41,), "sdpa") > 1e-2, name


# -- configurations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parameters"), [("chatglm2", 6_243_584_000), ("chatglm3", 6_243_584_000)])
def test_the_real_shapes_are_the_native_ones(name: str, parameters: int) -> None:
    kind = BY_NAME[name]
    found = meta_names(reference_chatglm.shapes(REAL), kind, REAL)
    assert found == native_names(kind, REAL)
    assert sum(torch.Size(shape).numel() for shape in found.values()) == parameters


def test_nothing_is_left_to_the_defaults_of_glm_4() -> None:
    fields = BY_NAME["chatglm2"].config(REAL)
    assert fields["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    assert (fields["rms_norm_eps"], fields["eos_token_id"], fields["pad_token_id"]) == (1e-5, 2, 0)
    assert (fields["vocab_size"], fields["head_dim"], fields["num_key_value_heads"]) == (65024, 128, 2)
    assert fields["attention_bias"] is True


def test_the_ratio_divides_positions_in_one_and_multiplies_theta_in_the_other() -> None:
    long = REAL | {"rope_ratio": 50}
    assert BY_NAME["chatglm2"].config(long)["rope_parameters"] == {
        "rope_type": "linear",
        "factor": 50.0,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    }
    assert BY_NAME["chatglm3"].config(long)["rope_parameters"] == {
        "rope_type": "default",
        "rope_theta": 500000.0,
        "partial_rotary_factor": 0.5,
    }


@pytest.mark.parametrize("ratio", [None, 1, 1.0])
@pytest.mark.parametrize("name", BY_NAME)
def test_a_ratio_of_one_is_no_ratio(name: str, ratio: float | None) -> None:
    assert BY_NAME[name].config(REAL | {"rope_ratio": ratio}) == BY_NAME[name].config(REAL)


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        ({"_name_or_path": "THUDM/chatglm2-6b"}, "chatglm2"),
        ({"_name_or_path": "THUDM/chatglm3-6b-32k"}, "chatglm3"),
        ({"_name_or_path": "/models/ChatGLM3-tuned"}, "chatglm3"),
        ({"auto_map": {"AutoModel": "THUDM/chatglm2-6b--modeling_chatglm.ChatGLMForConditionalGeneration"}}, "chatglm2"),
    ],
)
def test_a_name_in_the_configuration_says_which_it_is(hint: dict[str, Any], name: str) -> None:
    assert family_of(REAL | hint).name == name
    other = "chatglm3" if name == "chatglm2" else "chatglm2"
    with pytest.raises(ModelError, match=f"no checkpoint of {other}"):
        family_of(REAL | hint, other)


@pytest.mark.parametrize(
    "hint", [{}, {"rope_ratio": 50}, {"_name_or_path": "/models/mine"}, {"_name_or_path": "chatglm2-and-chatglm3"}]
)
def test_without_one_the_user_is_asked(hint: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"this may be chatglm2 or chatglm3: say which with --family"):
        family_of(REAL | hint)
    for name in ("chatglm2", "chatglm3"):
        assert family_of(REAL | hint, name).name == name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"position_encoding_2d": True},
            r"position_encoding_2d is a key of ChatGLM-6B, the first version: .*convert ChatGLM2-6B",
        ),
        ({"inner_hidden_size": 16384}, r"inner_hidden_size is a key of ChatGLM-6B"),
        ({"num_layers": 40, "padded_vocab_size": 151552}, r"40 layers and 151552 tokens are GLM-4's: .* ends in -hf"),
        ({"padded_vocab_size": 151552}, r"28 layers and 151552 tokens are GLM-4's"),
    ],
)
@pytest.mark.parametrize("named", [None, "chatglm2", "chatglm3"])
def test_relatives_are_refused_by_name(change: dict[str, Any], said: str, named: str | None) -> None:
    with pytest.raises(ModelError, match=said):
        family_of(REAL | change, named)
    with pytest.raises(ModelError, match=said):
        BY_NAME[named or "chatglm2"].config(REAL | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pre_seq_len": 128}, r"pre_seq_len = 128: a prefix of P-tuning .*take the base model"),
        ({"multi_query_attention": False}, r"multi_query_attention is not true: the rows .* ordered head by head"),
        ({"multi_query_attention": None}, r"multi_query_attention is not true"),
        ({"add_qkv_bias": False}, r"add_qkv_bias is not true: this variant"),
        ({"rmsnorm": False}, r"rmsnorm = False, and only True is known: this variant of the family cannot be converted"),
        ({"post_layer_norm": False}, r"post_layer_norm = False"),
        ({"add_bias_linear": True}, r"add_bias_linear = True"),
        ({"interleaved_qkv": True}, r"interleaved_qkv = True"),
        ({"apply_residual_connection_post_layernorm": True}, r"apply_residual_connection_post_layernorm = True"),
        ({"fp32_residual_connection": True}, r"fp32_residual_connection = True"),
        ({"original_rope": False}, r"original_rope = False"),
        ({"tie_word_embeddings": True}, r"tie_word_embeddings = True"),
        ({"rope_ratio": 0}, r"rope_ratio = 0; a number of at least 1"),
        ({"rope_ratio": "8"}, r"rope_ratio = '8'; a number of at least 1"),
    ],
)
@pytest.mark.parametrize("name", BY_NAME)
def test_other_variants_are_refused(name: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        BY_NAME[name].config(REAL | change)


def test_a_configuration_that_lacks_sizes_is_refused() -> None:
    with pytest.raises(ModelError, match=r"kv_channels, seq_length missing; is this the whole checkpoint\?"):
        BY_NAME["chatglm2"].config({key: value for key, value in REAL.items() if key not in ("kv_channels", "seq_length")})


def test_rows_that_are_not_q_k_and_v_are_refused() -> None:
    name = "transformer.encoder.layers.0.self_attention.query_key_value.bias"
    with pytest.raises(
        ModelError, match=r"query_key_value\.bias has 192 rows, and the configuration asks for 64 of q, 32 of k"
    ):
        list(BY_NAME["chatglm2"].tensors(name, torch.zeros(192), TINY))
