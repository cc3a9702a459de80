"""One route, and one call of it: who asks, what for, do it, answer."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from enginegate.api import body, problems
from enginegate.api.auth import Access, Doorkeeper, Identity
from enginegate.api.services import Services
from enginegate.errors import (
    EngineNotFoundError,
    InvalidRequestError,
    StorageUnavailableError,
)
from enginegate.policy import valid_user_id
from enginegate.registry import LiveEngine, LiveProduct

RECOVERING = "enginegate is reading its journal back; ask again in a moment."
BAD_USER_ID = (
    "`user_id` is 1 to 128 characters out of letters, digits and . _ @ | : + = ~ -, "
    "the first a letter or digit."
)


@dataclass(slots=True)
class Call:
    """What a handler gets: everything about the request, checked."""

    services: Services
    doorkeeper: Doorkeeper
    request: Request
    identity: Identity
    query: Any = None
    body: Any = None

    @property
    def actor(self) -> str:
        return self.identity.actor

    @property
    def owner(self) -> LiveProduct:
        """The product that asks, or that an operator acts for."""
        assert self.identity.product is not None
        return self.identity.product

    @property
    def user_id(self) -> str:
        user_id: str = self.request.path_params["user_id"]
        return user_id

    @property
    def product_id(self) -> str:
        product_id: str = self.request.path_params["product_id"]
        return product_id

    @property
    def products(self) -> list[LiveProduct]:
        """The products the caller may see: its own, or all."""
        if self.identity.product is not None:
            return [self.identity.product]
        return list(self.services.registry.products.values())

    def engine(self) -> LiveEngine:
        """Return the user's engine.

        Raises:
            EngineNotFoundError: the user has none with this product.
        """
        live = self.owner.engines.get(self.user_id)
        if live is None:
            raise EngineNotFoundError("This user has no engine.")
        return live


Handler = Callable[[Call], Awaitable[Struct | Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the route table; the router and the OpenAPI document are made from it.

    `errors` are the codes beyond those that follow from the other fields.
    """

    method: str
    path: str
    handler: Handler
    access: Access
    summary: str
    answers: tuple[type[Struct], ...] = ()
    body: type[Struct] | None = None
    query: type[Struct] | None = None
    errors: tuple[str, ...] = ()
    media: tuple[str, ...] = ("application/json",)
    while_recovering: bool = False


class Endpoint:
    """A route as an ASGI application."""

    def __init__(self, route: Route, services: Services, doorkeeper: Doorkeeper) -> None:
        self.route = route
        self.services = services
        self.doorkeeper = doorkeeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0)  # to find the route was a turn of its own
        try:
            response = await self._answer(Request(scope, receive))
        except ClientDisconnect:
            return  # nobody is left to be told; what the call began goes on
        except Exception as error:  # noqa: BLE001 - the edge: whatever it is becomes an answer
            response = problems.answer(error)
        await response(scope, receive, send)

    def identify(self, request: Request) -> Identity:
        """Return who asks; while the journal is read back nobody is known.

        Raises:
            InvalidPlatformKeyError, InvalidAdminKeyError: nobody this route is open to.
            ProductNotFoundError: an operator acts for a product that does not exist.
        """
        if self.services.phase.name == "recovering" and not self.route.while_recovering:
            raise StorageUnavailableError(RECOVERING)
        return self.doorkeeper.identify(request.scope["headers"], self.route.access)

    async def _answer(self, request: Request) -> Response:
        call = await self._checked(request)
        done = await self.route.handler(call)
        if isinstance(done, Response):
            return done
        await asyncio.sleep(0)  # so is to write down a long answer
        return json_response(done)

    async def _checked(self, request: Request) -> Call:
        """Check everything that can be checked without knowing what the route does."""
        route = self.route
        call = Call(self.services, self.doorkeeper, request, self.identify(request))
        user_id = request.path_params.get("user_id")
        if user_id is not None and not valid_user_id(user_id):
            raise InvalidRequestError(BAD_USER_ID)
        if route.query is not None:
            call.query = body.query(request.query_params, route.query)
        if route.body is not None:
            limit = self.services.config.server.max_body_bytes
            headers = dict(request.scope["headers"])
            sent = await body.read(request.receive, headers, limit=limit)
            call.body = body.decode(sent, route.body)
        return call


def json_response(content: Struct) -> Response:
    return Response(
        msgspec.json.encode(content),
        headers=problems.SAFE_HEADERS,
        media_type="application/json",
    )
