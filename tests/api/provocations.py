"""One way to provoke each error code; each is named after its code."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from tests.api.rig import Gate, reach

NEVER_HEALTHY_S = 1e9

Provoke = Callable[[Gate], Awaitable[httpx.Response]]


def provision(gate: Gate, user_id: str = "ann", **more: Any) -> Awaitable[httpx.Response]:
    return gate.post("/engines/provision", {"user_id": user_id} | more)


async def invalid_request(gate: Gate) -> httpx.Response:
    return await provision(gate, unknown=1)


async def invalid_platform_key(gate: Gate) -> httpx.Response:
    return await gate.get("/engines", key="x")


async def invalid_admin_key(gate: Gate) -> httpx.Response:
    return await gate.client.get("/products", headers={"X-Admin-Key": "x"})


async def policy_denied(gate: Gate) -> httpx.Response:
    return await provision(gate, engine_version="evil")


async def product_not_found(gate: Gate) -> httpx.Response:
    return await gate.admin("GET", "/products/x")


async def engine_not_found(gate: Gate) -> httpx.Response:
    return await gate.get("/engines/ann")


async def not_found(gate: Gate) -> httpx.Response:
    return await gate.get("/x")


async def method_not_allowed(gate: Gate) -> httpx.Response:
    return await gate.call("DELETE", "/status")


async def engine_already_exists(gate: Gate) -> httpx.Response:
    await gate.engine()
    return await provision(gate)


async def engine_not_running(gate: Gate) -> httpx.Response:
    await reach(gate, "stopped")
    return await gate.post("/engines/ann/sleep")


async def engine_already_running(gate: Gate) -> httpx.Response:
    await gate.engine()
    return await gate.post("/engines/ann/start")


async def product_slug_exists(gate: Gate) -> httpx.Response:
    asked = {"slug": "demo", "display_name": "X"}
    return await gate.admin("POST", "/products/register", asked)


async def engine_busy(gate: Gate) -> httpx.Response:
    await gate.engine()
    gate.fake().busy = True
    return await gate.post("/engines/ann/sleep")


async def payload_too_large(gate: Gate) -> httpx.Response:
    return await provision(gate, "a" * gate.config.server.max_body_bytes)


async def quota_exceeded(gate: Gate) -> httpx.Response:
    await gate.policy(max_engines=0)
    return await provision(gate)


async def rate_limited(gate: Gate) -> httpx.Response:
    await gate.policy(rate_limit_rpm=0)
    return await gate.admit()


async def internal_error(gate: Gate) -> httpx.Response:
    gate.backend.fail("start", error=RuntimeError("secret of /var/lib"))
    return await provision(gate)


async def backend_error(gate: Gate) -> httpx.Response:
    gate.backend.fail("start")
    return await provision(gate)


async def port_exhaustion(gate: Gate) -> httpx.Response:
    for port in range(gate.config.ports.min, gate.config.ports.max + 1):
        gate.registry.ports.lease(port)
    return await provision(gate)


async def backend_unavailable(gate: Gate) -> httpx.Response:
    gate.backend.down = True
    return await provision(gate)


async def storage_unavailable(gate: Gate) -> httpx.Response:
    gate.journal.fail("told to")
    return await provision(gate)


async def shutting_down(gate: Gate) -> httpx.Response:
    gate.operations.closed = True
    return await provision(gate)


async def boot_timeout(gate: Gate) -> httpx.Response:
    gate.backend.boot_s = NEVER_HEALTHY_S
    return await gate.slowly(gate.post("/engines/provision", {"user_id": "ann"}))


async def wake_timeout(gate: Gate) -> httpx.Response:
    await reach(gate, "sleeping")
    gate.fake().healthy = False
    return await gate.slowly(gate.admit(auto_wake=True))


PROVOCATIONS: tuple[Provoke, ...] = (
    invalid_request,
    invalid_platform_key,
    invalid_admin_key,
    policy_denied,
    product_not_found,
    engine_not_found,
    not_found,
    method_not_allowed,
    engine_already_exists,
    engine_not_running,
    engine_already_running,
    product_slug_exists,
    engine_busy,
    payload_too_large,
    quota_exceeded,
    rate_limited,
    internal_error,
    backend_error,
    port_exhaustion,
    backend_unavailable,
    storage_unavailable,
    shutting_down,
    boot_timeout,
    wake_timeout,
)
BY_CODE = {provoke.__name__.upper(): provoke for provoke in PROVOCATIONS}  # type: ignore[attr-defined]
