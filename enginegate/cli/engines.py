"""`engines`: the engines of one product, and the verbs."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from enginegate.cli.options import DEFAULT_URL, AsJson, ForProduct, Url, Yes, confirm

if TYPE_CHECKING:
    from enginegate.cli.client import Gate

app = typer.Typer(
    help="Look at engines and act on them; as a product, or as admin with --product.",
    no_args_is_help=True,
)

User = Annotated[str, typer.Argument(metavar="USER_ID")]


@app.command("list")
def list_(
    *,
    status: Annotated[str | None, typer.Option(help="Only engines in this state.")] = None,
    limit: Annotated[int | None, typer.Option(help="So many at most; 100 if not given.")] = None,
    offset: Annotated[int | None, typer.Option(help="Leave out so many.")] = None,
    product: ForProduct = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List engines, the oldest first."""
    from enginegate.cli.output import print_json, print_table

    params = {"status": status, "limit": limit, "offset": offset}
    found = _gate(url, product).call("GET", "/engines", params=params)
    if as_json:
        print_json(found)
        return
    columns = ("user_id", "status", "url", "engine_version", "created_at", "engine_id")
    print_table(columns, ([one[name] for name in columns] for one in found["engines"]))
    if len(found["engines"]) < found["total"]:
        typer.echo(f"{len(found['engines'])} of {found['total']}", err=True)


@app.command("show")
def show(
    user_id: User, product: ForProduct = None, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Show one engine; its key only with --json."""
    _print(_gate(url, product).call("GET", _path(user_id)), as_json=as_json)


@app.command("admit")
def admit(
    user_id: User,
    *,
    auto_provision: Annotated[
        bool, typer.Option("--auto-provision", help="Create the engine if there is none.")
    ] = False,
    auto_wake: Annotated[
        bool, typer.Option("--auto-wake", help="Wake the engine if it sleeps.")
    ] = False,
    touch: Annotated[bool, typer.Option(help="Whether this counts as use.")] = True,
    wait_s: Annotated[
        float | None, typer.Option("--wait-s", help="Wait at most so long for a boot or wake.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Probe the engine first.")] = False,
    product: ForProduct = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Ask whether this user's request may go on, and where to; the key only with --json."""
    body = {"auto_provision": auto_provision, "auto_wake": auto_wake}
    body |= {"touch": touch, "verify": verify}
    wish = {} if wait_s is None else {"wait_s": wait_s}
    answer = _gate(url, product).call("POST", _path(user_id, "/admit"), {**body, **wish})
    if as_json or not answer["admitted"]:
        _print(answer, as_json=as_json)
        return
    engine = answer.pop("engine")
    _print({**answer, **engine}, as_json=False)


@app.command("start")
def start(
    user_id: User,
    engine_version: Annotated[
        str | None,
        typer.Option("--engine-version", help="Move a stopped or failed engine to this image."),
    ] = None,
    product: ForProduct = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Bring a stopped, sleeping or failed engine into service."""
    body = {} if engine_version is None else {"engine_version": engine_version}
    _print(_gate(url, product).call("POST", _path(user_id, "/start"), body), as_json=as_json)


@app.command("stop")
def stop(
    user_id: User, product: ForProduct = None, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Stop an engine; its data and key are kept."""
    _print(_gate(url, product).call("POST", _path(user_id, "/stop")), as_json=as_json)


@app.command("sleep")
def sleep(
    user_id: User,
    force: Annotated[bool, typer.Option("--force", help="Even if it is busy.")] = False,
    product: ForProduct = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Freeze a running engine."""
    body = {"force": True} if force else {}
    _print(_gate(url, product).call("POST", _path(user_id, "/sleep"), body), as_json=as_json)


@app.command("rotate-key")
def rotate_key(
    user_id: User, product: ForProduct = None, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Give an engine a new key and show it."""
    from enginegate.cli.output import print_fields, print_json

    answer = _gate(url, product).call("POST", _path(user_id, "/rotate-key"))
    if as_json:
        print_json(answer)
    else:
        print_fields(answer.items())


@app.command("destroy")
def destroy(
    user_id: User,
    yes: Yes = False,
    product: ForProduct = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Remove an engine with its data, its port and its key."""
    gate = _gate(url, product)
    confirm(f"Destroy the engine of {user_id} and its data?", yes=yes)
    _print(gate.call("DELETE", _path(user_id)), as_json=as_json)


def _gate(url: str, product: str | None) -> "Gate":
    from enginegate.cli.client import for_product

    return for_product(url, product)


def _path(user_id: str, verb: str = "") -> str:
    from enginegate.cli.client import segment

    return f"/engines/{segment(user_id)}{verb}"


def _print(answer: dict[str, Any], *, as_json: bool) -> None:
    """Print an answer; for people without the key, which no screen should keep."""
    from enginegate.cli.output import print_fields, print_json

    if as_json:
        print_json(answer)
    else:
        print_fields((name, value) for name, value in answer.items() if name != "api_key")
