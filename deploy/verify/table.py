"""The report: overlay by check, then each finding."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy.verify.check import CHECKS, Verdict
from deploy.verify.crd_schema import MISSING


def print_report(verdicts: Sequence[Verdict], console: Console) -> None:
    """The table, the findings, and what could not be asked."""
    console.print(_table(verdicts))
    for verdict in verdicts:
        for each in verdict.findings:
            console.print(f"[red]{escape(str(each))}[/red]", soft_wrap=True)
    skipped = sorted({name for verdict in verdicts for name in verdict.skipped if not _failed(verdict)})
    if skipped:
        console.print(f"skipped ({MISSING}): {', '.join(skipped)}")
    unchecked = sorted({kind for verdict in verdicts for kind in verdict.unchecked})
    if unchecked:
        console.print(f"no definition is stored of {', '.join(unchecked)}: their fields were not checked")


def _table(verdicts: Sequence[Verdict]) -> Table:
    names = ["render", *(each.name for each in CHECKS)]
    table = Table("overlay", *names)
    for verdict in verdicts:
        table.add_row(verdict.overlay, *(_cell(verdict, name) for name in names))
    return table


def _cell(verdict: Verdict, check: str) -> str:
    count = verdict.count(check)
    if count:
        return f"[red]{count}[/red]"
    return "-" if check in verdict.skipped else "[green]✓[/green]"


def _failed(verdict: Verdict) -> bool:
    return bool(verdict.count("render"))
