"""What a container of ours looks like, out and in."""

import io
import json
import tarfile
import uuid
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from enginegate.backends.base import Presence
from enginegate.backends.docker.container import (
    ENGINE_ID,
    FINGERPRINT,
    INSTANCE,
    ContainerSpec,
    container_name,
    create_body,
    fingerprint,
    key_archive,
    labels,
    parse,
    volume_name,
)
from enginegate.config import Limits

ENGINE = "5c2f0c3e-8f0b-4c1d-9a44-0d6a3a4b5c6d"
HASH = "ab" * 32
SPEC = ContainerSpec(
    engine_id=ENGINE,
    instance="here",
    image="my-engine:2.3.0",
    port=9001,
    key_hash=HASH,
    container_port=8000,
    publish_address="127.0.0.1",
    network="engine_net",
    env=(("LLM_KEY", "secret"), ("PORT", "1")),
)


def answer(**changes: Any) -> dict[str, Any]:
    """Return what Docker would answer to an inspect of the spec's container."""
    state = {
        "Status": "running",
        "Running": True,
        "Pid": 4711,
        "ExitCode": 0,
        "Error": "",
        "StartedAt": "2026-04-27T12:34:56.1Z",
        "OOMKilled": False,
    }
    told = {
        "Id": "c0" * 32,
        "Name": f"/enginegate-{ENGINE}",
        "Image": "sha256:" + "d1" * 32,
        "RestartCount": 0,
        "State": state | changes.pop("State", {}),
        "Config": {"Labels": labels(SPEC)},
        "NetworkSettings": {"Networks": {"engine_net": {"Gateway": "172.18.0.1"}}},
    }
    return told | changes


def test_body_has_all_hardening_of_the_baseline_profile() -> None:
    """Nothing that keeps an engine in its box is left to Docker's defaults."""
    host = create_body(SPEC)["HostConfig"]
    assert host["Privileged"] is False
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] == ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["PidsLimit"] == 512
    assert host["Memory"] == host["MemorySwap"] == 1 << 30
    assert host["NanoCpus"] == 1_000_000_000
    assert host["OomScoreAdj"] == 500
    assert host["Ulimits"] == [{"Name": "core", "Soft": 0, "Hard": 0}]
    assert host["RestartPolicy"] == {"Name": "unless-stopped"}
    assert host["LogConfig"]["Config"]["mode"] == "non-blocking"
    assert host["ReadonlyRootfs"] is False
    assert not {"Devices", "Binds", "PidMode", "IpcMode", "UsernsMode"} & host.keys()


def test_strict_profile_takes_all_capabilities_and_the_writable_root() -> None:
    """An engine that writes to its data alone needs neither."""
    host = create_body(replace(SPEC, limits=Limits(profile="strict")))["HostConfig"]
    assert host["CapAdd"] == []
    assert host["ReadonlyRootfs"] is True
    assert host["PidsLimit"] == 256
    assert host["Tmpfs"] == dict.fromkeys(("/tmp", "/run"), "rw,noexec,nosuid,nodev,size=64m")


def test_port_is_published_on_one_address_only() -> None:
    """An engine's port is reachable where the operator said, and nowhere else."""
    host = create_body(SPEC)["HostConfig"]
    assert host["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "9001"}]}
    assert host["PublishAllPorts"] is False


def test_the_only_host_path_is_the_catalog_read_only() -> None:
    """Apart from its volume, an engine sees the catalog, and cannot write it."""
    body = create_body(replace(SPEC, catalog_dir="/srv/catalog"))
    volume, catalog = body["HostConfig"]["Mounts"]
    assert volume == {"Type": "volume", "Source": f"engine-data-{ENGINE}", "Target": "/data"}
    assert catalog == {
        "Type": "bind",
        "Source": "/srv/catalog",
        "Target": "/catalog",
        "ReadOnly": True,
    }
    assert "CATALOG_DIR=/catalog" in body["Env"]
    assert create_body(SPEC)["HostConfig"]["Mounts"] == [volume]


def test_environment_is_the_operators_with_ours_on_top() -> None:
    """What the contract gives an engine cannot be replaced by configuration."""
    env = dict(entry.split("=", 1) for entry in create_body(SPEC)["Env"])
    assert env == {
        "LLM_KEY": "secret",
        "PORT": "8000",
        "ENGINE_ID": ENGINE,
        "ENGINE_VERSION": "my-engine:2.3.0",
        "ENGINE_KEY_HASH": HASH,
        "ENGINE_KEY_HASH_FILE": "/data/.enginegate/key_hash",
        "ENGINE_DATA_DIR": "/data",
    }


def test_secrets_of_the_environment_are_in_no_label() -> None:
    """Labels are shown by every listing and event, so nothing secret is in them."""
    assert "secret" not in json.dumps(labels(SPEC))


@pytest.mark.parametrize(
    "engine_id",
    ["", "../images/json?x=", "5C2F0C3E-8F0B-4C1D-9A44-0D6A3A4B5C6D", ENGINE + "\n", "a" * 36],
)
def test_only_uuids_become_names(engine_id: str) -> None:
    """No text but an engine id of ours gets into a path of Docker's API."""
    for name in (container_name, volume_name):
        with pytest.raises(ValueError, match="UUID"):
            name(engine_id)
    with pytest.raises(ValueError, match="UUID"):
        replace(SPEC, engine_id=engine_id).__post_init__()


@pytest.mark.parametrize(
    ("field", "value"),
    [("key_hash", "xyz"), ("instance", "a b"), ("network", "../x"), ("network", "")],
)
def test_fields_that_could_mean_something_else_are_refused(field: str, value: str) -> None:
    """The typed spec is a boundary: what Docker could misread does not pass."""
    fields = msgspec.structs.asdict(SPEC) | {field: value}
    with pytest.raises(ValueError, match=field):
        ContainerSpec(**fields)


def test_fingerprint_sees_every_setting_but_the_key() -> None:
    """Another fingerprint means another container; a key alone may be swapped in place."""
    assert fingerprint(replace(SPEC, key_hash="cd" * 32)) == fingerprint(SPEC)
    others: list[dict[str, Any]] = [
        {"image": "my-engine:3"},
        {"port": 9002},
        {"container_port": 80},
        {"env": ()},
        {"catalog_dir": "/srv"},
        {"network": "other"},
        {"publish_address": "10.0.0.1"},
        {"limits": Limits(cpus=2.0)},
    ]
    made = {fingerprint(replace(SPEC, **other)) for other in others}
    assert len(made | {fingerprint(SPEC)}) == len(others) + 1


def test_inspect_answer_becomes_an_observation() -> None:
    """What Docker says is parsed once, into our own words."""
    found = parse(answer(RestartCount=3), engine_id=ENGINE, instance="here")
    assert found is not None
    assert found.pid == 4711
    assert found.gateways == {"172.18.0.1"}
    seen = found.observation
    assert (seen.presence, seen.port, seen.engine_version) == (
        Presence.RUNNING,
        9001,
        "my-engine:2.3.0",
    )
    assert (seen.key_hash, seen.restarts, seen.exit_code) == (HASH, 3, None)
    assert seen.life == "c0" * 32 + "@2026-04-27T12:34:56.1Z"


@pytest.mark.parametrize(
    ("status", "presence", "exit_code"),
    [
        ("running", Presence.RUNNING, None),
        ("paused", Presence.PAUSED, None),
        ("created", Presence.STOPPED, None),
        ("exited", Presence.STOPPED, 3),
        ("restarting", Presence.STOPPED, 3),
        ("dead", Presence.STOPPED, 3),
        ("removing", Presence.STOPPED, 3),
    ],
)
def test_presence_is_read_from_the_status(
    status: str, presence: Presence, exit_code: int | None
) -> None:
    """`Running` is true for paused and restarting containers, so it is not looked at."""
    told = answer(State={"Status": status, "ExitCode": 3})
    found = parse(told, engine_id=ENGINE, instance="here")
    assert found is not None
    assert (found.presence, found.observation.exit_code) == (presence, exit_code)


def test_reason_of_an_end_is_told() -> None:
    """Out of memory and Docker's own error text reach the audit trail."""
    state = {"Status": "exited", "OOMKilled": True, "Error": "no such file"}
    found = parse(answer(State=state), engine_id=ENGINE, instance="here")
    assert found is not None
    assert "out of memory" in found.observation.detail
    assert "no such file" in found.observation.detail


@pytest.mark.parametrize(
    "changes",
    [
        {"Name": "/enginegate-look-alike"},
        {"Config": {"Labels": None}},
        {"Config": {"Labels": {ENGINE_ID: ENGINE}}},
        {"Config": {"Labels": {ENGINE_ID: ENGINE, INSTANCE: "elsewhere"}}},
        {"Config": {"Labels": {ENGINE_ID: str(uuid.uuid4()), INSTANCE: "here"}}},
    ],
)
def test_a_container_is_ours_only_if_name_and_labels_agree(changes: dict[str, Any]) -> None:
    """An image can carry our labels and anybody can take our name; both are not enough."""
    assert parse(answer(**changes), engine_id=ENGINE, instance="here") is None


@pytest.mark.parametrize("changes", [{"Id": "../x"}, {"State": None}, {"RestartCount": "3"}])
def test_an_answer_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    """A proxy's or a broken daemon's answer is not read as something it is not."""
    told = answer() | changes
    with pytest.raises(msgspec.ValidationError):
        parse(told, engine_id=ENGINE, instance="here")


def test_key_archive_holds_one_hash_per_line() -> None:
    """The key file is small, readable by the container's user, and no more than hashes."""
    with tarfile.open(fileobj=io.BytesIO(key_archive(".enginegate/key_hash", [HASH, HASH]))) as tar:
        folder, file, link = tar.getmembers()
        content = tar.extractfile(link)
        assert content is not None
        assert content.read().decode() == f"{HASH}\n{HASH}\n"
    assert (folder.name, folder.isdir(), folder.mode) == (".enginegate", True, 0o755)
    assert (file.mode, file.uid) == (0o644, 0)
    assert (link.name, link.linkname) == (".enginegate/key_hash", file.name)


def test_a_key_archive_to_be_renamed_leaves_the_old_file_alone() -> None:
    """It stages the new content; what an engine reads changes with the rename."""
    archive = key_archive(".enginegate/key_hash", [HASH], linked=False)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == [".enginegate", ".enginegate/key_hash.new"]


def test_key_archive_takes_hashes_only() -> None:
    """A key itself never gets into a container by mistake."""
    with pytest.raises(ValueError, match="SHA-256"):
        key_archive(".enginegate/key_hash", ["sk-eg-not-a-hash"])


def test_labels_carry_the_fingerprint() -> None:
    """A container tells by itself what it was made from."""
    assert labels(SPEC)[FINGERPRINT] == fingerprint(SPEC)
