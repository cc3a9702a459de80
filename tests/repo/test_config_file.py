"""The `config.toml` at the root is the reference: complete, true, and explained."""

import tomllib
from itertools import pairwise
from pathlib import Path

from msgspec import to_builtins

from enginegate.config import Config, load

FILE = Path(__file__).parents[2] / "config.toml"


def keys_of(table: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Return every key with its value; a table that is itself a value stays one."""
    keys: dict[str, object] = {}
    for name, value in table.items():
        key = prefix + name
        if isinstance(value, dict) and key != "engine.env":
            keys |= keys_of(value, f"{key}.")
        else:
            keys[key] = list(value) if isinstance(value, tuple) else value
    return keys


def test_the_file_shows_every_key_with_its_default() -> None:
    """A key or a default that changes in the code must change in the file."""
    written = tomllib.loads(FILE.read_text(encoding="utf-8"))
    assert keys_of(written) == keys_of(to_builtins(Config()))


def test_the_file_as_it_is_changes_nothing() -> None:
    """Whoever starts from it starts from the defaults."""
    assert load(FILE, {}) == Config()


def test_every_key_is_explained() -> None:
    """By a comment of its own, one sentence a line."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    for above, line in pairwise(lines):
        if " = " in line and not line.startswith("#"):
            assert above.startswith("# "), f"no comment above: {line}"
    for line in lines:
        if line.startswith("#"):
            assert line.endswith("."), f"not a sentence: {line}"
