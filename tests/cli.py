"""The command as a user calls it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from sft.cli import main


def refused(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the entry point; it must exit with 2. Returns what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["sft", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err
