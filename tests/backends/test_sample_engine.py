"""The bundled engine keeps the engine's side of the contract."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from enginegate import sample_engine
from enginegate.backends.base import Presence
from enginegate.backends.process_launch import SAMPLE_COMMAND
from tests.backends.conftest import Make, ProcessHarness
from tests.backends.contract import KEY, OTHER_KEY, eventually, free_port, key_hash

COVERED = {
    "command": [sys.executable, "-m", "enginegate.sample_engine"],
    "env_passthrough": ["COVERAGE_PROCESS_CONFIG", "COVERAGE_FILE"],
}


class Here:
    """The engine served by threads of the test, so that its state is at hand."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.hash_file = folder / "key_hash"
        env = {
            "PORT": str(self.port),
            "ENGINE_ID": 'e"1\\\u00e9',
            "ENGINE_VERSION": "v",
            "ENGINE_DATA_DIR": str(folder),
            "ENGINE_KEY_HASH": key_hash(KEY),
            "ENGINE_KEY_HASH_FILE": str(self.hash_file),
        }
        self.engine = sample_engine.Engine(env)
        self.listener = sample_engine.listen(env)
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"x-engine-key": KEY},
            trust_env=False,
            timeout=10,
        )

    def ask(self, method: str, path: str, **options: object) -> httpx.Response:
        return self.client.request(method, path, **options)

    def health(self) -> dict[str, object]:
        return self.ask("GET", "/health").json()

    def raw(self, sent: bytes) -> bytes:
        """Send bytes and return all that comes until the engine closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as line:
            line.sendall(sent)
            line.shutdown(socket.SHUT_WR)
            received = b""
            while piece := line.recv(65_536):
                received += piece
            return received

    def serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener was shut down
            sample_engine.serve(self.engine, self.listener)

    def close(self) -> None:
        self.client.close()
        self.listener.shutdown(socket.SHUT_RDWR)
        sample_engine.finish(self.engine)
        self.listener.close()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    threads: list[threading.Thread] = []

    def start(function, args=()) -> None:
        threads.append(threading.Thread(target=function, args=args))
        threads[-1].start()

    # Threads that the coverage tool knows of; the engine itself does without this module.
    monkeypatch.setattr(
        sample_engine,
        "_thread",
        SimpleNamespace(start_new_thread=start, allocate_lock=threading.Lock),
    )
    made = Here(tmp_path)
    start(made.serve)
    yield made
    made.close()
    for thread in threads:
        thread.join(10)


class TestKeys:
    """Who is let in."""

    def test_everything_but_health_demands_the_key(self, here: Here) -> None:
        """Without it, or with a wrong one, the answer is 401 and tells nothing."""
        for path in ("/", "/whoami", "/stream", "/data/x", "/nowhere"):
            for key in ("", "wrong", "\u00e9"):
                headers = {"x-engine-key": key.encode()}
                answer = here.ask("GET", path, headers=headers)
                assert (answer.status_code, answer.json()) == (
                    401,
                    {"error": "invalid engine key"},
                )
        assert here.ask("GET", "/health", headers={"x-engine-key": ""}).status_code == 200

    def test_the_file_wins_where_it_exists_and_is_read_when_it_changes(self, here: Here) -> None:
        """One hash a line, all valid; without the file the variable counts again."""
        assert here.ask("GET", "/whoami").status_code == 200
        here.hash_file.write_text(f"{key_hash(OTHER_KEY)}\n{key_hash('third').upper()}\n")
        allowed = [
            here.ask("GET", "/whoami", headers={"x-engine-key": key}).status_code
            for key in (KEY, OTHER_KEY, "third")
        ]
        assert allowed == [401, 200, 200]
        here.hash_file.write_bytes(b"\xff\xff\n\n")
        assert here.ask("GET", "/whoami").status_code == 401
        here.hash_file.unlink()
        assert here.ask("GET", "/whoami").status_code == 200


class TestAnswers:
    """What it says and does."""

    def test_it_says_who_it_is(self, here: Here) -> None:
        """Identity, process and the number of requests, as proper JSON."""
        first, second = (here.ask("GET", path).json() for path in ("/", "/whoami"))
        assert first["engine_id"] == 'e"1\\\u00e9'
        assert (first["version"], second["requests"]) == ("v", first["requests"] + 1)
        assert first["started_at"] <= time.time()
        health = here.health()
        assert (health["status"], health["busy"], health["active_requests"]) == ("ok", False, 0)
        assert health["pid"] == first["pid"]

    def test_data_is_kept_under_plain_names(self, here: Here, tmp_path: Path) -> None:
        """Files come and go by name; names that lead elsewhere are refused."""
        assert here.ask("PUT", "/data/note.txt", content=b"\0one").status_code == 201
        assert here.ask("GET", "/data/note.txt").content == b"\0one"
        assert (tmp_path / "note.txt").read_bytes() == b"\0one"
        assert here.ask("GET", "/data/missing").status_code == 404
        for name in ("", ".hidden", "%2e%2e", "a%2fb", "x" * 101):
            assert here.ask("GET", f"/data/{name}").status_code == 400

    def test_work_makes_it_busy_for_a_while(self, here: Here) -> None:
        """A job without a connection is said all the same."""
        assert here.ask("POST", "/work?seconds=0.2").status_code == 202
        assert here.health()["busy"]
        deadline = time.monotonic() + 10
        while here.health()["busy"]:
            assert time.monotonic() < deadline
        assert here.ask("POST", "/work?seconds=soon").status_code == 400

    def test_a_stream_is_a_request_at_work(self, here: Here) -> None:
        """It ticks, counts as active meanwhile, and ends when its time is over."""
        url = "/stream?seconds=0.3&interval=0.05"
        with here.client.stream("GET", url) as answer:
            lines = answer.iter_lines()
            assert [next(lines), next(lines)] == ["id: 1", "data: tick 1"]
            assert here.health()["active_requests"] == 1
            assert len([line for line in lines if line.startswith("data")]) >= 1

    def test_a_websocket_is_answered_and_stays_open(self, here: Here) -> None:
        """The handshake is the example of RFC 6455; what comes afterwards is read and let go."""
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        head = f"GET /socket HTTP/1.1\r\nx-engine-key: {KEY}\r\nupgrade: websocket\r\n"
        sent = f"{head}sec-websocket-key: {key}\r\n\r\n".encode() + b"\x81\x00"
        answer = here.raw(sent)
        assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer
        assert here.ask("GET", "/socket").status_code == 400

    def test_what_is_to_be_kept_quiet_is_not_in_its_health(self, here: Here) -> None:
        """Tests want an engine that says nothing of what it does."""
        assert here.ask("POST", "/work?seconds=0.2&quiet=1").status_code == 202
        with here.client.stream("GET", "/stream?seconds=0.2&interval=0.05&quiet=1") as answer:
            lines = answer.iter_lines()  # kept: httpx hangs up when it goes
            assert next(lines) == "id: 1"
            health = here.health()
            assert (health["busy"], health["active_requests"]) == (False, 0)

    def test_control_makes_it_unwell_busy_or_slow(self, here: Here, capfd) -> None:
        """Tests and demos set what health says, and can make it talk."""
        body = {"healthy": False, "busy": True, "health_delay_s": 0.01, "log": "a true story"}
        assert here.ask("POST", "/control", json=body).json() == {
            "healthy": False,
            "busy": True,
            "hang": False,
        }
        answer = here.ask("GET", "/health")
        assert (answer.status_code, answer.json()["busy"]) == (503, True)
        assert "a true story\n" in capfd.readouterr().err
        assert here.ask("POST", "/control").json()["busy"]
        here.ask("POST", "/control", json={"healthy": True, "busy": False, "other": None})
        assert here.health()["status"] == "ok"

    def test_while_it_hangs_health_says_nothing(self, here: Here) -> None:
        """A hanging engine takes connections and leaves them without an answer."""
        here.ask("POST", "/control", json={"hang": True})
        with pytest.raises(httpx.ReadTimeout):
            here.ask("GET", "/health", timeout=0.1)
        here.ask("POST", "/control", json={"hang": False})
        assert here.health()["status"] == "ok"

    @pytest.mark.parametrize(
        "body", [b"{", b"[]", b"1+1", b"\xff", b'{"exit": "x"}', b'{"health_delay_s": -1}']
    )
    def test_what_makes_no_sense_is_refused(self, here: Here, body: bytes) -> None:
        """A bad control request changes nothing and is answered."""
        assert here.ask("POST", "/control", content=body).status_code == 400
        assert here.health()["status"] == "ok"

    @pytest.mark.parametrize(
        ("method", "path"), [("GET", "/nowhere"), ("DELETE", "/whoami"), ("GET", "/work")]
    )
    def test_an_unknown_path_is_404(self, here: Here, method: str, path: str) -> None:
        """Answered, not dropped."""
        assert here.ask(method, path).status_code == 404


class TestWire:
    """HTTP as it comes over the wire."""

    HEAD = f"x-engine-key: {KEY}\r\n".encode()

    def test_requests_share_a_connection(self, here: Here) -> None:
        """Pipelined ones too; the last says that it is the last."""
        one = b"GET /health HTTP/1.1\r\n\r\n"
        last = b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"
        answers = here.raw(one + one + last)
        assert answers.count(b"HTTP/1.1 200 OK") == 3
        assert answers.count(b"connection: close") == 1

    def test_a_body_may_come_late(self, here: Here) -> None:
        """Who asks for a go-ahead gets it."""
        head = b"PUT /data/x HTTP/1.1\r\ncontent-length: 3\r\nexpect: 100-continue\r\n"
        with socket.create_connection(("127.0.0.1", here.port), timeout=10) as line:
            line.sendall(head + self.HEAD + b"\r\n")
            assert line.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            line.sendall(b"abc")
            assert line.recv(100).startswith(b"HTTP/1.1 201")

    @pytest.mark.parametrize(
        ("header", "status"),
        [
            (b"transfer-encoding: chunked", b"411"),
            (b"content-length: 2000000", b"413"),
            (b"content-length: x", b"400"),
        ],
    )
    def test_bodies_that_cannot_be_read_are_refused(
        self, here: Here, header: bytes, status: bytes
    ) -> None:
        """And the connection is closed, since what follows is anybody's guess."""
        sent = b"PUT /data/x HTTP/1.1\r\n" + self.HEAD + header + b"\r\n\r\n"
        assert here.raw(sent).startswith(b"HTTP/1.1 " + status)

    @pytest.mark.parametrize(
        "sent",
        [
            b"",
            b"nonsense\r\n\r\n",
            b"GET / HTTP/1.1\r\nx: " + b"x" * 20_000,
            b"PUT /data/x HTTP/1.1\r\ncontent-length: 9\r\n\r\nabc",
        ],
    )
    def test_what_is_no_request_gets_no_answer(self, here: Here, sent: bytes) -> None:
        """The connection is closed, and the next caller is served."""
        with contextlib.suppress(ConnectionError):  # closed with bytes unread
            assert here.raw(sent) == b""
        assert here.health()["status"] == "ok"


class TestProcess:
    """The engine as a program."""

    @pytest.fixture
    async def covered(self, make: Make) -> ProcessHarness:
        return await make(**COVERED)

    async def test_it_ends_well_on_sigterm(self, covered: ProcessHarness) -> None:
        """Streams end, and the exit code is 0."""
        spec = await covered.started()
        headers = {"x-engine-key": KEY}
        url = f"{covered.backend.url(spec)}/stream?seconds=600&interval=0.01"
        async with (
            httpx.AsyncClient(headers=headers, trust_env=False) as client,
            client.stream("GET", url) as answer,
        ):
            lines = answer.aiter_lines()
            await anext(lines)
            await covered.backend.stop(spec.engine_id, grace_s=10)
            async for _ in lines:
                pass
        assert (await covered.backend.inspect(spec.engine_id)).exit_code == 0

    async def test_control_lets_it_exit(self, covered: ProcessHarness) -> None:
        """With the code it was told."""
        spec = await covered.started()
        with contextlib.suppress(httpx.TransportError):
            await covered.ask(spec, "/control", method="POST", body='{"exit": 3}')
        async with asyncio.timeout(5):
            event = await anext(aiter(covered.backend.watch()))
        assert (event.kind, event.exit_code) == ("exited", 3)

    async def test_it_can_be_told_to_stay_unhealthy(self, make: Make) -> None:
        """For tests of boots that fail."""
        harness = await make(env={"SAMPLE_NEVER_HEALTHY": "1"}, **COVERED)
        await harness.backend.start(spec := harness.spec())

        async def answers() -> int:
            try:
                return (await harness.ask(spec, "/health")).status_code
            except httpx.TransportError:
                return 0

        assert await eventually(answers) == 503

    async def test_it_can_be_told_to_die_at_boot(self, make: Make) -> None:
        """Its last words are in the log."""
        harness = await make(env={"SAMPLE_EXIT_AT_BOOT": "4", "SAMPLE_LOG_LINES": "3"}, **COVERED)
        await harness.backend.start(spec := harness.spec())
        event = await anext(aiter(harness.backend.watch()))
        assert event.exit_code == 4
        lines = await harness.backend.logs(spec.engine_id, lines=10)
        assert list(lines) == ["line 0", "line 1", "line 2", "told to exit at boot"]

    async def test_it_can_be_stopped_while_it_boots(self, make: Make) -> None:
        """A slow boot does not cost a grace."""
        harness = await make(env={"SAMPLE_BOOT_DELAY_S": "600", "SAMPLE_LOG_LINES": "1"}, **COVERED)
        await harness.backend.start(spec := harness.spec())

        async def booting() -> bool:
            return bool(await harness.backend.logs(spec.engine_id, lines=1))

        await eventually(booting)
        await harness.backend.stop(spec.engine_id, grace_s=10)
        seen = await harness.backend.inspect(spec.engine_id)
        assert (seen.presence, seen.exit_code) == (Presence.STOPPED, 0)

    def test_it_starts_with_next_to_nothing(self) -> None:
        """No module that costs time is imported before the first answer, and none of ours."""
        code = (
            "import sys; before = set(sys.modules);"
            f"exec(open({SAMPLE_COMMAND[-1]!r}).read(), {{'__name__': 'x'}});"
            "print(' '.join(sorted(set(sys.modules) - before)))"
        )
        run = subprocess.run(
            [*SAMPLE_COMMAND[:-1], "-c", code], capture_output=True, text=True, check=True
        )
        costly = {"socket", "json", "threading", "hashlib", "enum", "pathlib", "ast", "enginegate"}
        assert costly.isdisjoint(run.stdout.split())

    def test_in_a_container_it_listens_for_everybody(self, monkeypatch) -> None:
        """Data at /data means a container, where the loopback interface would reach nobody."""
        env = {"PORT": str(free_port()), "ENGINE_DATA_DIR": "/data"}
        listener = sample_engine.listen(env)
        assert listener.getsockname()[0] == "0.0.0.0"
        listener.close()

    @pytest.mark.parametrize(
        "value", ["x", 'a"b\\c', "\u00e9\n\x00", "\U0001f600", 1, 1.5, True, None]
    )
    def test_its_json_is_json(self, value) -> None:
        """What it writes without the json module, the json module reads."""
        read = json.loads(sample_engine.to_json({"value": value}))["value"]
        assert read == (value if value != "\U0001f600" else "\ufffd")
