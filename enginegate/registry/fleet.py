"""What memory holds beside the durable rows: leases, windows, work under way.

All of it is soft: rebuilt by living, never written. A live object stays the same
for the life of its row; the frozen `engine` or `product` in it is replaced when a
fact has become durable.
"""

import asyncio
from collections.abc import Sequence
from math import inf
from typing import Any, Protocol

from msgspec import Struct

from enginegate.metrics import Tally, Traffic
from enginegate.model import Engine, Product, Status
from enginegate.ratelimit import SlidingWindow
from enginegate.registry.roster import Roster

Value = str | float | int | bool | None


class Signal(Struct, gc=False, frozen=True):
    """A reason for being awake or asleep: what was seen, its value, and when."""

    kind: str
    value: Value
    at_ms: int


class Reading(Struct, gc=False, frozen=True, kw_only=True):
    """What an engine had consumed `at` a moment (monotonic seconds) of one incarnation.

    `moved` are bytes in both directions; since `still_since`, when they were `moved_then`
    and our probes `probes_then`, no more have moved than those probes account for.
    `probing_s` is what our probes had waited for it in all. None: it cannot be read.
    """

    at: float
    incarnation: int
    cpu_s: float | None
    wanted_s: float | None
    probing_s: float
    moved: int | None
    still_since: float
    moved_then: int | None
    probes_then: int


class Operation:
    """One verb at work on one engine. It belongs to a task, never to a request.

    Callers `join` it; one that leaves cancels nothing. `holds` says whether admits
    of a running engine have to wait for it.
    """

    __slots__ = ("actor", "done", "holds", "overtaken", "params", "since", "task", "verb")

    def __init__(self, verb: str, *, params: object, actor: str, holds: bool, since: float) -> None:
        self.verb = verb
        self.params = params
        self.actor = actor
        self.holds = holds
        self.since = since
        self.overtaken = False
        self.task: asyncio.Task[None] | None = None
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(_seen)

    async def join(self) -> Any:
        """Wait for the outcome: its result, or the `GateError` it ended with."""
        return await asyncio.shield(self.done)

    async def settled(self) -> None:
        """Wait until it is over, however it ended."""
        await asyncio.wait([self.done])

    async def settled_within(self, timeout_s: float) -> bool:
        """Wait until it is over or the time is; return whether it is over."""
        done, _ = await asyncio.wait([self.done], timeout=timeout_s)
        return bool(done)

    def overtake(self) -> None:
        """Cut it short for a destroy; what it began is undone by the destroy."""
        self.overtaken = True
        if self.task is not None:
            self.task.cancel()


def _seen(future: "asyncio.Future[Any]") -> None:
    """Mark an error as seen: an operation may end when nobody waits any more."""
    if not future.cancelled():
        future.exception()


class Opener(Protocol):
    """Opens sealed engine keys: the keyring, or nobody where keys are not needed."""

    def open(self, engine_id: str, sealed: str) -> str: ...


class LiveEngine:
    """One engine with its soft state.

    `answer` is the pre-encoded admit answer; it is set only while the engine may be
    admitted without a wait, and cleared whenever anything it shows may have changed.
    `lease_until` is monotonic seconds, `inf` for an engine that never sleeps;
    `put_off_until` is its value while it is a veto that has moved it, and `used_at` the
    last use before. `blind` says that its connections could not be seen at the last look.
    `life` is the backend's name for the life that was last started or adopted. `keys` open
    the sealed key when somebody first asks for it: a start does not, it would take as long
    as all else that a large fleet costs then.
    `ended` is the incarnation that is over although its row says that it runs: the journal
    could not be told, and nobody is to be sent there meanwhile.
    """

    __slots__ = (
        "_key",
        "_keys",
        "answer",
        "blind",
        "ended",
        "engine",
        "exit_seen",
        "failing",
        "gone",
        "healthy_at_ms",
        "lease_s",
        "lease_until",
        "life",
        "operation",
        "owner",
        "probe_failures",
        "probes",
        "probing_s",
        "put_off_until",
        "reading",
        "signals",
        "url",
        "used_at",
        "vetoes",
    )

    def __init__(self, engine: Engine, owner: "LiveProduct", *, keys: Opener, url: str) -> None:
        self.engine = engine
        self.owner = owner
        self._keys = keys
        self._key: str | None = None
        self.url = url
        self.answer: bytes | None = None
        self.lease_s = 0.0
        self.lease_until = inf
        self.healthy_at_ms = engine.healthy_at_ms
        self.probe_failures = 0
        self.failing = False
        self.exit_seen = False
        self.ended: int | None = None
        self.life = ""
        self.gone = False
        self.operation: Operation | None = None
        self.signals: dict[str, Signal] = {}
        self.vetoes: Sequence[Signal] = ()  # no list each for a hundred thousand
        self.reading: Reading | None = None
        self.blind = False
        self.probes = 0
        self.probing_s = 0.0
        self.put_off_until = -inf
        self.used_at = -inf

    @property
    def api_key(self) -> str:
        """The engine's key in the clear.

        Raises:
            KeyUnsealError: no master key opens it, or it was sealed for another engine.
        """
        if self._key is None:
            self._key = self._keys.open(self.engine.engine_id, self.engine.sealed_key)
        return self._key

    def change_key(self) -> None:
        """Take it that the row has another sealed key now."""
        self._key = None

    @property
    def running(self) -> bool:
        return self.engine.status is Status.RUNNING

    @property
    def in_service(self) -> bool:
        """Whether it runs, and no work at it makes admits wait."""
        return self.running and (self.operation is None or not self.operation.holds)

    @property
    def has_ended(self) -> bool:
        """Whether it is known to be down although its row says that it runs."""
        return self.ended == self.engine.incarnation

    @property
    def admissible(self) -> bool:
        """Whether an admit needs to wait for nothing."""
        return self.in_service and not self.has_ended

    def extend_lease(self, now: float) -> None:
        """Move the lease's end: from now on, the engine's full lease."""
        self.lease_until = now + self.lease_s if self.lease_s else inf

    def put_off(self, until: float) -> None:
        """Move the lease's end without a use: a veto, or a restart of enginegate."""
        if self.lease_until != inf:
            self.used_at = self.last_use()
            self.lease_until = self.put_off_until = max(self.lease_until, until)

    def last_use(self) -> float:
        """Return when it was last admitted, touched or came into service; -inf: not known."""
        if self.lease_until == inf:
            return -inf
        put_off = self.lease_until == self.put_off_until
        return self.used_at if put_off else self.lease_until - self.lease_s

    def hold(self) -> None:
        """Make admits wait for the operation at work."""
        assert self.operation is not None
        self.operation.holds = True
        self.answer = None

    def lease_left_s(self, now: float) -> float:
        """Return the seconds until it may sleep for idleness; 0 = never sleeps."""
        return 0.0 if self.lease_until == inf else max(self.lease_until - now, 0.001)


class LiveProduct:
    """One product with its windows, its engines by user, and what it has counted.

    `promised` names the users whose provision is not durable yet, and their engines: it is
    the reservation, and the quota counts it.
    """

    __slots__ = (
        "boots",
        "calls_max",
        "engines",
        "limited",
        "product",
        "promised",
        "roster",
        "tally",
        "traffic",
        "user_windows",
        "window",
    )

    def __init__(self, product: Product) -> None:
        self.set(product)
        self.window = SlidingWindow()
        self.user_windows: dict[str, SlidingWindow] = {}
        self.engines: dict[str, LiveEngine] = {}
        self.roster = Roster()
        self.boots: dict[str, Operation] = {}
        self.promised: dict[str, str] = {}
        self.tally = Tally()
        self.traffic = Traffic()

    @property
    def size(self) -> int:
        """How many engines it has, those that are not durable yet included."""
        return len(self.engines) + len(self.promised)

    def has(self, user_id: str) -> bool:
        """Return whether the user has an engine, or is about to."""
        return user_id in self.engines or user_id in self.promised

    def set(self, product: Product) -> None:
        """Take the product as it is now."""
        policy = product.policy
        self.product = product
        self.calls_max = policy.rate_limit_rpm if policy.user_rate_limit_rpm is None else None
        self.limited = not (policy.rate_limit_rpm is None and policy.user_rate_limit_rpm is None)
