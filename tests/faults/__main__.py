"""`python -m tests.faults`: every campaign at CI size; with `--long`, at its full size."""

import argparse
import sys
import time
import traceback

from tests.faults.campaign import Run, UnableError, load

MINUTES = 240.0  # for all campaigns together, when `--long` is given without `--minutes`
CI_MINUTES = 20.0


def main() -> int:
    campaigns = load()
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="campaign", help=", ".join(campaigns))
    parser.add_argument("--long", action="store_true", help="the full size instead of CI's")
    parser.add_argument("--count", type=int, help="so many rounds of each, whatever its size")
    parser.add_argument("--minutes", type=float, help="stop after so long, all together")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    asked = parser.parse_args()
    if unknown := set(asked.names) - campaigns.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(campaigns)}")
    chosen = [campaigns[name] for name in asked.names] or list(campaigns.values())
    if asked.list:
        for one in chosen:
            print(f"{one.name:12s} {one.ci:>7,} in CI {one.long:>8,} long  {one.about}")
        return 0
    minutes = asked.minutes or (MINUTES if asked.long else CI_MINUTES)
    deadline = time.monotonic() + minutes * 60
    failed = []
    for one in chosen:
        count = asked.count or (one.long if asked.long else one.ci)
        run = Run(count, deadline, one.name)
        print(f"{one.name}: {one.about}", flush=True)
        try:
            figures = one.run(run)
        except UnableError as why:
            print(f"{one.name}: skipped, {why}")
            continue
        except Exception:  # noqa: BLE001 - the edge: the others are still worth their time
            traceback.print_exc()
            figures = "FAILED"
            failed.append(one.name)
        short = "" if run.done >= count or figures == "FAILED" else f" (of {count:,}: time is over)"
        took_s = time.monotonic() - run.began
        print(f"{one.name}: {run.done:,} rounds{short}, {figures}, {took_s:.0f} s", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
