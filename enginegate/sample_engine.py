"""A small engine that keeps the engine's side of the contract: a demo, and the tests' stand-in.

A plain file for any bare Python 3.11 (Debian's python3-minimal will do): it imports
nothing of enginegate, and only built-in modules before the first answer, since how
fast it starts is how fast a provision answers. Hence the modules with an underscore:
`import socket, threading, json, hashlib` alone takes longer than all of this.

    GET  /health                 no key: status, engine_id, version, pid, busy, active_requests
    GET  /  or  /whoami          who answers, since when, and how many requests it has seen
    GET  /stream?seconds=&interval=     server-sent events
    GET  /socket                 a websocket that reads whatever comes
    POST /work?seconds=          burns CPU in the background; busy meanwhile
    …?quiet=1                    says nothing of it in /health: neither busy nor a request
    GET, PUT /data/{name}        a file that lasts
    POST /control                {"healthy": bool, "busy": bool, "hang": bool, "exit": code,
                                  "health_delay_s": number, "log": text}

For tests: SAMPLE_BOOT_DELAY_S, SAMPLE_NEVER_HEALTHY=1, SAMPLE_EXIT_AT_BOOT=code,
SAMPLE_IGNORE_SIGTERM=1, SAMPLE_LOG_LINES=n.
"""

import _signal  # type: ignore[import-not-found]  # built in, but not in typeshed
import _socket
import _thread
import os
import time
from _operator import _compare_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

HEAD_MAX = 16_384
BODY_MAX = 1_048_576
NAME_MAX = 100
FINISH_S = 25.0
WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
REASONS = {200: "OK", 201: "Created", 202: "Accepted", 400: "Bad Request", 401: "Unauthorized"}
REASONS |= {404: "Not Found", 405: "Method Not Allowed", 411: "Length Required"}
REASONS |= {413: "Content Too Large", 503: "Service Unavailable"}

Json = dict[str, str | int | float | bool | None]


class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """The request is answered with this status and nothing else."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


class StopServing(BaseException):
    """Raised out of `accept` by SIGTERM."""


class Request:
    """One parsed request."""

    def __init__(self, method: str, target: str, headers: dict[str, str]) -> None:
        self.method = method
        self.path, _, query = target.partition("?")
        self.query = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
        self.headers = headers
        self.body = b""

    @property
    def quiet(self) -> bool:
        """Whether `/health` is to say nothing of it."""
        return self.path == "/health" or self.query.get("quiet") == "1"

    @property
    def last(self) -> bool:
        """Whether the caller wants the connection closed afterwards."""
        return self.headers.get("connection", "").lower() == "close"

    def seconds(self, name: str, default: float, most: float) -> float:
        try:
            return min(max(float(self.query.get(name, default)), 0.0), most)
        except ValueError:
            raise Refusal(400, f"{name} is no number") from None


class Keys:
    """The hashes in force: those in the file where it exists, else the variable's."""

    def __init__(self, path: str, fallback: str) -> None:
        self._path = path
        self._fallback: tuple[str, ...] = (fallback.strip().lower(),)
        self._stamp: tuple[int, int, int] | None = None
        self._hashes: tuple[str, ...] = self._fallback

    def accept(self, key: str) -> bool:
        import hashlib  # late: only a request with a key needs it

        digest = hashlib.sha256(key.encode("latin-1")).hexdigest()
        matches = [_compare_digest(digest, known) for known in self._current()]
        return any(matches)

    def _current(self) -> tuple[str, ...]:
        try:
            now = os.stat(self._path)  # noqa: PTH116 - pathlib costs 10 ms at start
        except OSError:
            self._stamp, self._hashes = None, self._fallback
            return self._hashes
        stamp = (now.st_ino, now.st_mtime_ns, now.st_size)
        if stamp != self._stamp:
            with open(self._path, encoding="ascii", errors="replace") as file:  # noqa: PTH123
                lines = [line.strip().lower() for line in file]
            self._stamp, self._hashes = stamp, tuple(filter(str.isascii, lines))
        return self._hashes


class Engine:
    """The state that requests see and change."""

    def __init__(self, env: dict[str, str]) -> None:
        self.engine_id = env.get("ENGINE_ID", "")
        self.version = env.get("ENGINE_VERSION", "")
        self.data_dir = env.get("ENGINE_DATA_DIR", ".")
        self.keys = Keys(env.get("ENGINE_KEY_HASH_FILE", ""), env.get("ENGINE_KEY_HASH", ""))
        self.healthy = env.get("SAMPLE_NEVER_HEALTHY") != "1"
        self.busy = self.hang = self.stopping = False
        self.health_delay_s = 0.0
        self.started_at = time.time()
        self.requests = self.active = self.jobs = 0
        self._lock = _thread.allocate_lock()

    def count(self, *, requests: int = 0, active: int = 0, jobs: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.active += active
            self.jobs += jobs

    def health(self) -> tuple[int, Json]:
        time.sleep(self.health_delay_s)
        while self.hang:
            time.sleep(0.05)
        status = (200, "ok") if self.healthy else (503, "failing")
        return status[0], {
            "status": status[1],
            "engine_id": self.engine_id,
            "version": self.version,
            "pid": os.getpid(),
            "busy": self.busy or self.jobs > 0,
            "active_requests": self.active,
        }

    def whoami(self) -> tuple[int, Json]:
        return 200, {
            "engine_id": self.engine_id,
            "version": self.version,
            "pid": os.getpid(),
            "started_at": self.started_at,
            "requests": self.requests,
        }

    def work(self, seconds: float, quiet: bool) -> tuple[int, Json]:  # noqa: FBT001 - a query's
        told = 0 if quiet else 1
        self.count(jobs=told)
        _thread.start_new_thread(self._burn, (seconds, told))
        return 202, {"working_s": seconds}

    def _burn(self, seconds: float, told: int) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sum(range(2000))
        self.count(jobs=-told)

    def data(self, request: Request, name: str) -> tuple[int, bytes]:
        if not name or len(name) > NAME_MAX or name[0] == "." or not SAFE.issuperset(name):
            raise Refusal(400, "names are letters, digits, '.', '_', '-', and start with no '.'")
        path = f"{self.data_dir}/{name}"
        if request.method == "PUT":
            with open(path, "wb") as file:  # noqa: PTH123 - as above
                file.write(request.body)
            return 201, b"{}"
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - as above
                return 200, file.read()
        except FileNotFoundError:
            raise Refusal(404, "no such file") from None

    def control(self, wishes: dict[str, object]) -> tuple[int, Json]:
        for name in ("healthy", "busy", "hang"):
            setattr(self, name, bool(wishes.get(name, getattr(self, name))))
        self.health_delay_s = _number(wishes, "health_delay_s", self.health_delay_s)
        if "log" in wishes:
            say(str(wishes["log"]))
        if "exit" in wishes:
            os._exit(int(_number(wishes, "exit", 0)))
        return 200, {"healthy": self.healthy, "busy": self.busy, "hang": self.hang}


def _number(wishes: dict[str, object], name: str, default: float) -> float:
    value = wishes.get(name, default)
    if not isinstance(value, int | float) or value < 0:
        raise Refusal(400, f"{name} is no number")
    return value


def say(line: str) -> None:
    os.write(2, line.encode("utf-8", "surrogateescape") + b"\n")


def to_json(fields: Json) -> bytes:
    """Encode a flat object; the json module would take longer to import than to do without."""
    pairs = [f"{_text(name)}:{_value(value)}" for name, value in fields.items()]
    return ("{" + ",".join(pairs) + "}").encode()


def _value(value: str | float | bool | None) -> str:  # noqa: FBT001 - a JSON value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _text(value) if isinstance(value, str) else repr(value)


def _text(text: str) -> str:
    plain = [
        c if " " <= c <= "~" and c not in '"\\' else f"\\u{min(ord(c), 0xFFFD):04x}" for c in text
    ]
    return '"' + "".join(plain) + '"'


def from_json(body: bytes) -> dict[str, object]:
    """Decode a flat object: Debian's minimal Python has no json module, but this one."""
    import ast  # late, as above

    found: object = None
    with_names = {"true": True, "false": False, "null": None}
    try:
        tree = ast.parse(body.decode().strip() or "{}", mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                node.values = [
                    ast.Constant(with_names[value.id])
                    if isinstance(value, ast.Name) and value.id in with_names
                    else value
                    for value in node.values
                ]
        found = ast.literal_eval(tree)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        pass
    if not isinstance(found, dict):
        raise Refusal(400, "the body is no JSON object")
    return found


class Connection:
    """One caller, served by a thread of its own, request after request."""

    def __init__(self, engine: Engine, fd: int) -> None:
        self._engine = engine
        self._socket = _socket.socket(fileno=fd)
        self._socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self._read = b""

    def serve(self) -> None:
        try:
            while self._serve_one():
                pass
        except OSError:
            pass  # the caller went away
        finally:
            self._socket.close()

    def _serve_one(self) -> bool:
        request = self._receive_head()
        if request is None:
            return False
        self._engine.count(requests=1, active=0 if request.quiet else 1)
        try:
            self._receive_body(request)
            self._answer(request)
        except Refusal as refusal:
            self._send(refusal.status, to_json({"error": refusal.error}), last=True)
            return False
        finally:
            self._engine.count(active=0 if request.quiet else -1)
        return not request.last and not self._engine.stopping

    def _answer(self, request: Request) -> None:
        engine, path = self._engine, request.path
        if path == "/health":
            status, fields = engine.health()
        elif not engine.keys.accept(request.headers.get("x-engine-key", "")):
            self._send(401, b'{"error":"invalid engine key"}', last=request.last)
            return
        elif path == "/stream":
            self._stream(request.seconds("seconds", 5, 86_400), request.seconds("interval", 1, 60))
            request.headers["connection"] = "close"
            return
        elif path == "/socket":
            self._websocket(request.headers.get("sec-websocket-key", ""))
            request.headers["connection"] = "close"
            return
        elif path.startswith("/data/"):
            code, body = engine.data(request, path[len("/data/") :])
            self._send(code, body, last=request.last)
            return
        else:
            status, fields = self._small(request)
        self._send(status, to_json(fields), last=request.last)

    def _small(self, request: Request) -> tuple[int, Json]:
        match request.method, request.path:
            case "GET", "/" | "/whoami":
                return self._engine.whoami()
            case "POST", "/work":
                return self._engine.work(request.seconds("seconds", 5, 3_600), request.quiet)
            case "POST", "/control":
                return self._engine.control(from_json(request.body))
            case _:
                raise Refusal(404, "no such path")

    def _stream(self, seconds: float, interval: float) -> None:
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n"
        self._socket.sendall((head + "connection: close\r\n\r\n").encode())
        until, number = time.monotonic() + seconds, 0
        while time.monotonic() < until and not self._engine.stopping:
            number += 1
            self._socket.sendall(f"id: {number}\ndata: tick {number}\n\n".encode())
            time.sleep(max(interval, 0.001))

    def _websocket(self, key: str) -> None:
        """Shake hands (RFC 6455, section 4.2.2), then read until the other side has enough."""
        import hashlib  # late, as above
        from binascii import b2a_base64

        if not key:
            raise Refusal(400, "no Sec-WebSocket-Key")
        digest = hashlib.sha1((key + WEBSOCKET_GUID).encode("latin-1"), usedforsecurity=False)
        accept = b2a_base64(digest.digest(), newline=False)
        head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        self._socket.sendall(head + b"sec-websocket-accept: " + accept + b"\r\n\r\n")
        while self._receive():
            self._read = b""

    def _send(self, status: int, body: bytes, *, last: bool) -> None:
        head = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
        )
        ending = "connection: close\r\n\r\n" if last else "\r\n"
        self._socket.sendall((head + ending).encode() + body)

    def _receive_head(self) -> Request | None:
        while b"\r\n\r\n" not in self._read:
            if len(self._read) > HEAD_MAX or not self._receive():
                return None
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        parts = first.split(" ")
        if len(parts) != 3:  # noqa: PLR2004 - method, target, version
            return None
        pairs = [line.partition(":")[::2] for line in lines]
        return Request(parts[0], parts[1], {name.lower(): value.strip() for name, value in pairs})

    def _receive_body(self, request: Request) -> None:
        if "transfer-encoding" in request.headers:
            raise Refusal(411, "send a Content-Length")
        length = request.headers.get("content-length", "0")
        if not length.isdigit():
            raise Refusal(400, "bad Content-Length")
        if int(length) > BODY_MAX:
            raise Refusal(413, f"at most {BODY_MAX} bytes")
        if request.headers.get("expect", "").lower() == "100-continue":
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while len(self._read) < int(length):
            if not self._receive():
                raise OSError("the caller went away")
        request.body, self._read = self._read[: int(length)], self._read[int(length) :]

    def _receive(self) -> bool:
        piece = self._socket.recv(65_536)
        self._read += piece
        return bool(piece)


def listen(env: dict[str, str]) -> _socket.socket:
    """Listen on the loopback interface; in a container, whose data is at /data, on all."""
    host = "0.0.0.0" if env.get("ENGINE_DATA_DIR") == "/data" else "127.0.0.1"  # noqa: S104 - so
    port = int(env.get("PORT", "8000"))
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(128)
    say(f"engine {env.get('ENGINE_ID')} {env.get('ENGINE_VERSION')} listens on {host}:{port}")
    return listener


def on_sigterm(_number: int, _frame: "FrameType | None") -> None:
    raise StopServing


def boot(env: dict[str, str]) -> None:
    """Do what the SAMPLE_ variables ask for before the port opens."""
    ignore = env.get("SAMPLE_IGNORE_SIGTERM") == "1"
    _signal.signal(_signal.SIGTERM, _signal.SIG_IGN if ignore else on_sigterm)
    for number in range(int(env.get("SAMPLE_LOG_LINES", "0"))):
        say(f"line {number}")
    time.sleep(float(env.get("SAMPLE_BOOT_DELAY_S", "0")))
    if "SAMPLE_EXIT_AT_BOOT" in env:
        say("told to exit at boot")
        os._exit(int(env["SAMPLE_EXIT_AT_BOOT"]))


def serve(engine: Engine, listener: _socket.socket) -> None:
    while True:
        fd, _ = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - not in typeshed
        _thread.start_new_thread(Connection(engine, fd).serve, ())


def finish(engine: Engine) -> None:
    """Let what runs come to its end, for less than the grace that a stop gives."""
    engine.stopping, engine.hang = True, False
    until = time.monotonic() + FINISH_S
    while (engine.active or engine.jobs) and time.monotonic() < until:
        time.sleep(0.01)
    say(f"engine {engine.engine_id} stops")


def main() -> int:
    env = dict(os.environ)
    try:
        boot(env)
        engine, listener = Engine(env), listen(env)
    except StopServing:
        return 0
    try:
        serve(engine, listener)
    except StopServing:
        listener.close()
        finish(engine)
    return 0


if __name__ == "__main__":
    os._exit(main())  # connections that wait for a next request need no goodbye
