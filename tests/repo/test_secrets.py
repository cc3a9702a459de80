"""Secrets are compared in a time that tells nothing."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "enginegate"
SECRET_NAMES = {"_admin", "_metrics", "admin_key", "metrics_key", "platform_key", "api_key"}
DIGESTS = {"digest", "digest_hex"}
STARTS_WITH_IT = "config/credentials.py"  # two secrets of the operator's own, at start


def comparisons(tree: ast.Module) -> Iterator[ast.Compare]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(
            isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops
        ):
            yield node


def is_secret(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return getattr(node.func, "id", getattr(node.func, "attr", "")) in DIGESTS
    return getattr(node, "id", getattr(node, "attr", "")) in SECRET_NAMES


def test_no_secret_is_compared_with_equals() -> None:
    """`==` ends at the first byte that differs, and so tells how many were right."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in comparisons(ast.parse(path.read_text(encoding="utf-8")))
        if any(is_secret(side) for side in (node.left, *node.comparators))
    ]
    assert [one for one in found if not one.startswith(STARTS_WITH_IT)] == []
