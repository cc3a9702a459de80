"""Two models of what must be true, in plain dicts and sets, and nothing of enginegate's own code.

`Fleet` folds durable facts by rules that are written down here a second time. `Oracle` knows
only what callers were told: an answered change is there, an unanswered one is there whole or
not at all, and nothing else changes but what engines do by themselves.
"""

from collections.abc import Iterable
from typing import Any

from enginegate import facts as f


class Violation(AssertionError):  # noqa: N818 - what it is called everywhere in these tests
    """A promise that was broken."""


def demand(truth: object, message: str) -> None:
    """Raise a violation unless it is true; works under `python -O` too."""
    if not truth:
        raise Violation(message)


# What is durable


class Fleet:
    """Products and engines as dicts, after the facts so far."""

    def __init__(self) -> None:
        self.products: dict[str, dict[str, Any]] = {}
        self.engines: dict[str, dict[str, Any]] = {}
        self.owners: dict[str, tuple[str, str]] = {}  # of every engine there ever was

    def apply(self, fact: f.AnyFact) -> None:
        if isinstance(fact, f.Noted):
            return
        if isinstance(fact, f.ProductFact):
            self._product(fact)
            return
        if isinstance(fact, f.Provisioned):
            self._provisioned(fact)
            return
        row = self.engines[fact.engine_id]
        if isinstance(fact, f.Destroyed):
            demand(row["status"] == "destroying", f"destroyed without intent: {row}")
            del self.engines[fact.engine_id]
            return
        demand(type(fact) in CHANGES, f"the model does not know {type(fact).__name__}: teach it")
        row.update(CHANGES[type(fact)](row, fact))

    def _provisioned(self, fact: f.Provisioned) -> None:
        taken = {(row["product"], row["user"]) for row in self.engines.values()}
        demand((fact.product_id, fact.user_id) not in taken, f"a second engine: {fact}")
        ports = {row["port"] for row in self.engines.values()}
        demand(fact.port not in ports, f"port {fact.port} is leased twice")
        self.owners[fact.engine_id] = (fact.product_id, fact.user_id)
        self.engines[fact.engine_id] = {
            "product": fact.product_id,
            "user": fact.user_id,
            "status": "provisioning",
            "port": fact.port,
            "version": fact.engine_version,
            "key": fact.key_hash,
            "pending": None,
            "restart": None,
            "stopping": False,
        }

    def _product(self, fact: f.ProductFact) -> None:
        match fact:
            case f.ProductRegistered():
                slugs = {row["slug"] for row in self.products.values()}
                demand(fact.slug not in slugs, f"slug {fact.slug} is taken twice")
                self.products[fact.product_id] = {
                    "slug": fact.slug,
                    "key": fact.key_hash,
                    "old": None,
                    "policy": fact.policy,
                    "deleting": False,
                }
            case f.PolicyChanged():
                self.products[fact.product_id]["policy"] = fact.policy
            case f.PlatformKeyRotated():
                row = self.products[fact.product_id]
                row["old"] = row["key"] if fact.old_key_until_ms else None
                row["key"] = fact.key_hash
            case f.ProductDeletionBegun():
                self.products[fact.product_id]["deleting"] = True
            case f.ProductDeleted():
                left = [r for r in self.engines.values() if r["product"] == fact.product_id]
                demand(not left, f"a product was deleted before its engines: {left}")
                del self.products[fact.product_id]
            case _:
                raise Violation(f"the model does not know {type(fact).__name__}: teach it")


def _as(status: str) -> Any:
    return lambda _, __: {"status": status, "restart": None, "stopping": False}


def _failed(row: dict[str, Any], fact: f.Failed) -> dict[str, Any]:
    stopping = row["stopping"] and row["status"] == "failed"
    return {"status": "failed", "restart": fact.restart_at_ms, "stopping": stopping}


CHANGES: dict[type, Any] = {
    f.Booted: _as("running"),
    f.Woken: _as("running"),
    f.Slept: lambda _, __: {"status": "sleeping", "stopping": False},
    f.StopBegun: lambda _, __: {"stopping": True},
    f.Stopped: _as("stopped"),
    f.StopFailed: lambda _, __: {"stopping": False},
    f.Failed: _failed,
    f.RestartBegun: lambda _, __: {},
    f.RestartFailed: lambda _, fact: {"restart": fact.restart_at_ms},
    f.RestartsGivenUp: lambda _, __: {"restart": None},
    f.VersionChanged: lambda _, fact: {"version": fact.engine_version},
    f.PortMoved: lambda _, fact: {"port": fact.port},
    f.KeyRotationBegun: lambda _, fact: {"pending": fact.key_hash},
    f.KeyRotated: lambda row, _: {"key": row["pending"], "pending": None},
    f.KeyRotationFailed: lambda _, __: {"pending": None},
    f.DestroyBegun: _as("destroying"),
}


# What callers were told

ANY = "<something new that only the server knows>"
GONE = None

DRIFT: dict[str | None, tuple[str | None, ...]] = {
    "provisioning": ("provisioning", "running", "failed", "sleeping"),
    "running": ("running", "failed", "sleeping"),
    "failed": ("failed", "running", "sleeping"),
    "sleeping": ("sleeping",),
    "stopped": ("stopped",),
    "destroying": ("destroying", GONE),
    GONE: (GONE,),
}
"""What may become of a state with nobody calling: crashes, restarts, idle sleep, finished work."""


class Write:
    """A call under way that may change a cell to one of its values, or has changed it."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.values = set(values)
        self.beside: set[Any] = set()  # what calls that overlapped with it may have done


class Cell:
    """One thing that callers change: which values it may have by all they were told."""

    def __init__(self, name: str, value: Any = GONE, *, drift: Any = None) -> None:
        self.name = name
        self.sure = {value}
        self.writes: list[Write] = []
        self._drift = drift or {}

    def begin(self, *values: Any) -> Write:
        write = Write(values)
        for other in self.writes:
            write.beside |= other.values
            other.beside |= write.values
        self.writes.append(write)
        return write

    def allowed(self) -> set[Any]:
        told = self.sure.union(*(write.values for write in self.writes))
        return told.union(*(self._drift.get(value, ()) for value in told))

    def check(self, value: Any, why: str) -> None:
        if value in self.sure:
            return
        allowed = self.allowed()
        known = value in allowed or (ANY in allowed and value is not GONE)
        demand(known, f"{self.name} is {value} {why}, but callers were told {allowed}")

    def succeed(self, write: Write, value: Any) -> None:
        """The call was answered: this is the value now, unless another call got in between."""
        self.check(value, "in an answer")
        self.writes.remove(write)
        self.sure = {value} | write.beside

    def refuse(self, write: Write) -> None:
        """The call was refused: it has changed nothing."""
        self.writes.remove(write)

    def settle(self, *values: Any) -> None:
        """Nothing is under way any more: what the cell has now (or will become) is known."""
        self.check(values[0], "at rest")
        self.sure = set(values)
        self.writes.clear()


class UserCells:
    """What callers know of one user's engine."""

    def __init__(self, name: str) -> None:
        self.identity = Cell(f"the engine of {name}")
        self.key = Cell(f"the engine key of {name}")
        self.status = Cell(f"the status of {name}", drift=DRIFT)

    def settle(self, engine_id: str | None, row: dict[str, Any] | None) -> None:
        """Take over what is durable; what is on its way goes on by itself."""
        status = row["status"] if row else GONE
        leaving = status == "destroying"
        self.identity.settle(engine_id, *([GONE] if leaving else []))
        self.status.settle(status, *(["stopped"] if row and row["stopping"] else []))
        pending = [row["pending"]] if row and row["pending"] else []
        self.key.settle(row["key"] if row else GONE, *pending, *([GONE] if leaving else []))


class ProductCells:
    """What the operator knows of one product, by its slug."""

    def __init__(self, slug: str) -> None:
        self.identity = Cell(f"product {slug}")
        self.key = Cell(f"the platform key of {slug}")
        self.policy = Cell(f"the policy of {slug}")

    def settle(self, product_id: str | None, row: dict[str, Any] | None) -> None:
        leaving = [GONE] if row and row["deleting"] else []
        self.identity.settle(product_id, *leaving)
        self.key.settle(row["key"] if row else GONE, *leaving)
        self.policy.settle(row["policy"] if row else GONE, *leaving)


class Oracle:
    """All cells, compared with what is durable."""

    def __init__(self, slugs: Iterable[str], users: Iterable[str]) -> None:
        self.products = {slug: ProductCells(slug) for slug in slugs}
        self.users = {
            (slug, user): UserCells(f"{user} of {slug}") for slug in slugs for user in users
        }

    def rows(self, fleet: Fleet) -> Iterable[tuple[Any, str | None, dict[str, Any] | None]]:
        """Pair the cells with the durable rows they are about."""
        by_slug = {row["slug"]: (name, row) for name, row in fleet.products.items()}
        by_user = {
            (fleet.products[row["product"]]["slug"], row["user"]): (name, row)
            for name, row in fleet.engines.items()
        }
        for slug, product in self.products.items():
            yield product, *by_slug.get(slug, (None, None))
        for place, user in self.users.items():
            yield user, *by_user.get(place, (None, None))

    def check(self, fleet: Fleet) -> None:
        """Demand that nothing durable contradicts what callers were told."""
        for cells, name, row in self.rows(fleet):
            cells.identity.check(name, "on disk")
            cells.key.check(row["key"] if row else GONE, "on disk")
            if isinstance(cells, UserCells):
                cells.status.check(row["status"] if row else GONE, "on disk")
            else:
                cells.policy.check(row["policy"] if row else GONE, "on disk")

    def settle(self, fleet: Fleet) -> None:
        for cells, name, row in self.rows(fleet):
            cells.settle(name, row)
        for (slug, _), user in self.users.items():
            if GONE in self.products[slug].identity.sure:  # it is going, with all it has
                for cell in (user.identity, user.key, user.status):
                    cell.sure |= {GONE}
                user.status.sure |= {"destroying"} if user.identity.sure - {GONE} else set()
