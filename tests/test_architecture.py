"""The shape of the house: who may import whom, which library has which door, how long files and functions may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*(ROOT / "sft").rglob("*.py"), *(ROOT / "selfinstruct").rglob("*.py")])
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
# Folder or file -> what it may never import.
CLOSED = {
    "sft/errors.py": ("sft",),
    "sft/files.py": ("sft", "torch", "transformers", "datasets"),
    "sft/strict_yaml.py": (
        "sft.config",
        "sft.recipe",
        "sft.data",
        "sft.model",
        "sft.engine",
        "sft.run",
        "sft.plan",
        "sft.train",
    ),
    "sft/config.py": ("sft.recipe", "sft.data", "sft.model", "sft.engine", "sft.run", "sft.plan", "sft.train", "sft.cli"),
    "sft/recipe.py": ("sft.data", "sft.model", "sft.engine", "sft.run", "sft.plan", "sft.train", "sft.cli"),
    "sft/text/": (
        *("sft.config", "sft.recipe", "sft.curate", "sft.model", "sft.engine", "sft.run", "sft.plan", "sft.train", "sft.cli"),
        *("torch", "transformers", "datasets"),
    ),
    "sft/remote/": (
        *("sft.config", "sft.recipe", "sft.data", "sft.model", "sft.engine", "sft.run", "sft.plan", "sft.train", "sft.cli"),
        *("torch", "transformers", "datasets"),
    ),
    "sft/data/": ("sft.engine", "sft.model", "sft.run", "sft.plan", "sft.train", "sft.cli"),
    "sft/model/": ("sft.engine", "sft.run", "sft.plan", "sft.train", "sft.cli"),
    "sft/engine/": ("sft.run", "sft.plan", "sft.train", "sft.cli"),
    "sft/run/": ("sft.plan", "sft.train", "sft.serve", "sft.cli"),
    "sft/serve/": ("sft.plan", "sft.train", "sft.cli"),
    "sft/curate/": ("sft.engine", "sft.run", "sft.plan", "sft.train", "sft.cli"),
    "sft/web/": (
        *("sft.model", "sft.engine", "sft.run", "sft.plan", "sft.train", "sft.cli"),
        *("torch", "transformers", "datasets"),
    ),
    "sft/train.py": ("sft.plan", "sft.cli"),
    "selfinstruct/": ("torch", "transformers", "peft", "trl", "accelerate", "datasets"),
    "selfinstruct/records.py": ("selfinstruct", "sft"),
    "selfinstruct/teacher/": tuple(
        f"selfinstruct.{name}" for name in ("recipe", "strategies", "filters", "loop", "run", "store", "cli")
    ),
    "selfinstruct/strategies/": tuple(
        f"selfinstruct.{name}"
        for name in ("recipe", "filters.chain", "filters.sections", "loop", "run", "store", "desk", "cli")
    ),
    "selfinstruct/filters/": tuple(
        f"selfinstruct.{name}" for name in ("recipe", "strategies", "teacher", "loop", "run", "store", "results", "cli")
    ),
    "selfinstruct/loop.py": tuple(f"selfinstruct.{name}" for name in ("run", "job", "desk", "teacher", "cli")),
    "selfinstruct/results/": tuple(f"selfinstruct.{name}" for name in ("recipe", "loop", "run", "strategies", "cli")),
}
# All that the generator may take from the trainer.
SHARED = (
    "sft.compiled",
    "sft.config",
    "sft.errors",
    "sft.files",
    "sft.intervals",
    "sft.data.conversation",
    "sft.data.jsonl",
    "sft.data.questions",
    "sft.remote",
    "sft.text",
)
# The way of a row: a module of sft/data imports only modules that stand before it.
WAY = (
    *("conversation", "chunks", "jsonl", "questions", "fields", "formats", "sources"),
    *("marks", "frame", "template", "render", "stand_in"),
    *("vocabulary", "interning_words", "interning_kernels", "interning", "text_encoder"),
    *("verify", "tokenize", "overflow", "packing_kernels", "packing", "collate"),
    *("store", "cache", "dataset", "mask_report", "preview"),
)
# Library -> the only places that import it.
DOORS = {
    "deepspeed": ("sft/engine/shards.py",),
    "trl": ("sft/engine/trainer.py",),
    "peft": ("sft/model/",),
    "datasets": ("sft/data/sources.py", "sft/data/dataset.py"),
    "pickle": (),
    "cloudpickle": (),
    "dill": (),
    # the second for its types alone; the third is the page's client of models that sft serves
    "openai": ("sft/remote/door.py", "selfinstruct/teacher/client.py", "sft/web/servers.py"),
    "prompt_toolkit": ("sft/run/terminal.py",),
    "gradio": ("sft/web/app.py", "sft/web/tabs.py"),
    "selfinstruct": ("selfinstruct/",),
    "py3langid": ("sft/curate/rules/language.py",),
    "matplotlib": ("selfinstruct/results/plots.py", "sft/run/report.py", "sft/curate/results/charts.py"),
    "ray": ("sft/curate/ray_workers.py",),
    "lm_eval": ("sft/run/checks/harness.py",),
    "fastapi": ("sft/serve/app.py", "sft/web/app.py"),
    "uvicorn": ("sft/serve/server.py", "sft/web/app.py"),
    "vllm": ("sft/run/vllm_engine.py",),
    "pyarrow": ("selfinstruct/results/export.py", "sft/data/jsonl.py"),
}


def _tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"), name)


def _imports(tree: ast.Module, name: str) -> Iterator[str]:
    """Whole dotted names of everything that a file imports, also inside functions."""
    package = name.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _within(imported: str, module: str) -> bool:
    return imported == module or imported.startswith(f"{module}.")


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_one_way(name: str) -> None:
    closed = [module for folder, modules in CLOSED.items() if name.startswith(folder) for module in modules]
    found = [i for i in _imports(_tree(name), name) for module in closed if _within(i, module)]
    assert found == []


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("selfinstruct/")])
def test_the_generator_takes_little_from_the_trainer(name: str) -> None:
    taken = [i for i in _imports(_tree(name), name) if _within(i, "sft")]
    assert [i for i in taken if not any(_within(i, module) for module in SHARED)] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("sft/data/")])
def test_a_row_goes_one_way(name: str) -> None:
    module = Path(name).stem
    if module == "__init__":
        return
    assert module in WAY, f"{name}: give it a place in WAY"
    ahead = [f"sft.data.{later}" for later in WAY[WAY.index(module) :]]
    assert [i for i in _imports(_tree(name), name) for later in ahead if _within(i, later)] == []


@pytest.mark.parametrize("name", NAMES)
def test_each_library_has_one_door(name: str) -> None:
    imported = list(_imports(_tree(name), name))
    for library, doors in DOORS.items():
        if not name.startswith(doors):
            assert [i for i in imported if _within(i, library)] == [], f"{library} is imported outside {doors or 'nothing'}"


@pytest.mark.parametrize("name", NAMES)
def test_no_foreign_code_is_run(name: str) -> None:
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            value = node.value
            assert isinstance(value, ast.Constant), f"{name}:{value.lineno}: {node.arg} must be a written False"
            assert value.value is False, f"{name}:{value.lineno}: {node.arg}"


@pytest.mark.parametrize("name", NAMES)
def test_files_and_functions_stay_short(name: str) -> None:
    lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES or name in LONG_FILES, f"{name}: {lines} lines"
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            known = f"{name}:{node.name}" in LONG_FUNCTIONS
            assert length <= MOST_LINES_OF_A_FUNCTION or known, f"{name}:{node.lineno}: {node.name} has {length} lines"


def test_exceptions_are_still_needed() -> None:
    for name in LONG_FILES:
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) > MOST_LINES, f"{name} is short: no exception"
    for key in LONG_FUNCTIONS:
        name, function = key.split(":")
        found = [n for n in ast.walk(_tree(name)) if isinstance(n, ast.FunctionDef) and n.name == function]
        assert any((n.end_lineno or 0) - n.lineno >= MOST_LINES_OF_A_FUNCTION for n in found), f"{key}: no exception needed"


def test_the_walk_sees_every_kind_of_import() -> None:
    source = "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\ndef h():\n    import i\n"
    found = set(_imports(ast.parse(source), "sft/data/x.py"))
    assert {"a.b", "c", "c.d", "sft.data.e", "sft.f.g", "i"} <= found
    assert _within("sft.data.tokenize", "sft.data")
    assert not _within("sft.database", "sft.data")
