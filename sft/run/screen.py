"""What a run says on the terminal: the data, the plan as an equation, a progress bar, the result. Derived from the records only."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tqdm import tqdm

    from sft.data.dataset import Prepared
    from sft.data.packing import StepPlan
    from sft.model.merge import Difference


def printable(text: str) -> str:
    """Text without control characters, which a terminal would obey. Newlines and tabs stay."""
    return "".join(c if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160) else "�" for c in text)


def _short(text: str, most: int = 240) -> str:
    """An answer for a table cell: blank lines folded, cut with a mark. The report has the whole of it."""
    folded = re.sub(r"\s*\n\s*", "\n", printable(text)).strip()
    lines = folded.split("\n")
    cut = "\n".join(lines[:6])[:most]
    return cut if cut == folded else cut + " [...]"


def memory_line(memory: dict[str, Any]) -> str:
    """What the memory planner chose, and what it leaves."""
    if "measured_gib" not in memory:
        return f"{memory['setting']} (no GPU, not measured)"
    taken = f"{memory['measured_gib']:.1f} of {memory['budget_gib']:.1f} GiB (measured on the fullest micro-batch)"
    return f"{taken}; {memory['setting']}, headroom {memory['headroom_gib']:.1f} GiB"


class Screen:
    """The terminal of rank 0; silent on the others."""

    def __init__(self, enabled: bool, console: Console | None = None) -> None:
        self.console = console or Console(quiet=not enabled, highlight=False)
        self.enabled = enabled
        self._bar: tqdm[Any] | None = None
        self._total = 0

    def data(self, prepared: Prepared) -> None:
        report = prepared.report
        drops = report["drops"]
        share = report["trained_tokens"] / max(report["train_tokens"], 1)
        source = " (from the cache)" if prepared.cached else ""
        self._say(
            f"data: {report['rows_in']:,} rows read, {report['train_rows']:,} trained on, {report['holdout_rows']:,} held out{source}"
        )
        self._say(f"      {report['train_tokens']:,} tokens, {report['trained_tokens']:,} of them learnt ({share:.1%})")
        for word, counts in (("dropped", drops["counts"]), ("changed", drops["changed"])):
            if counts:
                self._say(f"      {word}: " + ", ".join(f"{reason} {count:,}" for reason, count in counts.items()))

    def plan(self, plan: StepPlan, attention: str, isolation: dict[str, float], memory: dict[str, Any] | None = None) -> None:
        self._say(f"plan: {len(plan.steps):,} steps; {plan.equation()}; micro-batches {plan.fill():.1%} full")
        apart = ", ".join(f"{name} {value:.1e}" for name, value in isolation.items())
        self._say(f"      attention {attention}" + (f"; documents cannot see each other ({apart})" if apart else ""))
        if memory is not None:
            self._say(f"memory: {memory_line(memory)}")
        self._total = len(plan.steps)

    def record(self, record: dict[str, Any]) -> None:
        """Move the bar, or print an evaluation above it."""
        if not self.enabled:
            return
        from tqdm import tqdm

        if self._bar is None:
            # Into a file, a line every ten seconds is enough.
            often = 0.1 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(total=self._total, unit=" steps", desc="training", dynamic_ncols=True, mininterval=often)
        if "eval" in record:
            self._bar.write(f"step {record['step']}: held-out loss {record['eval']['loss']:.4f}")
            return
        self._bar.update(record["step"] - self._bar.n)
        self._bar.set_postfix_str(
            f"loss {record['loss']:.3f}, lr {record['learning_rate']:.1e}, {record['tokens_per_second']:,.0f} tok/s",
            refresh=False,
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def merged(self, folder: Path, found: Difference) -> None:
        self._say(f"merged: {folder}, read back and compared: {found}")

    def finished(self, about: dict[str, Any], report: Path) -> None:
        before, after = about["holdout"]["before"], about["holdout"]["after"]
        if before is not None and after is not None:
            self._say(f"held-out loss: {before:.4f} before, {after:.4f} after ({after - before:+.4f})")
        if about["samples"]:
            table = Table("question", "before", "after", show_lines=True)
            for pair in about["samples"]:
                table.add_row(*(Text(_short(pair[k])) for k in ("prompt", "before", "after")))
            self.console.print(table)
        self._say(f"report: {report}")

    def _say(self, text: str) -> None:
        if self.enabled:
            self.console.print(Text(printable(text)), soft_wrap=True)
