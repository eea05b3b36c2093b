"""A finished folder in a process that knows only transformers: trained prompts, trained answers, and an end to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sft.data.conversation import Conversation, Turn
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.engine.metrics import read_metrics
from sft.model.tokenizer import tokenizer_for
from sft.recipe import Recipe
from sft.train import run
from tests.builders import LLAMA, byte_level, save_tiny, sentencepiece_like
from tests.runs import tiny_recipe

ANSWER = "Ein Test: red, green and blue. 春天来了。"
QUESTIONS = ["Say it.", "Say it, and say it now: what is it?", "请写一首诗。"]

ALONE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    folder, questions = json.loads(line)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    chats = [[{"role": "user", "content": q}] for q in questions]
    def ask(some):
        given = tokenizer.apply_chat_template(some, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True)
        out = model.generate(**given, max_new_tokens=60)
        return [row[given["input_ids"].shape[1]:].tolist() for row in out], given["input_ids"][0].tolist()
    single = [ask([chat]) for chat in chats]
    print(json.dumps({
        "prompts": [ids for _, ids in single],
        "answers": [said[0] for said, _ in single],
        "together": ask(chats)[0],
        "texts": [tokenizer.decode(said[0], skip_special_tokens=True) for said, _ in single],
        "pad": tokenizer.pad_token_id,
        "dtype": str(model.dtype),
        "ours": sorted(name for name in sys.modules if name.split(".")[0] in ("sft", "selfinstruct", "peft")),
    }), file=answers, flush=True)
"""


class Server:
    """A process of its own that loads a folder and asks it the questions, folder after folder. One that died is started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: subprocess.Popen[str] | None = None

    def ask(self, folder: Path) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(folder), QUESTIONS]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            pytest.fail((self.home / "stderr").read_text(encoding="utf-8"))
        return dict(json.loads(answer))

    def start(self) -> None:
        environment = os.environ | {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        with (self.home / "stderr").open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", ALONE],
                cwd=self.home,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def stop(self) -> None:
        if self.process is not None:
            self.process.communicate()  # closes its input, which ends it


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


def trained(folder: Path, kind: str) -> Recipe:
    """A run long enough to learn one answer by heart, and where to stop."""
    new_tokens = kind == "lora with new tokens"
    tokenizer = byte_level(chatml=False) if new_tokens else sentencepiece_like()
    # A frozen random head bounds how sure adapters can become: wide and large enough to learn by heart.
    base = save_tiny(folder / "base", tokenizer, LLAMA | {"hidden_size": 64}, scale=0.3)
    rows = [{"instruction": f"{q} {i}" if i else q, "input": "", "output": ANSWER} for q in QUESTIONS for i in range(2)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes: dict[str, Any] = {
        "data__max_length": 256,
        "train__epochs": None,
        "train__max_steps": 45,
        "train__learning_rate": 1e-2,
    }
    changes |= {
        "train__examples_per_step": 6,
        "train__tokens_per_device": 2048,
        "output__merge": True,
        "output__log_every": 5,
    }
    if new_tokens:
        changes["template__name"] = "chatml"
    return tiny_recipe(folder / "run", base, None if kind == "full" else {"rank": 16, "alpha": 32}, **changes)


@pytest.mark.parametrize("kind", ["full", "lora", "lora with new tokens"])
def test_a_folder_serves_what_was_trained(server: Server, tmp_path: Path, kind: str) -> None:
    recipe = trained(tmp_path, kind)
    about = run(recipe)
    last = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line][-1]
    assert last < 0.1, "not learnt by heart: this says nothing about serving"
    tokenizer, _, _ = tokenizer_for(recipe)
    encoder = RowEncoder(tokenizer, load_template(recipe.template.name))
    wanted = [encoder.prompt_ids(Conversation("q", (Turn("user", q),), "q")) for q in QUESTIONS]
    stops = about["serving"]["stop_ids"]
    for name in ("merged", "model") if kind == "full" else ("merged",):
        found = server.ask(tmp_path / "run" / name)
        assert found["ours"] == []
        assert found["prompts"] == wanted
        assert found["texts"] == [ANSWER] * len(QUESTIONS)
        for answer, batched in zip(found["answers"], found["together"], strict=True):
            assert answer[-1] == stops[0]  # the one that was trained, though no stop was passed
            assert not set(answer[:-1]) & set(stops)
            while batched[-1] == found["pad"]:
                batched.pop()
            assert batched == answer  # padded on the left: the same alone and in a batch
        assert found["pad"] not in stops
        assert found["dtype"] == "torch.float32"
