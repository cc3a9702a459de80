"""What types cannot say about a single value: grammars of names, hosts and images."""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from enginegate.policy import valid_image_pattern, valid_image_reference

MEMORY_MIN: Final = 6 * 2**20  # Docker starts no container with less
_MEMORY_MAX: Final = 2**50
_MEMORY: Final = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,6})?)([bkmg]?)", re.IGNORECASE)
_UNITS: Final = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_NETWORK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_NOT_BRIDGED: Final = ("host", "none")  # Docker's own, which publish no ports
_PATH: Final = re.compile(r"/[!-\"$-~]*")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Rule = Callable[[Any], Iterable[str]]
"""Says in what ways a value of the right type is wrong; of a list or table, in its texts alone."""


def _one(check: Callable[[Any], str | None]) -> Rule:
    """Return the rule of a value that can be wrong in one way at a time."""

    def faults(value: object) -> Iterator[str]:
        if why := check(value):
            yield why

    return faults


def memory_bytes(memory: str | int) -> int | None:
    """Return an amount such as 512m, 1.5g or a count of bytes; None if it is no amount."""
    match = _MEMORY.fullmatch(str(memory))
    return int(float(match[1]) * _UNITS[match[2].lower()]) if match else None


def set_by_the_gate(name: str) -> bool:
    """Return whether the gate itself gives engines a variable of this name."""
    return name in {"PORT", "CATALOG_DIR"} or name.startswith("ENGINE_")


def _data_dir(value: str) -> str | None:
    return None if value and "\0" not in value else "must name a directory"


def _host(value: str) -> str | None:
    fits = _HOST.fullmatch(value) or _is_address(value)
    return None if fits else "must be a host name or an address"


def _url_host(value: str) -> str | None:
    """Check what stands in urls, where an IPv6 address needs its brackets."""
    in_brackets = value.startswith("[") and value.endswith("]") and ":" in value
    fits = _is_address(value[1:-1]) if in_brackets else _HOST.fullmatch(value)
    return None if fits else "must be a host name or an address, an IPv6 one in brackets"


def _address(value: str) -> str | None:
    return None if _is_address(value) else "must be an IP address"


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _network(value: str) -> str | None:
    fits = _NETWORK.fullmatch(value) and value not in _NOT_BRIDGED
    return None if fits else "must name a Docker network that can publish ports"


def _path(value: str) -> str | None:
    return None if _PATH.fullmatch(value) else "must be a path that starts with /"


def _memory(value: str | int) -> str | None:
    size = memory_bytes(value)
    if size is None:
        return "must be an amount such as 512m, 1g or a count of bytes"
    return None if MEMORY_MIN <= size <= _MEMORY_MAX else "must be at least 6m and at most 1048576g"


def _image(value: str) -> str | None:
    fits = not value or valid_image_reference(value)
    return None if fits else "must be an image reference such as registry.example/engine:1.2"


def _images(values: Sequence[object]) -> Iterator[str]:
    for value in _texts(values):
        if not valid_image_pattern(value):
            yield f"must hold image references or repository:*, unlike {value!r}"


def _command(values: Sequence[object]) -> Iterator[str]:
    if any("\0" in value for value in _texts(values)):
        yield "must not hold NUL characters"
    if values and values[0] == "":
        yield "must begin with a program"


def _env(values: Mapping[str, object]) -> Iterator[str]:
    for name, value in values.items():
        if why := _variable(name):
            yield why
        if isinstance(value, str) and "\0" in value:
            yield f"must not hold NUL characters, as {name} does"


def _env_passthrough(names: Sequence[object]) -> Iterator[str]:
    for name in _texts(names):
        if why := _variable(name):
            yield why
        elif name.startswith("ENGINEGATE_"):
            yield f"must not hand enginegate's own {name} to engines"


def _texts(values: Iterable[object]) -> Iterator[str]:
    return (value for value in values if isinstance(value, str))


def _variable(name: str) -> str | None:
    if not _VARIABLE.fullmatch(name):
        return f"{name!r} is no name of a variable"
    return f"{name} is set by the gate itself" if set_by_the_gate(name) else None


RULES: Final[Mapping[str, Rule]] = {
    "data_dir": _one(_data_dir),
    "server.host": _one(_host),
    "engine.image": _one(_image),
    "engine.allowed_images": _images,
    "engine.command": _command,
    "engine.health_path": _one(_path),
    "engine.advertise_host": _one(_url_host),
    "engine.publish_address": _one(_address),
    "engine.network": _one(_network),
    "engine.env": _env,
    "engine.env_passthrough": _env_passthrough,
    "engine.limits.memory": _one(_memory),
}
"""The rule of each key that has one, after its type and limits have been checked."""
