"""The stages of a curation on the machines of a Ray cluster; the bytes are those of one process.

::

    this process     pieces of files ──> slices of rows ──> parts to make            the plan: no rows, but for files that cannot be cut
                            │ count           │                  │
    Ray Data          [tasks, any core]       └───> [actors: the stage's work, set up once each]
                                                       reads its rows, writes RUN/clean/00007.jsonl and .json, tells its report

What travels is where rows are, and reports; rows lie in files that all machines see under the same path, as does the run directory. So a
part is the same file as elsewhere, with the same key, and a stopped run goes on anywhere. This is the only module that imports ``ray``.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from sft import errors
from sft.curate.fingerprint import code_fingerprint
from sft.curate.parts import Batch, PartReport, Work, finished, make_part
from sft.curate.slices import Piece, Slice, count, cut, pieces_of
from sft.data.jsonl import RawRow
from sft.errors import InputError, VicugnaError
from sft.recipe import Source

_LOCAL = "local"
_INLINE: Final = 50_000
"""Rows handed over by this process that may wait at once: bounds its memory where files cannot be cut."""
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Set unless the environment says otherwise: nothing is reported to anybody, and only what we say is on the screen."""


class RayWorkers:
    """Cores of a Ray cluster.

    Args:
        address: ``local`` starts a cluster on this machine, which ends with the curation; anything else is that of one that runs.
        count: cores to work on; None is all of the cluster.
        code: fingerprint that every machine's code must have.

    Raises:
        InputError: Ray is not installed, or there is no cluster.
    """

    def __init__(self, address: str, count: int | None, code: str) -> None:
        self._address, self._wanted, self._code = address, count, code
        self._count = count or 1
        self._ray, self._own = _ray(), False

    def __enter__(self) -> RayWorkers:
        if not self._ray.is_initialized():
            self._start()
            self._own = True
        self._count = self._wanted or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        context = self._ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = (
            True  # reports come in the order of the parts, so the first error is the same too
        )
        return self

    def _start(self) -> None:
        local = self._address == _LOCAL
        options = {"num_cpus": self._wanted or os.cpu_count(), "include_dashboard": False} if local else {}
        _refuse_far(self._address)
        try:
            with _silent():
                self._ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(self._address, error) from None

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._ray.shutdown()

    def batches(self, source: Source, made: tuple[Any, ...], rows: int, first: int) -> Iterator[Batch] | None:
        """Batches of slices; None for a source with files that cannot be cut: this process reads them, and hands the rows on."""
        if (pieces := pieces_of(source)) is None:
            return None
        counted = [Piece(**told) for told in self._map(_Counter, {}, map(asdict, pieces))]
        slices = enumerate(cut(counted, rows, source.limit), first)
        return (Batch(index, source.label, "", slices=some, made=made) for index, some in slices)

    def run(
        self, folder: Path, batches: Iterable[Batch], make_work: Callable[[Any], Work], settings: Any
    ) -> Iterator[PartReport]:
        """The reports of all parts in their order."""
        for some in _windows(batches):
            about = {"make_work": make_work, "settings": json.dumps(settings), "run": str(folder)}
            for told in self._map(_Maker, about, map(packed, some)):
                report = PartReport.from_json(told["report"])
                report.reused = told["reused"]
                yield report

    def _map(self, actor: type[_Actor], about: Mapping[str, Any], items: Iterable[Any]) -> Iterator[Any]:
        """An actor's answers to plain data, in order; each item is a task of its own."""
        rows = [{"item": json.dumps(item)} for item in items]
        if not rows:
            return
        data = self._ray.data
        asked = data.from_items(rows, override_num_blocks=len(rows)).map(
            actor,
            fn_constructor_kwargs={**about, "folder": os.getcwd(), "code": self._code},
            compute=data.ActorPoolStrategy(size=min(self._count, len(rows))),
            num_cpus=1,
        )
        for row in asked.iter_rows():
            told = json.loads(row["told"])
            if error := told.get("error"):
                raise getattr(errors, error["kind"], VicugnaError)(error["message"])
            yield told["answer"]


def _ray() -> ModuleType:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("output.ray needs Ray: pip install 'vicugna[ray]', on every machine of the cluster") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


@contextmanager
def _silent() -> Iterator[None]:
    """Without what Ray's core writes past Python: one line to say that it was asked to be quiet. Errors are raised all the same."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _refuse_far(address: str) -> None:
    """Where Ray would try for two minutes, or come in by a door behind which the files are not."""
    if address.startswith("ray://"):
        raise InputError(
            "output.ray: ray:// is for machines outside a cluster, which do not see its files; start this on one inside"
        )
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> InputError:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    cure = "start one with `ray start --head`, or write output.ray: local"
    return InputError(f"output.ray: no Ray cluster at {address!r} ({said}); {cure}")


def _windows(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Batches to be handed over together: as many as there are, but few at a time where they hold their rows."""
    some: list[Batch] = []
    rows = 0
    for batch in batches:
        some.append(batch)
        rows += len(batch.rows)
        if rows >= _INLINE:
            yield some
            some, rows = [], 0
    if some:
        yield some


def packed(batch: Batch) -> dict[str, Any]:
    """A batch as plain data."""
    return {
        **{name: getattr(batch, name) for name in ("index", "source", "key", "made")},
        "rows": [[raw.where, raw.value, raw.error] for raw in batch.rows],
        "slices": [one.to_json() for one in batch.slices],
        "path": None if batch.path is None else str(batch.path),
        "leave_out": sorted(batch.leave_out.items()),
        "rename": sorted(batch.rename.items()),
    }


def unpacked(value: Mapping[str, Any]) -> Batch:
    """The batch that :func:`packed` told, perhaps by way of JSON."""
    return Batch(
        index=value["index"],
        source=value["source"],
        key=value["key"],
        made=tuple(value["made"]),
        rows=tuple(RawRow(*raw) for raw in value["rows"]),
        slices=tuple(Slice.from_json(one) for one in value["slices"]),
        path=None if value["path"] is None else Path(value["path"]),
        leave_out={number: (reason, detail) for number, (reason, detail) in value["leave_out"]},
        rename=dict(value["rename"]),
    )


# --- on the machines of the cluster ----------------------------------------------------------------------------------------


class _Actor:
    """Answers in JSON. What a user can mend is told, not raised: it is to look the same as without Ray."""

    def __init__(self, folder: str, code: str) -> None:
        self._fault: VicugnaError | None = None
        try:
            _same_place(folder, code)
            self.begin()
        except VicugnaError as error:
            self._fault = error

    def begin(self) -> None:
        """Done once, before the first question."""

    def answer(self, item: Any) -> dict[str, Any]:
        """Plain data for plain data."""
        raise NotImplementedError

    def __call__(self, row: Mapping[str, str]) -> dict[str, str]:
        try:
            if self._fault is not None:
                raise self._fault
            told = {"answer": self.answer(json.loads(row["item"]))}
        except VicugnaError as error:
            told = {"error": {"kind": type(error).__name__, "message": str(error)}}
        return {"told": json.dumps(told)}


class _Counter(_Actor):
    """Counts the rows of pieces."""

    def answer(self, item: Any) -> dict[str, Any]:
        return asdict(count(Piece(**item)))


class _Maker(_Actor):
    """Makes parts of one stage."""

    def __init__(self, make_work: Callable[[Any], Work], settings: str, run: str, folder: str, code: str) -> None:
        self._make_work, self._settings, self._run = make_work, settings, Path(run)
        super().__init__(folder, code)

    def begin(self) -> None:
        self._work = self._make_work(json.loads(self._settings))

    def answer(self, item: Any) -> dict[str, Any]:
        batch = unpacked(item).loaded()
        report = finished(self._run, batch) or make_part(self._run, batch, self._work)
        return {"report": report.to_json(), "reused": report.reused}


def _same_place(folder: str, code: str) -> None:
    """Go where the curation was started, so that the paths of its recipe mean the same; refuse a machine where they cannot."""

    host = socket.gethostname()
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(f"output.ray: {host} does not see {folder} ({error.strerror}); all machines must share it") from None
    if code_fingerprint() != code:
        raise InputError(f"output.ray: {host} has another version of this package or of its libraries; install the same there")
