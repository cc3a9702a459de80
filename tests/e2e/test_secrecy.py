"""No key, old or new, in anything that is written, logged, audited, counted or shown."""

import contextlib
import os
from pathlib import Path

import httpx

from enginegate.keys import new_platform_key
from tests.e2e.conftest import ROOT, serving
from tests.e2e.shop import Shop

METRICS_KEY = "mk-canary-of-the-metrics-0123456789"
ENV_SECRET = "canary-of-engine-env"
PASSED_SECRET = "canary-of-the-passthrough"
SETTINGS = f"""
[engine]
env = {{PROVIDER_TOKEN = "{ENV_SECRET}"}}
env_passthrough = ["PROVIDER_KEY"]
[boot]
timeout_s = 5
"""
TEXT = {"Accept": "text/plain"}

# What Python runs before the server: a bug of ours right where a new key is in hand.
A_BUG = """
import os
import enginegate.keys
seal = enginegate.keys.Keyring.seal
def seal_or_not(self, engine_id, key):
    if os.path.exists(os.environ["BUG_IF"]):
        raise RuntimeError("a bug was met")
    return seal(self, engine_id, key)
enginegate.keys.Keyring.seal = seal_or_not
"""


def events(url: str, headers: dict[str, str]) -> str:
    """Return the stream of events from its beginning, as far as it goes in a moment."""
    seen = ""
    last = {"Last-Event-ID": "0"}
    with (
        contextlib.suppress(httpx.ReadTimeout),
        httpx.stream("GET", f"{url}/events", headers=headers | last, timeout=0.5) as stream,
    ):
        for piece in stream.iter_text():
            seen += piece
    return seen


def files_of(directory: Path) -> dict[str, bytes]:
    """Return what is in the files of the gate: all but its configuration and engines' own data."""
    own = directory / "data" / "engines"
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
        and path.name != "config.toml"
        and (not path.is_relative_to(own) or path.parent.name == ".enginegate")
    }


def test_no_secret_is_anywhere_but_where_it_belongs(tmp_path: Path) -> None:
    """Files, logs, trail, metrics in both forms, events, status, document, and a forced 500."""
    bug = tmp_path / "bug"
    (tmp_path / "sitecustomize.py").write_text(A_BUG)
    variables = {
        "ENGINEGATE_METRICS_KEY": METRICS_KEY,
        "PROVIDER_KEY": PASSED_SECRET,
        "BUG_IF": str(bug),
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
    }
    with serving(tmp_path, SETTINGS, **variables) as server, server.product("shop") as http:
        shop = Shop(server, http)
        first_key = http.headers["X-Platform-Key"]
        product_id = server.admin("GET", "/products").json()["products"][0]["product_id"]
        shop.open("ann")
        engine_keys = [shop.engine["api_key"]]
        engine_keys += [shop.do("rotate-key")["api_key"] for _ in range(2)]
        for verb in ("sleep", "start", "stop", "start"):
            shop.do(verb)
        road = f"/products/{product_id}/rotate-platform-key"
        second_key = server.admin("POST", road, json={"overlap_s": 60}).json()["platform_api_key"]
        stranger = new_platform_key()
        assert http.get("/engines", headers={"X-Platform-Key": stranger}).status_code == 401
        bug.touch()
        broken = http.post("/engines/provision", json={"user_id": "unlucky"})
        bug.unlink()
        assert broken.status_code == 500, broken.text
        assert "Traceback" in server.log
        assert "a bug was met" in server.log
        admin = {"X-Admin-Key": server.admin_key}
        monitor = {"X-Admin-Key": METRICS_KEY}
        shown = {
            "the answer of a 500": broken.text,
            "/audit": http.get("/audit", headers=admin, params={"limit": 1000}).text,
            "/metrics": http.get("/metrics").text,
            "/metrics of all": server.admin("GET", "/metrics").text,
            "/metrics as text": httpx.get(f"{server.url}/metrics", headers=monitor | TEXT).text,
            "/events": events(server.url, admin),
            "/status": http.get("/status").text + server.admin("GET", "/status").text,
            "/openapi.json": http.get("/openapi.json").text,
            "/products": server.admin("GET", "/products").text,
            "the list": http.get("/engines").text,
        }
        assert "rotate_key" in shown["/audit"]
        assert "enginegate_" in shown["/metrics as text"]
        assert "rotate_key" in shown["/events"]
        shown["stdout"] = (tmp_path / "out").read_text()
        server.stop()
        shown["journal dump"] = server.cli.run("journal", "dump").stdout
        server.start()
        secrets = {
            **{f"engine key {n}": key for n, key in enumerate(engine_keys)},
            "platform key": first_key,
            "rotated platform key": second_key,
            "guessed platform key": stranger,
            "admin key": server.admin_key,
            "master key": server.cli.env["ENGINEGATE_MASTER_KEY"],
            "metrics key": METRICS_KEY,
            "secret in engine.env": ENV_SECRET,
            "secret in engine.env_passthrough": PASSED_SECRET,
        }
        places = {name: text.encode() for name, text in shown.items()} | files_of(tmp_path)
        assert {"out", "err"} <= set(places)
        assert any(name.endswith(".egj") for name in places)
        found = [
            (secret, place)
            for secret, value in secrets.items()
            for place, text in places.items()
            if value.encode() in text
        ]
        assert found == []
