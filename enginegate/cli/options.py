"""Options that several commands share."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from enginegate.config import Config

DEFAULT_URL: Final = "http://127.0.0.1:8000"
CONFIG_FILE: Final = Path("config.toml")

Url = Annotated[
    str,
    typer.Option("--url", envvar="ENGINEGATE_URL", metavar="URL", help="Where the server is."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the server's answer as it is, keys included.")
]
ForProduct = Annotated[
    str | None,
    typer.Option("--product", metavar="SLUG", help="With the admin key: act for this product."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask back on a terminal.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration; without it ./config.toml, and without that the defaults.",
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option("--data-dir", metavar="DIR", help="The data directory, instead of data_dir."),
]


def config_path(given: Path | None) -> Path | None:
    """Return the file to read: the one given, else `config.toml` where there is one."""
    return given or (CONFIG_FILE if CONFIG_FILE.is_file() else None)


def read_config(file: Path | None, data_dir: str | None) -> "Config":
    """Return the configuration as `serve` would have it."""
    from enginegate.config import load

    return load(config_path(file), os.environ, {"data_dir": data_dir})


def present(config: "Config") -> Path:
    """Return the data directory; a tool makes none."""
    from enginegate.cli.failures import Failure

    if not config.data_path.is_dir():
        raise Failure(f"{config.data_path} is no directory", Failure.CONFIG)
    return config.data_path


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone; only a terminal is asked."""
    import sys

    if not yes and sys.stdin.isatty() and not typer.confirm(question, err=True):
        raise typer.Exit(1)
