"""ASGI applications that do nothing but answer: the floors of the frameworks."""

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.http.answer import BODY, HEADERS

START = {"type": "http.response.start", "status": 200, "headers": HEADERS}
END = {"type": "http.response.body", "body": BODY}


async def bare(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer without looking at anything."""
    if scope["type"] != "http":
        return
    await receive()
    await send(START)
    await send(END)


async def _admit(request: Request) -> Response:
    await request.body()
    return Response(BODY, media_type="application/json")


starlette = Starlette(routes=[Route("/engines/{user_id}/admit", _admit, methods=["POST"])])
