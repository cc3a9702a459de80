"""A product of a served gate, and the engine of one of its users at a time."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.conftest import Server, engine_processes, serving

ODD_ENGINE = [sys.executable, "-I", "-S", str(Path(__file__).with_name("odd_engine.py"))]
ODD_COMMAND = f"command = {json.dumps(ODD_ENGINE)}\n"


class Shop:
    """Calls as one product; `engine` is that of the user that was opened last."""

    def __init__(self, server: Server, http: httpx.Client) -> None:
        self.server = server
        self.http = http
        self.user = ""
        self.engine: dict[str, Any] = {}

    def open(self, user: str) -> None:
        """Make an engine for the user; what follows is about it."""
        self.user = user
        self.engine = self.admit(auto_provision=True)["engine"]

    def admit(self, **options: Any) -> dict[str, Any]:
        return self.do("admit", **options)

    def do(self, verb: str, **body: Any) -> dict[str, Any]:
        """Do a verb that must succeed; return its answer."""
        answer = self.http.post(f"/engines/{self.user}/{verb}", json=body)
        assert answer.status_code == 200, answer.text
        done: dict[str, Any] = answer.json()
        return done

    def refused(self, verb: str, **body: Any) -> str:
        """Return the code that a verb is refused with."""
        answer = self.http.post(f"/engines/{self.user}/{verb}", json=body)
        assert answer.status_code >= 400, answer.text
        code: str = answer.json()["error"]["code"]
        return code

    def look(self) -> dict[str, Any]:
        row: dict[str, Any] = self.http.get(f"/engines/{self.user}").json()
        return row

    @property
    def data(self) -> Path:
        """The directory that is the engine's own."""
        return self.server.data_of(self.engine["engine_id"])

    @property
    def key_file(self) -> Path:
        return self.data / ".enginegate" / "key_hash"

    @property
    def pid(self) -> int:
        return engine_processes(self.server.directory)[self.engine["engine_id"]]

    def call(self, path: str, key: str, method: str = "GET", **more: Any) -> httpx.Response:
        """Call the engine itself, as its product does."""
        url, headers = self.engine["url"], {"X-Engine-Key": key}
        return httpx.request(method, f"{url}{path}", headers=headers, timeout=10, **more)

    def log(self) -> str:
        """Return what the engine said."""
        name = f"{self.engine['engine_id']}.log"
        return (self.server.directory / "data" / "logs" / name).read_text()

    def close(self) -> None:
        """Destroy the engine; ports are few."""
        self.http.delete(f"/engines/{self.user}")


@contextmanager
def open_shop(directory: Path, settings: str = "", **variables: str) -> Iterator[Shop]:
    """Serve a directory with these settings, and open a shop there."""
    with serving(directory, settings, **variables) as server, server.product("shop") as http:
        yield Shop(server, http)
