"""`idle simulate`: what another idle time would have done."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from enginegate.cli.options import DEFAULT_URL, ForProduct, Url

if TYPE_CHECKING:
    from enginegate.cli.client import Gate
    from enginegate.whatif import Comparison, Happening

app = typer.Typer(help="What the sleep of idle engines does, and would do.", no_args_is_help=True)

_PAGE: Final = 1000
_NOTES: Final = (
    "The trail has no warm admits: the last use before a sleep is what that sleep tells of it.",
    "Stretches that did not end in a sleep for idleness count as used to their end.",
)
_SHORTER: Final = (
    "Pauses between two uses that were shorter than the idle time of then left no trace:"
    " with a shorter one they may be sleeps too, and so there are up to `at most` wakes."
)


@app.callback()
def idle() -> None:
    """What the sleep of idle engines does, and would do."""


@app.command("simulate")
def simulate(
    *,
    sleep_after: Annotated[
        float, typer.Option("--sleep-after", min=0, help="The idle time in seconds; 0 never.")
    ],
    since: Annotated[
        str | None,
        typer.Option(help="From this time on (RFC 3339); without it the whole trail."),
    ] = None,
    product: ForProduct = None,
    url: Url = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Replay the audit trail with another idle time: sleeps, wakes, waits and hours saved.

    Changes nothing. With the admin key over all products, or one of them.
    """
    from enginegate.cli.client import for_either, for_product
    from enginegate.whatif import simulate as replay

    gate = for_product(url, product) if product else for_either(url)
    trail = sorted(_trail(gate, since), key=lambda one: one.at_s)
    until_s = max(time.time(), trail[-1].at_s if trail else 0.0)
    since_s = _seconds(since) if since else (trail[0].at_s if trail else until_s)
    found = replay(trail, sleep_after_s=sleep_after, since_s=since_s, until_s=until_s)
    figures = _figures(found, sleep_after, since_s, until_s)
    if as_json:
        from enginegate.cli.output import print_json

        print_json(figures)
    else:
        _show(figures)


def _trail(gate: "Gate", since: str | None) -> "Iterator[Happening]":
    """Yield what concerns engines, page by page, the newest first."""
    from enginegate.whatif import Happening

    cursor: str | None = None
    while True:
        params = {"since": since, "limit": _PAGE, "cursor": cursor}
        page = gate.call("GET", "/audit", params=params)
        for entry in page["entries"]:
            if entry["engine_id"] is not None:
                told = entry["metadata"]
                yield Happening(
                    at_s=_seconds(entry["timestamp"]),
                    engine_id=entry["engine_id"],
                    action=entry["action"],
                    ok=entry["outcome"] == "ok",
                    took_s=(entry["duration_ms"] or 0.0) / 1000,
                    reason=str(told.get("reason", "")),
                    tier=str(told.get("tier", "")),
                    unused_s=told.get("unused_s"),
                )
        cursor = page["next_cursor"]
        if cursor is None:
            return


def _seconds(timestamp: str) -> float:
    from datetime import datetime

    from enginegate.cli.failures import Failure

    try:
        at = datetime.fromisoformat(timestamp)
    except ValueError:
        raise Failure(f"{timestamp!r} is no time (RFC 3339)", Failure.USAGE) from None
    return at.astimezone().timestamp()


def _figures(
    found: "Comparison", sleep_after_s: float, since_s: float, until_s: float
) -> dict[str, Any]:
    from msgspec.structs import asdict

    happened, simulated = asdict(found.happened), asdict(found.simulated)
    del happened["wakes_at_most"]
    rounded = [
        {name: round(value, 3) for name, value in one.items()} for one in (happened, simulated)
    ]
    more = simulated["wakes_at_most"] > simulated["wakes"]
    return {
        "sleep_after_s": sleep_after_s,
        "since_s": round(since_s, 3),
        "until_s": round(until_s, 3),
        "engines": found.engines,
        "happened": rounded[0],
        "simulated": rounded[1],
        "saved_h": round(found.saved_h, 3),
        "unknown_h": round(found.unknown_h, 3),
        "notes": [*_NOTES, *([_SHORTER] if more else [])],
    }


def _show(figures: dict[str, Any]) -> None:
    from enginegate.cli.output import print_table

    then, now = figures["happened"], figures["simulated"]
    wakes = str(now["wakes"])
    if now["wakes_at_most"] > now["wakes"]:
        wakes += f" (at most {now['wakes_at_most']})"
    idle = f"with {figures['sleep_after_s']:g} s" if figures["sleep_after_s"] else "without sleep"
    print_table(
        ("", "happened", idle),
        (
            ("sleeps", then["sleeps"], now["sleeps"]),
            ("wakes", then["wakes"], wakes),
            ("seconds waited", f"{then['waited_s']:.3f}", f"{now['waited_s']:.3f}"),
            ("engine-hours awake", f"{then['awake_h']:.3f}", f"{now['awake_h']:.3f}"),
        ),
    )
    print(
        f"\n{figures['saved_h']:.3f} engine-hours saved over {figures['engines']} engines;"
        f" of {figures['unknown_h']:.3f} hours awake no last use is known."
    )
    for note in figures["notes"]:
        print(note)
