"""Our rate window beside the moving window of the `limits` library, both in memory."""

from collections.abc import Callable
from functools import partial
from time import monotonic_ns

from bench.context import Context
from bench.measure import figure, interleaved, nanoseconds, ratio
from bench.results import Result
from enginegate.ratelimit import SlidingWindow

NAME = "limiter"
TITLE = "a decision of the rate limiter"
LIMITS = (60, 600, 6_000)


def run(context: Context) -> Result:
    result = Result(bench=NAME)
    try:
        from limits import RateLimitItemPerMinute
        from limits.storage import MemoryStorage
        from limits.strategies import MovingWindowRateLimiter
    except ImportError:
        result.skipped.append("`limits` is not installed: pip install -e '.[bench]'")
        return result
    for limit in LIMITS:
        context.progress(f"{limit} calls a minute")
        theirs = MovingWindowRateLimiter(MemoryStorage())
        hit = partial(theirs.hit, RateLimitItemPerMinute(limit), "user")
        calls = context.pick(20_000, 1_000)
        found = interleaved(
            {
                "ours": partial(_nanoseconds, limit, calls=calls),
                "limits": partial(nanoseconds, hit, calls=calls),
            },
            rounds=context.pick(9, 3),
            progress=context.progress,
        )
        result.figures += [
            figure(f"{name}, {limit} a minute", values, "ns", digits=1)
            for name, values in found.items()
        ]
        result.goals.append(
            ratio(
                f"limits / ours, {limit} a minute",
                found["limits"],
                found["ours"],
                bound=8.0,
                guard=4.0,
                at_least=True,
            )
        )
    return result


def _nanoseconds(limit: int, *, calls: int) -> float:
    return nanoseconds(_ours(limit), calls=calls)


def _ours(limit: int) -> Callable[[], None]:
    window = SlidingWindow()

    def decide() -> None:
        window.take(monotonic_ns(), limit)

    return decide
