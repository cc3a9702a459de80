"""The fleet in memory and the one way to change it: `record`.

Deciding and reserving happen in one turn of the event loop: `record` evolves the
row at once, keeps the result beside the durable one (that is the reservation of
user, port, slug and quota) and queues the fact. When the journal has synced it,
`apply` installs the results in order. Readers therefore see nothing that is not
on disk, and a failed write leaves nothing to undo but the reservations.

A wall clock that steps back never makes the trail's times go back within a row;
order comes from the fact's number, so `since_ms` searches may stop early only by
the time of facts, which is good enough for a reader.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from enginegate import facts as f
from enginegate.clock import Clock
from enginegate.errors import JournalError, StorageUnavailableError
from enginegate.keys import KeyUnsealError
from enginegate.metrics import HOUR_MS, Meters
from enginegate.model import Engine, Outcome, Product, SnapshotRecord, Status
from enginegate.ports import PortMap
from enginegate.registry.fleet import LiveEngine, LiveProduct, Opener
from enginegate.registry.index import Index
from enginegate.registry.resealing import Sealer, resealed_snapshot, resealed_tail
from enginegate.registry.trail import RECENT_MAX, Trail
from enginegate.transitions import IllegalTransitionError, evolve

log = logging.getLogger(__name__)

EX_CONFIG = 78


class Writer(Protocol):
    """Where facts become durable: the journal's committer."""

    def submit(self, fact: f.AnyFact, *, use_reserve: bool = False) -> "asyncio.Future[int]": ...


class State(Protocol):
    """Whether the journal can be written: `ok`, `full` (heals by itself) or `failed`."""

    @property
    def status(self) -> str: ...

    def check(self) -> str:
        """Return the status after a look at the disk."""
        ...

    def has_reserve(self) -> bool:
        """Return whether an outcome can be written though the disk is full."""
        ...

    def out_of_room(self, why: str) -> None:
        """Be told that somebody found the disk full."""
        ...


class _Writable:
    """Stands in where no journal is asked, as in a replay."""

    status = "ok"

    def check(self) -> str:
        return self.status

    def has_reserve(self) -> bool:
        return True

    def out_of_room(self, why: str) -> None:
        """Nobody is here to be told."""


class _Pending(NamedTuple):
    fact: f.AnyFact
    after: Engine | None


Listener = Callable[[LiveEngine, f.AnyFact], None]


class Registry:
    """Products and engines by every key they are asked for."""

    def __init__(
        self,
        *,
        ports: PortMap,
        keyring: Opener,
        clock: Clock,
        url_of: Callable[[Engine], str],
        sleep_after_s: float,
    ) -> None:
        self.index = Index(
            ports=ports,
            keyring=keyring,
            clock=clock,
            url_of=url_of,
            sleep_after_s=sleep_after_s,
        )
        self.ports = ports
        self.clock = clock
        self.trail = Trail()
        self.meters = Meters()
        self.products = self.index.products
        self.by_slug = self.index.by_slug
        self.by_key = self.index.by_key
        self.engines = self.index.engines
        self.retired = self.index.retired
        self.spares = self.index.spares
        self.walk = self.index.walk
        self.listeners: list[Listener] = []
        self._writer: Writer | None = None
        self._journal: State = _Writable()
        self._pending: deque[_Pending] = deque()
        self._ahead: dict[str, Engine | None] = {}
        self._last: asyncio.Future[int] | None = None

    # Questions

    @property
    def journal_status(self) -> str:
        """Return `ok`, `full` (heals by itself) or `failed` (until a restart)."""
        return self._journal.status

    def takes_changes(self, *, reserve: bool = False) -> bool:
        """Return whether changes can be written, after a look at the disk.

        With `reserve` it is enough that their outcome fits into what is kept for a full one.
        """
        status = self._journal.check()
        return status == "ok" or (status == "full" and reserve and self._journal.has_reserve())

    def out_of_room(self, why: str) -> None:
        """Take note that the backend found the disk full: no change is begun until it is not."""
        self._journal.out_of_room(why)

    def product_by_key(self, digest: bytes) -> LiveProduct | None:
        """Return the product whose platform key has this SHA-256, old keys in overlap too."""
        return self.index.product_by_key(digest)

    def slug_taken(self, slug: str) -> bool:
        return slug in self.index.slugs

    def free_port(self, avoid: Iterable[int] = ()) -> int | None:
        return self.ports.free_port(set(avoid))

    def ahead(self, engine_id: str) -> Engine | None:
        """Return the row as it will be once everything queued is durable."""
        if engine_id in self._ahead:
            return self._ahead[engine_id]
        live = self.engines.get(engine_id)
        return live.engine if live else None

    def knows(self, engine_id: str) -> bool:
        """Return whether the engine has a row, a user's or a spare's, or is getting one."""
        return self.ahead(engine_id) is not None or engine_id in self.spares.rows

    def counts(self, products: Iterable[LiveProduct]) -> dict[str, int]:
        """Return the number of engines in each of the six states."""
        kept = [product.roster.counts for product in products]
        return {status.value: sum(counts[status] for counts in kept) for status in Status}

    # Changes

    def record(self, fact: f.AnyFact, *, use_reserve: bool = False) -> "asyncio.Future[int]":
        """Reserve what the fact needs and queue it; the future ends when it is durable.

        `use_reserve` lets it into the space kept for a full disk: stop and destroy, and the
        outcome of what is done already.

        Raises:
            IllegalTransitionError: it cannot follow; nothing has changed.
            StorageUnavailableError: nothing can be written now; nothing has changed.
        """
        assert self._writer is not None
        after = self._follow(fact)
        future = self._writer.submit(fact, use_reserve=use_reserve)
        self._reserve(fact, after)
        self._pending.append(_Pending(fact, after))
        self._last = future
        return future

    async def flushed(self) -> None:
        """Wait until everything recorded so far is durable or refused."""
        if self._last is not None and not self._last.done():
            await asyncio.wait([self._last])

    async def commit(self, fact: f.AnyFact, *, use_reserve: bool = False) -> int:
        """Record the fact and wait until it is durable; return its number.

        A caller that is cancelled meanwhile takes nothing back, and ends no sooner: whoever
        has the next turn on the engine finds its row as it is.

        Raises:
            StorageUnavailableError: it could not be written; nothing has changed.
            IllegalTransitionError: it cannot follow.
        """
        future = self.record(fact, use_reserve=use_reserve)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    def note(
        self,
        action: str,
        *,
        live: LiveEngine | None = None,
        product: Product | None = None,
        user_id: str | None = None,
        outcome: Outcome = Outcome.OK,
        actor: str = "system",
        duration_ms: float | None = None,
        **metadata: Any,
    ) -> None:
        """Queue an audit entry that changes no state; lost, not raised, if the disk is full."""
        engine = live.engine if live else None
        owner = product or (live.owner.product if live else None)
        fact = f.Noted(
            at_ms=self.clock.wall_ms(),
            actor=actor,
            duration_ms=duration_ms,
            metadata=metadata,
            action=action,
            outcome=outcome,
            product_id=owner.product_id if owner else None,
            user_id=engine.user_id if engine else user_id,
            engine_id=engine.engine_id if engine else None,
        )
        try:
            self.record(fact).add_done_callback(_seen)
        except StorageUnavailableError:
            log.warning("not audited, the journal cannot be written: %s", action)

    def _follow(self, fact: f.AnyFact) -> Engine | None:
        if isinstance(fact, f.EngineFact):
            return evolve(self.ahead(fact.engine_id), fact)
        return None

    def _reserve(self, fact: f.AnyFact, after: Engine | None) -> None:
        if isinstance(fact, f.EngineFact):
            self._ahead[fact.engine_id] = after
        self._hold(fact)

    def _hold(self, fact: f.AnyFact) -> None:
        """Take what the fact needs: a user, a port, a slug."""
        match fact:
            case f.Provisioned():
                self.ports.lease(fact.port)
                self.products[fact.product_id].promised[fact.user_id] = fact.engine_id
            case f.Claimed():
                assert fact.engine_id in self.spares.rows
                self.products[fact.product_id].promised[fact.user_id] = fact.engine_id
            case f.PortMoved() | f.SpareBegun():
                self.ports.lease(fact.port)
            case f.ProductRegistered():
                self.index.slugs.add(fact.slug)
            case _:
                pass  # holds nothing

    def abandon(self) -> None:
        """Forget every queued fact: the journal could not write them."""
        for fact, _ in self._pending:
            match fact:
                case f.Provisioned():
                    self.ports.release(fact.port)
                    del self.products[fact.product_id].promised[fact.user_id]
                case f.Claimed():
                    del self.products[fact.product_id].promised[fact.user_id]
                case f.PortMoved() | f.SpareBegun():
                    self.ports.release(fact.port)
                case f.ProductRegistered():
                    self.index.slugs.discard(fact.slug)
                case _:
                    pass  # held nothing
        self._pending.clear()
        self._ahead.clear()

    def apply(self, batch: Iterable[tuple[int, f.AnyFact]]) -> None:
        """Install facts that are durable now, in order."""
        for number, fact in batch:
            pending = self._pending.popleft()
            assert pending.fact is fact
            if isinstance(fact, f.EngineFact) and self._ahead[fact.engine_id] is pending.after:
                del self._ahead[fact.engine_id]
            self.index.install(fact, pending.after)
            self._count(fact)
            self.trail.add(number, fact)
            self._tell(fact)

    # Replay

    def load(
        self,
        snapshot: Iterable[SnapshotRecord],
        tail: Iterable[tuple[int, f.AnyFact]],
        *,
        sealer: Sealer | None = None,
    ) -> None:
        """Rebuild the fleet from the journal, its keys sealed anew where there is a `sealer`.

        Raises:
            JournalError: a fact cannot follow, and its number and the state are named; or the
                `sealer` cannot open an engine key.
        """
        try:
            if sealer is not None:
                snapshot, tail = resealed_snapshot(sealer, snapshot), resealed_tail(sealer, tail)
            self._load(snapshot, list(tail))
        except KeyUnsealError as error:
            raise JournalError(
                f"{error}; the file was edited, or sealed by another master key",
                path="journal",
                hint="Start with the master keys that this data directory was made with.",
                exit_code=EX_CONFIG,
            ) from error

    def _load(self, snapshot: Iterable[SnapshotRecord], tail: list[tuple[int, f.AnyFact]]) -> None:
        """Fold rows first and build the fleet of those that are left: once, not at every fact."""
        rows: dict[str, Engine] = {}
        for record in snapshot:
            if type(record) is Engine:  # isinstance costs a microsecond, of structs
                rows[record.engine_id] = record
            else:
                self.index.restore(record)
        hour_ago_ms = self.clock.wall_ms() - HOUR_MS
        for number, fact in tail:
            try:
                self._refold(rows, fact, hour_ago_ms)
            except IllegalTransitionError as error:
                raise JournalError(
                    f"fact {number}: {error}", path="journal", hint="Run `enginegate journal dump`."
                ) from error
        for number, fact in tail[-RECENT_MAX:]:  # older ones are read from disk when asked for
            self.trail.add(number, fact, tell=False)
        for engine in rows.values():
            self.index.restore_engine(engine)

    def _refold(self, rows: dict[str, Engine], fact: f.AnyFact, since_ms: int) -> None:
        if not isinstance(fact, f.EngineFact):
            self._hold(fact)
            self.index.install(fact, None)
            return
        after = evolve(rows.get(fact.engine_id), fact)
        if after is None:
            del rows[fact.engine_id]
        else:
            rows[fact.engine_id] = after
        if type(fact) is f.Claimed:
            self.ports.release(self.spares.remove(fact.engine_id).port)  # its row holds it now
        owner = self.products.get(fact.product_id)
        if owner is not None:
            owner.tally.count(fact, since_ms=since_ms)

    def attach(self, writer: Writer, journal: State) -> None:
        """Say where facts go from now on, and who knows whether they can."""
        self._writer = writer
        self._journal = journal

    def records(self) -> Iterator[SnapshotRecord]:
        """Yield what `snapshot` returns; nothing may be applied until all are taken."""
        return self.index.records()

    def snapshot(self) -> list[SnapshotRecord]:
        """Return the durable state as records that `load` understands."""
        return list(self.index.records())

    # Folds

    def _count(self, fact: f.AnyFact) -> None:
        if isinstance(fact, f.EngineFact):
            owner = self.products.get(fact.product_id)
            if owner is not None:
                owner.tally.count(fact)

    def _tell(self, fact: f.AnyFact) -> None:
        for live in self._concerned(fact):
            for listener in self.listeners:
                listener(live, fact)

    def _concerned(self, fact: f.AnyFact) -> Iterator[LiveEngine]:
        if isinstance(fact, f.PolicyChanged):
            yield from self.products[fact.product_id].engines.values()
        elif isinstance(fact, f.EngineFact) and fact.engine_id in self.engines:
            yield self.engines[fact.engine_id]


def _seen(future: "asyncio.Future[int]") -> None:
    """Mark the outcome as seen: nobody waits for a note."""
    if not future.cancelled():
        future.exception()
