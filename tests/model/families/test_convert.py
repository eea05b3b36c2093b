"""The driver of ``sft convert``: whole folders, refusals, bounded memory, and nothing of the checkpoint copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.data.template import load_template
from sft.errors import InputError, ModelError, VerificationError
from sft.model.families.convert import Shards, convert
from sft.model.families.family import refuse_quantised
from sft.model.families.registry import FAMILIES, family_of
from tests.model.families import equal, reference_llama
from tests.model.families.test_chatglm import CASES as CHATGLM
from tests.model.families.test_llama_legacy import LLAMA
from tests.model.families.test_llama_legacy import TINY as WIDER
from tests.model.families.test_moss import CASE as MOSS_CASE
from tests.model.families.tiny import Case, State, converted, native_of, random_state, write_legacy, write_tensors
from tests.model.test_sentencepiece_bpe import sentencepiece_model

TINY = WIDER | {"num_hidden_layers": 2, "vocab_size": 640}
STATE = random_state(reference_llama.shapes(TINY), seed=6)
CASE = Case(LLAMA, TINY, STATE, reference_llama.embed, reference_llama.logits)
WRITTEN = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vicugna.json"]


def checkpoint(folder: Path, state: State | None = None, files: int = 1, suffix: str = "bin", **change: Any) -> Path:
    """An old LLaMA folder with its tokenizer, and the code that such folders bring along."""
    write_legacy(folder, TINY | change, STATE if state is None else state, files, suffix)
    made = sentencepiece_model(folder / "made")
    (made / "tokenizer.model").rename(folder / "tokenizer.model")
    (folder / "modeling_some.py").write_text("raise SystemExit('this ran')\n", encoding="utf-8")
    return folder


def test_a_folder_is_converted_and_loads_by_itself(tmp_path: Path) -> None:
    """Loaded by transformers' own classes without code of the checkpoint; the files are named one by one."""
    code: dict[str, Any] = {"auto_map": {"AutoModelForCausalLM": "modeling_some.Some"}, "_name_or_path": "somewhere"}
    source = checkpoint(tmp_path / "legacy", **code)
    before = sorted(path.name for path in source.rglob("*"))
    about = convert(source, tmp_path / "out")
    found = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    assert [name for name in found if name != "chat_template.jinja"] == sorted([*WRITTEN, "model.safetensors"])
    assert "modeling_some" not in "".join(p.read_text("utf-8") for p in (tmp_path / "out").glob("*.json"))
    assert sorted(path.name for path in source.rglob("*")) == before
    assert (about["family"], about["native"], about["template"], about["dtype"]) == (
        "llama_legacy",
        "llama",
        "alpaca",
        "float32",
    )
    assert about["tensors"] == len([name for name in STATE if "inv_freq" not in name])
    assert sorted(about["source"]) == ["config.json", "pytorch_model.bin", "tokenizer.model"]
    assert json.loads((tmp_path / "out" / "vicugna.json").read_text("utf-8"))["converted"] == about
    assert equal.alone(CASE, tmp_path / "out", (41,), "sdpa") < 2e-5
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False)
    assert ids[0] == 1
    assert model.config.dtype == torch.float32
    assert model.generation_config.eos_token_id in (2, [2])


def test_weights_are_cast_when_asked(tmp_path: Path) -> None:
    about = convert(checkpoint(tmp_path / "legacy"), tmp_path / "out", dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as opened:
        name = "model.layers.1.mlp.up_proj.weight"
        assert torch.equal(opened.get_tensor(name), STATE[name].bfloat16())
    assert about["bytes"] == 2 * sum(value.numel() for name, value in STATE.items() if "inv_freq" not in name)


def test_a_template_that_stops_only_at_the_end_can_be_put_in(tmp_path: Path) -> None:
    assert load_template("chinese_vicuna_chat").only_last
    about = convert(checkpoint(tmp_path / "legacy"), tmp_path / "out", template="chinese_vicuna_chat")
    assert about["template"] == "chinese_vicuna_chat"


def test_an_earlier_conversion_is_replaced_and_drafts_are_removed(tmp_path: Path) -> None:
    source, out = checkpoint(tmp_path / "legacy"), tmp_path / "out"
    convert(source, out)
    (out / "left").write_text("", encoding="utf-8")
    (tmp_path / ".partial-out").mkdir()
    (tmp_path / ".partial-out" / "draft").write_text("", encoding="utf-8")
    convert(source, out)
    assert not (out / "left").exists()
    assert not (out / "draft").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["legacy", "out"]


# -- what is in the way ---------------------------------------------------------------------------------------------


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "legacy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("", encoding="utf-8")
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "vicugna.json").write_text('{"template": "moss"}', encoding="utf-8")
    for out in (tmp_path / "full", tmp_path / "full" / "thesis.tex", tmp_path / "tuned"):
        with pytest.raises(InputError, match=r"not empty and not written by sft convert; choose another folder"):
            convert(source, out)
    assert (tmp_path / "full" / "thesis.tex").is_file()


def test_the_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    """Nor a folder of ours that holds it."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "vicugna.json").write_text("{}", encoding="utf-8")
    source = checkpoint(tmp_path / "ours" / "legacy")
    for out in (source, tmp_path / "ours", tmp_path / "ours" / "x" / ".."):
        with pytest.raises(InputError, match=r"holds the checkpoint itself, and would be replaced; choose another folder"):
            convert(source, out)
    assert (source / "pytorch_model.bin").is_file()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert(checkpoint(tmp_path / "legacy"), tmp_path / "out")
    assert (tmp_path / "out" / "vicugna.json").is_file()


# -- checkpoints that cannot be converted ---------------------------------------------------------------------------


def refused(tmp_path: Path, said: str, state: State | None = None, files: int = 1, suffix: str = "bin", **change: Any) -> None:
    source = checkpoint(tmp_path / "legacy", state, files, suffix, **change)
    with pytest.raises(ModelError, match=said):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wbits": 4}, r"wbits = 4: a quantised release cannot be converted; take the full checkpoint"),
        ({"wbits": 8}, r"wbits = 8: a quantised release"),
        ({"quantization_bit": 4}, r"quantization_bit = 4: a quantised release"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config = \{'bits': 4\}: a quantised release"),
    ],
)
def test_quantised_releases_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    refused(tmp_path, said, **change)


def test_quantised_moss_is_refused(tmp_path: Path) -> None:
    source = write_legacy(tmp_path / "legacy", MOSS_CASE.config | {"wbits": 4}, MOSS_CASE.state)
    with pytest.raises(ModelError, match=r"wbits = 4: a quantised release"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("value", [None, 0, 32, {}])
def test_keys_that_say_nothing_are_no_quantisation(value: object) -> None:
    refuse_quantised(dict.fromkeys(("wbits", "quantization_bit", "quantization_config"), value))


NAME = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize(
    ("new", "said"),
    [
        ({NAME: STATE[NAME].to(torch.int8)}, rf"{NAME} holds torch\.int8: a quantised release cannot be converted"),
        ({NAME: STATE[NAME].to(torch.float8_e4m3fn)}, r"holds torch\.float8_e4m3fn: a quantised release"),
        ({NAME: STATE[NAME][:32]}, r"has the shape \(32, 64\), the configuration asks for \(64, 64\)"),
        (
            {f"{NAME}s": STATE[NAME].clone()},
            rf"{NAME}s is no weight of the native model: this variant of the family is not known",
        ),
    ],
    ids=["int8", "float8", "shape", "unknown"],
)
def test_other_tensors_are_refused(tmp_path: Path, new: State, said: str, suffix: str) -> None:
    refused(tmp_path, said, {**STATE, **new}, suffix=suffix)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    refused(tmp_path, rf"1 weights of the model are not there, such as {NAME}", {k: v for k, v in STATE.items() if k != NAME})


def test_a_tensor_of_the_index_that_no_file_holds_is_named(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "legacy", files=2)
    shard = source / "pytorch_model-00001-of-00002.bin"
    held = torch.load(shard, weights_only=True)
    name = next(iter(held))
    write_tensors(shard, {key: value for key, value in held.items() if key != name})
    with pytest.raises(ModelError, match=rf"1 tensors of the index are in no file, such as {name}; fetch them again"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_tensor_in_two_files_is_refused(tmp_path: Path, suffix: str) -> None:
    source = checkpoint(tmp_path / "legacy", files=2, suffix=suffix)
    first, second = sorted(source.glob(f"*-of-00002.{suffix}"))
    both = safetensors.torch.load_file if suffix == "safetensors" else lambda path: torch.load(path, weights_only=True)
    held, other = both(first), both(second)
    name = next(iter(held))
    write_tensors(second, other | {name: held[name]})
    with pytest.raises(ModelError, match=rf"{name} is in two files; which one is right cannot be known"):
        convert(source, tmp_path / "out")


def test_two_tensors_for_one_weight_are_refused(tmp_path: Path) -> None:
    """Both in what is held and in what is written already."""
    value = MOSS_CASE.state["transformer.ln_f.bias"]
    state = MOSS_CASE.state | {"model.final_layernorm.bias": value}
    for files in (1, 6):
        folder = tmp_path / str(files)
        folder.mkdir()
        wrong = Case(MOSS_CASE.kind, MOSS_CASE.config, state, MOSS_CASE.embed, MOSS_CASE.logits)
        with pytest.raises(ModelError, match=r"model\.final_layernorm\.bias comes from two tensors of the checkpoint"):
            native_of(wrong, folder, files=files)


def test_a_tokenizer_larger_than_the_embedding_is_refused_before_the_weights(tmp_path: Path) -> None:
    shapes = reference_llama.shapes(TINY | {"vocab_size": 300})
    refused(
        tmp_path,
        r"has the id \d+, and the embedding has 300 rows: tokenizer and weights",
        random_state(shapes, 0),
        vocab_size=300,
    )
    assert not (tmp_path / ".partial-out").exists()


def test_families_are_named_where_they_are_wrong() -> None:
    with pytest.raises(InputError, match=r"--family: 'gpt' is none of .*chatglm2, chatglm3, llama_legacy, moss"):
        family_of(TINY, "gpt")
    with pytest.raises(ModelError, match=r"this is no checkpoint of moss: it is one of llama_legacy"):
        family_of(TINY, "moss")
    with pytest.raises(ModelError, match=r"model_type 'opt', architectures None: no legacy format that is known here"):
        family_of({"model_type": "opt"})
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


# -- the files ------------------------------------------------------------------------------------------------------


def test_what_reads_back_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaging(held: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        write({name: value + 1 if name == NAME else value for name, value in held.items()}, path, metadata)

    write = safetensors.torch.save_file
    source = checkpoint(tmp_path / "legacy")
    monkeypatch.setattr(safetensors.torch, "save_file", damaging)
    with pytest.raises(VerificationError, match=rf"{NAME} reads back otherwise than it was written"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_more_is_held_than_the_largest_file_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six files in, several out; every weight has its place in the index."""
    held: list[int] = []
    add = Shards.add

    def counting(self: Shards, name: str, value: Tensor) -> None:
        add(self, name, value)
        held.append(sum(tensor.untyped_storage().nbytes() for tensor in self._held.values()))

    monkeypatch.setattr(Shards, "add", counting)
    native = native_of(CASE, tmp_path, files=6)
    largest = max(path.stat().st_size for path in (tmp_path / "legacy").glob("*.bin"))
    assert max(held) <= largest
    index = json.loads((native / "model.safetensors.index.json").read_text("utf-8"))
    files = sorted(path.name for path in native.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(size_of(native / file) for file in files)
    assert equal.alone(CASE, native, (41,), "sdpa") < 2e-5


@pytest.mark.parametrize("case", [MOSS_CASE, CHATGLM["2"], CHATGLM["3-32k"], CASE], ids=lambda case: case.kind.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_how_a_checkpoint_is_cut_into_files_changes_no_bit(tmp_path: Path, case: Case, dtype: torch.dtype) -> None:
    """Pickles and safetensors, whole and in pieces, in the types of releases."""
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in case.state.items()}
    found = []
    for suffix, files in (("bin", 1), ("bin", 4), ("safetensors", 1), ("safetensors", 3)):
        folder = tmp_path / f"{suffix}-{files}"
        folder.mkdir()
        native = native_of(Case(case.kind, case.config, state, case.embed, case.logits), folder, files=files, suffix=suffix)
        parts = [safetensors.torch.load_file(path) for path in native.glob("*.safetensors")]
        found.append({name: value for part in parts for name, value in part.items()})
    assert all(value.dtype == dtype for value in found[0].values())
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(value, found[0][name]) for name, value in other.items())


def size_of(path: Path) -> int:
    """Bytes of the tensors of a file."""
    return sum(value.numel() * value.element_size() for value in safetensors.torch.load_file(path).values())


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    """Pickles keep a head that was the embedding, and pieces of a larger tensor, as views of one memory."""
    whole = torch.randn(3, 640, 64)
    state = {**STATE, "model.embed_tokens.weight": whole[0], "lm_head.weight": whole[0]}
    source = write_legacy(tmp_path / "legacy", TINY, state)
    native = converted(LLAMA, source, tmp_path / "native")
    found = safetensors.torch.load_file(native / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], whole[0])
    assert torch.equal(found["model.embed_tokens.weight"], whole[0])
