"""`journal`: look at a data directory, print it, rewrite it, drop a broken end of it."""

import logging
import os
import resource
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from enginegate.cli.failures import Failure
from enginegate.cli.options import ConfigFile, DataDir, present, read_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from enginegate.journal import VerifyReport
    from enginegate.keys import Keyring
    from enginegate.model import SnapshotRecord

app = typer.Typer(no_args_is_help=True)

_SPARED: Final = (
    "A start does not need what is damaged: old segments hold entries of the audit trail, old"
    " snapshots are there to fall back on."
)


@app.callback()
def journal() -> None:
    """Look after the journal; stop the server first, except for verify and backup."""
    # What the journal warns of is printed by the command: once, not by the log as well.
    logging.getLogger("enginegate.journal").addHandler(logging.NullHandler())


@app.command("verify")
def verify(file: ConfigFile = None, data_dir: DataDir = None) -> None:
    """Read every file and say whether a start would accept them; changes nothing.

    Exits 0 if all is well, 1 for a torn tail (which a start cuts off), 2 for damage, and 74
    where it cannot print what it has found.
    """
    from enginegate.cli.streams import written
    from enginegate.journal import demand_journal
    from enginegate.journal import verify as read

    directory = present(read_config(file, data_dir))
    found = read(directory)
    if not found.files and found.starts:
        demand_journal(directory)
    # Elsewhere lost output is exit code 1. Here that would say that the tail is torn, of a
    # journal that may be clean, or damaged: a full disk is no finding about what was read.
    with written(exit_code=Failure.UNTOLD):
        print(
            f"{directory}: {found.verdict};"
            f" {found.facts} facts in {found.frames} frames,"
            f" {found.segments} segments, {found.snapshots} snapshots"
        )
        _list_faults(found)
        if found.in_use_by:
            print(f"in use by pid {found.in_use_by}, which may be writing its last frame right now")
    raise typer.Exit(found.exit_code)


@app.command("dump")
def dump(file: ConfigFile = None, data_dir: DataDir = None) -> None:
    """Print every fact, oldest first, as a JSON line; keys and their digests are masked."""
    from enginegate.cli.output import print_json_line
    from enginegate.journal import dump as facts

    for fact in facts(present(read_config(file, data_dir))):
        print_json_line(fact)


@app.command("compact")
def compact(file: ConfigFile = None, data_dir: DataDir = None) -> None:
    """Write a fresh snapshot and clear the archive as [audit] says; needs the master key."""
    from enginegate.journal import compact as rewrite

    config = read_config(file, data_dir)
    directory = present(config)
    keyring, fold = _ring()
    warnings = rewrite(
        directory,
        keyring.key_id,
        fold,
        older_key_ids=keyring.key_ids[1:],
        days=config.audit.retention_days,
        max_mb=config.audit.max_mb,
    )
    _done(directory, "compacted", warnings)


@app.command("backup")
def backup(
    target: Annotated[Path, typer.Argument(help="A new or empty directory for the copy.")],
    file: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Copy the journal, also while the server runs, and verify the copy.

    Neither the master key nor the engines' data are in it: back them up separately. Exits 2
    where old files are damaged; they are copied as they are.
    """
    from enginegate.journal import backup as copy

    _allow_files()
    found = copy(present(read_config(file, data_dir)), target.absolute())
    print(
        f"{target}: {found.verdict}; {found.facts} facts,"
        f" {found.segments} segments, {found.snapshots} snapshots"
    )
    _list_faults(found)
    raise typer.Exit(found.exit_code)


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
    """Move a broken end into the quarantine; needs the master key.

    Nothing else is mended: exits 2, with a line for each file, where other damage remains.
    """
    from enginegate.journal import repair as mend
    from enginegate.journal import verify as read

    directory = present(read_config(file, data_dir))
    keyring, fold = _ring()
    warnings = mend(
        directory,
        keyring.key_id,
        fold,
        older_key_ids=keyring.key_ids[1:],
        drop_suspect_tail=drop_suspect_tail,
    )
    remains = read(directory)
    if remains.verdict != "damage":
        _done(directory, "opens and is in order", warnings)
        return
    _done(directory, "opens, but holds damage that cannot be mended", warnings)
    _list_faults(remains)
    raise typer.Exit(remains.exit_code)


def _allow_files() -> None:
    """Let this process open as many files as it may: a backup has all of the journal's open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):  # the limit may have been lowered for all since
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _ring() -> "tuple[Keyring, Callable[..., list[SnapshotRecord]]]":
    """Return the master keys, and what folds a journal into records sealed with the first."""
    from enginegate.config import master_keys
    from enginegate.keys import Keyring
    from enginegate.server import fold

    keyring = Keyring(master_keys(os.environ))
    return keyring, partial(fold, sealer=keyring.resealer)


def _list_faults(found: "VerifyReport") -> None:
    """Print what is wrong, each on a line, and what it means for a start."""
    for fault in found.faults:
        print(fault)
    if found.refusal:
        print(f"A start refuses this. {found.hint}".rstrip())
    elif found.verdict == "damage":
        print(f"{_SPARED} {found.advice}")


def _done(directory: Path, what: str, warnings: list[str]) -> None:
    for warning in warnings:
        typer.echo(warning, err=True)
    print(f"{directory}: {what}")
