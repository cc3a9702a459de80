"""Latency at a fixed rate of arrivals, at half and at four fifths of what the server can do."""

from contextlib import ExitStack
from functools import partial

from bench.context import Context
from bench.http import open_load, servers, wrk
from bench.http.open_load import Latency
from bench.http.servers import Target
from bench.measure import figure, interleaved
from bench.results import Result

NAME = "open-load"
TITLE = "latency of a warm admit at a fixed rate, corrected for coordinated omission"
CONNECTIONS = 32
SHARES = (0.5, 0.8)


def run(context: Context) -> Result:
    result = Result(bench=NAME)
    result.skipped += open_load.missing()
    if result.skipped:
        return result
    with ExitStack() as stack:
        targets = _targets(context, stack)
        for share in SHARES:
            found = _latencies(context, targets, share)
            for name, seen in found.items():
                at = f"{name}, {share:.0%} of capacity ({seen[0].rate:,.0f}/s)"
                result.figures += [
                    figure(f"{at}, p50", [one.p50_ms for one in seen], "ms"),
                    figure(f"{at}, p99", [one.p99_ms for one in seen], "ms"),
                    figure(f"{at}, p99.9", [one.p999_ms for one in seen], "ms"),
                ]
    return result


def _targets(context: Context, stack: ExitStack) -> dict[str, Target]:
    gate = stack.enter_context(servers.enginegate(context.directory))
    key = gate.register("warm", rate_limit_rpm=10**9)
    gate.admit(key, servers.USER, auto_provision=True)
    floor = servers.uvicorn(context.directory, "bench.http.apps:bare", "bare uvicorn ASGI")
    both = [servers.admits("enginegate, warm admit", gate.port, key), stack.enter_context(floor)]
    return {one.name: one for one in both}


def _latencies(
    context: Context, targets: dict[str, Target], share: float
) -> dict[str, list[Latency]]:
    found: dict[str, list[Latency]] = {name: [] for name in targets}
    rates = {name: share * capacity(target) for name, target in targets.items()}
    generator = open_load.Load(context.directory)

    def load(name: str) -> float:
        seconds = context.pick(4, 1)
        found[name].append(generator.run(targets[name], rate=rates[name], seconds=seconds))
        return found[name][-1].p99_ms

    interleaved(
        {name: (partial(load, name)) for name in targets},
        rounds=context.pick(5, 1),
        progress=context.progress,
    )
    return found


def capacity(target: Target) -> float:
    """Return the requests a second that a closed loop gets out of it."""
    return wrk.run(target, connections=CONNECTIONS, seconds=2).requests_per_s
