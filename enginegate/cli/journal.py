"""`journal`: look at a data directory, print it, rewrite it, drop a broken end of it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enginegate.cli.options import ConfigFile, DataDir, config_path

if TYPE_CHECKING:
    from enginegate.config import Config

app = typer.Typer(
    help="Look after the journal; all but verify want the server stopped.", no_args_is_help=True
)


@app.command("verify")
def verify(file: ConfigFile = None, data_dir: DataDir = None) -> None:
    """Read every file and say whether a start would accept them; changes nothing.

    Exits 0 if all is well, 1 for a torn tail (which a start cuts off), 2 for damage.
    """
    from enginegate.journal import verify as read

    directory = _config(file, data_dir).data_path
    found = read(directory)
    print(
        f"{directory}: {found.verdict};"
        f" {found.facts} facts in {found.frames} frames,"
        f" {found.segments} segments, {found.snapshots} snapshots"
    )
    if found.message:
        place = found.path if found.offset is None else f"{found.path} at offset {found.offset}"
        print(found.message if found.path in found.message else f"{found.message} ({place})")
    if found.in_use_by:
        print(f"in use by pid {found.in_use_by}: its last frame may be on its way")
    raise typer.Exit(found.exit_code)


@app.command("dump")
def dump(file: ConfigFile = None, data_dir: DataDir = None) -> None:
    """Print every fact, oldest first, as a JSON line; keys and their digests are masked."""
    from enginegate.cli.output import print_json_line
    from enginegate.journal import dump as facts

    for fact in facts(_present(_config(file, data_dir))):
        print_json_line(fact)


@app.command("compact")
def compact(file: ConfigFile = None, data_dir: DataDir = None) -> None:
    """Write a fresh snapshot and clear the archive as [audit] says; wants the master key."""
    from enginegate.journal import compact as rewrite
    from enginegate.server import fold

    config = _config(file, data_dir)
    directory = _present(config)
    warnings = rewrite(
        directory,
        _key_id(),
        fold,
        days=config.audit.retention_days,
        max_mb=config.audit.max_mb,
    )
    _done(directory, "compacted", warnings)


@app.command("repair")
def repair(
    drop_suspect_tail: Annotated[
        bool,
        typer.Option(
            "--drop-suspect-tail",
            help="Also drop a whole last frame whose checksum is wrong, which may be bit rot.",
        ),
    ] = False,
    file: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Move a broken end into the quarantine; wants the master key."""
    from enginegate.journal import repair as mend
    from enginegate.server import fold

    directory = _present(_config(file, data_dir))
    warnings = mend(directory, _key_id(), fold, drop_suspect_tail=drop_suspect_tail)
    _done(directory, "opens and is in order", warnings)


def _config(file: Path | None, data_dir: str | None) -> "Config":
    from enginegate.config import load

    return load(config_path(file), os.environ, {"data_dir": data_dir})


def _present(config: "Config") -> Path:
    """Return the data directory; a tool makes none."""
    from enginegate.cli.failures import Failure

    if not config.data_path.is_dir():
        raise Failure(f"{config.data_path} is no directory", Failure.CONFIG)
    return config.data_path


def _key_id() -> str:
    from enginegate.config import secrets
    from enginegate.keys import Keyring

    return Keyring(secrets(os.environ).master_keys).key_id


def _done(directory: Path, what: str, warnings: list[str]) -> None:
    for warning in warnings:
        typer.echo(warning, err=True)
    print(f"{directory}: {what}")
