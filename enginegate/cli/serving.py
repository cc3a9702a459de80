"""`serve`, and `config check`: what runs beside the server and before it."""

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from enginegate import __version__
from enginegate.cli.failures import Failure
from enginegate.cli.options import ConfigFile, DataDir, config_path
from enginegate.cli.streams import Unwritable
from enginegate.errors import ConfigError

if TYPE_CHECKING:
    from enginegate.config import Config, Secrets

config = typer.Typer(help="Look at the configuration.", no_args_is_help=True)

log = logging.getLogger(__name__)

_LOG_LEVELS: Final = "debug, info, warning or error"


def serve(
    *,
    file: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes a free one.")] = None,
    data_dir: DataDir = None,
    backend: Annotated[str | None, typer.Option(help="process or docker.")] = None,
    log_level: Annotated[str, typer.Option(help=f"What to log: {_LOG_LEVELS}.")] = "info",
) -> None:
    """Serve until SIGTERM. Says on stdout when it accepts requests; logs to stderr."""
    from enginegate.cli import logs

    if log_level not in logs.LEVELS:
        raise typer.BadParameter(f"must be {_LOG_LEVELS}", param_hint="--log-level")
    settings, secrets = _checked(
        config_path(file),
        {
            "server.host": host,
            "server.port": port,
            "data_dir": data_dir,
            "engine.backend": backend,
        },
    )
    logs.configure(log_level)
    _warn_of_unread_variables()
    raise typer.Exit(_run(settings, secrets))


def _warn_of_unread_variables() -> None:
    from enginegate.config import unread

    for warning in unread(os.environ):
        log.warning(warning)


def _run(settings: "Config", secrets: "Secrets") -> int:
    _demand_key(settings, secrets)
    from enginegate import server

    def ready(url: str) -> None:
        where = f"{settings.engine.backend} backend, data in {settings.data_path}"
        with contextlib.suppress(Unwritable):  # who started us may not care, or has no room for it
            print(f"enginegate {__version__} accepts requests on {url} ({where})", flush=True)

    try:
        return server.serve(settings, secrets, ready)
    except OSError as error:
        raise Failure(error.strerror or str(error)) from error


def _demand_key(settings: "Config", secrets: "Secrets") -> None:
    """See that the key is right before the server is loaded, which takes most of a start."""
    from enginegate.journal import demand_key
    from enginegate.keys import Keyring

    demand_key(settings.data_path, Keyring(secrets.master_keys).key_ids)


def _checked(path: Path | None, flags: dict[str, str | int | None]) -> "tuple[Config, Secrets]":
    """Return settings and secrets; the faults of both are listed together."""
    from enginegate.config import absent, load, secrets

    faults: list[str] = []
    settings = keys = None
    try:
        settings = load(path, os.environ, flags)
        faults += absent(settings)
    except ConfigError as error:
        faults += error.faults
    try:
        keys = secrets(os.environ)
    except ConfigError as error:
        faults += error.faults
    if settings is None or keys is None or faults:
        raise ConfigError(faults)
    return settings, keys


@config.command("check")
def check(file: ConfigFile = None) -> None:
    """List every fault of the configuration, its environment included; exit 78 if there is one."""
    from enginegate.config import absent, load, unread

    path = config_path(file)
    if faults := absent(load(path, os.environ)):
        raise ConfigError(faults)
    for warning in unread(os.environ):
        typer.echo(warning, err=True)
    print(f"{path or 'the defaults'}: no faults")


@config.callback()
def _group() -> None:
    """Look at the configuration."""  # keeps `check` a command of its own
