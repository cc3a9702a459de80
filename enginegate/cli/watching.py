"""`status` and `audit`: how the fleet is, and what happened to it."""

import json
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from enginegate.cli.options import DEFAULT_URL, AsJson, Url

if TYPE_CHECKING:
    from enginegate.cli.client import Gate

_RECENT: Final = 10  # entries shown before those to come
_REDIAL_S: Final = 1.0
_DETAIL_MAX: Final = 120


def status(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show the fleet: of one product with its key, of all with the admin key."""
    from enginegate.cli.client import for_either
    from enginegate.cli.output import print_fields, print_json, print_table

    answer = for_either(url).call("GET", "/status")
    if as_json:
        print_json(answer)
        return
    products = answer.pop("products", [])
    print_fields(answer.items())
    if products:
        states = list(products[0]["by_status"])
        print()
        print_table(
            ("product", "total", *states, "health"),
            (
                (one["slug"], one["total"], *map(one["by_status"].get, states), one["health"])
                for one in products
            ),
        )


def audit(
    *,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with entries as they come.")
    ] = False,
    user_id: Annotated[str | None, typer.Option("--user-id")] = None,
    engine_id: Annotated[str | None, typer.Option("--engine-id")] = None,
    action: Annotated[str | None, typer.Option(help="Such as wake, or health_failed.")] = None,
    actor: Annotated[str | None, typer.Option(help="system, admin, or a product's slug.")] = None,
    product: Annotated[
        str | None, typer.Option(metavar="SLUG", help="With the admin key: of this product.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="From this time on (RFC 3339).")] = None,
    until: Annotated[str | None, typer.Option(help="Up to this time (RFC 3339).")] = None,
    limit: Annotated[int | None, typer.Option(help="So many at most; 100 if not given.")] = None,
    cursor: Annotated[str | None, typer.Option(help="next_cursor of the page before.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show the audit trail, the newest first; with --follow the newest last, one a line."""
    from enginegate.cli.client import for_either, for_product
    from enginegate.cli.output import print_json, print_table

    gate = for_product(url, product) if product else for_either(url)
    filters = {"user_id": user_id, "engine_id": engine_id, "action": action, "actor": actor}
    if follow:
        _follow(gate, filters, since=since, recent=limit or _RECENT, as_json=as_json)
        return
    params = {**filters, "since": since, "until": until, "limit": limit, "cursor": cursor}
    found = gate.call("GET", "/audit", params=params)
    if as_json:
        print_json(found)
        return
    columns = ("time", "action", "outcome", "actor", "user", "took", "detail")
    print_table(columns, (_row(entry) for entry in found["entries"]))
    if found["next_cursor"] is not None:
        typer.echo(f"There are more: --cursor {found['next_cursor']}", err=True)


def _follow(
    gate: "Gate", filters: dict[str, str | None], *, since: str | None, recent: int, as_json: bool
) -> None:
    """Print recent entries, then each that comes; a server that restarts is dialled again."""
    from enginegate.cli.client import Refused, Unreachable

    newest = gate.call("GET", "/audit", params={"limit": 1})["entries"]
    last = newest[0]["id"] if newest else 0
    params = {**filters, "since": since, "limit": recent}
    for entry in reversed(gate.call("GET", "/audit", params=params)["entries"]):
        _tell(entry, as_json=as_json)
        last = max(last, entry["id"])
    while True:
        try:
            for event in gate.events(last):
                entry = json.loads(event.data)
                last = entry["id"]
                if all(value in (None, entry[name]) for name, value in filters.items()):
                    _tell(entry, as_json=as_json)
        except (Unreachable, Refused) as error:
            if isinstance(error, Refused) and not error.passing:
                raise
            typer.echo(f"{error}; trying again", err=True)
        time.sleep(_REDIAL_S)


def _tell(entry: dict[str, Any], *, as_json: bool) -> None:
    """Print one entry as a line."""
    from enginegate.cli.output import print_json_line

    if as_json:
        print_json_line(entry)
        return
    at, action, outcome, actor, user, took, detail = _row(entry)
    line = f"{at}  {action:<20}  {outcome:<6}  {actor:<12}  {user:<16}  {took:>10}  {detail}"
    print(line.rstrip(), flush=True)


def _row(entry: dict[str, Any]) -> tuple[str, str, str, str, str, str, str]:
    from enginegate.cli.output import shown
    from enginegate.cli.plain import shortened

    took = entry["duration_ms"]
    return (
        shown(entry["timestamp"]),
        shown(entry["action"]),
        shown(entry["outcome"]),
        shown(entry["actor"]),
        shown(entry["user_id"]),
        "-" if took is None else f"{took:.1f} ms",
        shortened(shown(entry["metadata"]), _DETAIL_MAX) if entry["metadata"] else "",
    )
