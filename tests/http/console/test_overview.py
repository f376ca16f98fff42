"""The overview: its figures, its chart, and how it looks while a part is missing."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tallystick.reconciliation.v1.reconciliation_service_pb2 import GetClearingReportRequest
from tallystick_server.http.console.calls import PublicCalls
from tallystick_server.http.console.charts import Bar, Series, bar_chart
from tallystick_server.http.console.pages.overview import payment_figures
from tallystick_server.http.console.rendering import format_duration
from tests.support.callers import token_of
from tests.support.console import Person, Work, serve_pages, unreachable
from tests.support.platform import ServedPlatform, eventually

START = datetime(2026, 11, 30, 12, tzinfo=UTC)


def payment(state: str, seconds: float | None = None) -> dict[str, Any]:
    """A payment that was done after this time, if at all."""
    done = None if seconds is None else START + timedelta(seconds=seconds)
    return {"payment_state": state, "create_time": START, "done_time": done}


def test_the_acceptance_rate_counts_what_has_ended() -> None:
    """Open payments are neither accepted nor rejected; a partial payment is not accepted."""
    payments = [
        *(payment("PAID", seconds) for seconds in range(1, 7)),
        payment("FAILED"),
        payment("PARTIALLY_PAID"),
        payment("OPEN"),
        payment("OPEN"),
    ]
    figures = payment_figures(payments)
    assert (figures.count, figures.open_count, figures.acceptance_percent) == (10, 2, 75.0)
    assert figures.median_time == timedelta(seconds=3)
    assert figures.slow_time == timedelta(seconds=6)


def test_without_payments_there_are_no_figures() -> None:
    """None of them is 0 by mistake."""
    for payments in ([], [payment("OPEN")]):
        figures = payment_figures(payments)
        assert figures.acceptance_percent is None
        assert figures.median_time is None


def test_the_bars_of_a_chart_have_the_size_of_their_values() -> None:
    """Segments are stacked without a gap, inside the drawing, in proportion to their values."""
    series = [Series("a", "good"), Series("b", "bad")]
    chart = bar_chart("t", series, [Bar("0", [3, 1]), Bar("1", [0, 0]), Bar("2", [0, 5])])
    assert [line.text for line in chart.grid] == ["5", "0"]
    lower, upper, single = chart.segments
    assert lower.height == 3 * upper.height
    assert upper.y + upper.height == pytest.approx(lower.y)
    assert lower.y + lower.height == pytest.approx(chart.height)
    assert (single.y, single.height) == (0.0, chart.height)
    assert lower.x + lower.width < single.x
    assert bar_chart("t", series, [Bar("0", [0, 0])]).is_empty


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0404, "40 ms"),
        (3.21, "3.2 s"),
        (60, "1 min"),
        (3 * 3600 + 125, "3 h 2 min"),
        (49 * 3600, "2 d 1 h"),
    ],
)
def test_a_duration_is_shown_in_its_largest_units(seconds: float, text: str) -> None:
    """A person sees at once whether something waits for seconds or days."""
    assert format_duration(timedelta(seconds=seconds)) == text


def test_the_overview_shows_what_waits(alice: Person, work: Work) -> None:
    """Each queue with its link, the alerts, the payments of the day and the money at providers."""
    assert eventually(lambda: "Alerts of payment" in alice.get("/console").text)
    page = alice.get("/console").text
    for path in ("approvals", "unapplied-charges", "breaks?class=FINANCE", "dead-letters"):
        assert f'href="/console/{path}"' in page
    assert "Acceptance rate" in page
    assert work.account in page
    assert '<svg class="chart"' in page


def test_money_at_providers_is_what_the_clearing_report_has(
    platform: ServedPlatform, work: Work, alice: Person
) -> None:
    """What a provider owes is above zero, although the ledger has it as a debit."""
    with platform.client(token_of("alice")) as client:
        request = GetClearingReportRequest(account=work.account)
        (account,) = client.reconciliation.GetClearingReport(request).accounts
    match = re.search(
        rf'>{work.account}</a></th><td class="right">([^<]+)</td>', alice.get("/console").text
    )
    assert match is not None
    assert match[1] == account.ledger_balance
    assert not match[1].startswith("-")


def test_a_part_that_a_person_may_not_see_has_its_error(
    sign_in: Callable[[str], Person], work: Work
) -> None:
    """A team sees its payments; each other part has the error of the platform."""
    response = sign_in("shop").get("/console")
    assert response.status_code == 200
    assert "Acceptance rate" in response.text
    assert "PERMISSION_DENIED, from ledger.ListAccounts" in response.text


def test_pages_show_which_service_does_not_answer() -> None:
    """While a service is down, the overview shows the rest; a page about one thing is 503."""
    with serve_pages(lambda: PublicCalls(*unreachable())) as browser:
        overview = browser.get("/console")
        assert overview.status_code == 200
        assert overview.text.count("The service does not answer") > 10
        payment_page = browser.get("/console/payments/p")
        assert payment_page.status_code == 503
        assert "DEPENDENCY_UNAVAILABLE, from payment.GetPayment" in payment_page.text
        search = browser.get("/console/search?q=x").text
        assert "A part could not be searched" in search
