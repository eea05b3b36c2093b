"""What becomes of a request that cannot be answered. What can go wrong with one call: :mod:`sft.remote.faults`."""

from __future__ import annotations

from selfinstruct.records import Failure
from sft.errors import TeacherError
from sft.remote.faults import CallFault, classify, retry_after, strike_out

__all__ = ["BudgetReached", "CallFault", "RequestFailed", "Stopped", "classify", "retry_after", "strike_out"]


class RequestFailed(TeacherError):
    """One request is given up; the run goes on.

    Attributes:
        failure: what is recorded.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"request {failure.request_id}: {failure.code}: {failure.detail}")
        self.failure = failure


class BudgetReached(TeacherError):
    """A cap of the budget does not allow the next request. Everything paid for is in the ledger."""


class Stopped(TeacherError):
    """The teacher cannot go on for a reason that concerns every request."""
