"""Section 3 of the contract with real engine processes: what an engine gets, says and keeps.

What a container gets is shown by `tests/backends/test_docker.py` and `test_container.py`; how a
process that ignores SIGTERM is killed when its grace is over, by `test_process.py`.
"""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from enginegate.backends.proc import read_environ
from enginegate.keys import digest_hex
from tests.e2e.conftest import engine_processes, eventually
from tests.e2e.shop import ODD_COMMAND, Shop, open_shop

Factory = pytest.TempPathFactory
OVERLAP_S = 1.0
PATIENT = "[health]\ninterval_s = 3600\nmax_failures = 1000\n"  # only `verify` probes

RECREATE = """[engine]
env = {MODEL = "m"}
env_passthrough = ["PROVIDER_KEY", "NOT_SET"]
catalog_dir = "."
"""
LIVE = f"""[engine]
image = "app:7"
rotate_mode = "live"
key_overlap_s = {OVERLAP_S}
"""
STRICT = f"[engine]\n{ODD_COMMAND}{PATIENT}"
LENIENT = (
    f'[engine]\n{ODD_COMMAND}health_path = "/ready?deep=1"\n{PATIENT}require_status_ok = false\n'
)


@pytest.fixture(scope="module")
def recreate(tmp_path_factory: Factory) -> Iterator[Shop]:
    variables = {"PROVIDER_KEY": "p", "NOT_NAMED": "n", "TZ": "UTC", "LANG": "C.UTF-8"}
    with open_shop(tmp_path_factory.mktemp("recreate"), RECREATE, **variables) as shop:
        yield shop


@pytest.fixture(scope="module")
def live(tmp_path_factory: Factory) -> Iterator[Shop]:
    with open_shop(tmp_path_factory.mktemp("live"), LIVE) as shop:
        yield shop


@pytest.fixture(scope="module")
def strict(tmp_path_factory: Factory) -> Iterator[Shop]:
    with open_shop(tmp_path_factory.mktemp("strict"), STRICT) as shop:
        shop.open("odd")
        yield shop


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: Factory) -> Iterator[Shop]:
    with open_shop(tmp_path_factory.mktemp("lenient"), LENIENT) as shop:
        shop.open("odd")
        yield shop


def opens(shop: Shop, key: str) -> bool:
    """Whether the engine accepts the key."""
    return shop.call("/whoami", key).status_code == 200


class TestEnvironment:
    """What a process engine finds in its environment."""

    def test_it_is_what_is_listed_and_nothing_else(self, recreate: Shop) -> None:
        """Identity, key, place, catalog, `env`, `env_passthrough`, and PATH, HOME, LANG, TZ."""
        recreate.open("env")
        engine, data = recreate.engine, recreate.data
        assert read_environ(recreate.pid) == {
            "PORT": engine["url"].rpartition(":")[2],
            "ENGINE_ID": engine["engine_id"],
            "ENGINE_VERSION": "process",
            "ENGINE_KEY_HASH": digest_hex(engine["api_key"]),
            "ENGINE_KEY_HASH_FILE": str(data / ".enginegate" / "key_hash"),
            "ENGINE_DATA_DIR": str(data),
            "CATALOG_DIR": str(recreate.server.directory),
            "MODEL": "m",
            "PROVIDER_KEY": "p",
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            "LANG": "C.UTF-8",
            "TZ": "UTC",
        }
        recreate.close()

    def test_the_version_is_the_configured_image(self, live: Shop) -> None:
        """On the process backend a label alone; the look-up shows the same."""
        live.open("version")
        assert live.engine["engine_version"] == "app:7"
        assert read_environ(live.pid)["ENGINE_VERSION"] == "app:7"
        live.close()


class TestKey:
    """How the key check learns which keys are valid."""

    def test_health_needs_no_key_and_the_rest_does(self, recreate: Shop) -> None:
        """The key of the answer opens the engine; another one, and none, do not."""
        recreate.open("key")
        assert httpx.get(f"{recreate.engine['url']}/health").json()["status"] == "ok"
        assert opens(recreate, recreate.engine["api_key"])
        assert not opens(recreate, "sk-eg-" + "x" * 43)
        assert httpx.get(f"{recreate.engine['url']}/whoami").status_code == 401
        recreate.close()

    def test_recreate_is_another_process_on_the_same_place(self, recreate: Shop) -> None:
        """Port, data and url stay; variable and file have the new hash, the old key is dead."""
        recreate.open("recreated")
        before, pid = dict(recreate.engine), recreate.pid
        recreate.call("/data/notes", before["api_key"], "PUT", content=b"mine")
        assert recreate.key_file.read_text() == digest_hex(before["api_key"]) + "\n"
        key = recreate.do("rotate-key")["api_key"]

        assert recreate.pid != pid
        assert recreate.look()["url"] == before["url"]
        assert recreate.key_file.read_text() == digest_hex(key) + "\n"
        assert read_environ(recreate.pid)["ENGINE_KEY_HASH"] == digest_hex(key)
        assert recreate.call("/data/notes", key).content == b"mine"
        assert not opens(recreate, before["api_key"])
        recreate.close()

    def test_live_keeps_the_process_and_both_keys_for_the_overlap(self, live: Shop) -> None:
        """The file is read anew and wins over the variable, which still has the old hash."""
        live.open("live")
        old, pid = live.engine["api_key"], live.pid
        key = live.do("rotate-key")["api_key"]

        assert live.key_file.read_text() == f"{digest_hex(key)}\n{digest_hex(old)}\n"
        assert opens(live, key)
        assert opens(live, old)
        eventually(lambda: not opens(live, old), "the old key is dropped", seconds=OVERLAP_S + 3)
        assert opens(live, key)
        assert live.key_file.read_text() == digest_hex(key) + "\n"
        assert live.pid == pid
        assert read_environ(pid)["ENGINE_KEY_HASH"] == digest_hex(old)
        live.close()

    def test_a_live_rotation_survives_restarts_of_engine_and_gate(self, live: Shop) -> None:
        """The key of the last rotation is the one that counts, whoever was away meanwhile."""
        live.open("survivor")
        key = live.do("rotate-key")["api_key"]
        live.do("stop")
        live.do("start")
        assert opens(live, key)
        live.server.stop()
        assert opens(live, key)
        live.server.start()
        assert live.admit()["engine"]["api_key"] == key
        assert opens(live, key)
        live.close()

    @pytest.mark.parametrize("mode", ["recreate", "live"])
    def test_the_key_file_is_private(self, mode: str, request: pytest.FixtureRequest) -> None:
        """0600 in a directory of 0700, in both modes, also after a rotation."""
        shop: Shop = request.getfixturevalue(mode)
        shop.open("private")
        shop.do("rotate-key")
        assert stat.S_IMODE(shop.key_file.stat().st_mode) == 0o600
        assert stat.S_IMODE(shop.key_file.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(shop.data.stat().st_mode) == 0o700
        shop.close()


class TestHealth:
    """What counts as healthy, asked for with `verify`."""

    @pytest.mark.parametrize(
        "answer",
        [
            b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"status":"starting"}',
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            b'HTTP/1.1 503 No\r\nContent-Length: 15\r\n\r\n{"status":"ok"}',
            b"HTTP/1.1 302 Found\r\nLocation: /well\r\nContent-Length: 0\r\n\r\n",
            b"no HTTP at all\r\n\r\n",
            b"",
        ],
        ids=["other", "text", "503", "redirect", "garbage", "nothing"],
    )
    def test_anything_but_a_200_that_says_ok_is_a_failed_probe(
        self, strict: Shop, answer: bytes
    ) -> None:
        """And a good answer afterwards admits again."""
        assert strict.admit(verify=True)["admitted"]
        whim = strict.data / "whim"
        whim.write_bytes(answer)
        assert strict.admit(verify=True)["reason"] == "engine_unhealthy"
        whim.unlink()
        assert strict.admit(verify=True)["admitted"]

    def test_a_body_without_end_is_a_failed_probe_in_time(self, strict: Shop) -> None:
        """Verify takes one second at most, whatever the engine sends."""
        (strict.data / "whim").write_bytes(b'HTTP/1.1 200 OK\r\n\r\n{"status":"ok"}')
        (strict.data / "endless").touch()
        began = time.monotonic()
        assert strict.admit(verify=True)["reason"] == "engine_unhealthy"
        assert time.monotonic() - began < 2
        (strict.data / "whim").unlink()
        (strict.data / "endless").unlink()
        assert strict.admit(verify=True)["admitted"]

    def test_any_200_will_do_where_the_operator_says_so(self, lenient: Shop) -> None:
        """`require_status_ok = false`; a redirect or 503 is still none."""
        whim = lenient.data / "whim"
        whim.write_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nup")
        assert lenient.admit(verify=True)["admitted"]
        whim.write_bytes(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nup")
        assert lenient.admit(verify=True)["reason"] == "engine_unhealthy"
        whim.unlink()

    def test_the_path_is_the_configured_one(self, lenient: Shop, strict: Shop) -> None:
        """Nothing else is asked of an engine."""
        asked = {line for line in lenient.log().splitlines() if line.startswith("asked")}
        assert asked == {"asked /ready?deep=1"}
        assert "asked /health\n" in strict.log()


class TestUse:
    """What an engine can say against being put to sleep, and what the kernel says."""

    def test_its_own_word_and_a_connection_refuse_a_sleep(self, recreate: Shop) -> None:
        """`busy`, `active_requests` and an established connection: ENGINE_BUSY each."""
        recreate.open("used")
        key = recreate.engine["api_key"]
        recreate.call("/control", key, "POST", content=b'{"busy":true}')
        assert recreate.refused("sleep") == "ENGINE_BUSY"
        recreate.call("/control", key, "POST", content=b'{"busy":false}')
        url = f"{recreate.engine['url']}/stream?seconds=30&interval=0.05"
        with httpx.stream("GET", url, headers={"X-Engine-Key": key}) as stream:
            ticks = stream.iter_text()  # kept: httpx hangs up when it goes
            next(ticks)
            health = httpx.get(f"{recreate.engine['url']}/health").json()
            assert (health["busy"], health["active_requests"]) == (False, 1)
            assert recreate.refused("sleep") == "ENGINE_BUSY"
            assert recreate.do("sleep", force=True) == {"status": "sleeping"}
        recreate.do("start")
        eventually(lambda: recreate.http.post("/engines/used/sleep").is_success, "it is quiet")
        recreate.close()


class TestData:
    """What is the engine's own, and for how long."""

    def test_data_lasts_as_long_as_the_engine(self, recreate: Shop) -> None:
        """Over sleep, stop, start and rotation; a destroy takes it, a new engine begins empty."""
        recreate.open("keeper")
        recreate.call("/data/notes", recreate.engine["api_key"], "PUT", content=b"mine")
        for verb in ("sleep", "start", "stop", "start", "rotate-key"):
            recreate.do(verb)
        assert recreate.call("/data/notes", recreate.look()["api_key"]).content == b"mine"
        gone = recreate.data
        recreate.close()
        assert not gone.exists()
        recreate.open("keeper")
        assert recreate.call("/data/notes", recreate.engine["api_key"]).status_code == 404
        recreate.close()

    def test_a_stop_is_a_sigterm_and_nothing_of_it_stays(self, recreate: Shop) -> None:
        """The engine gets to say goodbye, and its process is gone when the answer comes."""
        recreate.open("stopped")
        engine_id = recreate.engine["engine_id"]
        assert recreate.do("stop") == {"status": "stopped"}
        assert engine_id not in engine_processes(recreate.server.directory)
        assert recreate.log().rstrip().endswith(f"engine {engine_id} stops")
        recreate.close()

    def test_a_sleeper_is_frozen_and_keeps_its_process(self, recreate: Shop) -> None:
        """SIGSTOP, not a stop: the same process answers after the wake."""
        recreate.open("sleeper")
        pid = recreate.pid
        recreate.do("sleep")
        assert "State:\tT" in Path(f"/proc/{pid}/status").read_text()
        assert recreate.admit()["reason"] == "engine_sleeping"
        assert recreate.admit(auto_wake=True)["action"] == "woke"
        assert recreate.pid == pid
        recreate.close()
