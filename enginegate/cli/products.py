"""`products`: what an operator does with tenants."""

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enginegate.cli.options import DEFAULT_URL, AsJson, Url, Yes, confirm

if TYPE_CHECKING:
    from enginegate.cli.client import Gate

app = typer.Typer(help="Register and manage products; wants the admin key.", no_args_is_help=True)

Product = Annotated[str, typer.Argument(metavar="PRODUCT", help="A slug or a product_id.")]
MaxEngines = Annotated[int | None, typer.Option(help="Engines at most, of all its users.")]
Rpm = Annotated[int | None, typer.Option("--rate-limit-rpm", help="Admits in 60 s at most.")]
UserRpm = Annotated[
    int | None, typer.Option("--user-rate-limit-rpm", help="The same, for each user.")
]
IdleSleep = Annotated[
    float | None, typer.Option("--idle-sleep-s", help="Sleep after so long idle; 0 never.")
]


@app.command("register")
def register(
    slug: str,
    *,
    name: Annotated[str | None, typer.Option(help="The display name; without it the slug.")] = None,
    max_engines: MaxEngines = None,
    rate_limit_rpm: Rpm = None,
    user_rate_limit_rpm: UserRpm = None,
    idle_sleep_s: IdleSleep = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Create a product and show its platform key, this once."""
    policy = _policy(max_engines, rate_limit_rpm, user_rate_limit_rpm, idle_sleep_s)
    body = {"slug": slug, "display_name": name or slug, "policy": policy}
    _show_key(_gate(url).call("POST", "/products/register", body), slug, as_json=as_json)


@app.command("list")
def list_(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the products with their policies and how many engines they have."""
    from enginegate.cli.output import print_json, print_table

    found = _gate(url).call("GET", "/products")
    if as_json:
        print_json(found)
        return
    columns = ("slug", "display_name", "engines", "policy", "created_at", "product_id")
    print_table(columns, ([one[name] for name in columns] for one in found["products"]))


@app.command("policy")
def policy(
    product: Product,
    *,
    max_engines: MaxEngines = None,
    rate_limit_rpm: Rpm = None,
    user_rate_limit_rpm: UserRpm = None,
    idle_sleep_s: IdleSleep = None,
    no_limits: Annotated[bool, typer.Option("--no-limits", help="Set an empty policy.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show a product's policy; with options, replace it as a whole by what they say."""
    from enginegate.cli.output import print_fields, print_json

    wanted = _policy(max_engines, rate_limit_rpm, user_rate_limit_rpm, idle_sleep_s)
    if wanted and no_limits:
        raise typer.BadParameter("cannot go together with a limit", param_hint="--no-limits")
    gate = _gate(url)
    path = _path(gate, product)
    if wanted or no_limits:
        answer = gate.call("PUT", f"{path}/policy", {"policy": wanted})
    else:
        answer = {"policy": gate.call("GET", path)["policy"]}
    if as_json:
        print_json(answer)
    else:
        print_fields([("policy", answer["policy"] or "no limits")])


@app.command("rotate-key")
def rotate_key(
    product: Product,
    overlap_s: Annotated[
        float | None, typer.Option("--overlap-s", help="For so long the old key works too.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Give a product a new platform key and show it, this once."""
    gate = _gate(url)
    path = f"{_path(gate, product)}/rotate-platform-key"
    body = {} if overlap_s is None else {"overlap_s": overlap_s}
    _show_key(gate.call("POST", path, body), product, as_json=as_json)


@app.command("delete")
def delete(
    product: Product, yes: Yes = False, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Destroy a product's engines with their data, then the product."""
    from enginegate.cli.output import print_fields, print_json

    gate = _gate(url)
    path = _path(gate, product)
    confirm(f"Destroy product {product}, all its engines and their data?", yes=yes)
    answer = gate.call("DELETE", path)
    if as_json:
        print_json(answer)
    else:
        print_fields(answer.items())


def _gate(url: str) -> "Gate":
    from enginegate.cli.client import for_admin

    return for_admin(url)


def _path(gate: "Gate", product: str) -> str:
    """Return the path of a product named by its slug or id; the server judges unknown ones."""
    from enginegate.cli.client import segment

    found = gate.call("GET", "/products")["products"]
    ids = {one["slug"]: one["product_id"] for one in found}
    return f"/products/{segment(ids.get(product, product))}"


def _policy(*limits: float | None) -> dict[str, Any]:
    names = ("max_engines", "rate_limit_rpm", "user_rate_limit_rpm", "idle_sleep_s")
    given = zip(names, limits, strict=True)
    return {name: value for name, value in given if value is not None}


def _show_key(answer: dict[str, Any], product: str, *, as_json: bool) -> None:
    from enginegate.cli.output import print_fields, print_json
    from enginegate.cli.streams import written

    again = f"enginegate products rotate-key {shlex.quote(product)}"
    lost = f"the new platform key of {product} is lost with it: make another with `{again}`"
    with written(lost=lost):
        if as_json:
            print_json(answer)
        else:
            print_fields(answer.items())
    if not as_json:
        typer.echo("The key is not kept and cannot be shown again.", err=True)
