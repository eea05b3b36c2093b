"""What FSDP sends against what it computes, and what follows for whole runs: the tables of ``docs/scale.md``. Prints them; needs no GPU.

``python benchmarks/scale_arithmetic.py [--write]``: ``--write`` puts them into the page. A test holds the page to them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"
PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
A100_FLOPS = 312e12  # dense bfloat16, NVIDIA's data sheet
UTILISATION = (0.5, 0.6)
SENT_BYTES = 2 + 2 + 4  # a parameter: gathered in bfloat16 forward and backward, its gradient reduced in float32


@dataclass(frozen=True, slots=True)
class Model:
    """Parameters, those of matrices that multiply, layers and width."""

    name: str
    parameters: float
    matmul: float
    layers: int
    width: int

    def flop(self, context: float) -> float:
        """FLOP per token in rows of ``context`` tokens: 6 per matmul parameter, and causal attention."""
        return 6 * self.matmul + 6.0 * self.layers * self.width * context


@dataclass(frozen=True, slots=True)
class Cluster:
    """GPUs, and what one of them sends and receives in a ring at once, GB/s."""

    name: str
    gpus: int
    gigabytes: float


SEVEN = Model("7B", 6.738e9, 6.607e9, 32, 4096)
THIRTEEN = Model("13B", 13.016e9, 12.852e9, 40, 5120)
ONE_HOST = Cluster("8, one host", 8, 235)
EIGHT_HOSTS = Cluster("64, eight hosts", 64, 180)

# tokens per second and GPU, as published; the page has the sources
PUBLISHED: tuple[tuple[str, Model, float, str, int], ...] = (
    ("llm-foundry, 8 A100 80 GB", SEVEN, 2048, "12,288, no checkpointing", 4641),
    ("llm-foundry, 8 A100 80 GB", THIRTEEN, 2048, "4,096, no checkpointing", 2262),
    ("llm-foundry, 8 A100 40 GB", SEVEN, 2048, "24,576, checkpointing", 3679),
    ("llm-foundry, 64 A100 40 GB", SEVEN, 2048, "36,864, checkpointing", 3665),
    ("llm-foundry, 128 A100 40 GB", SEVEN, 2048, "36,864, checkpointing", 3623),
    ("llm-foundry, 64 A100 40 GB", THIRTEEN, 2048, "32,768, checkpointing", 1976),
    ("torchtitan (FSDP2), 64 A100 80 GB", THIRTEEN, 4096, "8,192, no checkpointing", 2162),
    ("fms-fsdp, 128 A100 80 GB", SEVEN, 4096, "8,192, no checkpointing", 3760),
)

ALPACA_TOKENS = 52_002 * 3 * 135  # rows x epochs x mean tokens of a row


def sent(model: Model, cluster: Cluster) -> float:
    """Seconds that a micro-batch's collectives take: (N - 1) / N of every parameter passes each GPU."""
    return SENT_BYTES * model.parameters * (cluster.gpus - 1) / cluster.gpus / (cluster.gigabytes * 1e9)


def computed(model: Model, tokens: int, utilisation: float, context: float = 2048) -> float:
    """Seconds that a micro-batch's products take on one A100."""
    return model.flop(min(context, tokens)) * tokens / (A100_FLOPS * utilisation)


def speed(model: Model, utilisation: float, context: float) -> float:
    """Tokens per second of one A100."""
    return A100_FLOPS * utilisation / model.flop(context)


def micro_batches() -> list[str]:
    """Table: sent against computed."""
    rows = [
        "| model | GPUs | sent, GB | sent, s | tokens on a GPU | computed, s | sent / computed |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in (SEVEN, THIRTEEN):
        for cluster in (ONE_HOST, EIGHT_HOSTS):
            for tokens in (2048, 8192, 16384):
                a, b = sent(model, cluster), computed(model, tokens, 0.55)
                size = a * cluster.gigabytes
                rows.append(f"| {model.name} | {cluster.name} | {size:.0f} | {a:.2f} | {tokens:,} | {b:.2f} | {a / b:.2f} |")
    return rows


def speeds() -> list[str]:
    """Table: 0.5 to 0.6 of the peak against what others measured."""
    rows = [
        "| published | model | row | tokens on a GPU | tokens/s and GPU | of the peak | at 0.5 to 0.6 of the peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, model, context, tokens, measured in PUBLISHED:
        low, high = (speed(model, share, context) for share in UTILISATION)
        share = measured * model.flop(context) / A100_FLOPS
        rows.append(
            f"| {name} | {model.name} | {context:,.0f} | {tokens} | {measured:,} | {share:.2f} | {low:,.0f} to {high:,.0f} |"
        )
    return rows


def alpaca() -> list[str]:
    """Table: Alpaca's 52,002 rows, three epochs, 128 rows a step."""
    rows = [
        "| GPUs | tokens on a GPU in a step | sent, s | computed, s | step, s | run, minutes |",
        "|---|---|---|---|---|---|",
    ]
    steps, tokens = -(-52_002 // 128) * 3, 128 * 135
    for cluster in (ONE_HOST, EIGHT_HOSTS):
        each = tokens // cluster.gpus
        a, b = sent(SEVEN, cluster), computed(SEVEN, each, 0.5, context=200)
        least, most = max(a, b), a + b  # all of one hidden behind the other, or nothing
        minutes = f"{steps * least / 60:.0f} to {steps * most / 60:.0f}"
        rows.append(f"| {cluster.name} | {each:,} | {a:.2f} | {b:.2f} | {least:.2f} to {most:.2f} | {minutes} |")
    return rows


EIGHT = (  # recipe, what is set, the model it tunes, micro-batches of a step
    ("alpaca", (), SEVEN, 2),
    ("alpaca", ("train.tokens_per_device=4096",), SEVEN, 1),
    ("alpaca_13b", (), THIRTEEN, 2),
    ("alpaca_13b", ("train.tokens_per_device=4096",), THIRTEEN, 1),
    ("vicuna", (), SEVEN, 5),
    ("vicuna", ("train.tokens_per_device=16384",), SEVEN, 2),
    ("vicuna", ("train.tokens_per_device=8192", "train.gradient_checkpointing=false"), SEVEN, 3),
    ("vicuna_13b", (), THIRTEEN, 3),
    ("vicuna_13b", ("train.cpu_offload=false",), THIRTEEN, 3),
    ("vicuna_13b", ("train.cpu_offload=false", "train.tokens_per_device=16384"), THIRTEEN, 2),
    ("vicuna_16k", (), SEVEN, 4),
    ("vicuna_16k", ("train.tokens_per_device=32768",), SEVEN, 2),
)


def memory() -> list[str]:
    """Table: what the planner estimates for eight A100 80 GB."""
    from transformers import LlamaConfig

    from sft.plan_memory import Load, memory_estimate, model_shape
    from sft.recipe import load_recipe

    configs = {
        SEVEN: LlamaConfig(
            vocab_size=32000, tie_word_embeddings=False
        ),  # LLaMA-7B is what transformers takes unless told otherwise
        THIRTEEN: LlamaConfig(
            hidden_size=5120,
            intermediate_size=13824,
            num_hidden_layers=40,
            num_attention_heads=40,
            num_key_value_heads=40,
            vocab_size=32000,
            tie_word_embeddings=False,
        ),
    }
    shapes = {model: model_shape(config) for model, config in configs.items()}
    rows = ["| recipe | `--set` | A | estimated GiB on a GPU | of which activations |", "|---|---|---|---|---|"]
    for name, sets, model, accumulation in EIGHT:
        recipe, _ = load_recipe(RECIPES / f"{name}.yaml", ["plan.gpus=8", *sets])
        tokens = recipe.train.tokens_per_device
        found = memory_estimate(recipe, shapes[model], Load(tokens, tokens // 2, recipe.data.max_length, accumulation))
        held = sum(part.gib for part in found.parts if part.name.startswith("activations"))
        given = " ".join(f"`{item}`" for item in sets)
        rows.append(f"| `{name}` | {given} | {accumulation} | {found.total_gib:.1f} | {held:.1f} |")
    return rows


TABLES = {"memory": memory, "micro_batches": micro_batches, "speeds": speeds, "alpaca": alpaca}


def filled(page: str) -> str:
    """The page with its tables made anew; each stands between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, rest = page.split(begin)
        page = before + begin + "".join(f"{row}\n" for row in table()) + end + rest.split(end)[1]
    return page


def main() -> None:
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for table in TABLES.values():
        print("\n".join(table()), end="\n\n")


if __name__ == "__main__":
    main()
