"""Group commit on the event loop: order, durability before the answer, and every way it can end."""

import asyncio
import errno
import gc
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from enginegate.errors import StorageUnavailableError
from enginegate.facts import AnyFact
from enginegate.journal import Committer, Journal
from enginegate.journal import committer as committer_module
from tests.journal.rig import (
    KEY,
    SEGMENT_BYTES,
    FaultyStorage,
    ManualClock,
    booted,
    destroyed,
    engine,
    no_check,
    note,
    opened,
    product,
    provisioned,
    snapshots,
    tail_of,
)


class GatedStorage(FaultyStorage):
    """Storage whose syncs wait for the test, so that a frame can be held in flight."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def fdatasync(self, fd: int) -> None:
        self.gate.wait()
        super().fdatasync(fd)


class Rig:
    """A committer on a real journal, with what it applied and how often it gave up."""

    def __init__(self, directory: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.storage = GatedStorage()
        self.clock = ManualClock()
        self.directory = directory
        self.journal = Journal.open(
            directory,
            key_id=KEY,
            storage=self.storage,
            segment_bytes=segment_bytes,
            snapshot_after_bytes=20_000,
            check=no_check,
        )
        self.journal.begin([])
        self.applied: list[tuple[int, AnyFact]] = []
        self.batches: list[int] = []
        self.abandoned = 0
        self.source = lambda: [product()]
        self.committer = self.build(self.apply)

    def build(self, apply: Callable[..., None], **more: object) -> Committer:
        options = {"snapshot_source": self.list_state, "clock": self.clock} | more
        return Committer(self.journal, apply=apply, abandon=self.abandon, **options)

    def list_state(self) -> list:
        return self.source()

    def apply(self, batch: list[tuple[int, AnyFact]]) -> None:
        self.applied += batch
        self.batches.append(len(batch))

    def abandon(self) -> None:
        self.abandoned += 1

    async def tick(self) -> None:
        """Let a second pass, and wait until the committer has dealt with it."""
        self.clock.advance(1.0)
        await settle()


async def settle() -> None:
    """Let the loop and the journal's thread come to rest."""
    loop = asyncio.get_running_loop()
    for _ in range(20):
        await loop.run_in_executor(None, int)


@asynccontextmanager
async def running(directory: Path, **options: int) -> AsyncIterator[Rig]:
    rig = Rig(directory, **options)
    async with asyncio.TaskGroup() as group:
        group.create_task(rig.committer.run())
        await settle()
        try:
            yield rig
        finally:
            rig.storage.gate.set()
            await rig.committer.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await settle()


# --- the ordinary road --------------------------------------------------------------------------


async def test_a_future_gives_the_number_of_its_fact(tmp_path):
    """A future resolves with the audit number after the fact is durable and applied."""
    async with running(tmp_path / "data") as rig:
        assert await rig.committer.submit(booted(1)) == 1
        assert rig.applied == [(1, booted(1))]
        assert await rig.committer.submit(destroyed(1)) == 2
    assert tail_of(tmp_path / "data") == [(1, booted(1)), (2, destroyed(1))]


async def test_what_queues_during_a_sync_becomes_one_frame(tmp_path):
    """Everything submitted while a frame is in flight is the next frame, in order."""
    async with running(tmp_path / "data") as rig:
        rig.storage.gate.clear()
        first = rig.committer.submit(booted(0))
        await settle()
        rest = [rig.committer.submit(booted(index)) for index in range(1, 30)]
        await settle()
        assert rig.applied == []
        assert not first.done()
        rig.storage.gate.set()
        assert await asyncio.gather(first, *rest) == list(range(1, 31))
        assert rig.batches == [1, 29]
        assert [fact for _, fact in rig.applied] == [booted(index) for index in range(30)]


async def test_memory_changes_before_the_waiter_wakes(tmp_path):
    """Whoever waited for a fact finds it applied."""
    async with running(tmp_path / "data") as rig:
        for index in range(5):
            number = await rig.committer.submit(booted(index))
            assert rig.applied[-1][0] == number


async def test_batches_are_bounded(tmp_path, monkeypatch):
    """A long queue is written in several frames, by count and by size, in order."""
    monkeypatch.setattr(committer_module, "MAX_BATCH_FACTS", 10)
    async with running(tmp_path / "data") as rig:
        futures = [rig.committer.submit(booted(index)) for index in range(25)]
        assert await asyncio.gather(*futures) == list(range(1, 26))
        assert rig.batches == [10, 10, 5]
        large = [rig.committer.submit(note(index, size=3_000_000)) for index in range(2)]
        assert await asyncio.gather(*large) == [26, 27]
        assert rig.batches[3:] == [1, 1]


async def test_a_queue_without_end_is_refused(tmp_path, monkeypatch):
    """Beyond a bound, a change is refused at once instead of queued."""
    monkeypatch.setattr(committer_module, "MAX_QUEUED_FACTS", 3)
    async with running(tmp_path / "data") as rig:
        rig.storage.gate.clear()
        futures = [rig.committer.submit(booted(index)) for index in range(3)]
        with pytest.raises(StorageUnavailableError, match="Too many"):
            rig.committer.submit(booted(4))
        rig.storage.gate.set()
        assert await asyncio.gather(*futures) == [1, 2, 3]


async def test_a_caller_who_leaves_does_not_unwrite_the_fact(tmp_path):
    """Cancelling a future leaves its fact and those beside it in place."""
    async with running(tmp_path / "data") as rig:
        gone = rig.committer.submit(booted(1))
        stays = rig.committer.submit(booted(2))
        gone.cancel()
        assert await stays == 2
        assert len(rig.applied) == 2


async def test_a_fact_that_cannot_be_written_hurts_nobody_else(tmp_path):
    """A fact with unwritable metadata is refused to its caller alone."""
    async with running(tmp_path / "data") as rig:
        good = rig.committer.submit(booted(1))
        bad = booted(2)
        bad.metadata["object"] = object()
        with pytest.raises(TypeError):
            rig.committer.submit(bad)
        assert await good == 1
        assert rig.journal.status == "ok"


# --- closing ------------------------------------------------------------------------------------


async def test_close_writes_what_is_queued(tmp_path):
    """Closing drains the queue, then refuses; it may be repeated."""
    async with running(tmp_path / "data") as rig:
        futures = [rig.committer.submit(booted(index)) for index in range(5)]
        await rig.committer.close()
        assert [future.result() for future in futures] == [1, 2, 3, 4, 5]
        with pytest.raises(StorageUnavailableError, match="closed"):
            rig.committer.submit(booted(9))
        await rig.committer.close()
    assert len(tail_of(tmp_path / "data")) == 5


async def test_close_without_a_run_fails_what_is_queued(tmp_path):
    """Facts queued before the task ever ran are refused, not forgotten."""
    rig = Rig(tmp_path / "data")
    future = rig.committer.submit(booted())
    await rig.committer.close()
    with pytest.raises(StorageUnavailableError):
        await future
    assert tail_of(tmp_path / "data") == []


async def test_cancelling_the_task_fails_what_is_queued(tmp_path):
    """A cancelled committer leaves no future unresolved, and nothing is accepted after it."""
    rig = Rig(tmp_path / "data")
    task = asyncio.create_task(rig.committer.run())
    await settle()
    rig.storage.gate.clear()
    first = rig.committer.submit(booted(1))
    await settle()
    second = rig.committer.submit(booted(2))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for future in (first, second):
        with pytest.raises(StorageUnavailableError):
            await future
    with pytest.raises(StorageUnavailableError):
        rig.committer.submit(booted(3))
    rig.storage.gate.set()
    await rig.committer.close()
    assert rig.applied == []


async def test_futures_that_nobody_awaits_make_no_noise(tmp_path, caplog):
    """A failed future that nobody looks at does not complain when it is collected."""
    async with running(tmp_path / "data") as rig:
        rig.storage.faults["fdatasync"] = errno.EIO
        for index in range(3):
            rig.committer.submit(booted(index))
        await until(lambda: rig.journal.status == "failed")
        await settle()
    gc.collect()
    assert "never retrieved" not in caplog.text


# --- a full disk --------------------------------------------------------------------------------


async def fill(rig: Rig) -> int:
    """Submit until the disk is full; return how many facts were taken."""
    rig.storage.faults["allocate"] = errno.ENOSPC
    for count in range(100):
        if rig.abandoned:
            return count - 1
        with suppress(StorageUnavailableError):
            await rig.committer.submit(note(count, size=1000))
    raise AssertionError


async def test_a_full_disk_refuses_changes_and_heals(tmp_path):
    """Full: queued facts fail, later ones at once; with room it goes on by itself."""
    async with running(tmp_path / "data") as rig:
        count = await fill(rig)
        assert rig.abandoned == 1
        assert rig.journal.status == "full"
        with pytest.raises(StorageUnavailableError, match="disk is full"):
            rig.committer.submit(booted())
        await rig.tick()
        assert rig.journal.status == "full"
        rig.storage.faults.clear()
        rig.clock.advance(1.0)
        await until(lambda: rig.journal.status == "ok")
        assert await rig.committer.submit(booted()) == count + 1
    assert len(tail_of(tmp_path / "data")) == count + 1


async def test_a_caller_who_left_is_not_told(tmp_path):
    """Giving up passes over futures that were cancelled meanwhile."""
    async with running(tmp_path / "data") as rig:
        rig.storage.faults["allocate"] = errno.ENOSPC
        gone = rig.committer.submit(note(0, size=SEGMENT_BYTES))
        stays = rig.committer.submit(booted(1))
        gone.cancel()
        with pytest.raises(StorageUnavailableError, match="disk is full"):
            await stays
        assert gone.cancelled()


async def test_everything_queued_fails_with_the_batch_that_did_not_fit(tmp_path):
    """Facts decided on top of one that failed fail with it, and nothing of them is written."""
    async with running(tmp_path / "data") as rig:
        rig.storage.faults["allocate"] = errno.ENOSPC
        futures = [rig.committer.submit(note(0, size=SEGMENT_BYTES))]
        futures += [rig.committer.submit(booted(index)) for index in range(3)]
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert all(isinstance(result, StorageUnavailableError) for result in results)
        assert rig.abandoned == 1
        assert rig.applied == []
    assert tail_of(tmp_path / "data") == []


async def test_stop_and_destroy_work_on_a_full_disk(tmp_path):
    """Facts that may use the reserve are written while others are refused."""
    async with running(tmp_path / "data", segment_bytes=32 * 1024) as rig:
        count = await fill(rig)
        assert await rig.committer.submit(destroyed(), use_reserve=True) == count + 1
        with pytest.raises(StorageUnavailableError):
            rig.committer.submit(booted())
        assert rig.abandoned == 1


# --- a failed disk, and bugs --------------------------------------------------------------------


async def test_a_failed_sync_refuses_changes_for_ever(tmp_path):
    """After a failed sync everything queued fails, and so does every later change."""
    async with running(tmp_path / "data") as rig:
        await rig.committer.submit(booted(0))
        rig.storage.gate.clear()
        first = rig.committer.submit(booted(1))
        await settle()
        second = rig.committer.submit(booted(2))
        rig.storage.faults["fdatasync"] = errno.EIO
        rig.storage.once = True
        rig.storage.gate.set()
        for future in (first, second):
            with pytest.raises(StorageUnavailableError, match="restart"):
                await future
        assert rig.abandoned == 1
        assert rig.applied == [(1, booted(0))]
        for use_reserve in (False, True):
            with pytest.raises(StorageUnavailableError, match="restart"):
                rig.committer.submit(booted(3), use_reserve=use_reserve)
        await rig.tick()
        assert rig.journal.status == "failed"
        rig.storage.asked.clear()
    assert not {"pwrite", "fdatasync"} & set(rig.storage.asked)


async def test_a_bug_in_apply_latches(tmp_path, caplog):
    """When memory cannot follow the disk, no more changes are taken; the task ends quietly."""
    rig = Rig(tmp_path / "data")

    def broken(batch: object) -> None:
        raise ZeroDivisionError

    committer = rig.build(broken)
    future = committer.submit(booted())
    await committer.run()
    with pytest.raises(StorageUnavailableError):
        await future
    assert rig.journal.status == "failed"
    assert rig.abandoned == 1
    with pytest.raises(StorageUnavailableError):
        committer.submit(booted())
    await committer.close()
    assert "over a bug" in caplog.text


async def test_a_bug_in_abandon_leaves_no_future_behind(tmp_path, caplog):
    """Even when giving up fails, every waiter gets an answer."""
    rig = Rig(tmp_path / "data")

    def broken() -> None:
        raise ZeroDivisionError

    committer = Committer(rig.journal, apply=rig.apply, abandon=broken, clock=rig.clock)
    rig.storage.faults["pwrite"] = errno.EIO
    future = committer.submit(booted())
    await committer.run()
    with pytest.raises(StorageUnavailableError):
        await future
    await committer.close()
    assert "abandon failed as well" in caplog.text


# --- idleness and snapshots ---------------------------------------------------------------------


async def test_an_idle_journal_is_sealed(tmp_path):
    """After a second without facts one seal is written, and no second one."""
    async with running(tmp_path / "data") as rig:
        await rig.committer.submit(booted())
        sequence = rig.journal.sequence
        await rig.tick()
        assert rig.journal.sequence == sequence
        await rig.tick()
        await until(lambda: rig.journal.sequence == sequence + 1)
        await rig.tick()
        assert rig.journal.sequence == sequence + 1


async def test_a_snapshot_is_made_when_it_is_due(tmp_path):
    """When enough was written, the state as of a rotation is snapshot beside the commits."""
    async with running(tmp_path / "data", segment_bytes=64 * 1024) as rig:
        rig.source = lambda: [engine(len(rig.applied))]
        for index in range(25):
            await rig.committer.submit(note(index, size=1000))
        await until(lambda: len(snapshots(tmp_path / "data")) == 2)
    with opened(tmp_path / "data") as journal:
        (record,) = journal.snapshot
        assert len(journal.tail) == 25 - int(record.engine_id.removeprefix("engine-"))


async def test_compaction_on_request(tmp_path):
    """A request for compaction resolves when the snapshot is on disk."""
    async with running(tmp_path / "data") as rig:
        await rig.committer.submit(provisioned())
        both = asyncio.gather(rig.committer.compact(), rig.committer.compact())
        await both
        assert len(snapshots(tmp_path / "data")) == 2
    with opened(tmp_path / "data") as journal:
        assert (journal.snapshot, journal.tail) == ([product()], [])


async def test_a_caller_may_leave_a_compaction(tmp_path):
    """Cancelling the wait for a compaction does not cancel it."""
    async with running(tmp_path / "data") as rig:
        rig.committer.compact().cancel()
        await until(lambda: len(snapshots(tmp_path / "data")) == 2)


async def test_close_waits_for_a_snapshot_under_way(tmp_path):
    """Closing while a snapshot is being written lets it finish."""
    async with running(tmp_path / "data") as rig:
        hold = threading.Event()
        write = rig.journal.write_encoded

        def held(*args: object, **options: object) -> None:
            hold.wait()
            write(*args, **options)

        rig.journal.write_encoded = held
        future = rig.committer.compact()
        await settle()
        closing = asyncio.ensure_future(rig.committer.close())
        await settle()
        assert not closing.done()
        hold.set()
        await closing
        await future
    assert len(snapshots(tmp_path / "data")) == 2


async def test_close_ends_the_rests_of_a_snapshot_under_way(tmp_path, monkeypatch):
    """What rests between blocks for the loop's sake has nobody to rest for any more."""
    monkeypatch.setattr(committer_module, "PACE_BYTES_PER_S", 1e-3)
    async with running(tmp_path / "data") as rig:
        future = rig.committer.compact()
        await until(lambda: any((tmp_path / "data").glob("snap-*.tmp")))
        await asyncio.wait_for(rig.committer.close(), 10)
        await future
    assert len(snapshots(tmp_path / "data")) == 2


async def test_facts_go_on_while_a_large_state_is_encoded(tmp_path):
    """A snapshot of many takes its time, and is the state as of its rotation all the same."""
    async with running(tmp_path / "data") as rig:
        rig.source = lambda: [engine(number) for number in range(1000)]
        future = rig.committer.compact()
        await until(lambda: rig.clock.sleepers == 2)  # the ticks, and the snapshot
        assert await rig.committer.submit(booted()) == 1
        assert not future.done()
        while not future.done():
            rig.clock.advance(0.001)
            await asyncio.sleep(0)
        await future
    with opened(tmp_path / "data") as journal:
        assert (len(journal.snapshot), len(journal.tail)) == (1000, 1)


async def test_close_does_not_wait_for_a_state_to_be_encoded(tmp_path):
    """What is not on its way to the disk yet is given up; the journal is as long as before."""
    async with running(tmp_path / "data") as rig:
        rig.source = lambda: [engine(number) for number in range(1000)]
        future = rig.committer.compact()
        await until(lambda: rig.clock.sleepers == 2)  # the ticks, and the snapshot
        await rig.committer.close()
        with pytest.raises(StorageUnavailableError, match="closed"):
            await future
    assert len(snapshots(tmp_path / "data")) == 1


@pytest.mark.parametrize("operation", ["allocate", "unlink_none"])
async def test_a_snapshot_without_room_is_tried_again_later(tmp_path, operation):
    """A snapshot that finds no room fails its requests, does not stop facts, and comes later."""
    async with running(tmp_path / "data") as rig:
        if operation == "allocate":
            rig.storage.faults["allocate"] = errno.ENOSPC
        else:
            rig.storage.only = ".egs.tmp"
            rig.storage.faults["create"] = errno.ENOSPC
        with pytest.raises(StorageUnavailableError, match="No snapshot"):
            await rig.committer.compact()
        assert rig.journal.status == "ok"
        assert await rig.committer.submit(booted()) == 1
        rig.storage.faults.clear()
        for index in range(25):
            await rig.committer.submit(note(index, size=1000))
        await settle()
        assert len(snapshots(tmp_path / "data")) == 1
        rig.clock.time += 61
        await rig.committer.submit(booted())
        await until(lambda: len(snapshots(tmp_path / "data")) == 2)


@pytest.mark.parametrize("only", ["rotation", "snapshot"])
async def test_a_snapshot_on_a_failed_disk_latches(tmp_path, only):
    """A disk that fails while compacting refuses changes from then on."""
    async with running(tmp_path / "data") as rig:
        rig.storage.only = ".egs" if only == "snapshot" else ".egj"
        rig.storage.faults["create"] = errno.EIO
        with pytest.raises(StorageUnavailableError):
            await rig.committer.compact()
        assert rig.journal.status == "failed"
        await until(lambda: rig.abandoned == 1)
        with pytest.raises(StorageUnavailableError):
            rig.committer.compact()


async def test_a_frame_in_flight_while_a_snapshot_fails_is_told_as_it_ended(tmp_path):
    """It reached the disk, so it is applied; what came after it is given up."""
    async with running(tmp_path / "data") as rig:
        rig.storage.only = ".egs"
        rig.storage.faults["create"] = errno.EIO
        rig.source = lambda: [engine(number) for number in range(1000)]
        compacted = rig.committer.compact()
        await until(lambda: rig.clock.sleepers == 2)  # the ticks, and the snapshot
        rig.storage.gate.clear()
        first = rig.committer.submit(provisioned())
        await settle()
        while rig.journal.status == "ok":
            rig.clock.advance(0.001)
            await settle()
        assert (rig.applied, rig.abandoned) == ([], 0)
        rig.storage.gate.set()
        assert await first == 1
        with pytest.raises(StorageUnavailableError):
            await compacted
        await until(lambda: rig.abandoned == 1)
        assert rig.applied == [(1, provisioned())]
        with pytest.raises(StorageUnavailableError):
            rig.committer.submit(booted())


async def test_without_a_source_there_are_no_snapshots(tmp_path):
    """A committer that cannot list the state refuses to compact."""
    rig = Rig(tmp_path / "data")
    committer = rig.build(rig.apply, snapshot_source=None)
    with pytest.raises(StorageUnavailableError):
        committer.compact()
    await committer.close()
