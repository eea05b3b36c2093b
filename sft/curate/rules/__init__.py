"""The rules of cleaning, told apart by ``kind``. Each is a frozen section whose ``apply`` is pure and idempotent.

To add one: a class in a module of this folder, its name in :data:`RuleSection`, a table of kept, changed and dropped examples in the
tests, and its section in ``docs/curate_rules.md``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sft.curate.rules.answers import NoticeRule, RefusalRule
from sft.curate.rules.base import RuleBase
from sft.curate.rules.contamination import ContaminationRule
from sft.curate.rules.fields import FieldRule, ModelRule
from sft.curate.rules.html import HtmlRule
from sft.curate.rules.language import LanguageRule
from sft.curate.rules.pii import PiiRule
from sft.curate.rules.quality import BrokenListRule, RepetitionRule
from sft.curate.rules.turns import EmptyTurnRule, MinLengthRule, RoleRepairRule, SingleRoundRule
from sft.curate.rules.vendors import VendorNamesRule

__all__ = ["RuleBase", "RuleSection"]

RuleSection = Annotated[
    HtmlRule
    | RoleRepairRule
    | EmptyTurnRule
    | MinLengthRule
    | SingleRoundRule
    | NoticeRule
    | RefusalRule
    | VendorNamesRule
    | RepetitionRule
    | BrokenListRule
    | LanguageRule
    | ModelRule
    | FieldRule
    | PiiRule
    | ContaminationRule,
    Field(discriminator="kind"),
]
"""Any rule, told apart by ``kind``."""
