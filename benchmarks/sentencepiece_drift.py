"""How many texts a LLaMA-type tokenizer of transformers reads otherwise than sentencepiece, and how many ours does. Prints a table.

``python benchmarks/sentencepiece_drift.py tokenizer.model FILES``: all messages of the files (or ``VICUGNA_DATA=FOLDER``, whose
``chat/*.json`` and ``instructions/*.json`` are read), and the blocks of code in them. The model is put into an empty checkpoint folder
and loaded as a user would; the reference is sentencepiece itself.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tokenisers import texts_of
from tokenizers import Tokenizer

from sft.model.sentencepiece_bpe import SentencePieceModel, read_model
from sft.model.tokenizer import load_tokenizer
from sft.recipe import ModelSection

_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def differing(model: SentencePieceModel, backend: Tokenizer, texts: Sequence[str]) -> str:
    wrong = sum(len(model.differing(backend, texts[i : i + 500])) for i in range(0, len(texts), 500))
    return f"{wrong:,} of {len(texts):,} ({wrong / max(1, len(texts)):.2%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    root = Path(os.environ.get("VICUGNA_DATA", ""))
    files = options.files or [*sorted(root.glob("chat/*.json")), *sorted(root.glob("instructions/*.json"))]
    if not files:
        sys.exit("sentencepiece_drift needs files, or VICUGNA_DATA naming a folder with chat/*.json and instructions/*.json")
    texts = list(dict.fromkeys(text for text in texts_of(files) if text))
    code = list(dict.fromkeys(block for text in texts for block in _FENCE.findall(text)))
    answers = [text for text in texts if _FENCE.search(text)]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder)
        shutil.copyfile(options.model, checkpoint / "tokenizer.model")
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **names}
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        (checkpoint / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(folder).backend_tokenizer
        began = time.perf_counter()
        ours, said = load_tokenizer(ModelSection(name_or_path=folder))
        print(f"loaded and held to sentencepiece in {time.perf_counter() - began:.2f} s: {said}")
        model = read_model(checkpoint / "tokenizer.model")
        print("| texts whose ids differ from sentencepiece's | transformers | ours |\n|---|---|---|")
        for name, some in (("all messages", texts), ("messages with code", answers), ("blocks of code", code)):
            cells = (differing(model, backend, some) for backend in (theirs, ours.backend_tokenizer))
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
