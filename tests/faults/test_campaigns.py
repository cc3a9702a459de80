"""Every campaign: at its size for CI where CI runs it, at a tenth of that elsewhere.

`python -m tests.faults --long` goes on from there.
"""

import os
import time
from typing import Any

import pytest

from tests.faults.campaign import Run, UnableError, load

CI_LIMIT_S = 600.0
SHARE = 1 if os.environ.get("ENGINEGATE_REQUIRE_FAULTS") == "1" else 10


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, one in load().items() if one.ci])
def test_campaign(name: str, capsys: Any) -> None:
    """Nothing is lost, nothing is half there, no start is refused."""
    one = load()[name]
    run = Run(max(one.ci // SHARE, 1), time.monotonic() + CI_LIMIT_S, name, every=SHARE)
    try:
        figures = one.run(run)
    except UnableError as why:
        pytest.skip(str(why))
    with capsys.disabled():
        took_s = time.monotonic() - run.began
        print(f"\n{name}: {run.done:,} rounds, {figures}, {took_s:.0f} s")
    assert run.done >= run.count, "the time was over before all rounds were done"
