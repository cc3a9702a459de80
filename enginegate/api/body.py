"""Reading what was sent: bodies up to a limit, JSON and query strings into typed values."""

import json
import re
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from enginegate.errors import InvalidRequestError, PayloadTooLargeError

T = TypeVar("T", bound=Struct)

_WHOLE = re.compile(r"-?[0-9]{1,18}")


async def read(receive: Receive, headers: dict[bytes, bytes], *, limit: int) -> bytes:
    """Return the whole body.

    Raises:
        PayloadTooLargeError: it is, or says it is, longer than `limit` bytes.
        ClientDisconnect: the client left.
    """
    if says_too_long(headers.get(b"content-length", b""), limit):
        raise _too_large(limit)
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return body


def says_too_long(length: bytes, limit: int) -> bool:
    """Return whether a `Content-Length` is over the limit, however many digits it has."""
    digits = length.lstrip(b"0")
    if not digits.isdigit():
        return False
    return len(digits) > len(str(limit)) or int(digits) > limit


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"The body may have at most {limit} bytes.", limit=limit)


def decode(body: bytes, kind: type[T]) -> T:
    """Return the body as a value; an empty one counts as `{}`.

    Raises:
        InvalidRequestError: it is not JSON, or not what is asked for; says which field.
    """
    body = body or b"{}"
    try:
        found = msgspec.json.decode(body, type=kind)
        json.loads(body, object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise InvalidRequestError("The body is not UTF-8.") from None
    except msgspec.ValidationError as fault:
        raise InvalidRequestError(f"{fault}.") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as fault:
        raise InvalidRequestError(f"The body is not acceptable JSON: {fault}.") from None
    return found


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Refuse a name that comes twice: readers disagree which of the two counts."""
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"field {name!r} comes twice")
        seen.add(name)


def query(params: QueryParams, kind: type[T]) -> T:
    """Return the query string as a value; parameters we do not know are ignored.

    Raises:
        InvalidRequestError: a parameter comes twice or is not what it has to be.
    """
    found: dict[str, str | int] = {}
    for name, is_number in _parameters(kind):
        given = params.getlist(name)
        if len(given) > 1:
            raise InvalidRequestError(f"The parameter `{name}` comes {len(given)} times.")
        if given:
            whole = is_number and _WHOLE.fullmatch(given[0])
            found[name] = int(given[0]) if whole else given[0]
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as fault:
        raise InvalidRequestError(f"{fault}.") from None


@cache
def _parameters(kind: type[Struct]) -> list[tuple[str, bool]]:
    """Return the names of the parameters, and whether each is a whole number."""
    described = msgspec.inspect.type_info(kind)
    assert isinstance(described, msgspec.inspect.StructType)
    return [
        (one.name, isinstance(_bare(one.type), msgspec.inspect.IntType)) for one in described.fields
    ]


def _bare(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    return kind.type if isinstance(kind, msgspec.inspect.Metadata) else kind
