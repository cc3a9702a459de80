"""A report for people: tables on a terminal, plain lines elsewhere."""

from rich.console import Console
from rich.table import Table

from bench.results import Figure, Goal, Report, Result

WHOLE_FROM = 1_000
SIGN = {"at most": "≤", "at least": "≥"}


def show(report: Report, console: Console) -> None:
    console.print(f"{report.machine}, commit {report.commit}")
    for result in report.results:
        console.print(_table(result))
        for reason in result.skipped:
            console.print(f"  not measured: {reason}", style="yellow")


def _table(result: Result) -> Table:
    table = Table(title=result.bench, title_justify="left", box=None, padding=(0, 1))
    table.add_column("what")
    for heading in ("median", "lowest", "highest"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for one in result.figures:
        table.add_row(one.name, *_spread(one), one.unit)
    for goal in result.goals:
        wanted = f"{SIGN[goal.must]} {goal.bound:g}"
        style = "green" if goal.reached else "red"
        table.add_row(goal.name, *_spread(goal), wanted, style=style)
    return table


def _spread(one: Figure | Goal) -> tuple[str, str, str]:
    return _short(one.value), _short(one.low), _short(one.high)


def _short(value: float | None) -> str:
    """Four digits are as many as a measured value has."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= WHOLE_FROM else f"{value:.4g}"
