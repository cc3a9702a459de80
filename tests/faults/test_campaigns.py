"""Every campaign at the size that fits into CI; `python -m tests.faults --long` goes on."""

import time
from typing import Any

import pytest

from tests.faults.campaign import Run, UnableError, load

CI_LIMIT_S = 600.0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, one in load().items() if one.ci])
def test_campaign(name: str, capsys: Any) -> None:
    """Nothing is lost, nothing is half there, no start is refused."""
    one = load()[name]
    run = Run(one.ci, time.monotonic() + CI_LIMIT_S, name)
    try:
        figures = one.run(run)
    except UnableError as why:
        pytest.skip(str(why))
    with capsys.disabled():
        took_s = time.monotonic() - run.began
        print(f"\n{name}: {run.done:,} rounds, {figures}, {took_s:.0f} s")
    assert run.done >= one.ci, "the time was over before all rounds were done"
