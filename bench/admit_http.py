"""An admit over HTTP beside the floors: what the framework alone costs, and what wrk allows."""

from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec

from bench.context import Context
from bench.http import servers, wrk
from bench.http.servers import Target
from bench.measure import figure, interleaved, ratio
from bench.results import Result

NAME = "admit-http"
TITLE = "admits over HTTP: warm, refused, not found, wrong key, beside bare servers"
CONNECTIONS = 32
WARM = "enginegate, warm admit"
ASGI = "enginegate, warm admit by ASGI alone"
PROTOCOL, UVICORN, STARLETTE = "bare protocol", "bare uvicorn ASGI", "Starlette, one empty route"
GRANIAN = "Granian, bare ASGI"
# What is to be at least so many times what, and in CI, on whatever machine, at least so many.
FLOORS = (
    (WARM, UVICORN, 2.2, 1.2),
    (WARM, GRANIAN, 1.3, 0.7),
    (WARM, PROTOCOL, 0.6, 0.3),
    (ASGI, UVICORN, 0.85, 0.4),
)


def run(context: Context) -> Result:
    result = Result(bench=NAME)
    if not wrk.installed():
        result.skipped.append(wrk.MISSING)
        return result
    with ExitStack() as stack:
        targets = _targets(context, stack, result)
        many = _loads(context, targets, connections=CONNECTIONS)
        one = _loads(context, {name: targets[name] for name in (WARM, UVICORN)}, connections=1)
    result.figures += [
        figure(name, [load.requests_per_s for load in loads], "requests/s", digits=0)
        for name, loads in many.items()
    ]
    result.figures += [
        figure(f"{name}, p99", [load.p99_ms for load in many[name]], "ms")
        for name in (WARM, UVICORN)
    ]
    result.figures += [
        figure(f"{name}, one connection, p50", [load.p50_ms for load in loads], "ms")
        for name, loads in one.items()
    ]
    _goals(result, many, one)
    return result


def _targets(context: Context, stack: ExitStack, result: Result) -> dict[str, Target]:
    """Start everything that is compared; whoever is not asked costs nothing.

    Those with a goal come first, side by side: the machine changes its pace within seconds.
    """
    folder = context.directory
    gate = stack.enter_context(servers.enginegate(folder))
    road = stack.enter_context(servers.enginegate(folder, module="bench.http.asgi_road"))
    key, road_key = _admitted(gate), _admitted(road)
    refused = gate.register("refused", rate_limit_rpm=0)
    port = gate.port
    found = {PROTOCOL: stack.enter_context(servers.bare_protocol(folder))}
    if find_spec("granian"):
        found[GRANIAN] = stack.enter_context(servers.granian(folder))
    else:
        result.skipped.append("Granian is not installed: pip install -e '.[bench]'")
    found |= {
        WARM: servers.admits(WARM, port, key),
        UVICORN: stack.enter_context(servers.uvicorn(folder, "bench.http.apps:bare", UVICORN)),
        ASGI: servers.admits(ASGI, road.port, road_key),
        STARLETTE: stack.enter_context(
            servers.uvicorn(folder, "bench.http.apps:starlette", STARLETTE)
        ),
    }
    asked = [
        servers.admits("enginegate, refused by rate", port, refused),
        servers.admits("enginegate, not found", port, key, user="nobody"),
        servers.admits("enginegate, wrong key", port),
    ]
    return found | {one.name: one for one in asked}


def _admitted(gate: servers.Gate) -> str:
    """Return the key of a product whose user has an engine."""
    key = gate.register("warm", rate_limit_rpm=10**9)
    gate.admit(key, servers.USER, auto_provision=True)
    return key


def _loads(
    context: Context, targets: dict[str, Target], *, connections: int
) -> dict[str, list[wrk.Load]]:
    """Load them in turn, round after round."""
    found: dict[str, list[wrk.Load]] = {name: [] for name in targets}

    def load(name: str) -> Callable[[], float]:
        def work() -> float:
            seen = wrk.run(targets[name], connections=connections, seconds=context.pick(2, 1))
            found[name].append(seen)
            return seen.requests_per_s

        return work

    interleaved(
        {name: load(name) for name in targets},
        rounds=context.pick(15, 3),
        progress=context.progress,
    )
    return found


def _goals(result: Result, many: dict[str, list[wrk.Load]], one: dict[str, list[wrk.Load]]) -> None:
    rates = {name: [load.requests_per_s for load in loads] for name, loads in many.items()}
    for ours, name, bound, guard in FLOORS:
        if name in rates:
            goal = f"{ours} / {name}, {CONNECTIONS} connections"
            result.goals.append(
                ratio(goal, rates[ours], rates[name], bound=bound, guard=guard, at_least=True)
            )
    result.goals += [
        ratio(
            f"p99 / {UVICORN}",
            [load.p99_ms for load in many[WARM]],
            [load.p99_ms for load in many[UVICORN]],
            bound=1.0,
            guard=3.0,
        ),
        ratio(
            f"p50 / {UVICORN}, one connection",
            [load.p50_ms for load in one[WARM]],
            [load.p50_ms for load in one[UVICORN]],
            bound=0.8,
            guard=1.5,
        ),
    ]
