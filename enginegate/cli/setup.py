"""`init`: keys in files of mode 0600, and a configuration to start from."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from enginegate.cli.failures import Failure

_SECRETS: Final = "secrets"
_TEMPLATES: Final = (
    Path(__file__).with_name("config.toml"),  # in an installed package
    Path(__file__).parents[2] / "config.toml",  # in a checkout
)
_BARE: Final = b"# The configuration of enginegate; a key left out has its default.\n"


def init(
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where to write; made if missing.")
    ] = Path(),
) -> None:
    """Make the admin key, the master key and a config.toml; nothing is ever overwritten.

    Stdout has the two lines that tell `serve` where the keys are: eval "$(enginegate init)".
    """
    from enginegate.keys import new_admin_key, new_master_key

    try:
        directory.mkdir(parents=True, exist_ok=True)
        secrets = directory.absolute() / _SECRETS
        secrets.mkdir(mode=0o700, exist_ok=True)
        make(secrets / ".gitignore", b"*\n", mode=0o600)
        files = {
            "ENGINEGATE_ADMIN_KEY_FILE": (secrets / "admin.key", new_admin_key()),
            "ENGINEGATE_MASTER_KEY_FILE": (secrets / "master.key", new_master_key()),
        }
        for file, key in files.values():
            _say(file, made=make(file, f"{key}\n".encode(), mode=0o600))
        config = directory.absolute() / "config.toml"
        _say(config, made=make(config, _template(), mode=0o644))
    except OSError as error:
        raise Failure(f"cannot write {error.filename}: {error.strerror}") from error
    for name, (file, _) in files.items():
        print(f"export {name}={shlex.quote(str(file))}")


def make(file: Path, content: bytes, *, mode: int) -> bool:
    """Write a new file, durably; return False where there is one."""
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        return False
    with os.fdopen(fd, "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(fd)
    return True


def _template() -> bytes:
    """Return the commented file with all keys, where it can be found."""
    for file in _TEMPLATES:
        if file.is_file():
            return file.read_bytes()
    return _BARE


def _say(file: Path, *, made: bool) -> None:
    print(f"{'wrote' if made else 'kept '} {file}", file=sys.stderr)
