"""The look at the master key that comes before all else: it refuses that, and nothing else."""

import pytest

from enginegate.errors import JournalError
from enginegate.journal import demand_key
from tests.journal.rig import KEY, begun, opened, product, snapshots


@pytest.fixture
def data(tmp_path):
    """A directory with two starts, so with two snapshots."""
    for _ in range(2):
        with begun(tmp_path / "data", [product()]):
            pass
    return tmp_path / "data"


def test_another_key_is_refused_by_name_and_file(data):
    """The message of a start, with its exit code, from the newest snapshot."""
    with pytest.raises(JournalError, match=f"written with key {KEY}, given is other") as refused:
        demand_key(data, ["other"])
    assert refused.value.exit_code == 78
    assert str(snapshots(data)[-1]) in str(refused.value)


def test_of_a_directory_in_use_that_is_what_the_start_says(data):
    """Exit code 75 comes before 78: which key is right is the running server's affair."""
    with begun(data, [product()]):
        demand_key(data, ["other"])
        with pytest.raises(JournalError) as refused, opened(data, key_id="other"):
            pass
        assert refused.value.exit_code == 75


def test_the_right_key_passes_also_as_the_older_of_two(data):
    """A ring in which only the old key fits is what a rekey begins with."""
    demand_key(data, [KEY])
    demand_key(data, ["new", KEY])


def test_a_damaged_snapshot_is_passed_over_as_a_start_does(data):
    """The next older one is asked."""
    newest, older = snapshots(data)[-1], snapshots(data)[-2]
    newest.write_bytes(b"rot" * 100)
    with pytest.raises(JournalError) as refused:
        demand_key(data, ["other"])
    assert str(older) in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"rot" * 100])
def test_damage_is_left_to_the_start(data, content):
    """Nothing readable says nothing of the key."""
    for path in snapshots(data):
        path.write_bytes(content)
    demand_key(data, ["other"])


def test_a_directory_that_is_not_there_or_empty_has_no_key(tmp_path):
    """The first start finds it so."""
    demand_key(tmp_path / "none", ["other"])
    demand_key(tmp_path, ["other"])
