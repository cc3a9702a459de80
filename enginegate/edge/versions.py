"""Which uvicorn the protocol class here was tested with.

It overrides what uvicorn does not promise to keep, so another version is served by
uvicorn's own class: slower and without limits, but right.
"""

from typing import Final

TESTED_FROM: Final = (0, 53)
TESTED_BELOW: Final = (0, 55)


def is_tested(version: str) -> bool:
    """Return whether this version of uvicorn is one of those."""
    major, minor = version.split(".")[:2]
    return TESTED_FROM <= (int(major), int(minor)) < TESTED_BELOW
