"""All commands in one tree, and the only place where errors become exit codes."""

from typing import Annotated

import typer

from enginegate import __version__
from enginegate.cli import demo, engines, idle, journal, products, rekey, serving, setup, watching
from enginegate.cli.failures import Failure, report
from enginegate.errors import ConfigError, JournalError

app = typer.Typer(
    name="enginegate",
    help="The gate in front of a fleet of private per-user engines: one process, no datastore.",
    epilog="The client commands take the server's address from --url or ENGINEGATE_URL, and a key"
    " from ENGINEGATE_PLATFORM_KEY or ENGINEGATE_ADMIN_KEY (or from the file that the same"
    " name with _FILE gives).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("init")(setup.init)
app.command("serve")(serving.serve)
app.add_typer(serving.config, name="config")
app.add_typer(products.app, name="products")
app.add_typer(engines.app, name="engines")
app.command("status")(watching.status)
app.command("audit")(watching.audit)
app.add_typer(journal.app, name="journal")
app.command("rekey")(rekey.rekey)
app.add_typer(idle.app, name="idle")


@app.command("openapi")
def openapi() -> None:
    """Print the OpenAPI document of the HTTP API; needs no server."""
    from enginegate.api.openapi import document
    from enginegate.cli.output import print_json

    print_json(document())


def _version(wanted: bool) -> None:
    if wanted:
        print(f"enginegate {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """The gate in front of a fleet of private per-user engines: one process, no datastore."""


def run() -> int:
    """Run the command line; return the exit code where nothing has exited before."""
    try:
        app()
    except Failure as failure:
        return report([str(failure)], failure.exit_code)
    except ConfigError as error:
        return report(error.faults, Failure.CONFIG)
    except JournalError as error:
        return report([str(error)], error.exit_code)
    return 0
