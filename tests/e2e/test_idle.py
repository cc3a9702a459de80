"""Sleep as a product and an operator see it: the installed command, real engines, real time."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Cli, Server, eventually

LEASE_S = 1.5


@pytest.fixture(scope="module")
def nap(server: Server) -> Iterator[Cli]:
    """The command line of a product whose engines sleep soon."""
    made = server.cli.json("products", "register", "nap", "--idle-sleep-s", f"{LEASE_S}")
    key = made["platform_api_key"]
    yield Cli(server.directory, ENGINEGATE_URL=server.url, ENGINEGATE_PLATFORM_KEY=key)
    server.cli.run("products", "delete", "nap", "--yes")


@pytest.fixture(scope="module")
def http(server: Server, nap: Cli) -> Iterator[httpx.Client]:
    headers = {"X-Platform-Key": nap.env["ENGINEGATE_PLATFORM_KEY"]}
    with httpx.Client(base_url=server.url, headers=headers) as client:
        yield client


def status(http: httpx.Client, user: str) -> Any:
    return http.get(f"/engines/{user}").json()["status"]


def test_nobody_is_kept_awake_by_being_looked_at(http: httpx.Client, server: Server) -> None:
    """Polls, lists, metrics, dry and refused admits all the while: asleep with its lease's end."""
    admin = {"X-Admin-Key": server.admin_key}
    http.post("/engines/watched/admit", json={"auto_provision": True})
    until = time.monotonic() + LEASE_S + 1.5
    longest, last = 0.0, time.monotonic()
    while time.monotonic() < until:
        for path in ("watched", "watched/activity"):
            assert http.get(f"/engines/{path}").status_code == 200
        for path in ("/engines", "/status", "/metrics", "/audit", "/health"):
            assert http.get(path).status_code == 200
        told = httpx.get(f"{server.url}/metrics", headers=admin | {"accept": "text/plain"})
        assert told.status_code == 200
        http.post("/engines/watched/admit", json={"touch": False})
        http.post("/engines/stranger/admit", json={})
        http.post("/engines/watched/admit", json={"unknown": True})
        time.sleep(0.02)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < LEASE_S / 2  # a look that counted would have kept it awake all the while
    seen = http.get("/engines/watched/activity").json()
    assert (seen["status"], seen["tier"]) == ("sleeping", "frozen")
    assert seen["last_transition"]["reason"] == "idle"


def test_what_another_idle_time_would_have_done(http: httpx.Client, nap: Cli) -> None:
    """Two naps; with an hour of idle time there would have been none, and no wait."""
    http.post("/engines/sim/admit", json={"auto_provision": True})
    eventually(lambda: status(http, "sim") == "sleeping", "it sleeps")
    assert http.post("/engines/sim/admit", json={"auto_wake": True}).json()["action"] == "woke"
    eventually(lambda: status(http, "sim") == "sleeping", "it sleeps again")
    found = nap.json("idle", "simulate", "--sleep-after", "3600")
    assert found["happened"]["wakes"] >= 1
    assert found["happened"]["sleeps"] >= 2
    assert found["happened"]["waited_s"] > 0
    assert (found["simulated"]["sleeps"], found["simulated"]["wakes"]) == (0, 0)
    assert found["saved_h"] < 0
    shown = nap.run("idle", "simulate", "--sleep-after", "0.5").stdout
    assert "with 0.5 s" in shown
    assert "engine-hours saved" in shown
    assert "no warm admits" in shown


def test_the_operator_simulates_for_one_product_or_all(server: Server, nap: Cli) -> None:
    """With the admin key; a time that is none is told."""
    one = server.cli.json("idle", "simulate", "--sleep-after", "60", "--product", "nap")
    every = server.cli.json("idle", "simulate", "--sleep-after", "60")
    assert one["engines"] == every["engines"] >= 1
    none = server.cli.json(
        "idle", "simulate", "--sleep-after", "60", "--since", "2999-01-01T00:00:00Z"
    )
    assert none["engines"] == 0
    server.cli.run("idle", "simulate", "--sleep-after", "60", "--since", "monday", exits=1)
    server.cli.run("idle", "simulate", "--sleep-after", "-1", exits=2)
