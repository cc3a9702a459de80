"""An admit without HTTP: what its parts cost, and what the fleet's size adds to it."""

import gc
import random
import subprocess
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import monotonic_ns

from bench.context import Context
from bench.fleet import Fleet
from bench.measure import figure, interleaved, nanoseconds, ratio
from bench.results import Figure, Goal, Result
from enginegate.ratelimit import SlidingWindow

NAME = "in-process"
TITLE = "a warm admit without HTTP"
BODY = b'{"auto_provision":true,"auto_wake":true}'
ROUNDS = 9  # in a short run, too: a busy machine changes its pace between two of them
RSS_ENGINES = 20_000
RSS_BOUND_BYTES = 2_048
FEW = 10  # users whose rows stay in the processor's caches, whatever the fleet


def run(context: Context) -> Result:
    result = Result(bench=NAME)
    _parts(context, result)
    _sizes(context, result)
    _memory(context, result)
    return result


def _parts(context: Context, result: Result) -> None:
    """The least an admit must do is one hash of the key and two look-ups."""
    fleet = Fleet(engines=1_000)
    key, user = fleet.caller(5)
    by_key, by_user = {sha256(key).digest(): fleet}, {user: fleet}
    window = SlidingWindow()

    def least() -> None:
        by_key.get(sha256(key).digest())
        by_user.get(user)

    def decide() -> None:
        now_ns = monotonic_ns()
        if window.wait_ns(now_ns, 10**9) == 0:
            window.add(now_ns)

    warm = fleet.admission.warm
    calls = context.pick(200_000, 5_000)
    work = {
        "least: SHA-256 and two look-ups": least,
        "rate window": decide,
        "warm admit, empty body": lambda: warm(key, user, b""),
        "warm admit, body with flags": lambda: warm(key, user, BODY),
    }
    found = interleaved(
        {name: partial(nanoseconds, one, calls=calls) for name, one in work.items()},
        rounds=ROUNDS,
        progress=context.progress,
    )
    result.figures += [figure(name, values, "ns", digits=1) for name, values in found.items()]
    result.goals.append(
        ratio(
            "warm admit / least",
            found["warm admit, body with flags"],
            found["least: SHA-256 and two look-ups"],
            bound=4.0,
            guard=6.0,
        )
    )


def _sizes(context: Context, result: Result) -> None:
    """Admits of users all over the fleet, and of the same ten users in each fleet."""
    large = context.pick(100_000, 2_000)
    fleets = {
        "10 engines": Fleet(engines=FEW),
        "1,000 engines": Fleet(engines=1_000),
        f"{large:,} engines, {large // 10:,} products": Fleet(engines=large, products=large // 10),
    }
    calls = context.pick(50_000, 2_000)
    dice = random.Random(7)  # the same users in every run

    def admits(fleet: Fleet, *, users: int) -> float:
        asked = [fleet.caller(dice.randrange(min(users, fleet.engines))) for _ in range(calls)]
        warm = fleet.admission.warm
        for key, user in asked:
            warm(key, user, b"")  # its answer is made once
        one = iter(asked).__next__
        return nanoseconds(lambda: warm(*one(), b""), calls=calls)

    gc.collect()
    gc.freeze()
    for users, where in ((FEW, "the same ten users"), (large, "users all over it")):
        found = interleaved(
            {name: partial(admits, one, users=users) for name, one in fleets.items()},
            rounds=ROUNDS,
            progress=context.progress,
        )
        result.figures += [
            figure(f"{name}, {where}", values, "ns", digits=1) for name, values in found.items()
        ]
        if users == FEW:  # the others differ by what the caches hold, not by what we do
            small, *_, largest = found.values()
            result.goals.append(
                ratio("largest fleet / 10 engines", largest, small, bound=1.1, guard=1.5)
            )
    gc.unfreeze()


def _memory(context: Context, result: Result) -> None:
    """In a process of its own, for memory that was used once is not given back."""
    engines = context.pick(RSS_ENGINES * 5, RSS_ENGINES)
    context.progress(f"memory of {engines:,} engines")
    command = [sys.executable, "-m", "bench.in_process", str(engines)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    each = float(done.stdout)
    result.figures.append(Figure(name=f"memory at {engines:,} engines", value=each, unit="B each"))
    result.goals.append(
        Goal(
            name="bytes an engine / 2 kB",
            value=round(each / RSS_BOUND_BYTES, 3),
            must="at most",
            bound=1.0,
            guard=1.5,
        )
    )


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * 4096


def _print_memory(engines: int) -> None:
    from bench import fleet  # what imports cost is paid before

    kept = [fleet.Fleet(engines=100)]
    gc.collect()
    before = _resident_bytes()
    large = fleet.Fleet(engines=engines)
    for number in range(engines):
        large.admission.warm(*large.caller(number), b"")  # with the answers it keeps ready
    kept.append(large)
    gc.collect()
    print((_resident_bytes() - before) // engines)


if __name__ == "__main__":
    _print_memory(int(sys.argv[1]))
