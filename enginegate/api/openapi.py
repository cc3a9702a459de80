"""The OpenAPI 3.1 document, made from the route table and the types it names."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec

import enginegate
from enginegate.api import wire
from enginegate.api.auth import Access
from enginegate.api.call import Route
from enginegate.api.problems import STATUS
from enginegate.api.routes import TABLE

Json = dict[str, Any]

REF = "#/components/schemas/{name}"
PARAMETER = re.compile(r"{(\w+)}")
ABOUT = (
    "enginegate gives every user of a product a private engine and answers, on each user "
    "request, whether it may go on and where to. All timestamps are RFC 3339 in UTC, all "
    "names that end in `_s` are seconds."
)
MEANING = {
    400: "The request is not acceptable.",
    401: "No valid key for this.",
    403: "The configuration does not allow it.",
    404: "There is no such thing.",
    409: "The state it is in does not permit it.",
    413: "The body is too large.",
    429: "Over a limit of the policy.",
    500: "Our fault; the message has a reference that the log has too.",
    502: "The backend that runs engines refused or failed.",
    503: "Not now; ask again.",
    504: "The engine did not get healthy in time.",
}
KEYS: dict[Access, list[str]] = {
    Access.PUBLIC: [],
    Access.PLATFORM: ["platformKey", "adminKey", "bearer"],
    Access.EITHER: ["platformKey", "adminKey", "bearer"],
    Access.MONITOR: ["platformKey", "adminKey", "bearer"],
    Access.ADMIN: ["adminKey", "bearer"],
}
ACTING: Json = {
    "name": "X-Product",
    "in": "header",
    "required": False,
    "description": "With the admin key: the slug of the product to act for.",
    "schema": {"type": "string"},
}
PATH_PARAMETERS: dict[str, Json] = {
    "user_id": {"type": "string", "pattern": wire.USER_ID_PATTERN, "examples": ["demo-user-001"]},
    "product_id": {"type": "string", "format": "uuid"},
}
LAST_EVENT: Json = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The id of the last entry seen: what came after it is sent first.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
}


@cache
def encoded() -> bytes:
    """Return the document as it is served."""
    return msgspec.json.encode(document())


def document() -> Json:
    """Return the document as plain dicts and lists."""
    schemas = _schemas()
    paths: Json = {}
    for route in TABLE:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "enginegate", "version": enginegate.__version__, "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas | {"Problem": _problem(list(STATUS))},
            "securitySchemes": {
                "platformKey": {"type": "apiKey", "in": "header", "name": "X-Platform-Key"},
                "adminKey": {"type": "apiKey", "in": "header", "name": "X-Admin-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _schemas() -> Json:
    types = {
        kind
        for route in TABLE
        for kind in (*route.answers, route.body, route.query)
        if kind is not None
    }
    ordered = sorted(types, key=lambda kind: kind.__name__)
    _, found = msgspec.json.schema_components(ordered, ref_template=REF)
    return dict(sorted(found.items()))


def codes(route: Route) -> list[str]:
    """Return every code the route may answer with, in the order of the table of errors."""
    found = {*route.errors, "INTERNAL_ERROR"}
    if route.access is Access.ADMIN:
        found |= {"INVALID_ADMIN_KEY"}
    elif route.access is not Access.PUBLIC:
        found |= {"INVALID_PLATFORM_KEY", "INVALID_ADMIN_KEY", "PRODUCT_NOT_FOUND"}
    if route.body is not None:
        found |= {"INVALID_REQUEST", "PAYLOAD_TOO_LARGE"}
    if route.query is not None or "{user_id}" in route.path:
        found |= {"INVALID_REQUEST"}
    if not route.while_recovering:
        found |= {"STORAGE_UNAVAILABLE"}
    return [code for code in STATUS if code in found]


def _operation(route: Route, schemas: Json) -> Json:
    operation: Json = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "tags": [route.path.split("/")[1].removesuffix(".json")],
        "security": [{key: []} for key in KEYS[route.access]],
        "responses": {"200": _success(route)} | dict(_failures(route)),
    }
    parameters = list(_parameters(route, schemas))
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None and route.method != "DELETE":  # HTTP gives its body no meaning
        operation["requestBody"] = {
            "required": bool(schemas[route.body.__name__].get("required")),
            "content": {"application/json": {"schema": _ref(route.body)}},
        }
    return operation


def _parameters(route: Route, schemas: Json) -> Iterator[Json]:
    for name in PARAMETER.findall(route.path):
        yield {"name": name, "in": "path", "required": True, "schema": PATH_PARAMETERS[name]}
    if route.query is not None:
        for name, schema in schemas[route.query.__name__]["properties"].items():
            yield {"name": name, "in": "query", "required": False, "schema": schema}
    if route.access not in (Access.PUBLIC, Access.ADMIN):
        yield ACTING
    if "text/event-stream" in route.media:
        yield LAST_EVENT


def _success(route: Route) -> Json:
    content: Json = {}
    for media in route.media:
        if media != "application/json":
            content[media] = {"schema": {"type": "string"}}
        elif not route.answers:
            content[media] = {"schema": {"type": "object"}}
        elif len(route.answers) == 1:
            content[media] = {"schema": _ref(route.answers[0])}
        else:
            content[media] = {"schema": {"anyOf": [_ref(kind) for kind in route.answers]}}
    return {"description": "Done.", "content": content}


def _failures(route: Route) -> Iterator[tuple[str, Json]]:
    by_status: dict[int, list[str]] = {}
    for code in codes(route):
        by_status.setdefault(STATUS[code], []).append(code)
    for status, named in sorted(by_status.items()):
        answer: Json = {
            "description": MEANING[status],
            "content": {"application/json": {"schema": _problem(named)}},
        }
        if "RATE_LIMITED" in named:
            answer["headers"] = {
                "Retry-After": {
                    "description": "Whole seconds; on RATE_LIMITED, unless the limit is 0.",
                    "schema": {"type": "integer", "minimum": 1},
                }
            }
        yield str(status), answer


def _problem(named: list[str]) -> Json:
    """Return the schema of an error answer with one of these codes."""
    return {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string", "enum": named},
                    "message": {"type": "string"},
                },
                "additionalProperties": True,
            }
        },
    }


def _ref(kind: type) -> Json:
    return {"$ref": REF.format(name=kind.__name__)}
