"""What an admit costs in process beside the least it must do, and how fast a journal replays.

`python -m bench` runs all, `--smoke` a short version. Figures of one run on one
machine may be compared with each other, never with those of another machine.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from enginegate import facts as f
from enginegate.admission import Admission
from enginegate.api.wire import encode_admit
from enginegate.clock import SystemClock
from enginegate.keys import Keyring, digest_hex, new_engine_key, new_master_key, new_platform_key
from enginegate.model import Engine, Policy, Product, Status
from enginegate.ports import PortMap
from enginegate.registry import Registry

ENGINES = 1_000


def nanoseconds(work: Callable[[], object], *, calls: int, rounds: int = 5) -> float:
    """Return the best mean of some rounds, in nanoseconds a call."""
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter_ns()
        for _ in range(calls):
            work()
        best = min(best, (time.perf_counter_ns() - began) / calls)
    return round(best, 1)


def warm_admission() -> tuple[Admission, bytes]:
    """Return an admission over a fleet of running engines, and a platform key for it."""
    keyring, key = Keyring([new_master_key()]), new_platform_key()
    product = Product(
        product_id="p",
        slug="bench",
        display_name="",
        policy=Policy(rate_limit_rpm=10**9),
        key_hash=digest_hex(key),
        created_at_ms=0,
    )
    registry = Registry(
        ports=PortMap(9001, 60_000),
        keyring=keyring,
        clock=SystemClock(),
        url_of=lambda engine: f"http://127.0.0.1:{engine.port}",
        sleep_after_s=900,
    )
    engines = [
        Engine(
            engine_id=f"e{n}",
            product_id="p",
            user_id=f"user{n}",
            status=Status.RUNNING,
            port=9001 + n,
            engine_version="x",
            sealed_key=keyring.seal(f"e{n}", new_engine_key()),
            key_hash="00",
            created_at_ms=0,
            changed_at_ms=0,
        )
        for n in range(ENGINES)
    ]
    registry.load([product, *engines], [])
    unused: Any = None
    admission = Admission(
        registry=registry,
        lifecycle=unused,
        health=unused,
        clock=SystemClock(),
        encode=encode_admit,
    )
    return admission, key.encode()


def in_process(*, calls: int) -> dict[str, float]:
    """Return what a warm admit costs beside the least it must do: one hash, two look-ups."""
    admission, key = warm_admission()
    by_key, by_user = {sha256(key).digest(): 1}, {"user5": 1}

    def least() -> None:
        by_key.get(sha256(key).digest())
        by_user.get("user5")

    warm_ns = nanoseconds(lambda: admission.warm(key, "user5", b""), calls=calls)
    least_ns = nanoseconds(least, calls=calls)
    return {"warm_admit_ns": warm_ns, "least_ns": least_ns, "ratio": round(warm_ns / least_ns, 2)}


def replay(*, facts: int) -> dict[str, float]:
    """Return how fast a history of sleeps and wakes becomes a fleet again."""
    keyring = Keyring([new_master_key()])
    registry = Registry(
        ports=PortMap(9001, 9999),
        keyring=keyring,
        clock=SystemClock(),
        url_of=lambda _: "",
        sleep_after_s=900,
    )
    ids = {"engine_id": "e", "product_id": "p", "user_id": "u"}
    tail: list[tuple[int, f.AnyFact]] = [
        (
            1,
            f.ProductRegistered(
                at_ms=1, product_id="p", slug="p", display_name="", policy=Policy(), key_hash="00"
            ),
        ),
        (
            2,
            f.Provisioned(
                at_ms=1,
                **ids,
                port=9001,
                engine_version="x",
                key_hash="00",
                sealed_key=keyring.seal("e", new_engine_key()),
            ),
        ),
        (3, f.Booted(at_ms=1, **ids, via="provision")),
    ]
    for number in range(4, facts, 2):
        tail.append((number, f.Slept(at_ms=number, **ids, reason="idle")))
        tail.append((number + 1, f.Woken(at_ms=number, **ids)))
    began = time.perf_counter()
    registry.load([], tail)
    return {"facts_per_s": round(len(tail) / (time.perf_counter() - began))}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a short run, to see that it works")
    smoke = parser.parse_args().smoke
    figures = {
        "machine": f"{platform.machine()} python {platform.python_version()}",
        "admit in process": in_process(calls=2_000 if smoke else 200_000),
        "replay": replay(facts=2_000 if smoke else 200_000),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
