"""Small real file systems, and a server that lives on one."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Server

MIB = 1024 * 1024


@contextmanager
def tmpfs(place: Path, size_mib: int) -> Iterator[Path]:
    """Mount a small file system in memory; skip, with a word, where that is not allowed."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "tmpfs", str(place)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        if os.environ.get("ENGINEGATE_REQUIRE_FAULTS"):
            pytest.fail(f"no file system can be mounted here: {done.stderr.strip()}")
        pytest.skip(f"needs to mount a file system: {done.stderr.strip()}")
    for name in ("out", "err"):  # what the server says is read, so it must find its room
        (place / name).symlink_to(place.with_name(f"{place.name}-{name}"))
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(directory: Path, *, leave_bytes: int = 0) -> Path:
    """Take all the room there is; return the file that holds it."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 * 1024))
        except OSError:
            file.truncate(max(0, file.tell() - leave_bytes))
    return filler


class Fleet:
    """A server on a directory, with a product, and the calls that a test makes of it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        made = server.cli.json("products", "register", "demo", "--name", "Demo")
        self.http = httpx.Client(headers={"X-Platform-Key": made["platform_api_key"]}, timeout=30)

    def call(self, method: str, path: str, **body: Any) -> httpx.Response:
        return self.http.request(method, f"{self.server.url}{path}", json=body or None)

    def admit(self, user: str, **options: Any) -> dict[str, Any]:
        answer = self.call("POST", f"/engines/{user}/admit", **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, method: str, path: str, **body: Any) -> None:
        """See that a change is refused with the code of a disk that cannot be written."""
        answer = self.call(method, path, **body)
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "STORAGE_UNAVAILABLE", answer.text

    def health(self) -> dict[str, Any]:
        return httpx.get(f"{self.server.url}/health").json()

    def journal(self) -> str:
        headers = {"X-Admin-Key": self.server.admin_key}
        return httpx.get(f"{self.server.url}/status", headers=headers).json()["journal"]
