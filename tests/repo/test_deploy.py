"""What stands in deploy/ goes with the program: its keys, ports, paths and exit codes."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from enginegate.config import Config, load

DEPLOY = Path(__file__).parents[2] / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
GATE = COMPOSE["services"]["enginegate"]
SECRETS = {"ENGINEGATE_ADMIN_KEY_FILE", "ENGINEGATE_MASTER_KEY_FILE"}


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    """Read a unit file: sections, and in them every value of each key."""

    class Several(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            if isinstance(value, list) and key in self:
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    parser = configparser.RawConfigParser(strict=False, dict_type=Several, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / name)
    return {one: {k: v.splitlines() for k, v in parser[one].items()} for one in parser.sections()}


SERVICE, SOCKET = unit("enginegate.service"), unit("enginegate.socket")


def image_environment() -> dict[str, str]:
    [words] = re.findall(r"^ENV (.*?[^\\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    pairs = [word.split("=", 1) for word in words.replace("\\\n", " ").split()]
    return {name: value for name, value in pairs if name.startswith("ENGINEGATE_")}


def compose_environment() -> dict[str, str]:
    """Return what compose sets, with a word in place of what the operator's shell gives."""
    found = {k: re.sub(r"\$\{.*\}", "given:1", v) for k, v in GATE["environment"].items()}
    assert set(found) & SECRETS == SECRETS
    return found


def test_the_container_is_configured_with_keys_that_exist() -> None:
    """Image and compose together make a configuration that enginegate accepts."""
    config = load(None, image_environment() | compose_environment())
    assert (config.engine.backend, config.engine.url_mode) == ("docker", "network")
    assert config.server.host == "0.0.0.0"
    assert config.data_dir in re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)
    assert f"data:{config.data_dir}" in GATE["volumes"]
    assert config.engine.network == COMPOSE["networks"]["engine_net"]["name"]


def test_the_port_is_the_same_everywhere() -> None:
    """Default, EXPOSE, health check, published port and the socket of systemd agree."""
    port = str(Config().server.port)
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE) == [port]
    assert f":{port}{'/health'}" in DOCKERFILE
    assert GATE["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert SOCKET["Socket"]["ListenStream"] == [f"127.0.0.1:{port}"]


def test_secrets_are_files_that_init_writes() -> None:
    """Compose hands in what `enginegate init` made, at the places that it names."""
    files = {name: one["file"] for name, one in COMPOSE["secrets"].items()}
    assert files == {
        "admin_key": "../secrets/admin.key",
        "master_key": "../secrets/master.key",
    }
    shown = {GATE["environment"][name] for name in SECRETS}
    assert shown == {f"/run/secrets/{name}" for name in GATE["secrets"]}


def test_a_stop_waits_for_the_shutdown_grace() -> None:
    """Neither compose nor systemd kills enginegate while it may still finish its work."""
    grace_s = Config().server.shutdown_grace_s
    assert int(GATE["stop_grace_period"].removesuffix("s")) > grace_s
    assert int(SERVICE["Service"]["TimeoutStopSec"][0]) > grace_s
    assert SERVICE["Service"]["KillMode"] == ["process"]


def test_files_are_enough_for_all_connections() -> None:
    """The limit on open files leaves room for every connection and every probe."""
    needed = Config().server.max_connections * 2 + 1000
    assert int(GATE["ulimits"]["nofile"]) >= needed
    assert int(SERVICE["Service"]["LimitNOFILE"][0]) >= needed


def test_the_service_may_write_where_its_data_are() -> None:
    """The sandbox leaves the data directory open, and systemd makes it."""
    service = SERVICE["Service"]
    environment = dict(one.split("=", 1) for one in service["Environment"])
    assert set(environment) == SECRETS | {"ENGINEGATE_DATA_DIR"}
    data = environment["ENGINEGATE_DATA_DIR"]
    assert service["ReadWritePaths"] == [data]
    assert [data] == [f"/var/lib/{name}" for name in service["StateDirectory"]]
    credentials = {one.split(":")[0] for one in service["LoadCredential"]}
    assert {environment[name].removeprefix("%d/") for name in SECRETS} == credentials


def test_no_restart_where_none_can_help() -> None:
    """The exit codes that the README lists for damage, a second server and configuration."""
    assert SERVICE["Service"]["RestartPreventExitStatus"] == ["65 75 78"]


def test_the_context_of_the_build_is_what_is_copied() -> None:
    """No secret and no data get into the build, and nothing that it copies is missing."""
    ignore = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    assert {word for words in copied for word in words.split()} == let_in
    assert "*" in ignore


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say, and the sandbox is a tight one."""
    for name in ("enginegate.service", "enginegate.socket"):
        text = (DEPLOY / name).read_text()
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE)
        (tmp_path / name).write_text(text)
    units = [str(tmp_path / name) for name in ("enginegate.service", "enginegate.socket")]
    checked = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    ours = [line for line in checked.stderr.splitlines() if "enginegate" in line]
    assert (checked.returncode, ours) == (0, [])
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=25", units[0]]
    secured = subprocess.run(words, capture_output=True, text=True, check=False)
    assert secured.returncode == 0, secured.stdout[-400:]
