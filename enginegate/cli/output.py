"""What commands print: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any, Final

from enginegate.cli.plain import one_line

_PIPE_WIDTH: Final = 1_000  # no line of a table is broken where no terminal shows it


def print_json(value: Any) -> None:
    """Print JSON in ASCII: no control character reaches a terminal."""
    print(json.dumps(value, indent=2))


def print_json_line(value: Any) -> None:
    print(json.dumps(value), flush=True)


def print_table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their names, one a line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(value)) for value in row))
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    plain = Console(width=_PIPE_WIDTH, color_system=None, file=StringIO())
    with plain.capture() as lines:
        plain.print(table)
    print("\n".join(line.rstrip() for line in lines.get().splitlines()))


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair a line."""
    pairs = [(name, shown(value)) for name, value in fields]
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name:<{width}}  {value}")


def shown(value: object) -> str:
    """Return a value of an answer as people read it."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(one)}" for name, one in value.items()) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return one_line(str(value))
