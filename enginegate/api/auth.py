"""Who is asking: a product by its platform key, the operator, or a monitor.

Platform keys are found by their SHA-256, the operator's are compared as SHA-256 in
constant time. Of several headers of one name the first one counts. `X-Platform-Key`
settles the matter where it is sent: what else is sent is not looked at.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from hmac import compare_digest

from enginegate.config import Secrets
from enginegate.errors import (
    GateError,
    InvalidAdminKeyError,
    InvalidPlatformKeyError,
    ProductNotFoundError,
)
from enginegate.keys import digest
from enginegate.registry import LiveProduct, Registry

ADMIN = "admin"
BEARER = b"bearer "

NO_PLATFORM_KEY = "This needs a valid platform key: X-Platform-Key, or Authorization: Bearer."
NO_ADMIN_KEY = "This needs the admin key: X-Admin-Key, or Authorization: Bearer."
NO_PRODUCT = "The admin key acts for a product here: add X-Product with the product's slug."

Headers = Iterable[tuple[bytes, bytes]]


class Access(Enum):
    """Whom a route is open to."""

    PUBLIC = "none"
    PLATFORM = "platform"
    EITHER = "platform or admin"
    MONITOR = "platform, admin or metrics"
    ADMIN = "admin"


class Role(Enum):
    NOBODY = "nobody"
    PRODUCT = "product"
    ADMIN = "admin"
    MONITOR = "monitor"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, and for which product: None is the whole fleet.

    `actor` is what the audit trail calls them; `key` is the digest that let them in.
    """

    role: Role
    actor: str
    product: LiveProduct | None = None
    key: bytes = b""


NOBODY = Identity(Role.NOBODY, "")


@dataclass(frozen=True, slots=True)
class Presented:
    """What a request brings; the bearer's key counts as whichever is not sent by name."""

    platform: bytes | None
    admin: bytes | None
    bearer: bytes | None
    product: str | None

    @classmethod
    def read(cls, headers: Headers) -> "Presented":
        found: dict[bytes, bytes] = {}
        for name, value in headers:
            found.setdefault(name, value.strip(b" \t"))  # the parser leaves what follows a value
        slug = found.get(b"x-product")
        authorization = found.get(b"authorization", b"")
        bearer = authorization[: len(BEARER)].lower() == BEARER
        return cls(
            platform=found.get(b"x-platform-key"),
            admin=found.get(b"x-admin-key"),
            bearer=authorization[len(BEARER) :].strip() if bearer else None,
            product=None if slug is None else slug.decode("latin-1"),
        )

    @property
    def admin_alone(self) -> bool:
        return self.admin is not None and self.platform is None and self.bearer is None


def refusal(presented: Presented, access: Access) -> GateError:
    """Return what is said to somebody whom none of what he presents lets in."""
    key = presented.admin if presented.admin is not None else presented.bearer
    acting = key is not None and presented.product is not None
    if acting or (access is not Access.PLATFORM and presented.admin_alone):
        return InvalidAdminKeyError(NO_ADMIN_KEY)
    return InvalidPlatformKeyError(NO_PLATFORM_KEY)


class Doorkeeper:
    """Tells who asks, before anything else about the request is looked at."""

    def __init__(self, registry: Registry, secrets: Secrets) -> None:
        self._registry = registry
        self._admin = digest(secrets.admin_key)
        self._metrics = digest(secrets.metrics_key) if secrets.metrics_key else None

    def identify(self, headers: Headers, access: Access) -> Identity:
        """Return who asks.

        Raises:
            InvalidPlatformKeyError, InvalidAdminKeyError: nobody this route is open to.
            ProductNotFoundError: an operator acts for a product that does not exist.
        """
        if access is Access.PUBLIC:
            return NOBODY
        presented = Presented.read(headers)
        if access is Access.ADMIN:
            key = presented.admin if presented.admin is not None else presented.bearer
            if not self._is_admin(key):
                raise InvalidAdminKeyError(NO_ADMIN_KEY)
            return Identity(Role.ADMIN, ADMIN)
        if found := self._product(presented):
            return found
        return self._operator(presented, access)

    def still_valid(self, identity: Identity) -> bool:
        """Return whether the key that let a product in would do so now."""
        if identity.role is not Role.PRODUCT:
            return True
        return self._registry.product_by_key(identity.key) is identity.product

    def _product(self, presented: Presented) -> Identity | None:
        key = presented.platform if presented.platform is not None else presented.bearer
        if key is None:
            return None
        key = digest(key)
        product = self._registry.product_by_key(key)
        if product is not None:
            return Identity(Role.PRODUCT, product.product.slug, product, key)
        if presented.platform is not None:
            raise InvalidPlatformKeyError(NO_PLATFORM_KEY)
        return None

    def _operator(self, presented: Presented, access: Access) -> Identity:
        key = presented.admin if presented.admin is not None else presented.bearer
        if self._is_admin(key):
            if presented.product is not None:
                return Identity(Role.ADMIN, ADMIN, self._named(presented.product))
            if access is Access.PLATFORM:
                raise InvalidPlatformKeyError(NO_PRODUCT)
            return Identity(Role.ADMIN, ADMIN)
        if access is Access.MONITOR and self._is_monitor(key):
            return Identity(Role.MONITOR, "")
        raise refusal(presented, access)

    def _named(self, slug: str) -> LiveProduct:
        product = self._registry.by_slug.get(slug)
        if product is None:
            raise ProductNotFoundError("X-Product names no product.")
        return product

    def _is_admin(self, key: bytes | None) -> bool:
        return key is not None and compare_digest(digest(key), self._admin)

    def _is_monitor(self, key: bytes | None) -> bool:
        if key is None or self._metrics is None:
            return False
        return compare_digest(digest(key), self._metrics)
