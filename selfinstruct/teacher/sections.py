"""Recipe sections of the outside world: where to ask, how fast, how often again, and how much it may cost.

::

    teacher:
      model: a-model
      sampling: {max_tokens: 3072, temperature: 1.0}
      endpoints:
        - {base_url: "https://api.example.com/v1", key_variable: EXAMPLE_API_KEY, weight: 3}
        - {base_url: "http://127.0.0.1:8000/v1", key_variable: null, price: {input: 0, output: 0}}
      retries: {attempts: 8}
    budget: {max_money: 50}
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

import pydantic
from pydantic import Field

from selfinstruct.records import Sampling
from sft.config import KeyedError, Section
from sft.remote.address import address_fault, is_variable


class PriceSection(Section):
    """What a million tokens costs. The currency is ``budget.currency``; 0 for a server of your own."""

    input: float = Field(ge=0)
    """Money per million prompt tokens."""
    output: float = Field(ge=0)
    """Money per million completion tokens."""


class RateSection(Section):
    """How fast one endpoint may be asked. Within these limits the rate adapts by itself: see ``selfinstruct/teacher/rate.py``."""

    max_concurrency: int = Field(default=256, ge=1, le=16384)
    """Most requests in flight at once."""
    start_concurrency: int = Field(default=16, ge=1)
    """Requests in flight at the start; grows while the endpoint keeps up."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Requests per minute; null for no limit but the endpoint's own."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Tokens per minute, prompt and ``max_tokens`` together, as rate limits count them; null for no limit but the endpoint's own."""
    slow_after: float = Field(default=300.0, gt=0)
    """Seconds: a reply that takes longer makes the number in flight shrink."""


class EndpointSection(Section):
    """One OpenAI-compatible server."""

    base_url: str
    """Address up to ``/v1``, such as ``http://127.0.0.1:8000/v1``. Never holds a key."""
    name: str = ""
    """Label in ledger, report and messages; empty takes host and port of ``base_url``."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key (never the key); null for a server that wants none."""
    model: str | None = None
    """Name of the model at this endpoint, where it differs from ``teacher.model``."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the requests, relative to the other endpoints."""
    structured: Literal["auto", "never"] = "auto"
    """``auto``: send the JSON schema of a request, and go on without it once the endpoint refuses it. ``never``: do not send it."""
    max_tokens_field: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    """Name of the length limit in chat requests. ``auto``: ``max_tokens``, and the newer name once the endpoint asks for it."""
    price: PriceSection | None = None
    """Overrides ``budget.prices`` for this endpoint."""
    rate: RateSection = RateSection()

    @pydantic.model_validator(mode="after")
    def _safe_address(self) -> EndpointSection:
        if (fault := address_fault(self.base_url)) is not None:
            raise KeyedError("base_url", fault)
        return self

    @pydantic.field_validator("key_variable")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        # The value is not repeated: whoever pastes a key here must not find it in a log.
        if value is not None and not is_variable(value):
            raise ValueError("must be the name of an environment variable, never the key itself")
        return value

    @property
    def label(self) -> str:
        parts = urlsplit(self.base_url)
        return self.name or f"{parts.hostname}{f':{parts.port}' if parts.port else ''}"


class RetriesSection(Section):
    """When a request is asked again. Which faults qualify: see ``selfinstruct/teacher/faults.py``."""

    attempts: int = Field(default=8, ge=1)
    """Most times one request is asked, the first included."""
    first_wait: float = Field(default=1.0, gt=0)
    """Seconds before the second attempt; doubles each time, and is drawn between half and all of it."""
    longest_wait: float = Field(default=60.0, gt=0)
    """Seconds: bound of the doubling. A longer Retry-After of the endpoint is obeyed up to ten times this."""
    budget_share: float = Field(default=0.2, ge=0)
    """Retries allowed per reply received, beyond ``budget_floor``: an outage stops the run instead of hammering."""
    budget_floor: int = Field(default=200, ge=0)
    """Retries that are always allowed. Rate limits (429) do not count: they are waited for."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that one attempt may take."""
    connect_timeout: float = Field(default=10.0, gt=0)
    """Seconds to reach the server."""


class SamplingSection(Section):
    """How the teacher draws its replies; a strategy may override it for a stage."""

    max_tokens: int = Field(default=3072, ge=1)
    """Most tokens of a reply."""
    temperature: float = Field(default=1.0, ge=0)
    """Spread of the draw; 0 takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens of this total probability."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Against tokens that have occurred."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Against tokens, by how often they have occurred."""
    stop: list[str] = Field(default_factory=list, max_length=4)
    """Texts that end a reply."""
    seed: int | None = None
    """Sent to the endpoint where not null. Few endpoints promise anything about it."""

    def to_sampling(self) -> Sampling:
        """As the requests carry it."""
        return Sampling(**{**self.model_dump(), "stop": tuple(self.stop)})


class BatchSection(Section):
    """The Batch API: a day's wait at most, for half the price. Runs on the first endpoint."""

    enabled: bool = False
    """Send each round as batches instead of single requests."""
    poll: float = Field(default=60.0, gt=0)
    """Seconds between looks at a batch."""
    max_requests: int = Field(default=50_000, ge=1, le=50_000)
    """Most requests per batch."""
    max_bytes: int = Field(default=190_000_000, ge=1, le=200_000_000)
    """Most bytes per input file."""
    discount: float = Field(default=0.5, gt=0, le=1)
    """Factor on the prices."""


class TeacherSection(Section):
    model: str
    """Name of the model, as the endpoints and the price table know it."""
    endpoints: list[EndpointSection] = Field(default_factory=lambda: [EndpointSection(base_url="https://api.openai.com/v1")])
    """Where to ask; several share the work by weight, and one ledger."""
    sampling: SamplingSection = SamplingSection()
    retries: RetriesSection = RetriesSection()
    batch: BatchSection = BatchSection()

    @pydantic.model_validator(mode="after")
    def _names_differ(self) -> TeacherSection:
        if not self.endpoints:
            raise KeyedError("endpoints", "needs at least one endpoint")
        labels = [endpoint.label for endpoint in self.endpoints]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise KeyedError("endpoints", f"two endpoints are called {twice[0]!r}; give them different names")
        if self.batch.enabled and len(self.endpoints) > 1:
            raise KeyedError("batch.enabled", "a batch runs on one endpoint; keep one, or set batch.enabled to false")
        return self


class BudgetSection(Section):
    """Hard caps. Reaching one stops the run cleanly (exit status 3); raise it and resume."""

    max_money: float | None = Field(default=None, gt=0)
    """Most money, in ``currency``, over all calls of this run directory."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens, prompts and replies together."""
    max_requests: int | None = Field(default=None, ge=1)
    """Most replies paid for."""
    currency: str = "USD"
    """Label of the prices."""
    prices: dict[str, PriceSection] = Field(default_factory=dict)
    """Model -> price. A model that is not here is looked up in the dated table of ``selfinstruct/teacher/budget.py``."""
