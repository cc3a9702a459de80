"""`enginegate serve` with the docker backend, as its operators run it."""

import asyncio
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from enginegate.backends.docker.container import INSTANCE, container_name, volume_name
from enginegate.cli.sandbox import free_ports
from tests.docker import tiny
from tests.docker.engine import docker, inspected, remove_all
from tests.e2e.conftest import Server

CALL_S = 90.0
PORTS = 400
_AMONG = range(12_000, 20_000)  # those of other tests are above


class DockerGate(Server):
    """A served data directory whose engines are containers on a network of its own.

    `settings` are configuration keys in the environment's form, without the prefix
    (`ENGINE__IMAGE`); `host` is what it knows as DOCKER_HOST, `engine_host` how the
    tests themselves reach the Engine.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str | None = None,
        engine_host: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory)
        self.network = f"eg-{uuid.uuid4().hex[:8]}"
        self.engine_host = engine_host
        first = free_ports(PORTS, _AMONG)
        chosen = {
            "PORTS__MIN": str(first),
            "PORTS__MAX": str(first + PORTS - 1),
            "ENGINE__BACKEND": "docker",
            "ENGINE__IMAGE": tiny.IMAGE,
            "ENGINE__NETWORK": self.network,
            "ENGINE__LIMITS__MEMORY": "32m",
        }
        for name, value in (chosen | dict(settings or {})).items():
            self.cli.env[f"ENGINEGATE_{name}"] = value
        if host is not None:
            self.cli.env["DOCKER_HOST"] = host
        self.platform_key = ""
        self._instance = ""

    def start(self) -> None:
        super().start()
        if not self.platform_key:
            made = self.cli.json("products", "register", "demo")
            self.platform_key = made["platform_api_key"]

    def http(self) -> httpx.AsyncClient:
        """Return a client for the product routes that as many tasks as you like may share."""
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"X-Platform-Key": self.platform_key},
            timeout=CALL_S,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    def docker(self, *arguments: str) -> str:
        return docker(*arguments, host=self.engine_host)

    async def ask_docker(self, *arguments: str) -> str:
        return await asyncio.to_thread(self.docker, *arguments)

    def inspected(self, engine_id: str) -> dict[str, Any]:
        return inspected(container_name(engine_id), host=self.engine_host)

    @property
    def instance(self) -> str:
        """The instance label; known once the first engine has made the network."""
        if not self._instance:
            form = f'{{{{index .Labels "{INSTANCE}"}}}}'
            self._instance = self.docker("network", "inspect", "-f", form, self.network)
        return self._instance

    @property
    def label(self) -> str:
        return f"{INSTANCE}={self.instance}"

    def volumes(self) -> set[str]:
        listed = self.docker("volume", "ls", "-q", "--filter", f"label={self.label}")
        return set(listed.split())

    def close(self) -> None:
        """End it with its engines; containers, volumes and network are gone too, come what may."""
        networks = self.docker("network", "ls", "-q", "--filter", f"name=^{self.network}$")
        label = self.label if networks else ""
        try:
            super().close()
        finally:
            if label:
                remove_all(label, host=self.engine_host)


async def admit(http: httpx.AsyncClient, user: str, **body: object) -> dict[str, Any]:
    """Admit a user, whose engine is made or woken where need be; the answer must be 200."""
    flags = {"auto_provision": True, "auto_wake": True} | body
    answer = await http.post(f"/engines/{user}/admit", json=flags)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def row(http: httpx.AsyncClient, user: str) -> dict[str, Any]:
    answer = await http.get(f"/engines/{user}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def call(http: httpx.AsyncClient, user: str, verb: str) -> None:
    answer = await http.post(f"/engines/{user}/{verb}", json={})
    assert answer.status_code == 200, answer.text


async def audit(http: httpx.AsyncClient, user: str) -> list[dict[str, Any]]:
    """Return a user's audit entries, oldest first."""
    answer = await http.get("/audit", params={"user_id": user, "limit": 1000})
    entries: list[dict[str, Any]] = answer.json()["entries"]
    return entries[::-1]


__all__ = ["DockerGate", "admit", "audit", "call", "row", "volume_name"]
