"""The names in the environment that the project itself uses are known to the configuration."""

import re
from pathlib import Path

import pytest

from enginegate.config import unread

ROOT = Path(__file__).parents[2]
USED = re.compile(r'(?:environ(?:\.get)?[(\[]\s*|VARIABLE = )"(ENGINEGATE_\w+)"')
EXPORTED = re.compile(r"export (ENGINEGATE_\w+)=1\b")


def used() -> list[str]:
    """Return what tests and benchmarks read, and what `.ci/run` exports for them."""
    found = set(EXPORTED.findall((ROOT / ".ci" / "run").read_text("utf-8")))
    for folder in ("tests", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            found.update(USED.findall(path.read_text("utf-8")))
    return sorted(found)


@pytest.mark.parametrize("name", used())
def test_servers_that_tests_start_know_what_the_tests_read(name: str) -> None:
    """What says how tests run is inherited by whatever they start; a server leaves it alone."""
    assert unread({name: "1"}) == []


def test_there_are_such_names() -> None:
    """What is searched for is still written the way it is searched for."""
    assert {"ENGINEGATE_REQUIRE_DOCKER", "ENGINEGATE_LONG", "ENGINEGATE_DOCKER_LONG"} <= {*used()}
