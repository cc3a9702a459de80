"""How long to wait before the next attempt. Pure: the caller counts and does the waiting."""

DOUBLINGS_MAX = 64  # reaches any ceiling from any sane base, and keeps the power in range


def wait_s(attempt: int, *, base_s: float, max_s: float) -> float:
    """Return the pause before restart number `attempt`, the first being 1.

    It starts at `base_s` and doubles up to `max_s`: a passing fault is repaired
    soon, a broken image costs little. No jitter: restarts of one fleet are spread
    by the bound on boots at work, and a plan that survives a crash stays the plan.
    """
    assert attempt >= 1
    assert 0 <= base_s <= max_s
    doublings = min(attempt - 1, DOUBLINGS_MAX)
    return float(min(base_s * 2.0**doublings, max_s))
