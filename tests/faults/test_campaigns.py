"""Every campaign at the size that fits into CI; `python -m tests.faults --long` goes on."""

import time
from typing import Any

import pytest

from tests.faults.campaign import Run, load

CI_LIMIT_S = 600.0


@pytest.mark.slow
@pytest.mark.parametrize("name", load())
def test_campaign(name: str, capsys: Any) -> None:
    """Nothing is lost, nothing is half there, no start is refused."""
    one = load()[name]
    run = Run(one.ci, time.monotonic() + CI_LIMIT_S, name)
    figures = one.run(run)
    with capsys.disabled():
        took_s = time.monotonic() - run.began
        print(f"\n{name}: {run.done:,} rounds, {figures}, {took_s:.0f} s")
    assert run.done >= one.ci, "the time was over before all rounds were done"
