"""Who may ask: keys come first, and a wrong one learns nothing."""

import httpx
import pytest

from enginegate.api.auth import Access
from enginegate.api.call import Route
from enginegate.api.routes import TABLE
from tests.api.rig import ADMIN, ADMIN_KEY, METRICS_KEY, Gate, Wire, code

WRONG = "pk-eg-" + "A" * 43
PLATFORM = [route for route in TABLE if route.access is Access.PLATFORM]
EITHER = [route for route in TABLE if route.access in (Access.EITHER, Access.MONITOR)]
OPERATOR = [route for route in TABLE if route.access is Access.ADMIN]
OPENMETRICS = {"Accept": "application/openmetrics-text"}


def name(route: Route) -> str:
    return f"{route.method} {route.path}"


async def ask(gate: Gate, route: Route, headers: dict[str, str]) -> httpx.Response:
    path = route.path.replace("{user_id}", "ann").replace("{product_id}", "nobody")
    return await gate.client.request(route.method, path, headers=headers)


@pytest.mark.parametrize("headers", [{}, {"X-Platform-Key": WRONG}, {"X-Admin-Key": WRONG}])
@pytest.mark.parametrize("route", PLATFORM, ids=name)
async def test_a_product_route_wants_a_platform_key(
    gate: Gate, route: Route, headers: dict[str, str]
) -> None:
    """No key, a wrong one and the wrong kind get the same answer."""
    answer = await ask(gate, route, headers)

    assert (answer.status_code, code(answer)) == (401, "INVALID_PLATFORM_KEY")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("headers", [{}, {"X-Admin-Key": WRONG}, {"Authorization": "Bearer x"}])
@pytest.mark.parametrize("route", OPERATOR, ids=name)
async def test_an_admin_route_wants_the_admin_key(
    gate: Gate, route: Route, headers: dict[str, str]
) -> None:
    """Whatever was sent, the code says which key is missing."""
    answer = await ask(gate, route, headers)

    assert (answer.status_code, code(answer)) == (401, "INVALID_ADMIN_KEY")


@pytest.mark.parametrize("around", [" {}", "{} ", "{}\t", " {} \t"])
async def test_blanks_around_a_key_are_none_of_it(gate: Gate, around: str) -> None:
    """RFC 9110, section 5.5: a field's value does not include them."""
    await gate.engine()
    for header, key, path in (
        ("X-Platform-Key", gate.key, "/engines/ann/admit"),
        ("X-Admin-Key", ADMIN_KEY, "/products/register"),
    ):
        call = Wire(gate.app, "POST", path, {header: around.format(key)}, b"{}")
        assert (await call.run())[0] in (200, 400)


async def test_a_platform_key_opens_no_admin_route(gate: Gate) -> None:
    """A product cannot make products, under whichever header it sends its key."""
    for headers in ({"X-Platform-Key": gate.key}, {"X-Admin-Key": gate.key}):
        answer = await gate.client.get("/products", headers=headers)
        assert (answer.status_code, code(answer)) == (401, "INVALID_ADMIN_KEY")


@pytest.mark.parametrize("route", EITHER, ids=name)
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "INVALID_PLATFORM_KEY"),
        ({"X-Platform-Key": WRONG}, "INVALID_PLATFORM_KEY"),
        ({"X-Platform-Key": WRONG, "X-Admin-Key": WRONG}, "INVALID_PLATFORM_KEY"),
        ({"Authorization": f"Bearer {WRONG}"}, "INVALID_PLATFORM_KEY"),
        ({"X-Admin-Key": WRONG}, "INVALID_ADMIN_KEY"),
    ],
)
async def test_where_either_key_opens_the_code_follows_what_was_sent(
    gate: Gate, route: Route, headers: dict[str, str], expected: str
) -> None:
    """The 401 is INVALID_ADMIN_KEY only where an admin key alone was sent."""
    answer = await ask(gate, route, headers)

    assert (answer.status_code, code(answer)) == (401, expected)


async def test_every_wrong_key_gets_the_same_body(gate: Gate) -> None:
    """Nobody learns from an answer how near a guess was."""
    guesses = [WRONG, gate.key[:-1], gate.key + "x", "", "ü", "x" * 5000]
    answers = {
        (await Wire(gate.app, "GET", "/engines", {"X-Platform-Key": guess}).run())
        for guess in guesses
    }

    assert len(answers) == 1


async def test_bearer_works_for_either_key(gate: Gate) -> None:
    """A client that knows only `Authorization` can do everything."""
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {gate.key}"}
        assert (await gate.client.get("/engines", headers=headers)).status_code == 200
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    assert (await gate.client.get("/products", headers=headers)).status_code == 200
    assert "products" in (await gate.client.get("/status", headers=headers)).json()


async def test_another_scheme_than_bearer_is_no_key(gate: Gate) -> None:
    """Basic credentials are not taken for a key."""
    headers = {"Authorization": f"Basic {gate.key}"}

    assert (await gate.client.get("/engines", headers=headers)).status_code == 401


async def test_an_operator_acts_for_a_product(gate: Gate) -> None:
    """The admin key with X-Product does what the product could do, and the trail says who."""
    headers = ADMIN | {"X-Product": "demo"}
    made = await gate.client.post("/engines/provision", json={"user_id": "ann"}, headers=headers)

    assert made.status_code == 200
    assert (await gate.get("/engines/ann")).json()["api_key"] == made.json()["api_key"]
    assert (await gate.audit(action="provision"))[0]["actor"] == "admin"


async def test_an_operator_who_names_no_product_is_told_how(gate: Gate) -> None:
    """A valid admin key alone does not say whose engine is meant."""
    answer = await gate.client.get("/engines/ann", headers=ADMIN)

    assert (answer.status_code, code(answer)) == (401, "INVALID_PLATFORM_KEY")
    assert "X-Product" in answer.json()["error"]["message"]


async def test_an_operator_who_names_an_unknown_product_is_told_so(gate: Gate) -> None:
    """A slug that does not exist is not found, on every route that takes one."""
    for path in ("/engines", "/status", "/audit"):
        answer = await gate.admin("GET", path, **{"X-Product": "nobody"})
        assert (answer.status_code, code(answer)) == (404, "PRODUCT_NOT_FOUND")


@pytest.mark.parametrize("header", ["X-Admin-Key", "Authorization"])
async def test_a_wrong_admin_key_with_a_product_is_a_wrong_admin_key(
    gate: Gate, header: str
) -> None:
    """Naming a product shows that an operator was meant; the slug is not looked at."""
    for slug in ("demo", "nobody"):
        headers = {header: f"Bearer {WRONG}", "X-Product": slug}
        answer = await gate.client.get("/engines", headers=headers)
        assert (answer.status_code, code(answer)) == (401, "INVALID_ADMIN_KEY")


async def test_with_a_product_the_operator_sees_what_the_product_sees(gate: Gate) -> None:
    """X-Product narrows the reads too, instead of being passed over in silence."""
    answer = await gate.admin("GET", "/status", **{"X-Product": "demo"})

    assert set(answer.json()) == {"total", "by_status", "health", "unhealthy_count"}


@pytest.mark.parametrize("headers", [{"X-Admin-Key": METRICS_KEY}, None])
async def test_the_metrics_key_opens_metrics_text_and_status_alone(
    gate: Gate, headers: dict[str, str] | None
) -> None:
    """A third secret for a monitor: it reads two pages and nothing else."""
    headers = headers or {"Authorization": f"Bearer {METRICS_KEY}"}
    opened = [
        name(route)
        for route in TABLE
        if route.access is not Access.PUBLIC
        and (await ask(gate, route, headers | OPENMETRICS)).status_code != 401
    ]

    assert opened == ["GET /status", "GET /metrics"]
    assert (await gate.client.get("/metrics", headers=headers)).status_code == 401


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"Authorization": f"Bearer {METRICS_KEY}"}, "INVALID_PLATFORM_KEY"),
        ({"X-Admin-Key": METRICS_KEY}, "INVALID_ADMIN_KEY"),
        ({"X-Admin-Key": METRICS_KEY, "Authorization": "Bearer x"}, "INVALID_PLATFORM_KEY"),
    ],
)
async def test_the_metrics_key_does_not_get_json(
    gate: Gate, headers: dict[str, str], told: str
) -> None:
    """Who is told so by which name goes by what was sent, as with any key that opens nothing."""
    for accept in ({}, {"Accept": "application/json"}):
        answer = await gate.client.get("/metrics", headers=headers | accept)
        assert (answer.status_code, code(answer)) == (401, told)


async def test_a_platform_key_does_not_get_prometheus_text(gate: Gate) -> None:
    """The text shows all products, so a product's key does not open it."""
    answer = await gate.get("/metrics", headers=OPENMETRICS)

    assert (answer.status_code, code(answer)) == (401, "INVALID_PLATFORM_KEY")


async def test_a_key_is_looked_at_before_anything_else(gate: Gate) -> None:
    """A stranger's body is not read, not even when it is announced and never comes."""
    headers = {"X-Platform-Key": WRONG, "Content-Length": "99999999"}
    for path in ("/engines/ann/admit", "/engines/provision", "/engines/not valid/start"):
        stranger = Wire(gate.app, "POST", path, headers)
        assert (await stranger.run())[0] == 401
        assert stranger.received == 0


async def test_an_unknown_path_is_404_with_or_without_a_key(gate: Gate) -> None:
    """What does not exist needs no key to be missing."""
    for headers in ({}, {"X-Platform-Key": WRONG}, {"X-Platform-Key": gate.key}):
        for path in ("/", "/nothing", "/engines/", "/engines/ann/", "/health/", "/health%0A"):
            answer = await gate.client.get(path, headers=headers)
            assert (answer.status_code, code(answer)) == (404, "NOT_FOUND"), path


async def test_a_wrong_method_is_405_to_whom_the_path_is_open(gate: Gate) -> None:
    """The answer says which methods there are; a public path says it to everybody."""
    platform = {"X-Platform-Key": gate.key}
    for method, path, headers, allowed in (
        ("PUT", "/products/x", ADMIN, "DELETE, GET, HEAD"),
        ("PUT", "/engines/ann", platform, "DELETE, GET, HEAD"),
        ("PATCH", "/engines/provision", platform, "POST"),
        ("OPTIONS", "/status", platform, "GET, HEAD"),
        ("POST", "/health", {}, "GET, HEAD"),
    ):
        answer = await gate.client.request(method, path, headers=headers)
        assert (answer.status_code, code(answer)) == (405, "METHOD_NOT_ALLOWED"), path
        assert answer.headers["allow"] == allowed


async def test_a_wrong_method_without_a_key_is_401(gate: Gate) -> None:
    """Nothing about a request is looked at before who sends it, its method included."""
    for headers in ({}, {"X-Platform-Key": WRONG}):
        for method, path in (("PUT", "/engines/ann"), ("POST", "/status"), ("OPTIONS", "/engines")):
            answer = await gate.client.request(method, path, headers=headers)
            assert (answer.status_code, code(answer)) == (401, "INVALID_PLATFORM_KEY"), path
        answer = await gate.client.put("/products/x", headers=headers)
        assert (answer.status_code, code(answer)) == (401, "INVALID_ADMIN_KEY")


async def test_a_wrong_method_waits_for_the_journal(gate: Gate) -> None:
    """While it is read back no key is known, so that none can be called wrong."""
    gate.services.phase.name = "recovering"
    for headers in ({}, {"X-Platform-Key": gate.key}):
        answer = await gate.client.put("/engines/ann", headers=headers)
        assert (answer.status_code, code(answer)) == (503, "STORAGE_UNAVAILABLE")


def test_a_path_is_open_to_the_same_callers_in_all_methods() -> None:
    """So that it is clear whom a wrong method is told to."""
    accesses: dict[str, set[Access]] = {}
    for route in TABLE:
        accesses.setdefault(route.path, set()).add(route.access)
    assert {path for path, found in accesses.items() if len(found) > 1} == set()


async def test_the_first_of_two_headers_counts_on_both_roads(gate: Gate) -> None:
    """A header that is sent twice means the same to the hot path and to the routes."""
    await gate.engine()
    for path in ("/engines/ann/admit", "/engines/ann/touch"):
        call = Wire(gate.app, "POST", path, {}, b"")
        for keys, status in (([gate.key, WRONG], 200), ([WRONG, gate.key], 401)):
            call = Wire(gate.app, "POST", path, {}, b"")
            call.scope["headers"] = [(b"x-platform-key", key.encode()) for key in keys]
            assert (await call.run())[0] == status


async def test_a_rotated_key_stops_at_once_and_an_overlap_keeps_it(gate: Gate) -> None:
    """Old and new work together exactly as long as was asked for."""
    old, product = gate.key, gate.registry.by_slug["demo"].product.product_id
    road = f"/products/{product}/rotate-platform-key"

    new = (await gate.admin("POST", road, {"overlap_s": 60})).json()["platform_api_key"]
    assert (await gate.get("/engines", key=old)).status_code == 200
    assert (await gate.get("/engines", key=new)).status_code == 200
    await gate.clock.advance(60)
    assert (await gate.get("/engines", key=old)).status_code == 401

    await gate.admin("POST", road)
    assert (await gate.get("/engines", key=new)).status_code == 401


@pytest.mark.parametrize("path", ["/health", "/openapi.json", "/docs"])
async def test_a_few_pages_need_no_key(gate: Gate, path: str) -> None:
    """A balancer and a reader of the documentation are strangers."""
    assert (await gate.client.get(path)).status_code == 200


async def test_one_product_never_reaches_the_engines_of_another(gate: Gate) -> None:
    """The same user under two products is two engines; each sees its own alone."""
    mine = await gate.engine()
    other = (await gate.product("other"))["platform_api_key"]

    for method, path in (
        ("GET", "/engines/ann"),
        ("GET", "/engines/ann/activity"),
        ("POST", "/engines/ann/touch"),
        ("POST", "/engines/ann/start"),
        ("POST", "/engines/ann/stop"),
        ("POST", "/engines/ann/sleep"),
        ("POST", "/engines/ann/rotate-key"),
        ("DELETE", "/engines/ann"),
    ):
        answer = await gate.call(method, path, key=other)
        assert (answer.status_code, code(answer)) == (404, "ENGINE_NOT_FOUND")
    refused = await gate.post("/engines/ann/admit", key=other)
    assert refused.json()["reason"] == "engine_not_found"
    assert (await gate.get("/engines", key=other)).json() == {"engines": [], "total": 0}
    assert (await gate.get("/status", key=other)).json()["total"] == 0
    theirs = await gate.engine(key=other)
    assert theirs["engine_id"] != mine["engine_id"]
    assert theirs["api_key"] != mine["api_key"]
