"""`rekey`: everything sealed with a new master key, and the key's file along with it.

The new key is on the disk, beside the old one, before anything is sealed with it; the
old one leaves the file only after nothing that is kept needs it any more. So a crash at
any step leaves a file whose keys open everything, and the same command goes on.
"""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from enginegate.cli.failures import Failure
from enginegate.cli.options import ConfigFile, DataDir, present, read_config

VARIABLE: Final = "ENGINEGATE_MASTER_KEY"
HOW: Final = (
    f"{VARIABLE} holds one key: put the new one before it, separated by a comma, or keep the key"
    f" in a file that {VARIABLE}_FILE names, and `rekey` makes the new one."
)

TWICE: Final = (
    "the same master key is given twice, so nothing would change: give the new one first, then"
    " the one in use; `enginegate init` into an empty directory makes one."
)


def rekey(
    *,
    purge: Annotated[
        bool,
        typer.Option(
            "--purge-old-generations",
            help="Give up older generations whose master key is gone; makes no new key.",
        ),
    ] = False,
    file: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Seal all engine keys with a new master key; stop the server first.

    Where the key is in the file that ENGINEGATE_MASTER_KEY_FILE names, a new one is made and
    put there, and the old one is kept beside it. Of several keys the first is the new one.
    """
    directory = present(read_config(file, data_dir))
    ring = _Ring(os.environ)
    ring.check(directory, purge=purge)
    if len(ring.keys) == 1 and not purge:
        ring.grow()
    _seal(directory, ring.keys, purge=purge)
    for line in ring.shrink():
        typer.echo(line, err=True)
    print(f"{directory}: sealed with master key {ring.name}")


class _Ring:
    """The master keys, newest first, and the file they are in, if they are in one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        from enginegate.config import master_keys

        self.keys = list(master_keys(environ))
        named = environ.get(f"{VARIABLE}_FILE")
        self.file = Path(named) if named else None

    @property
    def name(self) -> str:
        return _name(self.keys[0])

    def check(self, directory: Path, *, purge: bool) -> None:
        """Refuse, before anything is touched, what cannot be done.

        Raises JournalError: there is no journal, it is in use or damaged, or the keys are wrong.
        """
        from enginegate.journal import Journal, demand_journal

        demand_journal(directory)
        if self.file is None and len(self.keys) == 1 and not purge:
            raise Failure(HOW, Failure.USAGE)
        names = [_name(key) for key in self.keys]
        if len(set(names)) < len(names):
            raise Failure(TWICE, Failure.USAGE)
        Journal.open(
            directory, key_id=names[0], older_key_ids=names[1:], forsake_generations=purge
        ).close()

    def grow(self) -> None:
        """Make a new key and put it before the old one in their file."""
        from enginegate.keys import new_master_key

        assert self.file is not None
        self.keys.insert(0, new_master_key())
        self._write(self.file, self.keys)

    def shrink(self) -> list[str]:
        """Leave the new key alone in its file, each old one in a file of its own; say so."""
        if len(self.keys) == 1:
            return []
        if self.file is None:
            return [
                f"{VARIABLE} needs only the first key now; backups from before need the old one"
            ]
        said = []
        for old in self.keys[1:]:
            kept = self.file.with_name(f"{self.file.name}.old-{_name(old)}")
            self._write(kept, [old])
            said.append(f"the old key is in {kept}: only backups from before need it")
        self._write(self.file, self.keys[:1])
        return said

    @staticmethod
    def _write(file: Path, keys: list[str]) -> None:
        """Replace the file, durably, at once or not at all; mode 0600."""
        from enginegate.cli.setup import make

        new = file.with_name(f".{file.name}.new")
        try:
            new.unlink(missing_ok=True)
            make(new, "".join(f"{key}\n" for key in keys).encode(), mode=0o600)
            new.replace(file)
            folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise Failure(
                f"cannot write {new}: {error.strerror}; the key's file is replaced by a new one"
                f" beside it, so its directory has to be writable; {file} is as it was"
            ) from error


def _seal(directory: Path, keys: list[str], *, purge: bool) -> None:
    from enginegate.journal import rekey as rewrite
    from enginegate.keys import Keyring
    from enginegate.server import fold

    keyring = Keyring(keys)
    rewrite(
        directory,
        keyring.key_id,
        partial(fold, sealer=keyring.resealer),
        older_key_ids=keyring.key_ids[1:],
        forsake_generations=purge,
    )


def _name(key: str) -> str:
    from enginegate.keys import Keyring

    return Keyring([key]).key_id
