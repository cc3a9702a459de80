"""May this user's request go on, and where to? The question the program exists for.

Two roads lead to the same answers. `warm` is one synchronous function that touches
no disk, no backend and no lock, and answers the admit of a running engine from
bytes made when the engine last changed. Whatever is not that case takes `admit`,
which may provision, wake, or wait for work that is under way.
"""

import json
from collections.abc import Callable
from hashlib import sha256
from math import inf
from time import monotonic_ns
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from enginegate.clock import Clock
from enginegate.errors import (
    EngineAlreadyRunningError,
    EngineNotRunningError,
    GateError,
    PolicyDeniedError,
    PortExhaustionError,
    QuotaExceededError,
    RateLimitedError,
)
from enginegate.health import HealthLoop
from enginegate.lifecycle import Lifecycle, OvertakenError
from enginegate.model import Status
from enginegate.ratelimit import SlidingWindow, retry_after
from enginegate.registry import LiveEngine, LiveProduct, Operation, Registry
from enginegate.registry.denials import Denials
from enginegate.slices import sliced

VERIFY_TIMEOUT_S = 1.0
SOON_S = 1.0  # when to ask again, where nothing better is known
BODIES_MAX = 256
NS = 1_000_000_000
REFUSALS = (RateLimitedError, QuotaExceededError, PolicyDeniedError, PortExhaustionError)

ACTION_OF = {"provision": "provisioned", "wake": "woke", "start": "started"}


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of an admit; `wait_s` None = wait as long as the work takes."""

    auto_provision: bool = False
    auto_wake: bool = False
    touch: bool = True
    wait_s: Annotated[float, Meta(ge=0)] | None = None
    verify: bool = False


class Admitted(Struct, frozen=True, kw_only=True):
    """Go on, to this engine. `lease_s` 0 = it never sleeps."""

    live: LiveEngine
    action: str
    waited_ms: float
    lease_s: float


class Refused(Struct, frozen=True):
    """Not now; `retry_after_s` None = asking again changes nothing by itself."""

    reason: str
    retry_after_s: float | None = None


Encode = Callable[[LiveEngine, float], bytes | None]
"""Makes the warm answer as it is sent: engine and lease (s) in, headers and JSON out.

None where it cannot be made, which the long road tells.
"""


class Admission:
    def __init__(
        self,
        *,
        registry: Registry,
        lifecycle: Lifecycle,
        health: HealthLoop,
        clock: Clock,
        encode: Encode,
    ) -> None:
        self.registry = registry
        self.lifecycle = lifecycle
        self.health = health
        self.clock = clock
        self._now = clock.now
        self._encode = encode
        self._by_key = registry.by_key
        self._decoder = msgspec.json.Decoder(Options)
        self._warm_bodies: dict[bytes, bool] = {b"": True}
        self._latency = registry.meters.admit("none")
        self.denials = Denials(registry, clock)

    def warm(
        self, key: bytes, user_id: str, body: bytes, hashed: bytes | None = None
    ) -> bytes | None:
        """Return the answer to an admit of a running engine, None to take the long road.

        `hashed` is the key's digest, where the caller knows it.
        None counts nothing and changes nothing. The order of checks is that of the
        long road: key, body, windows, engine; here the engine is looked at first
        only because a call that goes on to the long road must not be counted twice.
        """
        now = self._now()
        product = self._by_key.get(hashed or sha256(key).digest())
        if product is None:
            return None
        live = product.engines.get(user_id)
        if live is None or not (self._warm_bodies.get(body) or self._is_warm(body)):
            return None
        answer = live.answer
        if answer is None:
            if not live.admissible:
                return None
            answer = live.answer = self._encode(live, live.lease_s)
            if answer is None:
                return None
        limit = product.calls_max
        if limit is not None:
            if not product.window.take(monotonic_ns(), limit):
                return None
        elif product.limited and not self._count(product, user_id):
            return None
        product.traffic.admits += 1
        live.lease_until = now + live.lease_s if live.lease_s else inf
        self._latency.add(self._now() - now)
        return answer

    def _is_warm(self, body: bytes) -> bool:
        """Return whether a body asks for nothing special; remembers the usual ones."""
        try:
            options = self._decoder.decode(body)
            names = [name for name, _ in json.loads(body, object_pairs_hook=list)]
        except (ValueError, RecursionError):  # bad JSON, bad UTF-8, bad types: told elsewhere
            return False
        warm = options.touch and not options.verify and len(names) == len(set(names))
        if len(self._warm_bodies) < BODIES_MAX:
            self._warm_bodies[body] = warm
        return warm

    def _count(self, product: LiveProduct, user_id: str) -> bool:
        return self._wait_ns(product, user_id, monotonic_ns(), count=True) == 0

    def _wait_ns(
        self, product: LiveProduct, user_id: str, now_ns: int, *, count: bool
    ) -> int | None:
        """Return 0 and count the call, or the wait until it would be let in (None: never)."""
        policy = product.product.policy
        limits: list[tuple[SlidingWindow, int]] = []
        if policy.rate_limit_rpm is not None:
            limits.append((product.window, policy.rate_limit_rpm))
        window = product.user_windows.get(user_id) or SlidingWindow()
        if policy.user_rate_limit_rpm is not None:
            limits.append((window, policy.user_rate_limit_rpm))
        longest_ns = 0
        for one, limit in limits:
            wait_ns = one.wait_ns(now_ns, limit)
            if wait_ns is None:
                return None
            longest_ns = max(longest_ns, wait_ns)
        if count and longest_ns == 0:
            for one, _ in limits:
                one.add(now_ns)
            if policy.user_rate_limit_rpm is not None:
                product.user_windows[user_id] = window
        return longest_ns

    # The long road

    async def admit(
        self, owner: LiveProduct, user_id: str, options: Options, *, actor: str
    ) -> Admitted | Refused:
        """Answer an admit, provisioning, waking and waiting as the options allow.

        Raises:
            RateLimitedError: over the product's or the user's limit.
            GateError: a provision, wake or boot this call began or joined failed.
        """
        started = self.clock.now()
        answer: Admitted | Refused
        try:
            self._refuse_over_limit(owner, user_id)
            answer = await self._decide(owner, user_id, options, actor, started)
        except REFUSALS as refusal:
            outcome = refusal.code.lower()
            self._denied(owner, user_id, outcome)
            self.registry.meters.admit(outcome).add(self.clock.now() - started)
            raise
        if isinstance(answer, Refused):
            self._denied(owner, user_id, answer.reason)
            outcome = answer.reason
        else:
            owner.traffic.admits += 1
            outcome = answer.action
        self.registry.meters.admit(outcome).add(self.clock.now() - started)
        return answer

    def _refuse_over_limit(self, owner: LiveProduct, user_id: str) -> None:
        wait_ns = self._wait_ns(owner, user_id, monotonic_ns(), count=True)
        if wait_ns == 0:
            return
        if wait_ns is None:
            raise RateLimitedError("The policy admits no calls at all.", retry_after_s=None)
        exact_s, _ = retry_after(wait_ns)
        raise RateLimitedError(
            f"Over the rate limit; ask again in {exact_s:.3f} s.", retry_after_s=exact_s
        )

    async def _decide(
        self, owner: LiveProduct, user_id: str, options: Options, actor: str, started: float
    ) -> Admitted | Refused:
        waiting = _Waiting(self.clock, started, options)
        while True:
            live = owner.engines.get(user_id)
            at_work = live.operation if live else owner.boots.get(user_id)
            if at_work is not None and (live is None or not live.running or at_work.holds):
                refused = await self._join(owner, user_id, at_work, waiting)
            elif live is None:
                refused = await self._without_engine(owner, user_id, waiting, actor)
            elif live.running:
                return await self._running(live, waiting)
            else:
                refused = await self._asleep_or_down(live, waiting, actor)
            if refused is not None:
                return refused

    async def _join(
        self, owner: LiveProduct, user_id: str, at_work: Operation, waiting: "_Waiting"
    ) -> Refused | None:
        """Wait for work that is under way; None = look again."""
        live = owner.engines.get(user_id)
        match at_work.verb:
            case "stop":
                return Refused("engine_stopped")
            case "restart":
                return self._restarting(live)
            case "sleep" if live is not None and waiting.calls_off_sleep:
                live.extend_lease(self.clock.now())  # the freeze under way sees it and turns back
            case "deepen" if not waiting.options.auto_wake:
                return Refused("engine_sleeping")
            case _:
                pass
        if not await waiting.settled(at_work):
            if live is not None or await self._has_row(owner, user_id):
                return _still_at(at_work, waiting.options)
            await at_work.settled()  # it ends with what kept its row off the disk
        if at_work.verb == "destroy":
            return None
        return await self._joined(at_work, waiting)

    async def _has_row(self, owner: LiveProduct, user_id: str) -> bool:
        """Return whether a boot at work has its row: whoever is told of it must find it."""
        await self.registry.flushed()
        return user_id in owner.engines

    async def _joined(self, at_work: Operation, waiting: "_Waiting") -> Refused | None:
        """Take the outcome of work that is over; None = look again.

        A boot or wake that failed has failed for everyone who waited for it. A
        failed rotation or sleep leaves an engine to look at, and so does a start
        that found, when its turn came, nothing to do.
        """
        try:
            await at_work.join()
        except OvertakenError:
            return Refused("engine_destroying", SOON_S)
        except (EngineAlreadyRunningError, EngineNotRunningError):
            return None
        except GateError:
            if at_work.verb in ACTION_OF:
                raise
            return None
        waiting.action = ACTION_OF.get(at_work.verb, waiting.action)
        return None

    async def _without_engine(
        self, owner: LiveProduct, user_id: str, waiting: "_Waiting", actor: str
    ) -> Refused | None:
        if not waiting.options.auto_provision:
            return Refused("engine_not_found")
        await self.lifecycle.provisioning.begin(owner, user_id, version=None, actor=actor)
        return None

    async def _asleep_or_down(
        self, live: LiveEngine, waiting: "_Waiting", actor: str
    ) -> Refused | None:
        match live.engine.status:
            case Status.SLEEPING if waiting.options.auto_wake:
                await self.lifecycle.begin_wake(live, actor=actor)
                return None
            case Status.SLEEPING:
                return Refused("engine_sleeping")
            case Status.STOPPED:
                return Refused("engine_stopped")
            case Status.FAILED:
                return self._restarting(live)
            case Status.PROVISIONING:
                return Refused("engine_provisioning", SOON_S)
            case _:
                return Refused("engine_destroying", SOON_S)

    def _restarting(self, live: LiveEngine | None) -> Refused:
        at_ms = live.engine.restart_at_ms if live else None
        if at_ms is None:
            return Refused("engine_unhealthy")
        left_s = (at_ms - self.clock.wall_ms()) / 1000
        return Refused("engine_restarting", round(max(left_s, 0.0) + SOON_S, 3))

    async def _running(self, live: LiveEngine, waiting: "_Waiting") -> Admitted | Refused:
        if live.has_ended:
            return Refused("engine_restarting", SOON_S)
        if waiting.options.verify and not await self.health.verify(live, VERIFY_TIMEOUT_S):
            return self._restarting(live)
        now = self.clock.now()
        if waiting.options.touch:
            live.extend_lease(now)
        return Admitted(
            live=live,
            action=waiting.action,
            waited_ms=waiting.waited_ms(),
            lease_s=live.lease_left_s(now),
        )

    async def forget_idle_windows(self) -> None:
        """Drop the windows of users who have not called for a minute."""
        now_ns = monotonic_ns()
        async for product in sliced(self.registry.products.values()):
            async for user, window in sliced(product.user_windows.items()):
                if window.idle(now_ns) and product.user_windows.get(user) is window:
                    del product.user_windows[user]

    def _denied(self, owner: LiveProduct, user_id: str, reason: str) -> None:
        owner.traffic.deny(reason)
        self.denials.add(owner, user_id, action="admit_denied", reason=reason)


def _still_at(at_work: Operation, options: Options) -> Refused:
    """Return what a caller hears who does not wait for the end of the work."""
    match at_work.verb:
        case "provision":
            return Refused("engine_provisioning", SOON_S)
        case "destroy":
            return Refused("engine_destroying", SOON_S)
        case "fail":
            return Refused("engine_restarting", SOON_S)
        case "sleep" if not options.auto_wake:
            return Refused("engine_sleeping")
        case _:
            return Refused("engine_waking", SOON_S)


class _Waiting:
    """How long one admit may still wait, and what became of the engine meanwhile."""

    def __init__(self, clock: Clock, started: float, options: Options) -> None:
        self.options = options
        self.action = "none"
        self._clock = clock
        self._started = started
        self._waited = False

    @property
    def calls_off_sleep(self) -> bool:
        """Whether this call is use of the engine, and willing to wait until it is back."""
        options = self.options
        return options.touch and not options.verify and options.wait_s != 0

    async def settled(self, operation: Operation) -> bool:
        """Wait for the operation as long as the caller wants to; whether it is over."""
        if operation.done.done():
            return True
        if self.options.wait_s is None:
            await operation.settled()
            self._waited = True
            return True
        left_s = self._started + self.options.wait_s - self._clock.now()
        if left_s <= 0:
            return False
        self._waited = True
        return await operation.settled_within(left_s)

    def waited_ms(self) -> float:
        return round((self._clock.now() - self._started) * 1000, 3) if self._waited else 0
