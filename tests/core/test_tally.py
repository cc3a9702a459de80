"""What one product's facts add up to, also where a start folds old ones."""

from typing import Any

from enginegate import facts as f
from enginegate.metrics import Tally

IDS: dict[str, Any] = {"engine_id": "e", "product_id": "p", "user_id": "u", "at_ms": 1}
OLD = (
    f.Claimed(**IDS, port=1, engine_version="a:1", sealed_key="s", key_hash="h"),
    f.Booted(**IDS, via="provision"),
    f.Woken(**IDS),
    f.Slept(**IDS, reason="idle"),
    f.Destroyed(**IDS),
)


def test_old_facts_count_in_the_totals_alone() -> None:
    """Provisions and destroys are counted for ever, however long ago."""
    tally = Tally()
    for fact in OLD:
        tally.count(fact, since_ms=1)
    assert (tally.total_provisions, tally.total_destroys) == (2, 1)
    assert not tally.samples


def test_facts_of_the_hour_are_sampled() -> None:
    """Each that counts as something is one sample, in order."""
    tally = Tally()
    for fact in OLD:
        tally.count(fact, since_ms=0)
    kinds = [sample.kind for sample in tally.samples]
    assert kinds == ["provision", "provision", "wake", "sleep", "destroy"]
