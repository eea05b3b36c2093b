"""lm-evaluation-harness on a model of ours: its numbers are those of a computation by hand, and a model that it would change is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sft.errors import InputError, VerificationError
from sft.run.checks import harness
from sft.run.checks.estimates import changes
from sft.run.checks.harness import Tasks, refuse_tasks, run_tasks
from tests.builders import LLAMA, sentencepiece_like, tiny_model

installed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed: pip install 'vicugna[lmeval]'"
)
loud = pytest.mark.filterwarnings("ignore")  # the harness's own, and of what it imports

DOCS = [
    {"question": "The colour of the sky is", "choices": ["blue", "green and yellow", "a number"], "answer": 0},
    {"question": "Two and two are", "choices": ["five", "four", "three of them"], "answer": 1},
    {"question": "中文的问题是", "choices": ["好", "不好说", "x"], "answer": 2},
    {"question": "A fish lives in", "choices": ["the tree", "water", "a book"], "answer": 1},
    {"question": "One plus one is", "choices": ["two", "three", "eleven or so"], "answer": 0},
    *({"question": f"Letter {i} is", "choices": ["a", "b", "c", "d"], "answer": i % 4} for i in range(8)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks: one of five questions, and one whose data is not there."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "docs.jsonl"
    rows.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS), encoding="utf-8")
    text = (
        "task: tiny_choice\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {json.dumps(str(rows))}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\n'
        'doc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{answer}}"\n'
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    (folder / "tiny.yaml").write_text(text, encoding="utf-8")
    broken = text.replace("tiny_choice", "broken").replace("docs.jsonl", "absent.jsonl")
    (folder / "broken.yaml").write_text(broken, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def made() -> tuple[Any, Any]:
    tokenizer = sentencepiece_like()
    return tiny_model(len(tokenizer), LLAMA, scale=0.3).eval(), tokenizer


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any) -> list[list[float]]:
    """log p(choice | question) of every choice: one sequence at a time, a space between the two."""
    out = []
    for doc in DOCS:
        scores = []
        for choice in doc["choices"]:  # type: ignore[attr-defined]
            whole = tokenizer(f"{doc['question']} {choice}")["input_ids"]
            begin = len(tokenizer(doc["question"])["input_ids"])
            told = F.log_softmax(model(input_ids=torch.tensor([whole])).logits[0].double(), -1)
            scores.append(sum(float(told[i - 1, whole[i]]) for i in range(begin, len(whole))))
        out.append(scores)
    return out


@installed
@loud
def test_accuracy_and_log_likelihoods_are_those_by_hand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Tasks(("tiny_choice",), folder)
    refuse_tasks(tasks)
    seen: list[Any] = []
    real = harness._figures

    def spy(results: Any, samples: Any) -> Any:
        seen.append(samples)
        return real(results, samples)

    monkeypatch.setattr(harness, "_figures", spy)
    figures, told = [], []
    for sign in (1, -1):  # the second prefers what the first does not
        model, tokenizer = made()
        model.lm_head.weight.data.mul_(sign)
        pad = tokenizer.pad_token
        found, about = run_tasks(model, tokenizer, tasks)
        scores = by_hand(model, tokenizer)
        samples = sorted(seen[-1]["tiny_choice"], key=lambda one: one["doc_id"])
        theirs = [[float(reply[0][0]) for reply in one["resps"]] for one in samples]
        for found_row, row in zip(theirs, scores, strict=True):
            np.testing.assert_allclose(found_row, row, rtol=1e-4)
        right = [float(np.argmax(row) == doc["answer"]) for row, doc in zip(scores, DOCS, strict=True)]
        lengths = [[len(choice) for choice in doc["choices"]] for doc in DOCS]  # type: ignore[attr-defined]
        normed = [
            float(np.argmax(np.divide(row, size)) == doc["answer"])
            for row, size, doc in zip(scores, lengths, DOCS, strict=True)
        ]
        assert found.quantities["lm.tiny_choice.acc"].sums.tolist() == right
        assert found.quantities["lm.tiny_choice.acc_norm"].sums.tolist() == normed
        assert about["results"]["tiny_choice"]["acc,none"] == pytest.approx(np.mean(right))
        assert tokenizer.pad_token == pad
        figures.append(found)
        told.append(right)
    change = changes(figures[1], figures[0])["lm.tiny_choice.acc"]
    assert told[0] != told[1]
    assert change.value == pytest.approx(np.mean(told[1]) - np.mean(told[0]))
    assert change.units == len(DOCS)


@installed
@loud
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("tiny_choice", "no_such_task"), r"the harness has no task no_such_task, nor in .*tasks\d*; `lm-eval ls tasks`"),
        (("broken",), r"--lm-eval broken: cannot be loaded: \w+"),
    ],
)
def test_unknown_and_broken_tasks_are_refused(folder: Path, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        refuse_tasks(Tasks(names, folder))


@installed
@loud
def test_a_model_that_the_harness_would_change_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = made()

    def tie() -> None:
        model.lm_head.weight.data.copy_(model.get_input_embeddings().weight)

    monkeypatch.setattr(model, "tie_weights", tie)
    with pytest.raises(VerificationError, match="tied weights of this model that are not tied; merge it first"):
        run_tasks(model, tokenizer, Tasks(("tiny_choice",), folder))


def test_a_missing_harness_and_folder_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else real(name, *rest))
    with pytest.raises(InputError, match=r"--lm-eval needs lm-evaluation-harness: pip install 'vicugna\[lmeval\]'"):
        refuse_tasks(Tasks(("x",)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: real("json"))
    with pytest.raises(InputError, match=r"absent: no such folder; give the one that holds the YAML files"):
        refuse_tasks(Tasks(("x",), tmp_path / "absent"))


def test_what_the_harness_returns_becomes_figures() -> None:
    """A number for each question, filters in the name, standard errors as intervals, no text and no error as a figure."""
    results = {
        "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.5, "match,strict": 1.0, "match_stderr,strict": 0.0},
        "group": {"acc,none": 0.25, "acc_stderr,none": 0.1, "f1,none": 0.3, "f1_stderr,none": "N/A"},
    }
    samples = {
        "a": [
            {"doc_id": 1, "filter": "none", "acc": 1.0},
            {"doc_id": 0, "filter": "none", "acc": 0.0},
            {"doc_id": 0, "filter": "strict", "match": 1},
        ]
    }
    found = harness._figures(results, samples)
    assert found.quantities["lm.a.acc"].sums.tolist() == [0.0, 1.0]
    assert found.quantities["lm.a.match.strict"].share
    assert list(found.plain) == ["lm.group.acc", "lm.group.f1"]
    assert found.plain["lm.group.acc"].low == pytest.approx(0.25 - 0.1959964)
    assert found.plain["lm.group.f1"].low is None
