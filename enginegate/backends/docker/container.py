"""What a container of ours looks like, going out (create body) and coming in (inspect).

Nothing here talks to Docker. Names derive from engine ids, which are UUIDs of our own
making; everything else that reaches Docker is a typed field of `ContainerSpec`, and
`create_body` is the only place that writes a create request. Docker's answers are
turned into `Container` at once; no dict of theirs goes any further.
"""

import hashlib
import io
import re
import tarfile
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from enginegate.backends.base import Observation, Presence
from enginegate.config import Limits

ENGINE_ID: Final = "enginegate.engine_id"
INSTANCE: Final = "enginegate.instance"
VERSION: Final = "enginegate.engine_version"
PORT: Final = "enginegate.port"
KEY_HASH: Final = "enginegate.key_hash"
FINGERPRINT: Final = "enginegate.fingerprint"

DATA_DIR: Final = "/data"
CATALOG_DIR: Final = "/catalog"
KEY_FILE: Final = ".enginegate/key_hash"
STOP_GRACE_S: Final = 30

_NAME_PREFIX: Final = "enginegate-"
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CONTAINER_ID: Final = re.compile(r"[0-9a-f]{64}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

# What entrypoints need that start as root, chown the volume and drop to a user.
_BASELINE_CAPS: Final = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID")
_STRICT_PIDS: Final = 256
_STRICT_TMPFS: Final = "rw,noexec,nosuid,nodev,size=64m"
_LEAST_BAD_OOM: Final = 500  # engines die before dockerd and enginegate


class ContainerSpec(Struct, frozen=True, kw_only=True):
    """Everything a container of ours is made from. Refuses what could mean something else."""

    engine_id: str
    instance: str
    image: str
    port: int
    key_hash: str
    container_port: int
    publish_address: str
    network: str
    env: tuple[tuple[str, str], ...] = ()
    catalog_dir: str = ""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not valid_engine_id(self.engine_id):
            raise ValueError("engine_id is not a UUID")
        if not _SHA256.fullmatch(self.key_hash):
            raise ValueError("key_hash is not a SHA-256 in hex")
        for name in ("instance", "network"):
            if not _WORD.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} has characters that Docker does not take")


def valid_engine_id(engine_id: str) -> bool:
    return _UUID.fullmatch(engine_id) is not None


def container_name(engine_id: str) -> str:
    """Return the one name an engine's container may have."""
    if not valid_engine_id(engine_id):
        raise ValueError("engine_id is not a UUID")
    return _NAME_PREFIX + engine_id


def volume_name(engine_id: str) -> str:
    """Return the name of the volume that outlives the engine's containers."""
    if not valid_engine_id(engine_id):
        raise ValueError("engine_id is not a UUID")
    return f"engine-data-{engine_id}"


def create_body(spec: ContainerSpec) -> dict[str, Any]:
    """Return the create request of Docker's API; all of it, nothing is left to defaults."""
    exposed = f"{spec.container_port}/tcp"
    return {
        "Image": spec.image,
        "Env": [f"{name}={value}" for name, value in _environment(spec).items()],
        "Labels": labels(spec),
        "ExposedPorts": {exposed: {}},
        "StopTimeout": STOP_GRACE_S,
        "HostConfig": {
            "NetworkMode": spec.network,
            "PortBindings": {exposed: [_binding(spec)]},
            "PublishAllPorts": False,
            "Mounts": _mounts(spec),
            "RestartPolicy": {"Name": "unless-stopped"},
            "LogConfig": {
                "Type": "json-file",
                "Config": {
                    "max-size": "10m",
                    "max-file": "3",
                    "mode": "non-blocking",  # a full log pipe must not stop an engine
                    "max-buffer-size": "4m",
                },
            },
            "Init": False,  # images with an init of their own want to be pid 1
            "Privileged": False,
            "OomScoreAdj": _LEAST_BAD_OOM,
            "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
            "SecurityOpt": ["no-new-privileges:true"],
            "CapDrop": ["ALL"],
            "Memory": spec.limits.memory_bytes,
            "MemorySwap": spec.limits.memory_bytes,  # equal: no swap
            "NanoCpus": round(spec.limits.cpus * 1_000_000_000),
            **_profile(spec.limits),
        },
    }


def labels(spec: ContainerSpec) -> dict[str, str]:
    """Return the labels; all are set explicitly, for an image may carry look-alikes."""
    return {
        ENGINE_ID: spec.engine_id,
        INSTANCE: spec.instance,
        VERSION: spec.image,
        PORT: str(spec.port),
        KEY_HASH: spec.key_hash,
        FINGERPRINT: fingerprint(spec),
    }


def fingerprint(spec: ContainerSpec) -> str:
    """Return a digest of the spec, the key apart: another one means another container."""
    canonical = msgspec.structs.replace(spec, key_hash="0" * 64)
    return hashlib.sha256(msgspec.json.encode(canonical)).hexdigest()


def _environment(spec: ContainerSpec) -> dict[str, str]:
    ours = {
        "PORT": str(spec.container_port),
        "ENGINE_ID": spec.engine_id,
        "ENGINE_VERSION": spec.image,
        "ENGINE_KEY_HASH": spec.key_hash,
        "ENGINE_KEY_HASH_FILE": f"{DATA_DIR}/{KEY_FILE}",
        "ENGINE_DATA_DIR": DATA_DIR,
    }
    if spec.catalog_dir:
        ours["CATALOG_DIR"] = CATALOG_DIR
    return dict(spec.env) | ours


def _binding(spec: ContainerSpec) -> dict[str, str]:
    return {"HostIp": spec.publish_address, "HostPort": str(spec.port)}


def _mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    data = {"Type": "volume", "Source": volume_name(spec.engine_id), "Target": DATA_DIR}
    if not spec.catalog_dir:
        return [data]
    catalog = {
        "Type": "bind",
        "Source": spec.catalog_dir,
        "Target": CATALOG_DIR,
        "ReadOnly": True,
    }
    return [data, catalog]


def _profile(limits: Limits) -> dict[str, Any]:
    if limits.profile == "baseline":
        return {"CapAdd": list(_BASELINE_CAPS), "PidsLimit": limits.pids, "ReadonlyRootfs": False}
    return {
        "CapAdd": [],
        "PidsLimit": min(limits.pids, _STRICT_PIDS),
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": _STRICT_TMPFS, "/run": _STRICT_TMPFS},  # noqa: S108  # in the container
    }


def key_archive(path: str, key_hashes: Sequence[str], *, linked: bool = True) -> bytes:
    """Return a tar of the key file and its folder; hashes open nothing, so all may read them.

    The content is that of `{path}.new`; `path` is `linked` to it once it is whole. An engine
    that reads while Docker unpacks so finds the whole file or none, never half of one.
    """
    if not all(map(_SHA256.fullmatch, key_hashes)):
        raise ValueError("a key hash is not a SHA-256 in hex")
    content = "".join(f"{key_hash}\n" for key_hash in key_hashes).encode("ascii")
    folder = tarfile.TarInfo(path.rpartition("/")[0])
    folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o755, time.time()
    file = tarfile.TarInfo(f"{path}.new")
    file.size, file.mode, file.mtime = len(content), 0o644, folder.mtime
    link = tarfile.TarInfo(path)
    link.type, link.linkname, link.mode, link.mtime = tarfile.LNKTYPE, file.name, 0o644, file.mtime
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(folder)
        tar.addfile(file, io.BytesIO(content))
        if linked:
            tar.addfile(link)
    return packed.getvalue()


class _State(Struct, rename="pascal"):
    status: str
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    started_at: str = ""
    oom_killed: bool = field(default=False, name="OOMKilled")


class _Config(Struct, rename="pascal"):
    labels: dict[str, str] | None = None


class _Endpoint(Struct):
    gateway: str = field(default="", name="Gateway")


class _HostConfig(Struct, rename="pascal"):
    network_mode: str = ""


class _NetworkSettings(Struct, rename="pascal"):
    networks: dict[str, _Endpoint] | None = None


class _Inspected(Struct, rename="pascal"):
    id: str
    name: str
    image: str
    state: _State
    config: _Config
    restart_count: int = 0
    host_config: _HostConfig = field(default_factory=_HostConfig)
    network_settings: _NetworkSettings | None = None

    @property
    def networks(self) -> dict[str, _Endpoint]:
        return (self.network_settings and self.network_settings.networks) or {}


class Container(Struct, frozen=True, kw_only=True):
    """One container of ours, as Docker described it a moment ago."""

    container_id: str
    status: str
    pid: int
    network: str
    gateways: frozenset[str]
    started_at: str
    labels: dict[str, str]
    observation: Observation

    @property
    def presence(self) -> Presence:
        return self.observation.presence

    @property
    def alive(self) -> bool:
        """Whether it has a process, frozen or not."""
        return self.presence in {Presence.RUNNING, Presence.PAUSED}

    @property
    def settled(self) -> bool:
        """Whether Docker is not about to restart or remove it by itself."""
        return self.status in _SETTLED


def fits(found: Container, wanted: ContainerSpec, *, any_key: bool) -> bool:
    """Return whether a container may stay.

    One that lives is replaced for its spec alone, never because the operator's settings
    changed meanwhile; one that must be started anyway gets the settings of today.
    """
    has = found.labels
    same = has.get(VERSION) == wanted.image and has.get(PORT) == str(wanted.port)
    same_key = any_key or has.get(KEY_HASH) == wanted.key_hash
    if not (same and same_key and found.settled):
        return False
    return found.alive or has.get(FINGERPRINT) == fingerprint(wanted)


def is_ours(name: str, found: dict[str, str], *, engine_id: str, instance: str) -> bool:
    """Return whether name and both labels agree; images can carry labels, so one is no proof."""
    return (
        valid_engine_id(engine_id)
        and name == f"/{container_name(engine_id)}"
        and found.get(ENGINE_ID) == engine_id
        and found.get(INSTANCE) == instance
    )


def parse(answer: object, *, engine_id: str, instance: str) -> Container | None:
    """Return the container that an inspect answer describes, or None if it is not ours.

    Raises:
        msgspec.ValidationError: this is not what Docker answers to an inspect.
    """
    seen = msgspec.convert(answer, _Inspected)
    found = seen.config.labels or {}
    if not is_ours(seen.name, found, engine_id=engine_id, instance=instance):
        return None
    if not _CONTAINER_ID.fullmatch(seen.id):
        raise msgspec.ValidationError("the container's id is not one")
    return Container(
        container_id=seen.id,
        status=seen.state.status,
        pid=seen.state.pid,
        network=seen.host_config.network_mode,
        gateways=frozenset(end.gateway for end in seen.networks.values() if end.gateway),
        started_at=seen.state.started_at,
        labels=found,
        observation=_observation(seen, found),
    )


def _observation(seen: _Inspected, found: dict[str, str]) -> Observation:
    state = seen.state
    presence = _PRESENCES.get(state.status, Presence.STOPPED)
    port = found.get(PORT, "")
    ended = presence is Presence.STOPPED and state.status != "created"
    return Observation(
        engine_id=found[ENGINE_ID],
        presence=presence,
        life=f"{seen.id}@{state.started_at}",
        key_hash=found.get(KEY_HASH),
        port=int(port) if port.isdecimal() else None,
        engine_version=found.get(VERSION),
        exit_code=state.exit_code if ended else None,
        restarts=seen.restart_count,
        restarting=state.status == "restarting",
        connected=seen.host_config.network_mode in {"", *seen.networks},
        image=seen.image,
        detail="; ".join(_remarks(seen)),
    )


# A container between two restarts says Running=true but has no process; so has a dead one.
_SETTLED: Final = frozenset({"created", "exited", "running", "paused"})
_PRESENCES: Final = {"running": Presence.RUNNING, "paused": Presence.PAUSED}


def _remarks(seen: _Inspected) -> Sequence[str]:
    remarks = []
    if seen.state.status not in _SETTLED:
        remarks.append(seen.state.status)
    if seen.state.oom_killed:
        remarks.append("out of memory")
    if seen.state.error:
        remarks.append(seen.state.error)
    return remarks
