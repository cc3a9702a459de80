"""The document and the application are made from one table: neither knows more."""

import re
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import pytest
import schemathesis

from enginegate.api import docs
from enginegate.api.app import make_routes
from enginegate.api.openapi import codes, document
from enginegate.api.problems import STATUS
from enginegate.api.routes import TABLE
from tests.api.rig import Gate, code

SPEC = document()
OPERATIONS = [
    (path, method, operation)
    for path, methods in SPEC["paths"].items()
    for method, operation in methods.items()
]
CONTRACT_ROUTES = """
POST /engines/provision
GET /engines/{user_id}
POST /engines/{user_id}/admit
POST /engines/{user_id}/touch
POST /engines/{user_id}/start
POST /engines/{user_id}/stop
POST /engines/{user_id}/sleep
POST /engines/{user_id}/rotate-key
DELETE /engines/{user_id}
GET /engines
GET /engines/{user_id}/activity
GET /status
GET /metrics
GET /audit
GET /events
POST /products/register
GET /products
GET /products/{product_id}
PUT /products/{product_id}/policy
POST /products/{product_id}/rotate-platform-key
DELETE /products/{product_id}
GET /health
GET /openapi.json
GET /docs
"""


def test_the_document_describes_the_contract_s_routes_and_no_other() -> None:
    """Every route that is promised is there, and nothing is there unpromised."""
    described = {f"{method.upper()} {path}" for path, method, _ in OPERATIONS}

    assert described == set(CONTRACT_ROUTES.strip().splitlines())


async def test_the_application_answers_to_what_the_document_describes(gate: Gate) -> None:
    """Router and document hold the same pairs of method and path."""
    routed = {
        (route.path, method.lower())
        for route in make_routes(gate.services).routes
        for method in route.methods - {"HEAD"}
    }

    assert routed == {(path, method) for path, method, _ in OPERATIONS}


def test_every_code_of_the_table_of_errors_is_described() -> None:
    """A client's author finds every code, most of them at the routes that give them."""
    assert SPEC["components"]["schemas"]["Problem"]["properties"]["error"]["properties"]["code"][
        "enum"
    ] == list(STATUS)
    at_routes = {code for route in TABLE for code in codes(route)}
    assert set(STATUS) - at_routes == {"NOT_FOUND", "METHOD_NOT_ALLOWED"}


def test_every_error_answer_has_the_one_shape() -> None:
    """Each status of each route lists exactly the codes that carry this status."""
    for _, _, operation in OPERATIONS:
        for status, answer in operation["responses"].items():
            if status != "200":
                schema = answer["content"]["application/json"]["schema"]
                named = schema["properties"]["error"]["properties"]["code"]["enum"]
                assert named
                assert all(STATUS[one] == int(status) for one in named)


def test_every_schema_is_json_schema() -> None:
    """A validator takes every schema, with every reference resolved."""
    for name in SPEC["components"]["schemas"]:
        whole = {"$ref": f"#/components/schemas/{name}", "components": SPEC["components"]}
        jsonschema_rs.Draft202012Validator(whole)


def test_every_path_parameter_is_described() -> None:
    """What stands in braces in a path is a required parameter with a type."""
    for path, _, operation in OPERATIONS:
        described = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert described == set(re.findall(r"{(\w+)}", path))


def test_every_operation_has_a_name_of_its_own() -> None:
    """Generated clients get one method per operation."""
    names = [operation["operationId"] for _, _, operation in OPERATIONS]

    assert len(set(names)) == len(names)


def test_every_operation_says_who_may_call_it() -> None:
    """Only the public pages come without a security requirement."""
    open_to_all = {path for path, _, operation in OPERATIONS if not operation["security"]}

    assert open_to_all == {"/health", "/openapi.json", "/docs"}


def test_a_tool_that_attacks_apis_can_read_the_document() -> None:
    """Schemathesis finds every operation in it, which validates its structure too."""
    found = schemathesis.openapi.from_dict(SPEC)
    operations = [result.ok() for result in found.get_all_operations()]

    assert len(operations) == len(OPERATIONS)


async def test_the_served_document_is_the_generated_one(gate: Gate) -> None:
    """What is served is what was checked here."""
    assert (await gate.client.get("/openapi.json")).json() == SPEC


EXAMPLES = [
    ("GET", "/engines/ann", None),
    ("GET", "/engines", None),
    ("GET", "/engines/ann/activity", None),
    ("POST", "/engines/ann/admit", {}),
    ("POST", "/engines/nobody/admit", {}),
    ("POST", "/engines/ann/touch", None),
    ("GET", "/status", None),
    ("GET", "/metrics", None),
    ("GET", "/audit", None),
    ("GET", "/health", None),
    ("POST", "/engines/provision", {"user_id": "bob"}),
    ("POST", "/engines/ann/start", {}),
    ("POST", "/engines/provision", {"user_id": 1}),
]


@pytest.mark.parametrize(("method", "path", "body"), EXAMPLES)
@pytest.mark.parametrize("who", ["product", "operator"])
async def test_real_answers_are_as_described(
    gate: Gate, method: str, path: str, body: Any, who: str
) -> None:
    """The gate's own answers pass the schemas that it publishes."""
    await gate.engine()
    if who == "product":
        answer = await gate.call(method, path, body)
    else:
        answer = await gate.admin(method, path, body, **{"X-Product": "demo"})
    template = re.sub("/(ann|nobody)", "/{user_id}", path)
    described = SPEC["paths"][template][method.lower()]["responses"][str(answer.status_code)]
    schema = described["content"]["application/json"]["schema"]
    validator = jsonschema_rs.Draft202012Validator(schema | {"components": SPEC["components"]})

    validator.validate(answer.json())


async def test_the_operators_answers_are_as_described(gate: Gate) -> None:
    """The same for what only the admin key sees."""
    await gate.engine()
    product_id = gate.registry.by_slug["demo"].product.product_id
    for method, path, template in (
        ("GET", "/status", "/status"),
        ("GET", "/products", "/products"),
        ("GET", f"/products/{product_id}", "/products/{product_id}"),
        ("DELETE", f"/products/{product_id}", "/products/{product_id}"),
    ):
        answer = await gate.admin(method, path)
        described = SPEC["paths"][template][method.lower()]["responses"]["200"]
        schema = described["content"]["application/json"]["schema"]
        whole = schema | {"components": SPEC["components"]}
        jsonschema_rs.Draft202012Validator(whole).validate(answer.json())


class Reader(HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "link", "img", "iframe"} or any(k == "style" for k, _ in attrs):
            self.loaded.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_the_page_to_read_is_self_contained_and_complete(gate: Gate) -> None:
    """Every route and code is on it; no script runs and nothing is loaded."""
    answer = await gate.client.get("/docs")
    reader = Reader()
    reader.feed(answer.text)

    assert reader.loaded == []
    assert all(path in reader.text for path, _, _ in OPERATIONS)
    assert all(one in reader.text for one in STATUS)
    assert answer.headers["content-security-policy"] == docs.POLICY
    assert "script" not in docs.POLICY


async def test_the_pages_can_be_read_while_the_journal_is_read_back(gate: Gate) -> None:
    """Only what needs the fleet has to wait for it."""
    gate.services.phase.name = "recovering"

    assert (await gate.client.get("/docs")).status_code == 200
    assert code(await gate.get("/engines")) == "STORAGE_UNAVAILABLE"
