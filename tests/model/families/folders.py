"""Whole tiny legacy checkpoints with their tokenizer files: what ``sft convert`` is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.model.families import reference_baichuan, reference_chatglm, reference_moss, tiny
from tests.model.families.test_chatglm import TINY as CHATGLM
from tests.model.families.test_moss import TINY as MOSS
from tests.model.families.test_tokenizers import moss_folder
from tests.model.test_sentencepiece_bpe import sentencepiece_model

ROWS = 704
"""Rows of every embedding: pieces, special tokens and what a template adds."""


def whole_checkpoint(folder: Path, family: str) -> Path:
    """A folder of ``moss``, ``chatglm2``, ``chatglm3``, ``baichuan`` (13B: ALiBi) or ``baichuan2`` (7B), as it would be fetched."""
    if family == "moss":
        moss_folder(folder)
        config: dict[str, Any] = MOSS | {"vocab_size": ROWS, "n_positions": 2048}
        state = tiny.random_state(reference_moss.shapes(config), seed=0)
    else:
        sentencepiece_model(folder)
        (folder / "tokenizer_config.json").unlink()
        if family.startswith("chatglm"):
            config = CHATGLM | {"padded_vocab_size": ROWS, "_name_or_path": f"THUDM/{family}-6b"}
            state = tiny.random_state(reference_chatglm.shapes(config), seed=0)
        else:
            variant = "13B" if family == "baichuan" else "2-7B"
            config = reference_baichuan.legacy_config(variant, vocab_size=ROWS)
            state = reference_baichuan.legacy_weights(variant, rows=ROWS)
    tiny.write_files(folder, config, state, files=2)
    (folder / "modeling_legacy.py").write_text("raise SystemExit('a file of a checkpoint was run')\n", encoding="utf-8")
    return folder
