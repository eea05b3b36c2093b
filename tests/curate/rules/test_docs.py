"""The page about the rules names every kind, every key and every reason, and no others."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from sft.config import Section
from sft.curate.rules import RuleSection
from tests.curate.rules.talks import rule

ROOT = Path(__file__).resolve().parent.parent.parent.parent
PAGE = (ROOT / "docs" / "curate_rules.md").read_text(encoding="utf-8")
KINDS: dict[str, type[Section]] = {
    one.model_fields["kind"].default: one
    for one in get_args(get_args(RuleSection)[0])
    if one.model_fields["kind"].default != "html"
}
SECTIONS: dict[str, str] = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## )", PAGE, re.M | re.S))


def reasons() -> set[str]:
    """Every reason that a rule drops for, read off the source."""
    found: set[str] = set()
    for path in sorted((ROOT / "sft" / "curate" / "rules").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("drop", "cut"):
                texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                found |= {text for text in texts if text.isidentifier()}
            if isinstance(node, ast.FunctionDef) and node.name == "_judged":
                pairs = [pair.elts[0] for pair in ast.walk(node) if isinstance(pair, ast.Tuple)]
                found |= {first.value for first in pairs if isinstance(first, ast.Constant) and isinstance(first.value, str)}
            if isinstance(node, ast.Return | ast.Assign) and node.value is not None:
                texts = [c.value for c in ast.walk(node.value) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
                found |= {text for text in texts if re.fullmatch(r"repeated_\w+|\w+_evaluation_set", text)}
    return found


def test_every_kind_has_its_section() -> None:
    assert sorted(SECTIONS) == sorted(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_key_is_explained(kind: str) -> None:
    rows = re.findall(r"^\| (`[^|]*) \|", SECTIONS[kind], re.M)
    explained = [key for row in rows for key in re.findall(r"`(\w+)`", row)]
    assert sorted(explained) == sorted(key for key in KINDS[kind].model_fields if key != "kind")
    for key, default in re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", SECTIONS[kind], re.M):
        value = KINDS[kind].model_fields[key].default
        if default not in ("required", "all", "two", "assistant", "those"):
            assert default == (str(value).lower() if isinstance(value, bool) else str(value)), key


def test_every_reason_is_explained() -> None:
    found = reasons()
    assert {
        "no_exchange",
        "empty_turn",
        "too_short",
        "vendor_name",
        "repeated_phrase",
        "in_evaluation_set",
        "field_set",
    } <= found
    explained = {
        reason for text in re.findall(r"Drops?: (.*?)\.(?:\s|$)", PAGE, re.S) for reason in re.findall(r"`(\w+)`", text)
    }
    assert explained - {"drop_chat"} == found


def test_the_example_is_a_recipe() -> None:
    example = yaml.safe_load(PAGE.split("```yaml\n")[1].split("```")[0])
    assert len([rule(**section) for section in example["rules"]]) == 13
