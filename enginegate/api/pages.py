"""Routes that describe the API itself: the OpenAPI document, and the same to be read."""

from starlette.responses import Response

from enginegate.api.auth import Access
from enginegate.api.call import Call, Route

NOSNIFF = {"x-content-type-options": "nosniff"}


async def openapi_document(_: Call) -> Response:
    from enginegate.api.openapi import encoded  # the document is made from the table we are in

    return Response(encoded(), headers=NOSNIFF, media_type="application/json")


async def docs(_: Call) -> Response:
    from enginegate.api.docs import POLICY, page  # as above

    headers = NOSNIFF | {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
    return Response(page(), headers=headers, media_type="text/html")


ROUTES = (
    Route(
        "GET",
        "/openapi.json",
        openapi_document,
        Access.PUBLIC,
        "This API as an OpenAPI 3.1 document.",
        while_recovering=True,
    ),
    Route(
        "GET",
        "/docs",
        docs,
        Access.PUBLIC,
        "This API as a page to read.",
        media=("text/html",),
        while_recovering=True,
    ),
)
