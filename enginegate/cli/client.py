"""A thin HTTP client: one call, one answer, and errors as one line each."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import httpx

from enginegate import __version__
from enginegate.cli.failures import Failure
from enginegate.cli.plain import shortened

PLATFORM: Final = "ENGINEGATE_PLATFORM_KEY"
ADMIN: Final = "ENGINEGATE_ADMIN_KEY"
_HEADERS: Final = {PLATFORM: "X-Platform-Key", ADMIN: "X-Admin-Key"}
_CONNECT_S: Final = 5.0
_QUIET_S: Final = 60.0  # a stream that says nothing for so long, not even a comment, is dead
_EXCERPT: Final = 200
_SERVER_ERROR: Final = 500


class Unreachable(Failure):
    """Nobody answered, or the connection broke off."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Failure.UNAVAILABLE)


class Refused(Failure):
    """The server answered with an error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def passing(self) -> bool:
        """Whether it is the server that cannot, so that asking again may help."""
        return self.status >= _SERVER_ERROR


class Event(NamedTuple):
    """One message of a stream."""

    id: str
    data: str


class Gate:
    """A server, asked with one key."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.url = url.rstrip("/")
        agent = {"User-Agent": f"enginegate/{__version__}"}
        try:
            # Proxies of the environment are for the world outside: the gate is not there,
            # and they would see the keys. A verb may take as long as its image takes to pull.
            self._http = httpx.Client(
                base_url=self.url,
                headers={**headers, **agent},
                timeout=httpx.Timeout(None, connect=_CONNECT_S),
                limits=httpx.Limits(max_keepalive_connections=0),  # so there is nothing to close
                trust_env=False,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise Failure(f"{url} is no URL: {error}", Failure.USAGE) from None

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the JSON of the answer.

        Raises:
            Failure: what was given cannot be sent.
            Refused: the server did; `CODE: message`.
            Unreachable: there is none.
        """
        try:
            asked = self._http.build_request(method, path, json=body, params=_given(params or {}))
        except ValueError as error:  # a number that is none, text that is no UTF-8
            raise Failure(f"what was given cannot be sent: {error}", Failure.USAGE) from None
        with self._reaching():
            answer = self._http.send(asked)
        return _json_of(answer)

    def events(self, last_id: int) -> Iterator[Event]:
        """Yield the audit entries behind `last_id` as they come, until the stream ends."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last_id)}
        timeout = httpx.Timeout(_CONNECT_S, read=_QUIET_S)
        with (
            self._reaching(),
            self._http.stream("GET", "/events", headers=headers, timeout=timeout) as answer,
        ):
            if not answer.is_success:
                answer.read()
                _json_of(answer)
            yield from parsed(answer.iter_lines())

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            why = str(error) or "no answer in time"
            raise Unreachable(
                f"cannot connect to {self.url}: {why}; is `enginegate serve` running there?"
            ) from None
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            raise Failure(f"{self.url} cannot be asked: {error}", Failure.USAGE) from None
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise Unreachable(f"the connection to {self.url} broke off: {why}") from None


def parsed(lines: Iterator[str]) -> Iterator[Event]:
    """Yield the events of a `text/event-stream`; comments and unknown fields are passed over."""
    last_id, data = "", list[str]()
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line and data:
            yield Event(last_id, "\n".join(data))
            data = []
        elif name == "id":
            last_id = value
        elif name == "data":
            data.append(value)


def for_product(url: str, product: str | None) -> Gate:
    """Return a client of the product routes: as the product, or as admin for `product`."""
    platform = _key(PLATFORM)
    if product is None and platform is None and _key(ADMIN) is not None:
        raise Failure(
            f"{PLATFORM} is not set; with {ADMIN} say for which product: --product SLUG",
            Failure.USAGE,
        )
    if product is None:
        return Gate(url, _header(PLATFORM, platform, f"{PLATFORM}, or {ADMIN} and --product SLUG"))
    return Gate(url, {**_header(ADMIN, _key(ADMIN), ADMIN), "X-Product": product})


def for_admin(url: str) -> Gate:
    """Return a client of the admin routes."""
    return Gate(url, _header(ADMIN, _key(ADMIN), ADMIN))


def for_either(url: str) -> Gate:
    """Return a client of the routes that both keys open; the platform key goes first."""
    platform = _key(PLATFORM)
    if platform is not None:
        return Gate(url, _header(PLATFORM, platform, PLATFORM))
    return Gate(url, _header(ADMIN, _key(ADMIN), f"{PLATFORM} or {ADMIN}"))


def segment(text: str) -> str:
    """Return a text as one segment of a path."""
    return quote(text, safe="")


def _header(name: str, key: str | None, wanted: str) -> dict[str, str]:
    if key is None:
        raise Failure(f"no key: set {wanted} (or the same name with _FILE)", Failure.USAGE)
    if not (key.isascii() and key.isprintable()):
        raise Failure(f"{name} holds characters that no key has", Failure.CONFIG)
    return {_HEADERS[name]: key}


def _key(name: str) -> str | None:
    """Return a key from the environment or from the file it names; None where neither is set."""
    key, file = os.environ.get(name, ""), os.environ.get(f"{name}_FILE", "")
    if key and file:
        raise Failure(f"{name} and {name}_FILE are both set; give one of the two", Failure.CONFIG)
    if not file:
        return key or None
    try:
        return Path(file).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Failure(f"{name}_FILE: cannot read {file}: {why}", Failure.CONFIG) from None


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _json_of(answer: httpx.Response) -> Any:
    try:
        value = json.loads(answer.content)
    except ValueError:
        value = None
    if answer.is_success and value is not None:
        return value
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict):
        raise Refused(f"{error.get('code')}: {error.get('message')}", answer.status_code)
    text = shortened(answer.text, _EXCERPT)
    what = f"HTTP {answer.status_code} from {answer.url}, not of enginegate: {text}"
    raise Refused(what, answer.status_code)
