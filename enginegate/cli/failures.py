"""How a command ends when it cannot do what it was asked: a line, and an exit code."""

import sys
from collections.abc import Iterable
from typing import ClassVar

from enginegate.cli.plain import one_line


class Failure(Exception):  # noqa: N818 - what a command ends with, whoever is to blame
    """Ends the command with this line on stderr, without a traceback."""

    REFUSED: ClassVar = 1  # the server said no
    USAGE: ClassVar = 2
    UNAVAILABLE: ClassVar = 69  # EX_UNAVAILABLE: no server there
    UNTOLD: ClassVar = 74  # EX_IOERR: lost output, where 1 is a finding
    CONFIG: ClassVar = 78  # EX_CONFIG

    def __init__(self, message: str, exit_code: int = REFUSED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def report(messages: Iterable[str], exit_code: int) -> int:
    """Say each on a line of stderr; return the exit code."""
    for message in messages:
        print(one_line(message), file=sys.stderr)
    return exit_code
