"""deploy/ for real: the image of deploy/Dockerfile, run the way deploy/compose.yaml says."""

import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from enginegate.backends.docker.container import INSTANCE, container_name
from enginegate.keys import new_admin_key, new_master_key
from tests.docker import gate_image
from tests.docker.engine import SOCKET, docker, inspected, remove_all, remove_network
from tests.e2e.conftest import eventually

pytestmark = pytest.mark.docker

COMPOSE = yaml.safe_load((gate_image.ROOT / "deploy/compose.yaml").read_text())
USER = 10001


def machine_may_lower_oom_scores() -> bool:
    """Whether Docker has CAP_SYS_RESOURCE: machines that are containers themselves may lack it."""
    status = Path("/proc/self/status").read_text()
    [effective] = re.findall(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(int(effective, 16) >> 24 & 1)


class ContainedGate:
    """enginegate as a container, started with every word of compose.yaml's service."""

    def __init__(self, folder: Path, engine_image: str) -> None:
        self.name = f"eg-gate-{uuid.uuid4().hex[:8]}"
        self.network = f"{self.name}-net"
        self.volume = f"{self.name}-data"
        self.admin_key = new_admin_key()
        self.given = {"ENGINE_IMAGE": engine_image, "DOCKER_GID": str(Path(SOCKET).stat().st_gid)}
        for name, key in (("admin_key", self.admin_key), ("master_key", new_master_key())):
            (folder / name).write_text(key)
            (folder / name).chmod(0o600)
            os.chown(folder / name, USER, USER)
        self.secrets = folder

    def run(self) -> None:
        docker("network", "create", self.network)
        docker("run", "-d", "--name", self.name, *self._words(), gate_image.build())
        self.wait()

    def wait(self) -> None:
        """Wait until it is healthy, by its own port on the host."""
        [port] = inspected(self.name)["NetworkSettings"]["Ports"]["8000/tcp"]
        self.url = f"http://127.0.0.1:{port['HostPort']}"

        def healthy() -> bool:
            state = inspected(self.name)["State"]
            assert state["Running"], docker("logs", self.name)
            try:
                return httpx.get(f"{self.url}/health").status_code == 200
            except httpx.TransportError:
                return False

        eventually(healthy, "the contained enginegate answers")

    def _words(self) -> list[str]:
        service: dict[str, Any] = COMPOSE["services"]["enginegate"]
        environment = service["environment"] | {
            "ENGINEGATE_ENGINE__NETWORK": self.network,
            "ENGINEGATE_ENGINE__LIMITS__MEMORY": "32m",
        }
        words = [f"--network={self.network}", "-p", "127.0.0.1::8000", f"--pid={service['pid']}"]
        words += [f"-e={name}={self._filled(value)}" for name, value in environment.items()]
        words += [f"--group-add={self._filled(group)}" for group in service["group_add"]]
        words += [f"-v={self.secrets / one}:/run/secrets/{one}:ro" for one in service["secrets"]]
        for mount in service["volumes"]:
            words.append(f"-v={re.sub('^data:', f'{self.volume}:', mount)}")
        words += [f"--tmpfs={one}" for one in service["tmpfs"]]
        words += [f"--cap-drop={one}" for one in service["cap_drop"]]
        words += [f"--security-opt={one}" for one in service["security_opt"]]
        words += [f"--ulimit={name}={value}" for name, value in service["ulimits"].items()]
        if machine_may_lower_oom_scores():
            words.append(f"--oom-score-adj={service['oom_score_adj']}")
        assert service["read_only"] is True
        return [*words, "--read-only"]

    def _filled(self, value: str) -> str:
        return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: self.given[found[1]], value)

    def python(self, code: str) -> str:
        """Run Python beside enginegate, as a product on the same network would."""
        return docker("exec", self.name, "python", "-c", code)

    def close(self) -> None:
        try:
            on_network = docker("ps", "-aq", "--filter", f"network={self.network}").split()
            for one in on_network:
                label = inspected(one)["Config"]["Labels"].get(INSTANCE)
                if label:
                    remove_all(f"{INSTANCE}={label}")
        finally:
            docker("rm", "-fv", self.name)
            docker("volume", "rm", "-f", self.volume)
            remove_network(self.network)


@pytest.fixture(scope="module")
def contained(tiny_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainedGate]:
    gate = ContainedGate(tmp_path_factory.mktemp("contained"), tiny_image)
    try:
        gate.run()
        yield gate
    finally:
        gate.close()


def test_enginegate_runs_as_a_container_beside_its_engines(contained: ContainedGate) -> None:
    """Provision, admit, sleep and wake by name on the network; a restart adopts the engine."""
    admin = {"X-Admin-Key": contained.admin_key}
    with httpx.Client(base_url=contained.url, timeout=90) as http:
        body = {"slug": "demo", "display_name": "Demo"}
        made = http.post("/products/register", json=body, headers=admin).json()
        http.headers["X-Platform-Key"] = made["platform_api_key"]
        first = http.post("/engines/ann/admit", json={"auto_provision": True}).json()
        engine = first["engine"]
        assert engine["url"] == f"http://{container_name(engine['engine_id'])}:8000"

        ask = f"import urllib.request as u; print(u.urlopen({engine['url']!r} + '/health').read())"
        assert '"boots":1' in contained.python(ask)

        assert http.post("/engines/ann/sleep", json={}).json() == {"status": "sleeping"}
        container = container_name(engine["engine_id"])
        assert inspected(container)["State"]["Paused"] is True
        woken = http.post("/engines/ann/admit", json={"auto_wake": True}).json()
        assert woken["action"] == "woke"
        assert '"boots":1' in contained.python(ask)
        verified = http.post("/engines/ann/admit", json={"verify": True}).json()
        assert verified["admitted"] is True

        began = time.monotonic()
        docker("stop", "-t", "45", contained.name)
        assert time.monotonic() - began < 30
        assert inspected(contained.name)["State"]["ExitCode"] == 0
        life = inspected(container)["State"]["StartedAt"]
        docker("start", contained.name)
        contained.wait()
        http.base_url = httpx.URL(contained.url)
        again = http.post("/engines/ann/admit", json={}).json()
        assert again["engine"]["api_key"] == engine["api_key"]
        assert inspected(container)["State"]["StartedAt"] == life
        assert http.delete("/engines/ann").status_code == 200


def test_the_container_has_no_more_rights_than_it_needs(contained: ContainedGate) -> None:
    """No root, no capability, no way to more; its root file system cannot be written."""
    status = contained.python("print(open('/proc/self/status').read())")
    assert f"Uid:\t{USER}" in status
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    host = inspected(contained.name)["HostConfig"]
    assert (host["ReadonlyRootfs"], host["Privileged"]) == (True, False)
    mode = contained.python("import os; print(oct(os.stat('/var/lib/enginegate').st_mode))")
    assert mode.endswith("700")
    logged = docker("logs", contained.name)
    assert contained.admin_key not in logged + json.dumps(inspected(contained.name))
