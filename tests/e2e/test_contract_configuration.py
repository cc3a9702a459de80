"""Section 6 of the contract: every key with its default, and a served gate that obeys them.

How faults are found and listed is in `tests/core/test_config.py` and, as a shell sees it, in
`test_cli.py`; that `config.toml` shows and explains every key, in `tests/repo/test_config_file.py`.
What the keys of the Docker backend do is shown by its tests.
"""

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from enginegate.cli.sandbox import ENGINE_PORTS, free_ports
from enginegate.config import Config
from enginegate.keys import new_admin_key, new_master_key
from tests.e2e.conftest import Cli, remains
from tests.e2e.shop import Shop, open_shop

METRICS_KEY = "mk-for-a-scraper-0123456789"
DEFAULTS = {
    "data_dir": "./data",
    "server": {
        "host": "127.0.0.1",
        "port": 8000,
        "max_body_bytes": 65536,
        "max_header_bytes": 16384,
        "request_timeout_s": 10,
        "max_connections": 2000,
        "shutdown_grace_s": 30,
    },
    "engine": {
        "backend": "process",
        "image": "",
        "allowed_images": [],
        "command": [],
        "container_port": 8000,
        "health_path": "/health",
        "url_mode": "host",
        "advertise_host": "127.0.0.1",
        "publish_address": "127.0.0.1",
        "network": "engine_net",
        "wake_timeout_s": 10,
        "env": {},
        "env_passthrough": [],
        "catalog_dir": "",
        "rotate_mode": "recreate",
        "key_overlap_s": 60,
        "limits": {"memory": "1g", "cpus": 1.0, "pids": 512, "profile": "baseline"},
    },
    "ports": {"min": 9001, "max": 9999},
    "boot": {"timeout_s": 60},
    "health": {
        "interval_s": 30,
        "timeout_s": 10,
        "max_failures": 3,
        "concurrency": 50,
        "require_status_ok": True,
    },
    "restart": {"backoff_base_s": 5, "backoff_max_s": 300, "max_attempts": 8},
    "idle": {
        "sleep_after_s": 900,
        "connection_idle_s": 900,
        "stop_after_s": 0,
        "min_available_memory_mb": 0,
    },
    "pool": {"size": 0},
    "audit": {"retention_days": 90, "max_mb": 1024},
}


def test_keys_and_defaults_are_those_that_are_promised() -> None:
    """No more, no fewer: a deployment that relies on a default goes on doing so."""
    assert json.loads(msgspec.json.encode(Config())) == DEFAULTS


SETTINGS = """
[engine]
image = "app:1"
allowed_images = ["from:file"]
[idle]
sleep_after_s = 100
[server]
max_body_bytes = 2000
"""
VARIABLES = {
    "ENGINEGATE_ENGINE__ALLOWED_IMAGES": '["from:environment", "lab:*"]',
    "ENGINEGATE_ENGINE__ENV": '{"MODEL": "m"}',
    "ENGINEGATE_IDLE__SLEEP_AFTER_S": "12.5",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A gate whose file, environment and flags (`--port`) each say something."""
    with open_shop(tmp_path_factory.mktemp("configured"), SETTINGS, **VARIABLES) as shop:
        yield shop


def test_the_environment_overrides_the_file_key_by_key(shop: Shop) -> None:
    """What it does not name stays as the file has it; fractions, lists and tables work."""
    for version, status in (("from:file", 403), ("from:environment", 200), ("lab:9", 200)):
        user = version.replace(":", "-")
        body = {"user_id": user, "engine_version": version}
        assert shop.http.post("/engines/provision", json=body).status_code == status
        if status == 200:
            assert shop.http.post(f"/engines/{user}/admit").json()["lease_s"] == 12.5
            shop.http.delete(f"/engines/{user}")
    shop.open("default")
    assert shop.engine["engine_version"] == "app:1"
    too_large = shop.http.post("/engines/provision", json={"user_id": "a" * 2000})
    assert too_large.json()["error"]["limit"] == 2000
    shop.close()


def test_a_policy_overrides_the_configured_lease(shop: Shop) -> None:
    """`idle_sleep_s` of the product comes before `[idle] sleep_after_s`."""
    with shop.server.product("sleepless", idle_sleep_s=0) as http:
        answer = http.post("/engines/ann/admit", json={"auto_provision": True}).json()
        assert answer["lease_s"] == 0
        http.delete("/engines/ann")


def test_flags_come_first_and_secrets_may_come_from_files(tmp_path: Path) -> None:
    """`init` writes two of them; a third, for metrics, opens metrics and nothing else."""
    first = free_ports()
    ports = f"[ports]\nmin = {first}\nmax = {first + ENGINE_PORTS - 1}\n"
    (tmp_path / "config.toml").write_text(f'data_dir = "from-file"\n{ports}')
    admin_key = new_admin_key()
    cli = Cli(tmp_path, ENGINEGATE_DATA_DIR="from-environment")
    for name, secret in (
        ("ADMIN", admin_key),
        ("MASTER", new_master_key()),
        ("METRICS", METRICS_KEY),
    ):
        file = tmp_path / name
        file.write_text(secret + "\n")
        cli.env[f"ENGINEGATE_{name}_KEY_FILE"] = str(file)
    with (tmp_path / "err").open("w") as err:
        server = cli.begin(
            *("serve", "--config", "config.toml", "--data-dir", "from-flag", "--port", "0"),
            stdout=-1,
            stderr=err,
        )
    assert server.stdout is not None
    url = server.stdout.readline().split(" on ")[1].split(" ")[0]
    with httpx.Client(base_url=url) as http:
        assert http.get("/products", headers={"X-Admin-Key": admin_key}).status_code == 200
        monitor = {"X-Admin-Key": METRICS_KEY}
        text = http.get("/metrics", headers=monitor | {"Accept": "text/plain"})
        assert "enginegate_" in text.text
        assert http.get("/status", headers=monitor).status_code == 200
        assert http.get("/products", headers=monitor).status_code == 401
    server.terminate()
    assert server.wait(30) == 0
    server.stdout.close()

    assert (tmp_path / "from-flag").is_dir()
    assert not (tmp_path / "from-file").exists()
    assert not (tmp_path / "from-environment").exists()
    assert remains(tmp_path) == []


def test_init_makes_what_serve_asks_for(tmp_path: Path) -> None:
    """Both secrets in files of mode 0600, a configuration, and no fault in it."""
    cli = Cli(tmp_path)
    cli.run("init")
    made = [path for path in tmp_path.rglob("*.key") if path.is_file()]
    assert len(made) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}
    assert "no faults" in cli.run("config", "check").stdout
