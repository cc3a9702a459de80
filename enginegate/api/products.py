"""Routes for the operator: products, their policies and their platform keys."""

from msgspec.structs import asdict

from enginegate import model
from enginegate.api import wire
from enginegate.api.auth import Access
from enginegate.api.call import Call, Route
from enginegate.errors import InvalidRequestError
from enginegate.policy import check_policy, valid_slug

BAD_SLUG = "`slug` is 1 to 63 characters out of a-z, 0-9 and -, the first a letter or digit."
COUNTS = ("max_engines", "rate_limit_rpm", "user_rate_limit_rpm")
CHANGING = ("STORAGE_UNAVAILABLE", "SHUTTING_DOWN")


async def register(call: Call) -> wire.Registered:
    asked: wire.RegisterRequest = call.body
    if not valid_slug(asked.slug):
        raise InvalidRequestError(BAD_SLUG)
    product_id, key = await call.services.products.register(
        asked.slug, asked.display_name, _checked(asked.policy)
    )
    return wire.Registered(product_id=product_id, slug=asked.slug, platform_api_key=key)


def _checked(asked: wire.Policy) -> model.Policy:
    """Return the policy as the core knows it; all its faults are told at once."""
    limits, faults = asdict(asked), []
    for name in COUNTS:
        count = limits[name]
        if count is not None and not count.is_integer():
            faults.append(f"{name} must be a whole number")
        elif count is not None:
            limits[name] = int(count)
    policy = model.Policy(**limits)
    if faults := faults + check_policy(policy):
        raise InvalidRequestError(f"The policy is not possible: {'; '.join(faults)}.")
    return policy


async def products(call: Call) -> wire.Products:
    found = sorted(
        call.products, key=lambda live: (live.product.created_at_ms, live.product.product_id)
    )
    return wire.Products(products=[wire.product(live) for live in found], total=len(found))


async def product(call: Call) -> wire.Product:
    return wire.product(call.services.products.get(call.product_id))


async def set_policy(call: Call) -> wire.PolicyAnswer:
    asked: wire.PolicyRequest = call.body
    policy = _checked(asked.policy)
    return wire.PolicyAnswer(
        wire.policy(await call.services.products.set_policy(call.product_id, policy))
    )


async def rotate_platform_key(call: Call) -> wire.PlatformKeyRotated:
    asked: wire.RotatePlatformKeyRequest = call.body
    key = await call.services.products.rotate_key(call.product_id, overlap_s=asked.overlap_s)
    return wire.PlatformKeyRotated(product_id=call.product_id, platform_api_key=key)


async def delete_product(call: Call) -> wire.ProductDeleted:
    count = await call.services.products.delete(call.product_id)
    return wire.ProductDeleted(product_id=call.product_id, engines_destroyed=count)


ROUTES = (
    Route(
        "POST",
        "/products/register",
        register,
        Access.ADMIN,
        "Create a product; its platform key is shown this once.",
        answers=(wire.Registered,),
        body=wire.RegisterRequest,
        errors=(*CHANGING, "PRODUCT_SLUG_EXISTS"),
    ),
    Route(
        "GET",
        "/products",
        products,
        Access.ADMIN,
        "List the products, oldest first.",
        answers=(wire.Products,),
    ),
    Route(
        "GET",
        "/products/{product_id}",
        product,
        Access.ADMIN,
        "Show one product.",
        answers=(wire.Product,),
        errors=("PRODUCT_NOT_FOUND",),
    ),
    Route(
        "PUT",
        "/products/{product_id}/policy",
        set_policy,
        Access.ADMIN,
        "Replace the whole policy; it holds from the next request on.",
        answers=(wire.PolicyAnswer,),
        body=wire.PolicyRequest,
        errors=(*CHANGING, "PRODUCT_NOT_FOUND"),
    ),
    Route(
        "POST",
        "/products/{product_id}/rotate-platform-key",
        rotate_platform_key,
        Access.ADMIN,
        "Make a new platform key; the old one stops at once, or after `overlap_s`.",
        answers=(wire.PlatformKeyRotated,),
        body=wire.RotatePlatformKeyRequest,
        errors=(*CHANGING, "PRODUCT_NOT_FOUND"),
    ),
    Route(
        "DELETE",
        "/products/{product_id}",
        delete_product,
        Access.ADMIN,
        "Destroy the product's engines, then the product; its key stops at once.",
        answers=(wire.ProductDeleted,),
        body=wire.Nothing,
        errors=(*CHANGING, "BACKEND_ERROR", "BACKEND_UNAVAILABLE", "PRODUCT_NOT_FOUND"),
    ),
)
