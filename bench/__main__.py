"""Measures enginegate, side by side with what it is to be compared with.

`python -m bench` runs everything; names choose some. Figures of one run on one machine
may be compared with each other, never with those of another machine.
"""

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

import msgspec
from rich.console import Console

from bench import plot, table
from bench.context import Context
from bench.results import Report, Result, commit, machine

MODULES = (
    "in_process",
    "limiter",
    "admit_http",
    "stand_ins",
    "open_load",
    "background",
    "cold",
    "journal",
)


def main() -> int:
    benches = {module.NAME: module for module in map(_load, MODULES)}
    options = _parser(benches).parse_args()
    console, said = Console(), Console(stderr=True)
    report = Report(machine=machine(), commit=commit(), smoke=options.smoke, results=[])
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in options.names or benches:
            report.results.append(_run(benches[name], Path(folder), said, smoke=options.smoke))
    table.show(report, console)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    if options.plots:
        plot.draw(report, options.plots)
    return _judge(report, said) if options.guard else 0


def _run(module: ModuleType, folder: Path, said: Console, *, smoke: bool) -> Result:
    """Run one: on a terminal a line that moves, elsewhere one that says what is on."""
    if not said.is_terminal:
        said.print(f"{module.NAME}: {module.TITLE}", soft_wrap=True)
    with said.status(module.NAME) as status:

        def progress(what: str) -> None:
            status.update(f"{module.NAME}: {what}")

        result: Result = module.run(Context(smoke=smoke, directory=folder, progress=progress))
    return result


def _load(name: str) -> ModuleType:
    return import_module(f"bench.{name}")


def _parser(benches: dict[str, ModuleType]) -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<14} {module.TITLE}" for name, module in benches.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=f"benchmarks:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", choices=[*benches, []], metavar="name")
    parser.add_argument("--smoke", action="store_true", help="a short run, to see that all works")
    parser.add_argument(
        "--guard", action="store_true", help="exit 1 if a ratio is beyond its guard"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw plots into a directory")
    return parser


def _judge(report: Report, said: Console) -> int:
    """Tell which ratios are beyond what even a short run on a busy machine must keep."""
    beyond = [goal for one in report.results for goal in one.goals if not goal.guarded]
    for goal in beyond:
        said.print(f"regression: {goal.name} is {goal.value:g}, {goal.must} {goal.guard:g} allowed")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
