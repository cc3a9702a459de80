"""What opens things: keys from the environment, or from files that it names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from enginegate.errors import ConfigError
from enginegate.keys import valid_master_key

_HEADER_KEY: Final = re.compile(r"[!-~]{16,}")  # shorter ones are guessed, others do not travel

_BETWEEN_KEYS: Final = re.compile(r"\s*,\s*|\s+")


class Secrets(Struct, frozen=True, kw_only=True):
    """The keys of this enginegate, masked wherever they are printed.

    The first master key seals; those behind it still open what they have sealed.
    """

    admin_key: str
    master_keys: tuple[str, ...]
    metrics_key: str | None = None

    def __repr__(self) -> str:
        return "Secrets(***)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("keys", "***")]


def secrets(environ: Mapping[str, str]) -> Secrets:
    """Return the secrets, each from `NAME` or from the file that `NAME_FILE` names.

    Raises:
        ConfigError: with every fault found; it never holds a secret.
    """
    faults: list[str] = []
    admin = _secret(environ, "ENGINEGATE_ADMIN_KEY", faults, required=True)
    ring = _ring(environ, faults)
    metrics = _secret(environ, "ENGINEGATE_METRICS_KEY", faults, required=False)
    for name, key in (("ENGINEGATE_ADMIN_KEY", admin), ("ENGINEGATE_METRICS_KEY", metrics)):
        if key and not _HEADER_KEY.fullmatch(key):
            faults.append(f"{name}: must be at least 16 visible ASCII characters, without blanks")
    if metrics and metrics == admin:
        faults.append("ENGINEGATE_METRICS_KEY: must differ from the admin key, which opens more")
    if faults:
        raise ConfigError(faults)
    return Secrets(admin_key=admin, master_keys=ring, metrics_key=metrics or None)


def master_keys(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the master keys alone, for tools that need no other.

    Raises:
        ConfigError: there is none, or one is no key.
    """
    faults: list[str] = []
    ring = _ring(environ, faults)
    if faults:
        raise ConfigError(faults)
    return ring


def _ring(environ: Mapping[str, str], faults: list[str]) -> tuple[str, ...]:
    """Return the master keys, separated by commas or blanks, the one that seals first."""
    given = _secret(environ, "ENGINEGATE_MASTER_KEY", faults, required=True)
    ring = tuple(_BETWEEN_KEYS.split(given.strip())) if given else ()
    for position, key in enumerate(ring, start=1):
        if not valid_master_key(key):
            faults.append(
                f"ENGINEGATE_MASTER_KEY: key {position} of {len(ring)} is not a Fernet key"
                " (44 characters of URL-safe base64); `enginegate init` makes one"
            )
    return ring


def _secret(environ: Mapping[str, str], name: str, faults: list[str], *, required: bool) -> str:
    """Return a secret, or an empty text; an empty variable counts as not set."""
    key, file = environ.get(name, ""), environ.get(f"{name}_FILE", "")
    if key and file:
        faults.append(f"{name}: set together with {name}_FILE; give one of the two")
    elif file:
        return _from_file(file, f"{name}_FILE", faults)
    elif required and not key:
        faults.append(
            f"{name}: not set, nor is {name}_FILE;"
            " `enginegate init` makes the key and writes it into a file of mode 0600"
        )
    return key


def _from_file(file: str, variable: str, faults: list[str]) -> str:
    try:
        key = Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        faults.append(f"{variable}: cannot read {file}: {error.strerror}")
    except ValueError:
        faults.append(f"{variable}: cannot read {file}: it is not text")
    else:
        if key:
            return key
        faults.append(f"{variable}: {file} is empty")
    return ""
