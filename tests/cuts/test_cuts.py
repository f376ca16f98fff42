"""Each HTTP call of the Stripe adapter is cut: before, within and after its answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cuts.flows import FLOWS, Flow, all_cases
from tests.cuts.run import CutRun, run_cases
from tests.support.platform import fresh_database


@pytest.fixture(scope="module")
def cut_run(
    request: pytest.FixtureRequest, admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CutRun]:
    """One case in 13; thorough: all."""
    cases = list(all_cases())[:: 1 if request.config.getoption("--thorough") else 13]
    with fresh_database(admin_url, tmp_path_factory.mktemp("cuts")) as databases:
        yield run_cases(databases, cases)


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_a_cut_call_moves_no_money_twice(cut_run: CutRun, flow: Flow) -> None:
    """Whichever call is cut, and wherever: the order or the payout ends, money is moved once, and
    one that has failed has moved none, except for an unapplied charge that is listed.
    """
    problems = {
        str(result.case): result.problems
        for result in cut_run.results.values()
        if result.case.flow == flow and result.problems
    }
    assert problems == {}


def test_the_sums_at_the_provider_are_those_of_the_ledger(cut_run: CutRun) -> None:
    """After all cuts the ledger has what the look-alike's balance transactions sum up to, no money
    is left on a connected account, and `tallystick verify` passes.
    """
    assert cut_run.totals.charged > 0
    assert cut_run.totals.problems == []
    assert cut_run.report.passed, cut_run.report.as_text()
