"""The ledger's laws: what was acknowledged is there, whatever byte a kill fell on; damage is an error with its line, never a repair."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfinstruct.records import Completion, Failure, Message, Request, Sampling, Usage
from selfinstruct.teacher.journal import Journal
from selfinstruct.teacher.ledger import Entry, Ledger, LedgerBroken, LedgerError, LedgerLocked, encode
from sft.errors import DataError, InputError

ODD = 'a line\nbreak, \u2028, 作为, \ud800, \x00 and {"crc":"00000000"'


def request(number: int, text: str = "") -> Request:
    return Request(model="m", messages=(Message("user", f"{number} {text}"),), sampling=Sampling(10), index=number)


def completion(asked: Request, text: str = "yes") -> Completion:
    return Completion(request_id=asked.id, text=text, finish_reason="stop", usage=Usage(3, 4), cost=0.25, created=1.5)


def filled(path: Path, count: int = 3) -> list[Request]:
    asked = [request(number, ODD) for number in range(count)]
    with Ledger.open(path) as ledger:
        for one in asked:
            ledger.put(completion(one, ODD), one)
    return asked


def test_what_was_put_is_read_back_after_reopening(tmp_path: Path) -> None:
    asked = filled(tmp_path / "l.jsonl")
    failed = request(99)
    with Ledger.open(tmp_path / "l.jsonl") as ledger:
        ledger.put_many([Entry(failed, None, Failure(failed.id, "content_filter", "no"))])
    with Ledger.open(tmp_path / "l.jsonl") as ledger:
        assert [ledger.get(one.id) for one in asked] == [completion(one, ODD) for one in asked]
        assert ledger.get(failed.id) is None
        assert ledger.entry(failed.id) == Entry(failed, None, Failure(failed.id, "content_filter", "no"))
        assert [entry.request for entry in ledger.iterate()] == [*asked, failed]
        assert (len(ledger), ledger.totals.completions, ledger.totals.failures, ledger.totals.tokens) == (4, 3, 1, 21)
        assert ledger.totals.money == 750_000_000_000
        assert request(5).id not in ledger


def test_a_kill_at_any_byte_of_the_last_line_loses_that_line_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fsync", "fdatasync"):  # thousands of syncs would take longer than the rest of the suite
        monkeypatch.setattr(os, name, lambda fd: None)
    path = tmp_path / "l.jsonl"
    asked = filled(path)
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for end in range(start, len(whole)):
        folder = tmp_path / str(end)
        folder.mkdir()
        (folder / "l.jsonl").write_bytes(whole[:end])
        with Ledger.open(folder / "l.jsonl") as ledger:
            assert [one.id in ledger for one in asked] == [True, True, False]
            assert ledger.totals.repaired_bytes == end - start
            ledger.put(completion(asked[2], ODD), asked[2])
        assert (folder / "l.jsonl").read_bytes() == whole
        side = folder / "l.jsonl.torn"
        assert (whole[start:end] in side.read_bytes()) if end > start else not side.exists()


def test_reading_only_repairs_nothing_and_takes_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    asked = filled(path)
    path.write_bytes(path.read_bytes()[:-7])
    before = path.read_bytes()
    with Ledger.open(path, read_only=True) as one, Ledger.open(path, read_only=True) as two:
        assert len(one) == len(two) == 2
        with pytest.raises(InputError, match="opened for reading only"):
            one.put(completion(asked[2]), asked[2])
    assert path.read_bytes() == before
    with pytest.raises(InputError, match=r"none\.jsonl: the ledger cannot be read: No such file"):
        Ledger.open(tmp_path / "none.jsonl", read_only=True)


def test_any_flipped_byte_of_a_whole_line_is_found_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for at in range(0, len(lines[1]) - 1, 7):
        spoilt = bytearray(lines[1])
        spoilt[at] ^= 1
        path.write_bytes(lines[0] + bytes(spoilt) + lines[2])
        with pytest.raises(LedgerError, match=r"l\.jsonl:[123]: "):
            Ledger.open(path)
    path.write_bytes(lines[0] + lines[1].replace(b"yes", b"no!") + b"\n" + lines[2])
    with pytest.raises(LedgerError, match=r"l\.jsonl:\d: not a ledger line|is damaged"):
        Ledger.open(path)


def test_a_line_without_a_checksum_is_checked_by_its_id(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    value = json.loads(encode(Entry(request(1), completion(request(1)))))
    del value["crc"]
    path.write_text(json.dumps(value) + "\n")
    with Ledger.open(path) as ledger:
        assert ledger.get(request(1).id) == completion(request(1))
    value["request"]["messages"][0]["content"] = "another question"
    path.write_text(json.dumps(value) + "\n")
    with pytest.raises(LedgerError, match=r"l\.jsonl:1: the request is not the one that its id"):
        Ledger.open(path)


def test_a_second_reply_does_not_replace_the_first(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l.jsonl") as ledger:
        ledger.put(completion(request(1), "first"), request(1))
        ledger.put(completion(request(1), "second"), request(1))
        assert ledger.totals.completions == 1
    with Ledger.open(tmp_path / "l.jsonl") as ledger:
        found = ledger.get(request(1).id)
        assert found is not None
        assert found.text == "first"


def test_two_processes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with Ledger.open(path) as ledger:
        ledger.put(completion(request(1)), request(1))
        before = path.read_bytes()
        with pytest.raises(LedgerLocked, match="another process is writing this ledger"):
            Ledger.open(path)
        assert path.read_bytes() == before
    Ledger.open(path).close()


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow past 4,000 bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


def fill(ledger: Ledger) -> None:
    for number in range(100):
        ledger.put(completion(request(number), "x" * 500), request(number))


def send(journal: Journal) -> None:
    for number in range(1000):
        journal.sent(str(number), 1, 1)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with Ledger.open(path) as ledger:
        with pytest.raises(
            LedgerBroken, match=r"the ledger cannot grow: .*; it is whole up to line \d+\. Make room and run again"
        ):
            fill(ledger)
        kept = len(ledger)
        assert 0 < kept < 100
        with pytest.raises(LedgerBroken):
            ledger.put(completion(request(200)), request(200))
    assert path.read_bytes().endswith(b"\n")
    with Ledger.open(path) as ledger:
        assert len(ledger) == kept
        assert ledger.totals.repaired_bytes == 0


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_fails_every_waiting_write(tmp_path: Path) -> None:
    async def main() -> list[object]:
        with Ledger.open(tmp_path / "l.jsonl") as ledger:
            entries = [Entry(request(n), completion(request(n), "x" * 500)) for n in range(50)]
            return list(await asyncio.gather(*(ledger.put_soon(entry) for entry in entries), return_exceptions=True))

    results = asyncio.run(main())
    assert all(result is None or isinstance(result, LedgerBroken) for result in results)
    with Ledger.open(tmp_path / "l.jsonl") as ledger:
        assert [result is None for result in results] == [request(n).id in ledger for n in range(50)]
        assert results.count(None) < 50


@pytest.fixture
def nobody() -> Iterator[None]:
    """Permissions do not bind root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_a_folder_without_permission_is_refused(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "l.jsonl"
    filled(path)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    request.getfixturevalue("nobody")
    with pytest.raises(InputError, match=r"l\.jsonl: the ledger cannot be written: Permission denied; nothing was asked"):
        Ledger.open(path)
    with pytest.raises(InputError, match="the ledger cannot be written: Permission denied"):
        Ledger.open(tmp_path / "new.jsonl")


def test_writes_that_wait_together_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    real = os.fdatasync

    def counted(fd: int) -> None:
        syncs.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", counted)

    async def main() -> None:
        with Ledger.open(tmp_path / "l.jsonl") as ledger:
            await asyncio.gather(*(ledger.put_soon(Entry(request(n), completion(request(n)))) for n in range(500)))
            assert len(ledger) == 500

    asyncio.run(main())
    assert 1 <= len(syncs) <= 3


_WRITER = """
import asyncio, sys
from tests.selfinstruct.test_ledger import *
async def main():
    ledger = Ledger.open(sys.argv[1])
    async def one(n):
        await ledger.put_soon(Entry(request(n), completion(request(n), "x" * (n % 977))))
        sys.stdout.write(request(n).id + "\\n")
        sys.stdout.flush()
    for start in range(0, 100000, 16):
        await asyncio.gather(*(one(n) for n in range(start, start + 16)))
asyncio.run(main())
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout is not None
    told = [process.stdout.readline().strip() for _ in range(300)]
    process.kill()
    told += [line.strip() for line in process.stdout.read().splitlines() if len(line.strip()) == 32]
    process.wait()
    process.stdout.close()
    with Ledger.open(path) as ledger:
        assert [one for one in told if one not in ledger] == []
        assert all(entry.completion is not None for entry in ledger.iterate())


def test_the_journal_counts_what_a_kill_left_open(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    answered = {"a", "e"}
    first = Journal(path, lambda id_: id_ in answered)
    for id_ in "abcd":
        first.sent(id_, 10, 7)
    first.free("b")
    first.lost("c")
    first.sent("e", 10, 7)
    first.lost("e")
    first.sent("e", 10, 7)
    first.close()  # d is open, and nothing more was written: as after a kill
    with path.open("ab") as file:
        file.write(b'{"sent": "z", "mon')
    second = Journal(path, lambda id_: id_ in answered)
    assert (second.spent.lost_requests, second.spent.lost_money, second.spent.lost_tokens) == (3, 30, 21)
    assert second.in_flight_at_kill == 1
    second.close()
    third = Journal(path, lambda id_: id_ in answered)
    assert (third.spent.lost_requests, third.in_flight_at_kill) == (3, 1)
    third.close()
    path.write_text('{"sums": 1}\n')
    with pytest.raises(DataError, match=r"asked\.jsonl:1: not a line of the journal"):
        Journal(path, lambda id_: False)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_does_not_tear_the_journal(tmp_path: Path) -> None:
    from sft.errors import RunError

    journal = Journal(tmp_path / "asked.jsonl", lambda id_: False)
    with pytest.raises(RunError, match="the journal of calls cannot be written: "):
        send(journal)
    journal.close()
    assert 0 < Journal(tmp_path / "asked.jsonl", lambda id_: False).in_flight_at_kill < 1000
