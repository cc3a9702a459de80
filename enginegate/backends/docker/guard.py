"""The last look at what leaves for the Docker Engine, whoever composed it.

The Engine's socket is root on the host. So the client takes only names and ids of the
shapes we give, and a create request only with what our containers may have; anything
else is a bug of ours or somebody's attack, and does not go out.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from enginegate.policy import valid_image_reference

_UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_CONTAINER: Final = re.compile(rf"[0-9a-f]{{64}}|enginegate-{_UUID}")
_EXEC: Final = re.compile(r"[0-9a-f]{64}")
_VOLUME: Final = re.compile(rf"engine-data-{_UUID}")
_NETWORK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

_BODY: Final = frozenset({"Image", "Env", "Labels", "ExposedPorts", "StopTimeout", "HostConfig"})
_HOST: Final = frozenset(
    {
        "NetworkMode",
        "PortBindings",
        "PublishAllPorts",
        "Mounts",
        "RestartPolicy",
        "LogConfig",
        "Init",
        "Privileged",
        "OomScoreAdj",
        "Ulimits",
        "SecurityOpt",
        "CapDrop",
        "CapAdd",
        "Memory",
        "MemorySwap",
        "NanoCpus",
        "PidsLimit",
        "ReadonlyRootfs",
        "Tmpfs",
    }
)
_CAPABILITIES: Final = frozenset({"CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"})
_NOT_A_NETWORK: Final = re.compile(r"host|none|default|container:.*", re.DOTALL)


class GuardError(Exception):
    """Something that must never reach the Docker Engine was about to: a bug of ours."""


def checked_container(name: str) -> str:
    """Return a container's name or id, if it is one of the shapes that we use."""
    if _CONTAINER.fullmatch(name) is None:
        raise GuardError(f"{name!r} is neither a container id nor an engine's container name")
    return name


def checked_exec(exec_id: str) -> str:
    """Return the id of an exec, if it cannot mean anything else in a path."""
    if _EXEC.fullmatch(exec_id) is None:
        raise GuardError(f"{exec_id!r} is no id of an exec")
    return exec_id


def checked_volume(name: str) -> str:
    """Return a volume's name, if it is one of ours."""
    if _VOLUME.fullmatch(name) is None:
        raise GuardError(f"{name!r} is no name of an engine's volume")
    return name


def checked_network(name: str) -> str:
    """Return a network's name or id, if it cannot mean anything else in a path."""
    if _NETWORK.fullmatch(name) is None or _NOT_A_NETWORK.fullmatch(name):
        raise GuardError(f"{name!r} is no network that engines may be on")
    return name


def checked_image(reference: str) -> str:
    """Return an image's name, if it is one by Docker's grammar."""
    if not valid_image_reference(reference):
        raise GuardError(f"{reference!r} is no image reference")
    return reference


def check_body(body: Mapping[str, Any]) -> None:
    """Refuse a create request that asks for anything our containers do not have.

    Raises:
        GuardError: naming every fault.
    """
    faults = list(_faults(body))
    if faults:
        raise GuardError("a create request that must not go out: " + "; ".join(faults))


def _faults(body: Mapping[str, Any]) -> Iterator[str]:
    host = body.get("HostConfig", {})
    unknown = sorted((body.keys() - _BODY) | (host.keys() - _HOST))
    if unknown:
        yield f"unknown fields {unknown}"
    if host.get("Privileged") is not False:
        yield "privileged"
    if host.get("PublishAllPorts") is not False:
        yield "publishes all ports"
    if host.get("CapDrop") != ["ALL"] or not set(host.get("CapAdd", ())) <= _CAPABILITIES:
        yield "capabilities"
    if host.get("SecurityOpt") != ["no-new-privileges:true"]:
        yield "security options"
    if not host.get("NetworkMode") or _NOT_A_NETWORK.fullmatch(host["NetworkMode"]):
        yield f"network {host.get('NetworkMode')!r}"
    if not host.get("Memory") or not host.get("PidsLimit"):
        yield "no limits"
    yield from _mount_faults(host.get("Mounts", ()))


def _mount_faults(mounts: Any) -> Iterator[str]:
    """Allow the engine's own volume, and one folder of the host that cannot be written."""
    targets = [mount.get("Target") for mount in mounts]
    if targets not in (["/data"], ["/data", "/catalog"]):
        yield f"mounts at {targets}"
        return
    data, *catalog = mounts
    if data.get("Type") != "volume" or not _VOLUME.fullmatch(data.get("Source", "")):
        yield "data that is no volume of an engine"
    for mount in catalog:
        if mount.get("ReadOnly") is not True or mount.get("Source", "").endswith(".sock"):
            yield "a catalog that can be written, or is a socket"
