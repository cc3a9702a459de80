"""The audit trail as it happens: server-sent events.

A reader that comes back with `Last-Event-ID` gets what it missed first. One that lags
too far behind is let go, and comes back the same way.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
from starlette.responses import Response, StreamingResponse

from enginegate.api import fleet_wire
from enginegate.api.call import Call
from enginegate.audit import Entry
from enginegate.errors import InvalidRequestError, ShuttingDownError
from enginegate.registry.trail import Query, Subscription

KEEP_ALIVE_S = 15.0
ALIVE = b": keep-alive\n\n"
HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-accel-buffering": "no",  # nginx would hold entries back
}
MEDIA = "text/event-stream"
PAGE = 1000
PAGES_MAX = 10  # of what a reader missed; who missed more reads `/audit`
ID_DIGITS_MAX = 18


async def events(call: Call) -> Response:
    """Answer with a stream that ends at shutdown, or when the reader lags or loses its key."""
    if call.services.phase.name == "stopping":
        raise ShuttingDownError("enginegate is shutting down; ask again in a moment.")
    last = _last_event_id(call)
    if call.request.method == "HEAD":
        return Response(headers=HEADERS, media_type=MEDIA)
    return StreamingResponse(_stream(call, last), headers=HEADERS, media_type=MEDIA)


def _last_event_id(call: Call) -> int | None:
    text = call.request.headers.get("last-event-id", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= ID_DIGITS_MAX):
        raise InvalidRequestError("`Last-Event-ID` is the id of an audit entry.")
    return int(text)


async def _stream(call: Call, last: int | None) -> AsyncIterator[bytes]:
    trail = call.services.registry.trail
    product = call.identity.product
    subscription = trail.subscribe(product.product.product_id if product else None)
    try:
        yield ALIVE  # the reader knows that it is connected before anything happens
        told = 0
        for found in await _missed(call, last):
            told = found.id
            yield encode(found)
        async for piece in _live(call, subscription, told):
            yield piece
    finally:
        trail.unsubscribe(subscription)


async def _live(call: Call, subscription: Subscription, told: int) -> AsyncIterator[bytes]:
    while True:
        found = None
        piece = ALIVE
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                found = await subscription.entries.get()
        except TimeoutError:
            pass
        else:
            if found is None:
                return
            if found.id <= told:
                continue  # it was among what was missed
            piece = encode(found)
        if not call.doorkeeper.still_valid(call.identity):
            return
        yield piece


async def _missed(call: Call, last: int | None) -> list[Entry]:
    """Return the entries after `last`, oldest first; of very many the newest ones."""
    if last is None:
        return []
    trail, product = call.services.registry.trail, call.identity.product
    before: int | None = None
    found: list[Entry] = []
    for _ in range(PAGES_MAX):
        page, before = await trail.search(
            Query(
                product_id=product.product.product_id if product else None,
                before=before,
                limit=PAGE,
            )
        )
        found += _after(page, last)
        if before is None or before <= last:
            break
    return found[::-1]


def _after(page: list[Entry], last: int) -> Iterator[Entry]:
    return (entry for entry in page if entry.id > last)


def encode(found: Entry) -> bytes:
    """Return the entry as one event; JSON holds no line break, so it is one line of data."""
    content = msgspec.json.encode(fleet_wire.audit_entry(found))
    return b"id: %d\nevent: audit\ndata: %s\n\n" % (found.id, content)
