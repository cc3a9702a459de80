"""Section 7 of the contract: which commands there are, and what the client commands take.

What they do is shown by `test_cli.py` (all but the demo), `test_demo.py`, and for the journal's
commands `tests/journal/test_journal_tools.py`. `rekey`, `journal backup` and `idle simulate` are
shown where they are made.
"""

from typing import Any

import typer

from enginegate.cli.app import app

CLIENT = {
    *("products register", "products list", "products policy", "products rotate-key"),
    *("products delete", "engines list", "engines show", "engines admit", "engines start"),
    *("engines stop", "engines sleep", "engines rotate-key", "engines destroy"),
    *("status", "audit"),
}
LOCAL = {
    *("demo", "init", "serve", "config check", "openapi", "journal verify", "journal dump"),
    *("journal compact", "journal repair"),
}


def commands() -> dict[str, set[str]]:
    """Return the options of every command, by the words that one types."""
    found: dict[str, set[str]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                walk(inner, (*words, name))
        else:
            found[" ".join(words)] = {name for one in command.params for name in one.opts}

    walk(typer.main.get_command(app), ())
    return found


def test_every_command_is_there() -> None:
    """Scripts that call them go on working."""
    assert commands().keys() >= CLIENT | LOCAL


def test_client_commands_take_an_address_and_print_json() -> None:
    """`--url` and `--json`, each of them."""
    found = commands()
    assert [name for name in CLIENT if not {"--url", "--json"} <= found[name]] == []


def test_other_commands_take_what_is_promised() -> None:
    """`demo --keep`, `serve --config`, `audit --follow`."""
    found = commands()
    assert "--keep" in found["demo"]
    assert "--config" in found["serve"]
    assert "--follow" in found["audit"]
