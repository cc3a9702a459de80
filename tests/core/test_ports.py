"""Ports are given out lowest first, never twice, and never while another program has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginegate.ports import PortMap


def lease_next(ports: PortMap) -> int | None:
    port = ports.free_port()
    if port is not None:
        ports.lease(port)
    return port


def test_ports_are_given_out_lowest_first() -> None:
    """A fleet stays packed at the low end of its range, and a full range has no port."""
    ports = PortMap(9001, 9003)
    assert [lease_next(ports) for _ in range(4)] == [9001, 9002, 9003, None]


def test_asking_for_a_free_port_leases_nothing() -> None:
    """Between asking and leasing the caller may still decide otherwise."""
    ports = PortMap(9001, 9003)
    assert ports.free_port() == ports.free_port() == 9001
    assert ports.leased_count == 0


def test_a_released_port_is_the_next_one_given_out() -> None:
    """A hole is filled before the range is used further."""
    ports = PortMap(9001, 9009)
    for _ in range(4):
        lease_next(ports)
    ports.release(9002)
    assert not ports.is_leased(9002)
    assert ports.free_port() == 9002


def test_a_port_that_another_program_holds_is_passed_over() -> None:
    """The next free one is taken; the foreign port is asked for again another time."""
    ports = PortMap(9001, 9004)
    ports.lease(9002)
    assert ports.free_port(avoid={9001, 9003}) == 9004
    assert ports.free_port(avoid=[9001, 9003, 9004]) is None
    assert ports.free_port() == 9001


def test_foreign_ports_outside_the_range_do_not_matter() -> None:
    """Whatever the host uses elsewhere takes nothing from the range."""
    assert PortMap(9001, 9001).free_port(avoid=[80, 9000, 9002, 65_535]) == 9001


def test_an_engine_may_keep_a_port_that_the_range_no_longer_has() -> None:
    """After the range is changed, old ports are leased and released like any other."""
    ports = PortMap(9001, 9002)
    for port in (8000, 9500):
        ports.lease(port)
        assert ports.is_leased(port)
    assert ports.leased == {8000, 9500}
    ports.release(8000)
    assert ports.leased == {9500}
    assert ports.free_port() == 9001


def test_the_highest_port_there_is_can_be_leased() -> None:
    """The range may end with the last port of TCP."""
    ports = PortMap(65_535, 65_535)
    assert lease_next(ports) == 65_535
    assert ports.free_port() is None


@pytest.mark.parametrize("port", [9001, 80])
def test_leasing_twice_is_a_bug(port: int) -> None:
    """Two engines never share a port, whether it is in the range or not."""
    ports = PortMap(9001, 9002)
    ports.lease(port)
    with pytest.raises(AssertionError):
        ports.lease(port)


@pytest.mark.parametrize("port", [9001, 80])
def test_releasing_what_is_not_leased_is_a_bug(port: int) -> None:
    """Nobody gives back a port that nobody has."""
    with pytest.raises(AssertionError):
        PortMap(9001, 9002).release(port)


@pytest.mark.parametrize(("low", "high"), [(0, 10), (10, 9), (1, 65_536)])
def test_an_impossible_range_is_a_bug(low: int, high: int) -> None:
    """The configuration has refused such a range long before."""
    with pytest.raises(AssertionError):
        PortMap(low, high)


@given(st.lists(st.integers(95, 112)), st.sets(st.integers(95, 112)))
def test_the_map_agrees_with_a_plain_set(steps: list[int], avoid: set[int]) -> None:
    """After any leases and releases: the same ports, and the lowest free one is found."""
    ports, model = PortMap(100, 107), set[int]()
    for port in steps:
        if port in model:
            ports.release(port)
            model.remove(port)
        else:
            ports.lease(port)
            model.add(port)
        free = [p for p in range(100, 108) if p not in model | avoid]
        assert ports.leased == model
        assert ports.leased_count == len(model)
        assert ports.free_port(avoid) == (free[0] if free else None)
