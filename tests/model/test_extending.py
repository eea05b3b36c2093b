"""Runs with an extended vocabulary: new rows start as the mean of what spelt them, what is trained is used, and lists are refused by line."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from sft.config import Document, build
from sft.engine.loss import plain_head
from sft.errors import ModelError, RecipeError, TokenizerError
from sft.model import adapters
from sft.model.extend import origins
from sft.model.extending import _texts, extended, row_origins
from sft.model.load import fit_embedding, load_model
from sft.model.tokenizer import as_plain, saved_tokenizer, tokenizer_for
from sft.recipe import Recipe
from sft.run.finished import adapter_on_base
from sft.train import run
from tests.builders import LLAMA, byte_level, save_tiny, sentencepiece_like, tiny_model
from tests.extended import CHINESE, extension_recipe, with_extend

CPU = torch.device("cpu")


# -- rows -----------------------------------------------------------------------------------------------------------


def test_new_rows_are_the_mean_of_what_spelt_them(tmp_path: Path) -> None:
    recipe = extension_recipe(tmp_path)
    tokenizer, _, said = tokenizer_for(recipe)
    old = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = load_model(recipe, tokenizer, CPU)
    made, before = row_origins(sentencepiece_like(), tokenizer), len(sentencepiece_like())
    assert sorted(made) == list(range(before, before + 30))
    assert loaded.new_rows == tuple(range(before, len(tokenizer)))  # the new pad token is behind them
    for table in ("get_input_embeddings", "get_output_embeddings"):
        was, now = (getattr(model, table)().weight for model in (old, loaded.model))
        assert torch.equal(now[:before], was)
        for index, parts in made.items():
            assert len(parts) > 1
            assert torch.allclose(now[index], was[list(parts)].mean(dim=0), atol=1e-7)
    assert "the tokenizer was extended by 30 pieces (" in said[0]
    assert "tokens per character in" in said[0]


def test_spare_rows_of_the_base_are_filled_too() -> None:
    """OPT's embedding has rows that no token had; their random numbers must not become a token's."""
    model = tiny_model(300)
    weight = model.get_input_embeddings().weight
    tokenizer = copy.deepcopy(byte_level(chatml=False))
    ids, parts = [290, 291], {290: (3, 4), 291: (5, 6, 7)}
    wanted = [weight[list(some)].mean(dim=0).detach().clone() for some in parts.values()]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({f"t{i}": i for i in range(292)}, [])), eos_token="t1", pad_token="t2"
    )
    repairs, new = fit_embedding(model, tokenizer, 8, parts)
    assert new == tuple(ids)
    assert all(torch.allclose(weight[i], row, atol=1e-7) for i, row in zip(ids, wanted, strict=True))
    assert not any("grown" in repair for repair in repairs)


def test_a_foreign_tokenizer_is_still_refused(tmp_path: Path) -> None:
    recipe = extension_recipe(tmp_path)
    tokenizer, _, _ = tokenizer_for(recipe)
    plain = Recipe.model_validate({**recipe.model_dump(), "tokenizer": {}})
    with pytest.raises(ModelError, match="tokenizer and model do not belong together"):
        load_model(plain, tokenizer, CPU)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"]["vocab"]["ЖЖЖ"] = len(tokenizer)
    del spec["model"]["vocab"]["<0xD0>"]
    with pytest.raises(TokenizerError, match="'ЖЖЖ' is made of nothing that its base has: they do not belong together"):
        origins(Tokenizer.from_str(json.dumps(spec)), len(sentencepiece_like()))


# -- runs -----------------------------------------------------------------------------------------------------------


def served(folder: Path, text: str) -> tuple[list[int], torch.Tensor]:
    """Ids and logits of a folder as anybody loads it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return ids, model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("make", [sentencepiece_like, byte_level], ids=["sentencepiece_like", "byte_level"])
@pytest.mark.parametrize("way", ["adapters, all", "adapters, rows", "full"])
def test_trained_merged_and_loaded_by_anybody(tmp_path: Path, make: Any, way: str) -> None:
    recipe = extension_recipe(tmp_path, make, lora=way != "full", output__merge=True, train__gradient_checkpointing=True)
    recipe = with_extend(recipe, size=30, min_count=2, train="rows" if way.endswith("rows") else "all")
    about = run(recipe)
    assert any("extended by 30 pieces" in repair for repair in about["repairs"])
    tokenizer, _, _ = tokenizer_for(recipe)
    start = load_model(recipe, tokenizer, CPU).model
    ids, _ = served(tmp_path / "run" / "merged", CHINESE[0])
    assert ids == tokenizer(CHINESE[0], add_special_tokens=False)["input_ids"]
    assert any(index >= len(make()) for index in ids)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged", dtype=torch.float32)
    used = [i for i in ids if i >= len(make())]
    for table in ("get_input_embeddings", "get_output_embeddings"):
        was, now = (getattr(model, table)().weight for model in (start, merged))
        assert not torch.equal(now[used], was[used])  # the trained copy is the one that was written
        old = torch.equal(now[: len(make())], was[: len(make())])
        assert old == way.endswith("rows")


def test_the_head_that_is_trained_answers(tmp_path: Path) -> None:
    """The fast loss must take the float32 copy beside the frozen head, and the frozen one must stay."""
    recipe = extension_recipe(tmp_path)
    tokenizer, _, _ = tokenizer_for(recipe)
    loaded = load_model(recipe, tokenizer, CPU)
    assert recipe.lora is not None
    model = adapters.attach(loaded.model.to(torch.bfloat16), recipe.lora, loaded.new_rows, seed=0, whole_embedding=True)
    head = plain_head(model, torch.bfloat16)
    assert head is not None
    assert head.weight.requires_grad
    assert head.weight.dtype == torch.float32
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name}
    assert names == {
        "base_model.model.model.embed_tokens.modules_to_save.default.weight",
        "base_model.model.lm_head.modules_to_save.default.weight",
    }
    with torch.autocast("cpu", torch.bfloat16):
        hidden = loaded.model.get_input_embeddings()(torch.tensor([[5, 6]]))
    assert hidden.dtype == torch.bfloat16  # what flows between the layers is as wide as it was
    plain = model(input_ids=torch.tensor([[5, 6]])).logits  # as samples are written, without autocast
    assert plain.dtype == torch.float32


def test_a_frozen_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"train\.freeze_head: the output rows of what tokenizer\.extend adds would stay as they are"
    ):
        run(extension_recipe(tmp_path, lora=False, train__freeze_head=True))


def test_samples_are_written_before_and_after(tmp_path: Path) -> None:
    recipe = extension_recipe(
        tmp_path, model__dtype="bfloat16", output__sample_prompts=["请写一首诗。"], output__sample_tokens=4
    )
    assert len(run(recipe)["samples"]) == 1


def test_resumed_is_straight(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"output__save_every": 1, "output__keep_checkpoints": 4, "train__max_steps": 4}
    straight = extension_recipe(tmp_path, **changes, output__dir=str(tmp_path / "straight"))
    run(straight)
    cut = extension_recipe(tmp_path, **changes, output__dir=str(tmp_path / "cut"))
    run(cut)
    for later in ("checkpoint-3", "checkpoint-4"):
        shutil.rmtree(tmp_path / "cut" / later)
    run(cut, resume=True)
    left, right = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("straight", "cut"))
    assert left.keys() == right.keys()
    assert any("embed_tokens" in key for key in left)
    assert any("lm_head" in key for key in left)
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_is_extended(tmp_path: Path, kind: str) -> None:
    """bitsandbytes leaves embedding and head alone, so they can grow and be trained."""
    pytest.importorskip("bitsandbytes")
    recipe = extension_recipe(tmp_path, model__quantization=kind, output__merge=True)
    run(recipe)
    ids, logits = served(tmp_path / "run" / "merged", CHINESE[1])
    assert logits.isfinite().all()
    assert any(index >= len(sentencepiece_like()) for index in ids)


def test_an_adapter_opens_on_its_base_in_bfloat16(tmp_path: Path) -> None:
    """What generates has no autocast: a float32 embedding in front of bfloat16 layers would not run."""
    recipe = extension_recipe(tmp_path, model__dtype="bfloat16")
    run(recipe)
    tokenizer, _ = saved_tokenizer(recipe, tmp_path / "run" / "adapter")
    model = adapter_on_base(recipe, tmp_path / "run" / "adapter", tokenizer, CPU)
    ids = torch.tensor([tokenizer(CHINESE[0])["input_ids"]])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert out.shape[1] > ids.shape[1]


def test_what_was_learnt_is_kept_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = extension_recipe(tmp_path)
    first, _, said = tokenizer_for(recipe)
    (kept,) = (tmp_path / "cache" / "extensions").iterdir()
    monkeypatch.setattr("sft.model.extending.learn", lambda *_: pytest.fail("learnt again"))
    second, _, again = tokenizer_for(recipe)
    assert (first.get_vocab(), said) == (second.get_vocab(), again)
    monkeypatch.undo()
    kept.write_text("{", encoding="utf-8")  # cut off
    assert tokenizer_for(recipe)[0].get_vocab() == first.get_vocab()
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace("语言", "音乐"), encoding="utf-8")
    assert tokenizer_for(recipe)[0].get_vocab() != first.get_vocab()


def test_every_source_is_learnt_from_as_far_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first source of any size leaves room for the second."""
    recipe = extension_recipe(tmp_path)
    rows = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    (tmp_path / "second.jsonl").write_text(rows.replace("数学", "音乐"), encoding="utf-8")
    first, second = (
        recipe.data.sources[0],
        recipe.data.sources[0].model_copy(update={"path": str(tmp_path / "second.jsonl"), "name": "s"}),
    )
    seen = [list(_texts(sources)) for sources in ((first,), (first, second))]
    assert seen[1] == seen[0] + [text.replace("数学", "音乐") for text in seen[0]]
    monkeypatch.setattr("sft.model.extending.MOST_CHARACTERS", 200)
    some = list(_texts((first, second)))
    halves = [some[: len(some) // 2], some[len(some) // 2 :]]
    assert halves[0] == seen[0][: len(halves[0])]
    assert halves[1] == [text.replace("数学", "音乐") for text in halves[0]]
    assert 100 <= sum(map(len, halves[0])) < 180


# -- a list of tokens, and refusals ---------------------------------------------------------------------------------


def of_file(tmp_path: Path, content: str | bytes, make: Any = sentencepiece_like) -> tuple[Any, list[str]]:
    file = tmp_path / "tokens.txt"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    recipe = with_extend(extension_recipe(tmp_path, make), file=str(file))
    backend, said = extended(recipe, make().backend_tokenizer)
    return as_plain(make(), backend), said


def test_a_list_of_tokens(tmp_path: Path) -> None:
    made, said = of_file(tmp_path, "人工智能\r\n\n数学\n数学\nuser\n")
    assert [len(made(t, add_special_tokens=False)["input_ids"]) for t in ("人工智能", "数学")] == [
        2,
        2,
    ]  # behind the prefix space
    assert said == [
        "the tokenizer was extended by 2 tokens of tokens.txt (8 on the way to them, 1 there already, 1 listed twice, 1 empty)"
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("数学\ntwo words\n", r"tokens\.txt:2: 'two words' holds a space; list words one by one"),
        ("</s>\n", r"tokens\.txt:1: '</s>' is a special token of this tokenizer; remove the line"),
        ("\n\n", r"tokens\.txt has no token that is new; remove tokenizer\.extend"),
        (b"\xff\xfe", r"tokens\.txt cannot be read: it is no UTF-8"),
    ],
)
def test_lists_that_cannot_be(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(TokenizerError, match=said):
        of_file(tmp_path, content)


def test_a_missing_list(tmp_path: Path) -> None:
    recipe = with_extend(extension_recipe(tmp_path), file=str(tmp_path / "none.txt"))
    with pytest.raises(TokenizerError, match=r"tokenizer\.extend\.file: .*none\.txt cannot be read: No such file"):
        extended(recipe, sentencepiece_like().backend_tokenizer)


def test_a_token_that_the_tokenizer_cuts(tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"tokens\.txt:1: 'abc123' cannot be one id: the tokenizer cuts it into 2 words first"
    ):
        of_file(tmp_path, "abc123\n", byte_level)


def test_texts_that_teach_nothing(tmp_path: Path) -> None:
    recipe = with_extend(extension_recipe(tmp_path), size=10, min_count=1000)
    with pytest.raises(TokenizerError, match=r"no pair of pieces occurs 1000 times in these texts; give more of them in"):
        tokenizer_for(recipe)


def test_fewer_than_wanted_is_told(tmp_path: Path) -> None:
    _, _, said = tokenizer_for(with_extend(extension_recipe(tmp_path), size=5000, min_count=3))
    assert "of 5,000 wanted, no other occurs 3 times" in said[0]


def test_a_tied_head_takes_rows_only(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", sentencepiece_like(), {**LLAMA, "tie_word_embeddings": True})
    recipe = extension_recipe(tmp_path, output__merge=True)
    with pytest.raises(ModelError, match=r"tokenizer\.extend\.train: this model's output matrix is its embedding.*; set rows"):
        run(recipe)
    run(with_extend(recipe, size=30, min_count=2, train="rows").model_copy(), overwrite=True)
    ids, logits = served(tmp_path / "run" / "merged", CHINESE[2])
    assert logits.isfinite().all()
    assert any(index >= len(sentencepiece_like()) for index in ids)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer": {"extend": {}}}, "give exactly one of size and file"),
        ({"tokenizer": {"extend": {"size": 5, "file": "x"}}}, "give exactly one of size and file"),
        ({"tokenizer": {"extend": {"file": "x", "sources": [{"path": "y"}]}}}, "nothing is learnt where file lists the tokens"),
        (
            {"lora": {"rank": 2, "alpha": 4, "train_new_tokens": False}},
            "tokenizer.extend adds tokens that would stay untrained",
        ),
        ({"lora": None, "tokenizer": {"extend": {"size": 5, "train": "rows"}}}, "full tuning tunes every row; remove it"),
        ({"train": {"sharding": "fsdp"}}, "a whole embedding beside adapters was not shown to be right under fsdp"),
        (
            {"model": {"name_or_path": None, "scratch": {"config": {"model_type": "llama"}}}},
            "a scratch model's vocabulary is made of the data already",
        ),
    ],
)
def test_sections_that_contradict(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    value = extension_recipe(tmp_path).model_dump()
    for section, change in changes.items():
        value[section] = change if section == "tokenizer" or change is None else {**(value[section] or {}), **change}
    with pytest.raises(RecipeError, match=said):
        build(Recipe, Document(json.loads(json.dumps(value)), {}, "test.yaml"))
