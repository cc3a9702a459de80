"""The format is for ever: a directory written by version 1 must replay with every later one.

The directory was made once, by `make_golden` below, and is never made anew: run this file
as a script to make one for a *new* format, under a new name.
"""

import shutil
import sys
from pathlib import Path

from enginegate import facts as f
from enginegate.facts import AnyFact
from enginegate.journal import Journal, verify
from enginegate.model import (
    Counters,
    Engine,
    Outcome,
    PendingKey,
    Policy,
    Sample,
    SnapshotRecord,
    Status,
)
from tests.journal.rig import ManualClock, crash, no_check, product

GOLDEN = Path(__file__).parent.parent / "data" / "journal-v1"
KEY = "golden-key"
T = 1_700_000_000_000
WHO = {"engine_id": "engine-1", "product_id": "product-1", "user_id": "user@example.org"}

RECORDS: list[SnapshotRecord] = [
    product(),
    Engine(
        engine_id="engine-1",
        product_id="product-1",
        user_id="user@example.org",
        status=Status.SLEEPING,
        port=9001,
        engine_version="my-engine:2.3.0",
        sealed_key="sealed",
        key_hash="digest",
        created_at_ms=T,
        changed_at_ms=T + 1,
        incarnation=3,
        healthy_at_ms=T + 2,
        booted_at_ms=T + 3,
        restart_attempts=1,
        restart_at_ms=T + 4,
        pending_key=PendingKey(sealed_key="next", key_hash="next digest"),
        reason="because",
    ),
    Counters(
        product_id="product-1",
        total_provisions=7,
        total_destroys=2,
        samples=(Sample(T, "wake", 14.5), Sample(T, "crash", None)),
    ),
]

FACTS: list[AnyFact] = [
    f.ProductRegistered(
        at_ms=T,
        actor="admin",
        product_id="product-1",
        slug="acme",
        display_name="Acme ü",
        policy=Policy(max_engines=3, idle_sleep_s=1.5),
        key_hash="digest",
    ),
    f.PolicyChanged(at_ms=T, product_id="product-1", policy=Policy(rate_limit_rpm=0)),
    f.PlatformKeyRotated(at_ms=T, product_id="product-1", key_hash="d", old_key_until_ms=T),
    f.ProductDeletionBegun(at_ms=T, product_id="product-1"),
    f.ProductDeleted(at_ms=T, product_id="product-1", slug="acme"),
    f.Provisioned(
        at_ms=T,
        actor="acme",
        port=9001,
        engine_version="my-engine:2.3.0",
        sealed_key="sealed",
        key_hash="digest",
        metadata={"nested": {"list": [1, 2.5, None, "text"]}},
        **WHO,
    ),
    f.Booted(at_ms=T, via="provision", duration_ms=400.25, **WHO),
    f.Slept(at_ms=T, reason="idle", **WHO),
    f.Woken(at_ms=T, tier="stopped", **WHO),
    f.Stopped(at_ms=T, **WHO),
    f.Failed(
        at_ms=T, during="wake", reason="no answer", restart_at_ms=T, restart_attempts=2, **WHO
    ),
    f.RestartBegun(at_ms=T, attempt=1, **WHO),
    f.RestartFailed(at_ms=T, attempt=1, reason="again", restart_at_ms=T, **WHO),
    f.RestartsGivenUp(at_ms=T, attempts=8, **WHO),
    f.VersionChanged(at_ms=T, engine_version="my-engine:3", **WHO),
    f.PortMoved(at_ms=T, port=9002, **WHO),
    f.KeyRotationBegun(at_ms=T, sealed_key="next", key_hash="next digest", **WHO),
    f.KeyRotated(at_ms=T, **WHO),
    f.KeyRotationFailed(at_ms=T, reason="no", **WHO),
    f.DestroyBegun(at_ms=T, **WHO),
    f.Destroyed(at_ms=T, **WHO),
    f.Noted(at_ms=T, action="admit_denied", outcome=Outcome.DENIED, metadata={"count": 3}, **WHO),
]


def make_golden(directory: Path) -> None:
    """Write the golden directory: two starts, every fact, every record, a seal and a torn tail."""
    settings = {"key_id": KEY, "clock": ManualClock(), "segment_bytes": 6144, "check": no_check}
    journal = Journal.open(directory, **settings)
    journal.begin([])
    journal.append(FACTS[:3])
    journal.close()
    journal = Journal.open(directory, **settings)
    journal.begin(RECORDS)
    journal.append(FACTS[:12])
    journal.seal()
    journal.append(FACTS[12:])
    end = journal._current.end
    journal.append([f.Destroyed(at_ms=T, **WHO)])
    path = journal._current.path
    crash(journal)
    content = path.read_bytes()
    path.write_bytes(content[: end + 60].ljust(len(content), b"\0"))
    (directory / "LOCK").unlink()


def test_the_first_format_replays_for_ever(tmp_path):
    """What version 1 wrote is read back to the same records, facts and numbers."""
    directory = tmp_path / "data"
    shutil.copytree(GOLDEN, directory)
    assert verify(directory, KEY).verdict == "torn"
    journal = Journal.open(directory, key_id=KEY, check=no_check)
    try:
        assert journal.snapshot == RECORDS
        assert journal.tail == list(enumerate(FACTS, start=4))
        assert (journal.epoch, journal.next_number) == (3, len(FACTS) + 4)
        assert any("dropped 60 bytes" in warning for warning in journal.warnings)
        assert [fact for _, fact in journal.history(before=4)] == FACTS[2::-1]
    finally:
        journal.close()


def test_what_is_written_today_is_read_back(tmp_path):
    """Every kind of fact and record comes back as it was given, through the files of today."""
    make_golden(tmp_path / "data")
    journal = Journal.open(tmp_path / "data", key_id=KEY, check=no_check)
    try:
        assert journal.snapshot == RECORDS
        assert [fact for _, fact in journal.tail] == FACTS
    finally:
        journal.close()


if __name__ == "__main__":
    make_golden(Path(sys.argv[1]))
