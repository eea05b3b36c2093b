"""An exported folder is all that a server needs: the same ids, the same stops, no word of training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from sft.data.conversation import Conversation, Turn
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.errors import VerificationError
from sft.model.servable import (
    PROBES,
    check_served_ids,
    model_card,
    serving_record,
    write_generation_config,
    write_servable,
    write_tokenizer,
)
from sft.model.tokenizer import repair_tokens
from tests.builders import TOKENIZERS, colon_crossing, sentencepiece_like, tiny_model

TEMPLATES = sorted(path.stem for path in (Path(__file__).parents[2] / "sft/data/templates").glob("*.jinja"))
ABOUT: dict[str, Any] = {"name": "x", "base": "b", "versions": {"vicugna": "0"}}


def parts(tokenizer: str, template: str) -> tuple[PreTrainedTokenizerBase, RowEncoder]:
    mended = copy.deepcopy(TOKENIZERS[tokenizer]())
    loaded = load_template(template)
    repair_tokens(mended, loaded)
    return mended, RowEncoder(mended, loaded, "last")  # the one policy that every template can do


@pytest.mark.parametrize("tokenizer", sorted(TOKENIZERS))
@pytest.mark.parametrize("template", TEMPLATES)
def test_served_ids_are_trained_ids(tmp_path: Path, tokenizer: str, template: str) -> None:
    """Every template through every kind of tokenizer, loaded again from the folder."""
    mended, encoder = parts(tokenizer, template)
    write_tokenizer(mended, encoder, tmp_path)
    assert check_served_ids(tmp_path, encoder) >= 2


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_exported_template_has_no_training_marks(tmp_path: Path, template: str) -> None:
    mended, encoder = parts("byte_level", template)
    write_tokenizer(mended, encoder, tmp_path)
    text = AutoTokenizer.from_pretrained(tmp_path).chat_template
    assert "endgeneration" not in text
    assert "generation" not in text.replace("add_generation_prompt", "")
    assert mended.chat_template is None  # the one in memory is not touched


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_generation_config_is_greedy_and_stops(tmp_path: Path, template: str) -> None:
    mended, encoder = parts("byte_level", template)
    write_generation_config(encoder, mended, tmp_path)
    config = GenerationConfig.from_pretrained(tmp_path)
    ids, _ = encoder.stops()
    assert config.eos_token_id == ids
    assert mended.eos_token_id in ids
    assert (config.pad_token_id, config.do_sample or False, config.temperature) == (mended.pad_token_id, False, None)
    assert config.pad_token_id not in ids


def test_sampling_flags_of_the_base_do_not_come_along(tmp_path: Path) -> None:
    mended, encoder = parts("sentencepiece_like", "alpaca_short")
    model = tiny_model(len(mended))
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, max_length=4096)
    write_servable(model, mended, encoder, tmp_path, ABOUT)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert {"do_sample", "temperature", "top_p", "max_length"} & written.keys() == set()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["use_cache"] is True
    assert [config["eos_token_id"]] == written["eos_token_id"] == [mended.eos_token_id]
    assert config["dtype"] == "float32"


def test_the_folder_holds_no_pickle_and_says_what_it_is(tmp_path: Path) -> None:
    mended, encoder = parts("byte_level", "chatml")
    write_servable(tiny_model(len(mended)), mended, encoder, tmp_path, ABOUT | {"difference": {"relative": 0.0}})
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [
        ".jinja",
        ".json",
        ".json",
        ".json",
        ".json",
        ".json",
        ".md",
        ".safetensors",
    ]
    record = json.loads((tmp_path / "vicugna.json").read_text())
    im_end = mended.convert_tokens_to_ids("<|im_end|>")
    assert record["stop_ids"] == [im_end, mended.eos_token_id]
    assert (record["template"], record["multi_turn"]) == ("chatml", True)
    assert record.items() >= serving_record(encoder).items()


def test_large_models_are_sharded(tmp_path: Path) -> None:
    mended, encoder = parts("byte_level", "chatml")
    write_servable(tiny_model(len(mended)), mended, encoder, tmp_path, ABOUT, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert (tmp_path / "model.safetensors.index.json").is_file()


def test_a_template_that_writes_no_probe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mended, encoder = parts("byte_level", "chatml")
    write_tokenizer(mended, encoder, tmp_path)
    monkeypatch.setattr("sft.model.servable.PROBES", ())
    with pytest.raises(VerificationError, match="the template chatml wrote none of the probe prompts"):
        check_served_ids(tmp_path, encoder)


def test_a_changed_tokenizer_is_refused(tmp_path: Path) -> None:
    """The folder of another vocabulary under the right template."""
    _, encoder = parts("byte_level", "alpaca_short")
    write_tokenizer(colon_crossing(), encoder, tmp_path)
    with pytest.raises(
        VerificationError, match=r"probe-1 has the ids \[.*\]\.\.\. in training and \[.*\]\.\.\. when served by transformers"
    ):
        check_served_ids(tmp_path, encoder)


def test_a_stop_that_a_user_types_is_text_only_here(tmp_path: Path) -> None:
    """Where our check ends: apply_chat_template reads a typed ``<|im_end|>`` as the stop, sft chat as seven characters."""
    mended, encoder = parts("byte_level", "chatml")
    write_tokenizer(mended, encoder, tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    typed, stop = "say <|im_end|> please", mended.convert_tokens_to_ids("<|im_end|>")
    theirs = served.apply_chat_template([{"role": "user", "content": typed}], tokenize=True, return_dict=False)
    assert list(theirs).count(stop) == 2
    assert encoder.prompt_ids(Conversation("typed", (Turn("user", typed),), "t")).count(stop) == 1
    assert not any("<|" in turn.content for probe in PROBES for turn in probe.turns)


def test_the_card_survives_odd_names() -> None:
    encoder = RowEncoder(sentencepiece_like(), load_template("alpaca_short"))
    name = 'a"b: c\n---\nx'
    text = model_card({"name": "n", "base": name, "revision": "r", "difference": "d"}, encoder)
    head = yaml.safe_load(text.split("---\n")[1])
    assert head == {"library_name": "transformers", "tags": ["vicugna", "sft"], "base_model": name}
