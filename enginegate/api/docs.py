"""The OpenAPI document as one page to read: no script, nothing loaded from anywhere."""

from base64 import b64encode
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from html import escape
from typing import Any

import msgspec

from enginegate.api.openapi import document
from enginegate.api.problems import STATUS

Json = dict[str, Any]

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
code, pre { font: 0.9em/1.45 ui-monospace, monospace; }
details { border: 1px solid var(--line); border-radius: 6px; margin: 0.5rem 0; padding: 0 0.8rem; }
summary { cursor: pointer; padding: 0.6rem 0; }
summary code { font-weight: 600; margin-right: 0.8rem; }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 1rem 0.25rem 0; }
td + td, th + th { border-left: 0; } tr { border-bottom: 1px solid var(--line); }
pre { overflow-x: auto; padding: 0.6rem; border: 1px solid var(--line); border-radius: 6px; }
"""
_HASH = b64encode(sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@cache
def page() -> bytes:
    """Return the page as it is served."""
    found = document()
    schemas = found["components"]["schemas"]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>enginegate API</title><style>{STYLE}</style></head><body>",
        f"<h1>enginegate API {escape(found['info']['version'])}</h1>",
        f"<p>{escape(found['info']['description'])}</p>",
        '<p>For programs: <a href="openapi.json">openapi.json</a>. ',
        '<a href="#types">Types</a> and <a href="#errors">errors</a> are below.</p>',
        *_routes(found["paths"]),
        "<h2 id=types>Types</h2>",
        *(_type(name, schema) for name, schema in schemas.items()),
        "<h2 id=errors>Errors</h2>",
        _table(("Code", "Status"), ((_code(code), str(n)) for code, n in STATUS.items())),
        "</body></html>",
    ]
    return "\n".join(parts).encode()


def _routes(paths: Json) -> Iterator[str]:
    tag = None
    for path, methods in paths.items():
        for method, operation in methods.items():
            if operation["tags"][0] != tag:
                tag = operation["tags"][0]
                yield f"<h2>{escape(tag)}</h2>"
            yield _route(method.upper(), path, operation)


def _route(method: str, path: str, operation: Json) -> str:
    keys = [key for option in operation["security"] for key in option]
    name = f"<code>{method} {escape(path)}</code>"
    lines = [
        f"<details><summary>{name}{escape(operation['summary'])}</summary>",
        f"<p>Key: {', '.join(keys) or 'none'}</p>",
    ]
    if "parameters" in operation:
        given = operation["parameters"]
        rows = ((_code(one["name"]), one["in"], _kind(one["schema"])) for one in given)
        lines.append(_table(("Parameter", "In", "Type"), rows))
    if "requestBody" in operation:
        lines.append(f"<p>Body: {_content(operation['requestBody'])}</p>")
    rows_of = ((status, _answer(status, one)) for status, one in operation["responses"].items())
    lines.append(_table(("Status", "Answer"), rows_of))
    return "\n".join([*lines, "</details>"])


def _answer(status: str, answer: Json) -> str:
    if status == "200":
        return _content(answer)
    schema = answer["content"]["application/json"]["schema"]
    codes = schema["properties"]["error"]["properties"]["code"]["enum"]
    return " ".join(map(_code, codes))


def _content(holder: Json) -> str:
    return "; ".join(
        f"{_kind(one['schema'])} ({escape(media)})" for media, one in holder["content"].items()
    )


def _kind(schema: Json) -> str:
    """Return a type in one line."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[1])
        return f'<a href="#{name}">{name}</a>'
    for many in ("anyOf", "oneOf"):
        if many in schema:
            return " or ".join(map(_kind, schema[many]))
    if "enum" in schema:
        return " | ".join(_code(str(one)) for one in schema["enum"])
    if "const" in schema:
        return _code(msgspec.json.encode(schema["const"]).decode())
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    notes = [escape(f"{key} {schema[key]}") for key in _NOTED if key in schema]
    return ", ".join([escape(str(schema.get("type", "anything"))), *notes])


_NOTED = ("format", "multipleOf", "minimum", "maximum", "maxLength", "pattern", "default")


def _type(name: str, schema: Json) -> str:
    head = f'<h3 id="{escape(name)}">{escape(name)}</h3>'
    if "description" in schema:
        head += f"<p>{escape(schema['description'])}</p>"
    if "properties" not in schema:
        return f"{head}<p>{_kind(schema)}</p>"
    needed = schema.get("required", [])
    rows = (
        (_code(field), _kind(kind), "required" if field in needed else "")
        for field, kind in schema["properties"].items()
    )
    return head + _table(("Field", "Type", ""), rows)


def _table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"
