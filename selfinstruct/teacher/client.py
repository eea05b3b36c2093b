"""One endpoint, through the door to the ``openai`` package: chat and legacy completions, files and batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from selfinstruct.records import Request
from selfinstruct.teacher.endpoints import Asking, Reply
from selfinstruct.teacher.rate import Clock
from selfinstruct.teacher.sections import EndpointSection, RetriesSection
from selfinstruct.teacher.wire import body_of, reply_of
from sft.remote.door import Door

if TYPE_CHECKING:
    import openai


class OpenAIClient:
    """Client of one endpoint.

    Args:
        section: address and name.
        retries: its time-outs.
        key: as ``endpoints.key_of`` found it; kept by the openai client alone.
        clock: for a Retry-After that is a date.
    """

    def __init__(self, section: EndpointSection, retries: RetriesSection, key: str | None, clock: Clock | None = None) -> None:
        unix = (clock or Clock()).unix
        self._door = Door(section.base_url, key, timeout=retries.timeout, connect_timeout=retries.connect_timeout, unix=unix)

    async def ask(self, request: Request, asking: Asking) -> Reply:
        """One attempt.

        Raises:
            CallFault: it went wrong; its ``action`` says what to do.
        """
        content, headers = await self._door.complete(body_of(request, asking), chat=request.kind == "chat")
        limits = {name: headers[name] for name in headers if name.startswith("x-ratelimit-")}
        return reply_of(content, request, limits)

    async def close(self) -> None:
        await self._door.close()

    # --- files and batches

    async def upload(self, name: str, content: bytes) -> str:
        """Upload an input file of a batch; its id."""
        return (
            await self._door.guarded(lambda client: client.files.create(file=(name, content), purpose="batch"), billed=False)
        ).id

    async def create_batch(self, file_id: str, path: str, mark: str) -> dict[str, Any]:
        """Start a batch, marked so that it can be found again; its state."""

        async def call(client: openai.AsyncOpenAI) -> Any:
            return await client.batches.create(
                input_file_id=file_id,
                endpoint=path,  # type: ignore[arg-type]
                completion_window="24h",
                metadata={"vicugna": mark},
            )

        return _plain(await self._door.guarded(call, billed=False))

    async def batch(self, id_: str) -> dict[str, Any]:
        """The state of a batch."""
        return _plain(await self._door.guarded(lambda client: client.batches.retrieve(id_), billed=False))

    async def find_batch(self, mark: str) -> dict[str, Any] | None:
        """The batch with a mark among the last few hundred of the account; None if there is none."""

        async def call(client: openai.AsyncOpenAI) -> Any:
            page = await client.batches.list(limit=100)
            for _ in range(5):
                for item in page.data:
                    if (item.metadata or {}).get("vicugna") == mark:
                        return item
                if not page.has_next_page():
                    return None
                page = await page.get_next_page()
            return None

        found = await self._door.guarded(call, billed=False)
        return None if found is None else _plain(found)

    async def download(self, file_id: str) -> bytes:
        """The content of a file."""

        async def call(client: openai.AsyncOpenAI) -> bytes:
            return (await client.files.content(file_id)).content

        return await self._door.guarded(call, billed=False)


def _plain(value: Any) -> dict[str, Any]:
    dumped: Mapping[str, Any] = value.model_dump(mode="json", warnings=False)
    return dict(dumped)
