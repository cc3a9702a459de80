"""The Prometheus page: the gate's meters as metric families. No label ever names a user."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from starlette.responses import Response

import enginegate
from enginegate.api.problems import SAFE_HEADERS
from enginegate.api.services import Services
from enginegate.metrics import Histogram

OPENMETRICS = "application/openmetrics-text"
PLAIN = "text/plain"
JSON = "application/json"
Generate = Callable[..., bytes]
_PAGES: dict[str, tuple[Generate, str]] = {
    OPENMETRICS: (generate_openmetrics, f"{OPENMETRICS}; version=1.0.0; charset=utf-8"),
    PLAIN: (generate_latest, f"{PLAIN}; version=0.0.4; charset=utf-8"),
}


def wanted(accept: Iterable[str]) -> str:
    """Return which of our three media types the `Accept` headers ask for most; JSON if none.

    What comes first wins among equals, so that a browser library that sends
    `application/json, text/plain, */*` gets JSON.
    """
    best, best_q = JSON, 0.0
    for offer in ",".join(accept).split(","):
        media, *parameters = (part.strip().lower() for part in offer.split(";"))
        if media in (*_PAGES, JSON) and (q := _quality(parameters)) > best_q:
            best, best_q = media, q
    return best


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


async def page(services: Services, media: str) -> Response:
    """Return the meters as they are now, in one of the two text formats.

    Thousands of products make a page of many milliseconds, so a thread makes it.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gate(services))
    generate, content_type = _PAGES[media]
    return Response(
        await asyncio.to_thread(generate, registry),
        headers=SAFE_HEADERS | {"content-type": content_type, "vary": "accept"},
    )


class _Gate(Collector):
    """Reads what the gate counts anyway, when it is asked; copies first what may grow meanwhile."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def collect(self) -> Iterator[Metric]:
        return chain(self._times(), self._counts(), self._states())

    def _times(self) -> Iterator[Metric]:
        meters = self.services.registry.meters
        yield _histogram(
            "enginegate_admit_seconds",
            "How long admits took, by what they were answered.",
            ["outcome"],
            (([outcome], held) for outcome, held in [*meters.admit_s.items()]),
        )
        yield _histogram(
            "enginegate_operation_seconds",
            "How long provision, wake, sleep, restart and the other verbs took.",
            ["verb", "outcome"],
            [*meters.work_s.items()],
        )
        yield _histogram(
            "enginegate_event_loop_lag_seconds",
            "How much later than asked for the event loop woke.",
            [],
            [((), meters.loop_lag_s)],
        )
        yield _histogram(
            "enginegate_journal_fsync_seconds",
            "How long the disk took to make a frame of the journal durable.",
            [],
            [((), meters.journal_sync_s)],
        )

    def _counts(self) -> Iterator[Metric]:
        registry = self.services.registry
        yield CounterMetricFamily(
            "enginegate_journal_bytes",
            "Bytes written to the journal.",
            registry.meters.journal_bytes,
        )
        calls = CounterMetricFamily(
            "enginegate_backend_calls",
            "Calls to the backend.",
            labels=["operation", "outcome"],
        )
        for labels, count in [*registry.meters.backend_calls.items()]:
            calls.add_metric(labels, count)
        yield calls
        admits = CounterMetricFamily("enginegate_admits", "Users let in.", labels=["product"])
        denials = CounterMetricFamily(
            "enginegate_denials", "Users not let in.", labels=["product", "reason"]
        )
        products = [*registry.products.values()]
        for live in products:
            admits.add_metric([live.product.slug], live.traffic.admits)
            for reason, count in [*live.traffic.denials.items()]:
                denials.add_metric([live.product.slug, reason], count)
        yield admits
        yield denials
        tallies = [registry.retired, *(live.tally for live in products)]
        yield CounterMetricFamily(
            "enginegate_provisions",
            "Engines that came to be, ever.",
            sum(tally.total_provisions for tally in tallies),
        )
        yield CounterMetricFamily(
            "enginegate_destroys",
            "Engines that were destroyed, ever.",
            sum(tally.total_destroys for tally in tallies),
        )

    def _states(self) -> Iterator[Metric]:
        services, registry = self.services, self.services.registry
        engines = GaugeMetricFamily("enginegate_engines", "Engines by state.", labels=["status"])
        for status, count in registry.counts([*registry.products.values()]).items():
            engines.add_metric([status], count)
        yield engines
        yield _gauge("enginegate_products", "Products.", len(registry.products))
        yield _gauge("enginegate_backend_up", "1: the backend answers.", services.health.backend_ok)
        writable = registry.journal_status == "ok"
        yield _gauge("enginegate_journal_writable", "1: changes can be written.", writable)
        now = services.clock.now()
        yield _gauge("enginegate_uptime_seconds", "Since the start.", now - services.started_at)
        if (events_at := registry.meters.events_at) is not None:
            yield _gauge(
                "enginegate_docker_events_age_seconds",
                "Since the Docker event stream last said anything or was dialled.",
                max(now - events_at, 0.0),
            )
            yield _gauge(
                "enginegate_docker_events_up", "1: events come.", not services.health.blind
            )
        yield _gauge(
            "enginegate_orphans", "Engines of this instance without a row.", registry.meters.orphans
        )
        version = GaugeMetricFamily("enginegate_build_info", "Always 1.", labels=["version"])
        version.add_metric([enginegate.__version__], 1)
        yield version


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, float(value))


def _histogram(
    name: str,
    help_text: str,
    labels: list[str],
    held: Iterable[tuple[Sequence[str], Histogram]],
) -> Metric:
    family = HistogramMetricFamily(name, help_text, labels=labels)
    for values, histogram in held:
        family.add_metric(values, histogram.cumulative(), histogram.sum_s)
    return family
