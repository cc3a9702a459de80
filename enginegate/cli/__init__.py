"""The command line. Commands import what they need when they run, so that `--help` stays fast."""

import sys


def main() -> None:
    """Run the command that was asked for and exit with its code."""
    from enginegate.cli.streams import standard

    with standard():  # before anything is imported that might open a file
        from enginegate.cli.app import run

        sys.exit(run())
