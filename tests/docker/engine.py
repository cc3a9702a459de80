"""The Docker Engine as the tests ask it: by its own command line, a second opinion."""

import json
import os
import subprocess
import time
from typing import Any

SOCKET = "/var/run/docker.sock"
NETWORK_S = 5.0
"""How long Docker may take to let go of containers that are gone."""


def docker(
    *arguments: str, stdin: bytes | None = None, host: str | None = None, timeout_s: float = 120
) -> str:
    """Run the Docker command line; what it prints. A refusal is an assertion error."""
    environment = os.environ | ({"DOCKER_HOST": host} if host else {})
    done = subprocess.run(
        ["docker", *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=timeout_s,
        env=environment,
    )
    assert done.returncode == 0, f"docker {' '.join(arguments[:3])}: {done.stderr.decode()}"
    return done.stdout.decode().strip()


def inspected(name: str, *, host: str | None = None) -> dict[str, Any]:
    [found] = json.loads(docker("inspect", name, host=host))
    return dict(found)


def remove_all(label: str, *, host: str | None = None) -> None:
    """Remove the containers, volumes and networks that bear a label."""
    for listing, remove in (
        (("ps", "-aq"), ("rm", "-fv")),
        (("volume", "ls", "-q"), ("volume", "rm", "-f")),
    ):
        if left := docker(*listing, "--filter", f"label={label}", host=host).split():
            docker(*remove, *left, host=host)
    for network in docker("network", "ls", "-q", "--filter", f"label={label}", host=host).split():
        remove_network(network, host=host)


def remove_network(network: str, *, host: str | None = None) -> None:
    """Remove a network that no container is on.

    Where many containers go at once, Docker 20.10 may count one endpoint too many, until its
    daemon starts anew ("Fixing inconsistent endpoint_cnt"); such a network is left to it.
    """
    until = time.monotonic() + NETWORK_S
    while True:
        try:
            docker("network", "rm", network, host=host)
        except AssertionError as refusal:
            if "active endpoints" not in str(refusal):
                raise
            if time.monotonic() > until:
                on_it = ("network", "inspect", "-f", "{{len .Containers}}", network)
                assert docker(*on_it, host=host) == "0"
                return
            time.sleep(0.2)
        else:
            return


def left_of(label: str, *, host: str | None = None) -> list[str]:
    """Return the containers and volumes that bear a label."""
    marked = ("--filter", f"label={label}")
    return [
        *docker("ps", "-aq", *marked, host=host).split(),
        *docker("volume", "ls", "-q", *marked, host=host).split(),
    ]
