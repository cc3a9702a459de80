"""What the tests against a real Docker Engine share."""

import os
import subprocess

import pytest

from tests.docker import tiny
from tests.docker.engine import docker


@pytest.fixture(scope="session")
def tiny_image() -> str:
    """Have an Engine and the tiny image, or skip; fail where an Engine is required."""
    need_docker()
    return tiny.build()


def need_docker() -> None:
    try:
        docker("version", timeout_s=20)
    except (OSError, subprocess.SubprocessError, AssertionError) as exc:
        if os.environ.get("ENGINEGATE_REQUIRE_DOCKER") == "1":
            pytest.fail(f"ENGINEGATE_REQUIRE_DOCKER=1, but no Docker Engine answers: {exc}")
        pytest.skip("no Docker Engine answers `docker version`")
