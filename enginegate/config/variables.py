"""Names in the environment: which begin with our prefix and are no settings, and what one may mean.

A name with the prefix that nobody reads may be a slip of the pen, and would leave a default
in force unnoticed. So each one has to be a setting, or one of those that are known here, or
is told: as a fault where it can mean nothing else.
"""

import difflib
import re
from collections.abc import Collection
from typing import Final

PREFIX: Final = "ENGINEGATE_"

OTHERS: Final = frozenset(
    PREFIX + name
    for name in (
        "URL",
        *("PLATFORM_KEY", "ADMIN_KEY", "MASTER_KEY", "METRICS_KEY"),
        *("PLATFORM_KEY_FILE", "ADMIN_KEY_FILE", "MASTER_KEY_FILE", "METRICS_KEY_FILE"),
    )
)
"""Secrets, and what the client commands read."""

_TESTS: Final = frozenset(
    PREFIX + name
    for name in (
        *("LONG", "SEED", "ROUNDS", "DOCKER_LONG", "REQUIRE_DOCKER", "REQUIRE_FAULTS"),
        *("FAULTS_CHAINS", "FAULTS_FRAMES", "FAULTS_STRIDE"),
    )
)
"""What says how our own tests run; servers that they start inherit it."""

# Kubernetes gives every container the services of its namespace, also one that is called
# `enginegate` or begins so. It knows no double underscore, which a setting may have.
_SERVICE: Final = re.compile(
    rf"{PREFIX}(?!.*__)(\w+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)",
    re.ASCII,
)
_SERVICE_URL: Final = re.compile(r"(tcp|udp|sctp)://")


def is_known(name: str, value: str) -> bool:
    """Return whether a variable that is no setting may be there."""
    if name in OTHERS or name in _TESTS or _SERVICE.fullmatch(name):
        return True
    return name.endswith("_PORT") and _SERVICE_URL.match(value) is not None


def nearest(name: str, known: Collection[str]) -> str | None:
    """Return which known name was probably meant.

    The one of the same letters, or the key of that name in some section, or what is most alike.
    """
    letters = _letters(name)
    if one := same_letters(name, known):
        return one
    for one in known:
        if _letters(one.rpartition("__")[2]) == letters:
            return one
    by_letters = {_letters(one): one for one in known}
    close = difflib.get_close_matches(letters, by_letters, n=1)
    return by_letters[close[0]] if close else None


def same_letters(name: str, known: Collection[str]) -> str | None:
    """Return which known name differs in nothing but underscores and case."""
    letters = _letters(name)
    return next((one for one in known if _letters(one) == letters), None)


def _letters(name: str) -> str:
    return name.removeprefix(PREFIX).replace("_", "").upper()
