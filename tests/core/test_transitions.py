"""What may follow what: every fact against every state, and what each fact changes."""

from typing import get_args

import pytest
from msgspec.structs import asdict, replace

from enginegate import facts as f
from enginegate.model import Engine, OldKey, PendingKey, Status
from enginegate.transitions import (
    TABLE,
    EngineChange,
    IllegalTransitionError,
    diagram,
    evolve,
    follows,
)

# Read across: state before (- is no engine), state after (- is gone, . is refused).
EXPECTED = """
                    -             provisioning  running     sleeping    stopped     failed      destroying
Provisioned         provisioning  .             .           .           .           .           .
Claimed             running       .             .           .           .           .           .
Booted              .             running       .           running     running     running     .
Slept               .             .             sleeping    .           .           .           .
Deepened            .             .             .           sleeping    .           .           .
Woken               .             .             .           running     .           .           .
StopBegun           .             .             running     sleeping    .           failed      .
Stopped             .             .             stopped     stopped     .           stopped     .
StopFailed          .             .             running     sleeping    .           failed      .
Failed              .             failed        failed      failed      failed      failed      .
RestartBegun        .             .             .           .           .           failed      .
RestartFailed       .             .             .           .           .           failed      .
RestartsGivenUp     .             .             .           .           .           failed      .
VersionChanged      .             .             .           .           stopped     failed      .
PortMoved           .             provisioning  running     sleeping    stopped     failed      .
KeyRotationBegun    .             .             running     .           .           .           .
KeyRotated          .             .             running     sleeping    stopped     failed      .
KeyRotationFailed   .             .             running     sleeping    stopped     failed      .
DestroyBegun        .             destroying    destroying  destroying  destroying  destroying  .
Destroyed           .             .             .           .           .           .           -
"""  # noqa: E501 - a table is read across

WHO = {"engine_id": "e-1", "product_id": "p-1", "user_id": "ann", "at_ms": 5000}
FACTS: dict[str, EngineChange] = {
    type(fact).__name__: fact
    for fact in (
        f.Provisioned(**WHO, port=9001, engine_version="e:1", sealed_key="s", key_hash="h"),
        f.Claimed(**WHO, port=9001, engine_version="e:1", sealed_key="s", key_hash="h"),
        f.Booted(**WHO, via="start"),
        f.Slept(**WHO, reason="idle"),
        f.Deepened(**WHO, reason="low_memory"),
        f.Woken(**WHO),
        f.StopBegun(**WHO),
        f.Stopped(**WHO),
        f.StopFailed(**WHO, reason="no answer"),
        f.Failed(**WHO, during="running", reason="exit", restart_at_ms=9000, restart_attempts=2),
        f.RestartBegun(**WHO, attempt=3),
        f.RestartFailed(**WHO, attempt=3, reason="no answer", restart_at_ms=7000),
        f.RestartsGivenUp(**WHO, attempts=8),
        f.VersionChanged(**WHO, engine_version="e:2"),
        f.PortMoved(**WHO, port=9042),
        f.KeyRotationBegun(**WHO, sealed_key="s3", key_hash="h3"),
        f.KeyRotated(**WHO),
        f.KeyRotationFailed(**WHO, reason="no answer"),
        f.DestroyBegun(**WHO),
        f.Destroyed(**WHO),
    )
}


def engine_in(status: Status) -> Engine:
    """Return an engine in which every field has a value worth losing."""
    return Engine(
        engine_id="e-1",
        product_id="p-1",
        user_id="ann",
        status=status,
        port=9001,
        engine_version="e:1",
        sealed_key="s1",
        key_hash="h1",
        created_at_ms=1000,
        changed_at_ms=2000,
        incarnation=4,
        healthy_at_ms=3000,
        booted_at_ms=2500,
        restart_attempts=1,
        restart_at_ms=6000,
        pending_key=PendingKey("s2", "h2"),
        old_key_hash="h0",
        old_key_until_ms=4000,
        reason="before",
        deep=status is Status.SLEEPING,
        older_keys=(OldKey("h-1", 3500), OldKey("h-2", 2500)),
    )


def expected_table() -> dict[tuple[str, str], str]:
    header, *rows = (line.split() for line in EXPECTED.strip("\n").splitlines())
    return {(name, at): to for name, *cells in rows for at, to in zip(header, cells, strict=True)}


@pytest.mark.parametrize("at", ["-", *(status.value for status in Status)])
@pytest.mark.parametrize("name", FACTS)
def test_every_fact_in_every_state(name: str, at: str) -> None:
    """The table written here, by hand, is the one that the code follows."""
    before = None if at == "-" else engine_in(Status(at))
    expected = expected_table()[name, at]
    assert follows(type(FACTS[name]), before.status if before else None) == (expected != ".")
    if expected == ".":
        with pytest.raises(IllegalTransitionError, match=f"{name} cannot follow"):
            evolve(before, FACTS[name])
    else:
        after = evolve(before, FACTS[name])
        assert (after.status.value if after else "-") == expected


def test_every_kind_of_fact_is_in_the_table() -> None:
    """A new fact cannot be forgotten here, nor in the code."""
    kinds = {kind.__name__ for kind in get_args(EngineChange)}
    assert kinds == set(FACTS) == {kind.__name__ for kind in TABLE}
    assert kinds == {name for name, _ in expected_table()}


def test_a_refused_fact_says_what_it_met() -> None:
    """Whoever reads the journal's refusal sees the fact, the state and the engine."""
    with pytest.raises(IllegalTransitionError) as caught:
        evolve(engine_in(Status.STOPPED), FACTS["Slept"])
    assert str(caught.value) == "Slept cannot follow stopped (engine e-1)"
    assert (caught.value.fact, caught.value.before) == (FACTS["Slept"], Status.STOPPED)
    with pytest.raises(IllegalTransitionError, match="cannot follow no engine"):
        evolve(None, FACTS["Slept"])


@pytest.mark.parametrize("status", Status)
def test_no_fact_changes_the_engine_it_is_given(status: Status) -> None:
    """What others hold stays what it was, whether the fact is legal or refused."""
    engine = engine_in(status)
    for fact in FACTS.values():
        if follows(type(fact), status):
            evolve(engine, fact)
        else:
            with pytest.raises(IllegalTransitionError):
                evolve(engine, fact)
    assert engine == engine_in(status)


def test_a_provisioned_engine_starts_with_nothing_behind_it() -> None:
    """Port, version and key come from the fact; counts and times start anew."""
    assert evolve(None, FACTS["Provisioned"]) == Engine(
        engine_id="e-1",
        product_id="p-1",
        user_id="ann",
        status=Status.PROVISIONING,
        port=9001,
        engine_version="e:1",
        sealed_key="s",
        key_hash="h",
        created_at_ms=5000,
        changed_at_ms=5000,
    )


IN_SERVICE = {
    "status": Status.RUNNING,
    "changed_at_ms": 5000,
    "incarnation": 5,
    "healthy_at_ms": 5000,
    "restart_at_ms": None,
    "reason": "",
    "deep": False,
}


@pytest.mark.parametrize(
    ("at", "fact", "changes"),
    [
        pytest.param(
            Status.STOPPED,
            FACTS["Booted"],
            {**IN_SERVICE, "booted_at_ms": 5000, "restart_attempts": 0},
            id="a start begins a new count of restarts",
        ),
        pytest.param(
            Status.FAILED,
            f.Booted(**WHO, via="auto_restart"),
            {**IN_SERVICE, "booted_at_ms": 5000},
            id="an automatic restart keeps the count",
        ),
        pytest.param(
            Status.SLEEPING,
            FACTS["Woken"],
            IN_SERVICE,
            id="a thawed engine has not booted",
        ),
        pytest.param(
            Status.SLEEPING,
            f.Woken(**WHO, tier="stopped"),
            {**IN_SERVICE, "booted_at_ms": 5000},
            id="one woken from deep sleep has",
        ),
        pytest.param(
            Status.RUNNING,
            FACTS["Slept"],
            {"status": Status.SLEEPING, "changed_at_ms": 5000, "reason": "idle"},
            id="sleep keeps port, key and incarnation",
        ),
        pytest.param(
            Status.SLEEPING,
            FACTS["Deepened"],
            {"deep": True},
            id="a sleeper that is stopped sleeps on since it fell asleep",
        ),
        pytest.param(
            Status.FAILED,
            FACTS["Stopped"],
            {
                "status": Status.STOPPED,
                "changed_at_ms": 5000,
                "restart_at_ms": None,
                "restart_attempts": 0,
                "reason": "request",
            },
            id="a stop cancels the planned restart",
        ),
        pytest.param(
            Status.RUNNING,
            FACTS["Failed"],
            {
                "status": Status.FAILED,
                "changed_at_ms": 5000,
                "restart_at_ms": 9000,
                "restart_attempts": 2,
                "reason": "exit",
            },
            id="a failure carries the plan",
        ),
        pytest.param(
            Status.FAILED,
            FACTS["Failed"],
            {"restart_at_ms": 9000, "restart_attempts": 2, "reason": "exit"},
            id="failed again is no change of state",
        ),
        pytest.param(
            Status.FAILED,
            FACTS["RestartBegun"],
            {"restart_attempts": 3},
            id="an attempt is counted when it begins",
        ),
        pytest.param(
            Status.FAILED,
            FACTS["RestartFailed"],
            {"restart_at_ms": 7000, "reason": "no answer"},
            id="a failed attempt plans the next",
        ),
        pytest.param(
            Status.FAILED,
            FACTS["RestartsGivenUp"],
            {"restart_at_ms": None},
            id="giving up leaves count and reason to read",
        ),
        pytest.param(
            Status.STOPPED,
            FACTS["VersionChanged"],
            {"engine_version": "e:2"},
            id="an upgrade changes the version alone",
        ),
        pytest.param(
            Status.RUNNING,
            FACTS["PortMoved"],
            {"port": 9042},
            id="a taken port is replaced",
        ),
        pytest.param(
            Status.RUNNING,
            FACTS["KeyRotationBegun"],
            {"pending_key": PendingKey("s3", "h3")},
            id="the next key waits while the old one works",
        ),
        pytest.param(
            Status.RUNNING,
            FACTS["KeyRotated"],
            {
                "sealed_key": "s2",
                "key_hash": "h2",
                "pending_key": None,
                "old_key_hash": None,
                "old_key_until_ms": 0,
                "older_keys": (),
                "incarnation": 5,
            },
            id="the new key replaces the old",
        ),
        pytest.param(
            Status.RUNNING,
            f.KeyRotated(**WHO | {"at_ms": 3000}, old_key_until_ms=8000),
            {
                "sealed_key": "s2",
                "key_hash": "h2",
                "pending_key": None,
                "old_key_hash": "h1",
                "old_key_until_ms": 8000,
                "older_keys": (OldKey("h0", 4000), OldKey("h-1", 3500)),
                "incarnation": 5,
            },
            id="a live rotation lets the old one work for a while",
        ),
        pytest.param(
            Status.RUNNING,
            FACTS["KeyRotationFailed"],
            {"pending_key": None},
            id="a failed rotation keeps the old key",
        ),
        pytest.param(
            Status.FAILED,
            FACTS["DestroyBegun"],
            {"status": Status.DESTROYING, "changed_at_ms": 5000, "restart_at_ms": None},
            id="nothing is restarted while it is destroyed",
        ),
    ],
)
def test_a_fact_changes_what_it_says_and_keeps_the_rest(
    at: Status, fact: EngineChange, changes: dict[str, object]
) -> None:
    """Every field that is not listed here stays as it was."""
    engine = engine_in(at)
    after = evolve(engine, fact)
    assert after is not None
    assert asdict(after) == asdict(replace(engine, **changes))


def test_a_destroyed_engine_is_gone() -> None:
    """Destroyed is not a state: there is no row left."""
    assert evolve(engine_in(Status.DESTROYING), FACTS["Destroyed"]) is None


def test_the_diagram_shows_every_change_of_state_and_nothing_else() -> None:
    """Drawn from the table, so that the README cannot lie."""
    head, *edges = diagram().splitlines()
    drawn = {tuple(edge.split(":")[0].split(" --> ")) for edge in map(str.strip, edges)}
    changes = {
        (at.replace("-", "[*]"), to.replace("-", "[*]"))
        for (_, at), to in expected_table().items()
        if to not in (".", at)
    }
    assert head == "stateDiagram-v2"
    assert drawn == changes
