"""A fixed rate of requests, whatever the server does: latency as users see it.

A closed loop waits for a slow answer and asks less meanwhile, so it hides the very
moments that matter (coordinated omission). Here each request has its time; its latency
counts from then, also while it waits for a connection.
"""

import shutil
import subprocess
from array import array
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from bench.http import wrk
from bench.http.servers import Target
from bench.measure import percentile

CONNECTIONS = 64
WARM_UP_S = 0.5
MISSING = (
    "no C compiler, which the load at a fixed rate needs (Debian: apt-get install gcc libc6-dev)"
)
SOURCE = Path(__file__).with_suffix(".c")
OPTIONS = ("-O2", "-Wall", "-Wextra", "-D_GNU_SOURCE")


class Latency(Struct, frozen=True, kw_only=True):
    """What requests at a fixed rate saw."""

    rate: float
    p50_ms: float
    p99_ms: float
    p999_ms: float


def missing() -> list[str]:
    """Return what a benchmark at a share of the capacity lacks here, and how to get it."""
    needed = ((wrk.installed(), wrk.MISSING), (compiler() is not None, MISSING))
    return [said for there, said in needed if not there]


def compiler() -> str | None:
    """Return a compiler that finds the C library's headers, which may be a package of their own."""
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        return None
    command = [found, "-fsyntax-only", "-x", "c", "-"]
    source = b"#include <sys/epoll.h>\n"
    tried = subprocess.run(command, check=False, input=source, capture_output=True)
    return found if tried.returncode == 0 else None


class Load:
    """The load generator, compiled into a directory."""

    def __init__(self, directory: Path) -> None:
        found = compiler()
        assert found is not None, MISSING
        self._program = directory / "open_load"
        subprocess.run([found, *OPTIONS, "-o", self._program, SOURCE], check=True)

    def run(
        self, target: Target, *, rate: float, seconds: float, warm_up_s: float = WARM_UP_S
    ) -> Latency:
        """Ask `rate` times a second and return the latencies, those of the warm-up left out.

        Raises:
            CalledProcessError: a connection broke, or an answer was not 200.
        """
        address = urlsplit(target.url)
        asked = (address.hostname, address.port, rate, warm_up_s, seconds, CONNECTIONS)
        done = subprocess.run(
            [self._program, *map(str, asked)],
            input=_request(target),
            stdout=subprocess.PIPE,
            check=True,
        )
        seen = sorted(array("d", done.stdout))
        return Latency(
            rate=rate,
            p50_ms=percentile(seen, 0.5),
            p99_ms=percentile(seen, 0.99),
            p999_ms=percentile(seen, 0.999),
        )


def _request(target: Target) -> bytes:
    address = urlsplit(target.url)
    lines = [
        f"{target.method} {address.path} HTTP/1.1",
        f"Host: {address.netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(target.body)}",
        *target.headers,
    ]
    return "\r\n".join([*lines, "", target.body]).encode()
