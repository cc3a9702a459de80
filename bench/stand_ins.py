"""An admit beside what people would use instead."""

from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec

from bench.context import Context
from bench.http import jupyterhub, postgres, servers, wrk
from bench.http.servers import Target
from bench.measure import figure, interleaved, ratio
from bench.results import Result

NAME = "stand-ins"
TITLE = "a warm admit beside FastAPI with PostgreSQL, and JupyterHub's user look-up"
CONNECTIONS = 32
OURS, FASTAPI, HUB = "enginegate, warm admit", "FastAPI + PostgreSQL", "JupyterHub, user look-up"


def run(context: Context) -> Result:
    result = Result(bench=NAME)
    if not wrk.installed():
        result.skipped.append(wrk.MISSING)
        return result
    with ExitStack() as stack:
        targets = _targets(context, stack, result)
        found = interleaved(
            {name: _loading(context, target) for name, target in targets.items()},
            rounds=context.pick(9, 1),
            progress=context.progress,
        )
    result.figures += [figure(name, rates, "requests/s", digits=0) for name, rates in found.items()]
    for name, bound, guard in ((FASTAPI, 25, 10), (HUB, 200, 80)):
        if name in found:
            goal = f"warm admit / {name}"
            result.goals.append(
                ratio(goal, found[OURS], found[name], bound=bound, guard=guard, at_least=True)
            )
    return result


def _loading(context: Context, target: Target) -> Callable[[], float]:
    seconds = context.pick(2, 1)
    return lambda: wrk.run(target, connections=CONNECTIONS, seconds=seconds).requests_per_s


def _targets(context: Context, stack: ExitStack, result: Result) -> dict[str, Target]:
    gate = stack.enter_context(servers.enginegate(context.directory))
    key = gate.register("warm", rate_limit_rpm=10**9)
    gate.admit(key, servers.USER, auto_provision=True)
    found = {OURS: servers.admits(OURS, gate.port, key)}
    if not (find_spec("fastapi") and find_spec("asyncpg")):
        result.skipped.append("FastAPI and asyncpg are not installed: pip install -e '.[bench]'")
    elif postgres.programs() is None:
        result.skipped.append(postgres.MISSING)
    else:
        dsn = stack.enter_context(postgres.serve(context.directory, key, servers.USER))
        found[FASTAPI] = stack.enter_context(servers.fastapi(context.directory, dsn, key))
    if jupyterhub.installed():
        found[HUB] = stack.enter_context(jupyterhub.serve(context.directory, servers.USER))
    else:
        result.skipped.append(jupyterhub.MISSING)
    return found
