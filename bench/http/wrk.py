"""wrk, the load generator: closed loop, a fixed number of connections."""

import re
import shutil
import subprocess
from pathlib import Path

from msgspec import Struct

from bench.http.servers import Target

MISSING = "wrk is not installed (Debian: apt-get install wrk)"
SCRIPT = Path(__file__).with_name("request.lua")
UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_SHARE = re.compile(r"^\s+(50|90|99)%\s+([\d.]+)(us|ms|s|m)$", re.MULTILINE)
_BAD = re.compile(r"Socket errors: (.*)|Non-2xx or 3xx responses: (\d+)")


class Load(Struct, frozen=True, kw_only=True):
    """What one run of wrk saw."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    non_2xx: int


def installed() -> bool:
    return shutil.which("wrk") is not None


def run(target: Target, *, connections: int, seconds: float) -> Load:
    """Load it with one thread; every request is the same.

    Raises:
        AssertionError: a connection broke.
    """
    url = target.url
    command = [
        "wrk", "--threads", "1", "--connections", str(connections), "--timeout", "10s",
        "--duration", f"{seconds:g}s", "--latency", "--script", str(SCRIPT),
        url, "--", target.method, target.body, *target.headers,
    ]  # fmt: skip
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = _RATE.search(out)
    assert rate is not None, out
    shares = {share: float(value) * UNITS_MS[unit] for share, value, unit in _SHARE.findall(out)}
    bad = [int(count) for _, count in _BAD.findall(out) if count]
    errors = [text for text, _ in _BAD.findall(out) if text]
    assert not errors, f"{url}: {errors}"
    return Load(
        requests_per_s=float(rate[1]), p50_ms=shares["50"], p99_ms=shares["99"], non_2xx=sum(bad)
    )
