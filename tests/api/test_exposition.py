"""The Prometheus page: parseable in both formats, complete, and without users."""

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from enginegate.api.exposition import JSON, OPENMETRICS, PLAIN, wanted
from tests.api.rig import ADMIN, METRICS_KEY, Gate

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("text/html, */*", JSON),
        ("text/plain", PLAIN),
        ("TEXT/PLAIN; version=0.0.4", PLAIN),
        ("application/openmetrics-text", OPENMETRICS),
        (PROMETHEUS, OPENMETRICS),
        ("application/json, text/plain, */*", JSON),
        ("text/plain, application/json;q=0.5", PLAIN),
        ("text/plain;q=0.5, application/json", JSON),
        ("text/plain;q=0", JSON),
        ("text/plain;q=x", JSON),
        (",;,", JSON),
    ],
)
def test_the_accept_header_decides(accept: str, media: str) -> None:
    """The best offer wins, the first among equals; who asks for nothing gets JSON."""
    assert wanted([accept]) == media


async def page(gate: Gate, accept: str = PROMETHEUS) -> httpx.Response:
    return await gate.client.get("/metrics", headers=ADMIN | {"Accept": accept})


async def families(gate: Gate) -> dict[str, Metric]:
    return {family.name: family for family in openmetrics((await page(gate)).text)}


async def test_both_formats_parse(gate: Gate) -> None:
    """Each comes under its own media type, and Prometheus's own parser takes it."""
    await gate.engine()
    await gate.admit("nobody")

    modern = await page(gate)
    assert modern.headers["content-type"].startswith(OPENMETRICS)
    assert list(openmetrics(modern.text))
    classic = await page(gate, PLAIN)
    assert classic.headers["content-type"].startswith(PLAIN)
    assert list(plain(classic.text))


@pytest.mark.parametrize("accept", ["text/plain;version=x", OPENMETRICS + ";version=\n;escaping=x"])
async def test_odd_parameters_change_nothing(gate: Gate, accept: str) -> None:
    """A version that we do not speak is answered in the one that we do."""
    assert (await page(gate, accept.replace("\n", ""))).status_code == 200


async def test_everything_that_is_promised_is_there(gate: Gate) -> None:
    """Admits, work, states, the loop, the journal, the backend and its events."""
    await gate.engine()
    await gate.post("/engines/ann/sleep")
    await gate.admit(auto_wake=True)
    gate.registry.meters.backend_calls["start", "ok"] += 1
    gate.registry.meters.events_at = gate.clock.now()
    await gate.clock.advance(3)
    found = await families(gate)

    def value(name: str, **labels: str) -> float:
        family = found[name.removesuffix("_total").removesuffix("_count").removesuffix("_bytes")]
        (only,) = (s.value for s in family.samples if s.name == name and s.labels == labels)
        return only

    found["enginegate_journal"] = found["enginegate_journal_bytes"]
    assert value("enginegate_admit_seconds_count", outcome="woke") == 1
    for verb in ("provision", "wake", "sleep"):
        assert value("enginegate_operation_seconds_count", verb=verb, outcome="ok") == 1
    assert value("enginegate_engines", status="running") == 1
    assert value("enginegate_engines", status="failed") == 0
    assert value("enginegate_event_loop_lag_seconds_count") == 0
    assert value("enginegate_journal_fsync_seconds_count") > 0
    assert found["enginegate_journal_bytes"].samples[0].value > 0
    assert value("enginegate_backend_calls_total", operation="start", outcome="ok") == 1
    assert value("enginegate_docker_events_age_seconds") == 3
    assert value("enginegate_admits_total", product="demo") == 1
    assert value("enginegate_provisions_total") == 1
    assert value("enginegate_backend_up") == 1


async def test_admits_on_the_short_road_are_measured_too(gate: Gate) -> None:
    """They are nearly all admits there are, so the histogram is about them."""
    await gate.engine()
    for _ in range(10):
        await gate.admit()
    (counted,) = (
        sample.value
        for sample in (await families(gate))["enginegate_admit_seconds"].samples
        if sample.name.endswith("_count") and sample.labels == {"outcome": "none"}
    )

    assert counted == 10


async def test_no_label_names_a_user_or_an_engine(gate: Gate) -> None:
    """The page stays as small as the configuration, however large the fleet."""
    engine = await gate.engine("someone-special")
    await gate.admit("someone-else")
    text = (await page(gate)).text

    for secret in ("someone", engine["engine_id"], engine["api_key"]):
        assert secret not in text


async def test_a_gate_without_docker_has_no_age_of_its_events(gate: Gate) -> None:
    """Where there is no stream there is no alarm about it."""
    assert "enginegate_docker_events_age_seconds" not in await families(gate)


async def test_the_metrics_key_opens_the_page(gate: Gate) -> None:
    """A scraper needs no key that could change anything."""
    headers = {"Authorization": f"Bearer {METRICS_KEY}", "Accept": PROMETHEUS}

    assert (await gate.client.get("/metrics", headers=headers)).status_code == 200


async def test_refused_admits_are_measured_by_their_reason(gate: Gate) -> None:
    """Also those that the rate limit or the quota refuses."""
    await gate.engine()
    await gate.admit("bob")
    await gate.policy(max_engines=1)
    await gate.admit("bob", auto_provision=True)
    await gate.policy(rate_limit_rpm=0)
    await gate.admit()
    counted = {
        sample.labels["outcome"]: sample.value
        for sample in (await families(gate))["enginegate_admit_seconds"].samples
        if sample.name.endswith("_count") and sample.value
    }
    assert counted == {"engine_not_found": 1, "quota_exceeded": 1, "rate_limited": 1}
