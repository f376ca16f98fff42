"""python -m tests.cuts: prints the table of docs/testing/cuts.md. Fails if a case has a problem."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tallystick_core.money import format_amount
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.embedded import EmbeddedPostgres
from tallystick_server.app.database.migrate import migrate
from tallystick_server.app.database.roles import Passwords
from tests.cuts.flows import FLOWS, Flow, all_cases
from tests.cuts.provider import Cut
from tests.cuts.run import CutResult, CutRun, run_cases
from tests.support.options import print_progress

_FOLDER = Path(".data/cuts")


def main() -> None:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir(parents=True)
    embedded = EmbeddedPostgres(_FOLDER / "postgres", fsync=False)
    try:
        url, passwords = embedded.start(), Passwords(_FOLDER / "passwords.json")
        migrate(url, passwords)
        run = run_cases(DatabaseUrls(url, passwords, {}), list(all_cases()))
    finally:
        embedded.stop()
    print("\n".join(_format(run)))
    problems = [*_problems(run)]
    for problem in problems:
        print_progress(problem)
    sys.exit(1 if problems else 0)


def _problems(run: CutRun) -> Iterator[str]:
    for result in run.results.values():
        for problem in result.problems:
            yield f"{result.case}: {problem}: {', '.join(result.calls[:20])}"
    yield from run.totals.problems
    if not run.report.passed:
        yield run.report.as_text()


def _format(run: CutRun) -> Iterator[str]:
    for flow in FLOWS:
        yield from _format_flow(flow, [*run.results.values()])
    totals = run.totals
    yield from ("", f"{datetime.now(UTC):%Y-%m-%d}: {len(run.results)} payments and payouts. Sums:")
    yield from ("", "| sum | at the look-alike | in the ledger |", "|---|---|---|")
    yield f"| charged | {_euros(totals.charged)} | {_euros(totals.ledger_charged)} |"
    yield f"| paid out | {_euros(totals.paid_out)} | {_euros(totals.ledger_paid_out)} |"
    yield f"| left on connected accounts | {_euros(totals.left_on_accounts)} | – |"


def _euros(amount: int) -> str:
    return f"{format_amount(amount, 'EUR')} EUR"


def _format_flow(flow: Flow, results: Sequence[CutResult]) -> Iterator[str]:
    """A table with a row for each call, and a column for each cut."""
    cells = {
        (result.case.index, result.case.cut): _format_end(result)
        for result in results
        if result.case.flow == flow
    }
    cuts = [cut for cut in Cut if any(cut is column for _, column in cells)]
    yield from ("", f"### {flow.name.capitalize()}", "")
    name = "Card" if flow.page else "Payment method or account"
    yield f"{name}: `{flow.token}`. Without a cut: {cells[-1, None]}."
    yield from ("", f"| call | {' | '.join(cuts)} |", "|---" * (len(cuts) + 1) + "|")
    for index, call in enumerate(flow.calls):
        row = [cells.get((index, cut), "–") for cut in cuts]
        yield f"| {index + 1}. `{call}` | {' | '.join(row)} |"


def _format_end(result: CutResult) -> str:
    unapplied = f", {result.unapplied} unapplied" if result.unapplied else ""
    return f"{result.state} {result.moves}{unapplied}"


if __name__ == "__main__":
    main()
