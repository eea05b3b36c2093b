"""Memory and time of ``sft convert`` on a random ChatGLM2 of real width: the most that it held beyond its start, beside the largest file.

``python benchmarks/convert.py [--layers 4] [--files 4] [--pickled]``. Pages of files that are mapped into memory are counted apart: the
system takes them back whenever it needs room.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH, INNER, HEADS, SIZE, GROUPS, ROWS = 4096, 13696, 32, 128, 2, 65024
CONFIG = {
    "model_type": "chatglm",
    "_name_or_path": "THUDM/chatglm2-6b",
    "hidden_size": WIDTH,
    "ffn_hidden_size": INNER,
    "kv_channels": SIZE,
    "num_attention_heads": HEADS,
    "multi_query_group_num": GROUPS,
    "padded_vocab_size": ROWS,
    "seq_length": 32768,
    "layernorm_epsilon": 1e-5,
    "torch_dtype": "float16",
    **dict.fromkeys(("multi_query_attention", "add_qkv_bias", "rmsnorm", "post_layer_norm"), True),
    **dict.fromkeys(
        ("add_bias_linear", "apply_residual_connection_post_layernorm", "fp32_residual_connection"),
        False,
    ),
}


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the legacy tensors."""
    fused = (HEADS + 2 * GROUPS) * SIZE
    each = {
        "input_layernorm.weight": (WIDTH,),
        "post_attention_layernorm.weight": (WIDTH,),
        "self_attention.query_key_value.weight": (fused, WIDTH),
        "self_attention.query_key_value.bias": (fused,),
        "self_attention.dense.weight": (WIDTH, WIDTH),
        "mlp.dense_h_to_4h.weight": (2 * INNER, WIDTH),
        "mlp.dense_4h_to_h.weight": (WIDTH, INNER),
    }
    found = {f"transformer.encoder.layers.{i}.{name}": shape for i in range(layers) for name, shape in each.items()}
    found |= {f"transformer.{name}.weight": (ROWS, WIDTH) for name in ("embedding.word_embeddings", "output_layer")}
    return found | {"transformer.encoder.final_layernorm.weight": (WIDTH,)}


def write(folder: Path, layers: int, files: int, pickled: bool) -> int:
    """Write the checkpoint; returns the bytes of its largest file."""
    names, ending = list(shapes(layers).items()), "bin" if pickled else "safetensors"
    stem, places, largest = "pytorch_model" if pickled else "model", {}, 0
    for number in range(files):
        file = f"{stem}-{number + 1:05d}-of-{files:05d}.{ending}"
        held = {name: torch.empty(shape, dtype=torch.float16).normal_() for name, shape in names[number::files]}
        torch.save(held, folder / file) if pickled else save_file(held, folder / file)
        places |= dict.fromkeys(held, file)
        largest = max(largest, (folder / file).stat().st_size)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_layers": layers}))
    return largest


def held() -> tuple[int, int]:
    """Bytes of this process that are its own, and that are mapped files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return tuple(int(lines[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))  # type: ignore[return-value]  # two


def child(source: Path, out: Path) -> None:
    """Convert the weights, watching the process's memory; the tokenizer is left out, for there is none."""
    from sft.model.families import convert

    convert._write_tokenizer = lambda *_: {}  # type: ignore[assignment]  # on purpose
    convert.files.write_json = lambda *_: None  # type: ignore[assignment]  # its record
    convert.files.read_json = lambda *_: {}  # type: ignore[assignment]
    begun, most, done = held(), [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for i, value in enumerate(held()):
                most[i] = max(most[i], value - begun[i])

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    about = convert.convert(source, out)
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    print("FIGURES " + json.dumps({"own": most[0], "mapped": most[1], "seconds": seconds, "bytes": about["bytes"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--pickled", action="store_true")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    with tempfile.TemporaryDirectory(prefix="vicugna-convert-") as folder:
        source = Path(folder) / "legacy"
        source.mkdir()
        largest = write(source, options.layers, options.files, options.pickled)
        command = [sys.executable, __file__, "--child", str(source), str(Path(folder) / "native")]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
        if not lines:
            raise SystemExit(done.stderr[-2000:])
        found = json.loads(lines[0].removeprefix("FIGURES "))
    kind = "pickles" if options.pickled else "safetensors"
    print(
        f"{found['bytes'] / 1e9:.2f} GB in {options.files} {kind} of at most {largest / 1e9:.2f} GB: own memory "
        f"{found['own'] / 1e9:.2f} GB ({found['own'] / largest:.2f} of the largest file), mapped {found['mapped'] / 1e9:.2f} GB, "
        f"{found['seconds']:.1f} s, {found['bytes'] / found['seconds'] / 1e9:.2f} GB/s"
    )


if __name__ == "__main__":
    main()
