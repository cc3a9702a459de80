"""A fleet in memory, as large as one likes, with the admission that the server uses."""

from typing import Any

from enginegate.admission import Admission
from enginegate.api.prepared import prepare
from enginegate.clock import SystemClock
from enginegate.keys import Keyring, digest_hex, new_engine_key, new_master_key, new_platform_key
from enginegate.model import Engine, Policy, Product, SnapshotRecord, Status
from enginegate.ports import PORT_MAX, PortMap
from enginegate.registry import Registry

FIRST_PORT = 1


def product(number: int, key: str) -> Product:
    return Product(
        product_id=f"p{number}",
        slug=f"bench-{number}",
        display_name="",
        policy=Policy(rate_limit_rpm=10**9),
        key_hash=digest_hex(key),
        created_at_ms=0,
    )


def engine(number: int, product_id: str, *, sealed_key: str) -> Engine:
    return Engine(
        engine_id=f"e{number}",
        product_id=product_id,
        user_id=f"user{number}",
        status=Status.RUNNING,
        port=FIRST_PORT + number,
        engine_version="my-engine:2.3.0",
        sealed_key=sealed_key,
        key_hash=digest_hex(sealed_key),
        created_at_ms=0,
        changed_at_ms=0,
    )


class Fleet:
    """Products and running engines, spread evenly; no journal, no backend, no loop."""

    def __init__(self, *, engines: int, products: int = 1) -> None:
        self.keyring = Keyring([new_master_key()])
        self.keys = [new_platform_key() for _ in range(products)]
        self.engines = engines
        self.registry = Registry(
            ports=PortMap(FIRST_PORT, PORT_MAX),  # what lies beyond is leased all the same
            keyring=self.keyring,
            clock=SystemClock(),
            url_of=lambda engine: f"http://127.0.0.1:{engine.port}",
            sleep_after_s=900,
        )
        self.registry.load(self._records(), [])
        absent: Any = None  # the warm road needs neither verbs nor probes
        self.admission = Admission(
            registry=self.registry,
            lifecycle=absent,
            health=absent,
            clock=SystemClock(),
            encode=prepare,
        )

    def _records(self) -> list[SnapshotRecord]:
        rows = [
            engine(
                number,
                f"p{number % len(self.keys)}",
                sealed_key=self.keyring.seal(f"e{number}", new_engine_key()),
            )
            for number in range(self.engines)
        ]
        return [*(product(number, key) for number, key in enumerate(self.keys)), *rows]

    def caller(self, number: int) -> tuple[bytes, str]:
        """Return the platform key and the user id with which engine `number` is admitted."""
        return self.keys[number % len(self.keys)].encode(), f"user{number}"
