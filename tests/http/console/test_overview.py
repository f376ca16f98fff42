"""The overview: its figures, its chart, and how it looks while a part is missing."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1.payment_service_pb2 import ListUnappliedChargesRequest
from tallystick.payout.v1.payout_pb2 import PAYOUT_STATE_AWAITING_APPROVAL
from tallystick.payout.v1.payout_service_pb2 import ListPayoutsRequest
from tallystick.reconciliation.v1.reconciliation_service_pb2 import GetClearingReportRequest
from tallystick_server.http.console.calls import PublicCalls
from tallystick_server.http.console.pages.own_payments import payment_figures
from tallystick_server.http.console.rendering import format_duration
from tests.support.callers import token_of
from tests.support.console import Person, Work, dead_letters_of, serve_pages, unreachable
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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00034, "0.3 ms"),
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


def test_the_overview_shows_what_waits(platform: ServedPlatform, alice: Person, work: Work) -> None:
    """Each queue with its number, its oldest item and its link, and the alerts, as recorded."""

    def is_shown() -> bool:
        numbers = waiting_numbers(platform)
        return {queue: count_of(alice, queue) for queue in numbers} == numbers

    assert eventually(is_shown)
    assert waiting_numbers(platform)["Alerts of payment"] != "0"
    page = alice.get("/console").text
    assert re.search(
        r"Alerts of payment</a>.{1,40}\d</p>\s*<p class=\"small\">oldest \d", page, re.DOTALL
    )
    for path in ("approvals", "unapplied-charges", "breaks?class=FINANCE", "dead-letters"):
        assert f'href="/console/{path}"' in page


def waiting_numbers(platform: ServedPlatform) -> dict[str, str]:
    """How much waits, by queue; other tests work in the same queues."""
    with platform.client(token_of("alice")) as client:
        payment_alerts = client.payment.ListAlerts(operator_pb2.ListAlertsRequest()).alerts
        payouts = client.payout.ListPayouts(
            ListPayoutsRequest(payout_state=PAYOUT_STATE_AWAITING_APPROVAL, page_size=200)
        ).payouts
        unapplied = client.payment.ListUnappliedCharges(ListUnappliedChargesRequest())
        numbers = {
            "Alerts of payment": len(payment_alerts),
            "Payouts that await approval": len(payouts),
            "Dead letters of charges": len(dead_letters_of(client)),
            "Unapplied charges": len(unapplied.unapplied_charges),
        }
    return {queue: str(number) for queue, number in numbers.items()}


def count_of(person: Person, queue: str) -> str:
    """The number on the tile of a queue."""
    match = re.search(rf'>{queue}</a>\s*<p class="count">([^<]+)</p>', person.get("/console").text)
    assert match is not None
    return match[1]


def test_more_items_than_a_page_of_a_list_are_counted(
    platform: ServedPlatform, alice: Person, work: Work
) -> None:
    """The number of a queue is the true one, although a list has at most 200 items in a page."""
    number = int(waiting_numbers(platform)["Payouts that await approval"])
    with psycopg.connect(platform.databases.admin, autocommit=True) as admin:
        admin.execute(
            "insert into payout.payout_in_state (payout_id, owner, state, create_time) "
            "select 'many-' || n, '', 'AWAITING_APPROVAL', now() from generate_series(1, 250) n"
        )
        try:
            expected = str(number + 250)
            assert eventually(lambda: count_of(alice, "Payouts that await approval") == expected)
        finally:
            admin.execute("delete from payout.payout_in_state where payout_id like 'many-%'")


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


def test_a_team_sees_the_figures_of_its_own_payments(
    sign_in: Callable[[str], Person], work: Work
) -> None:
    """The figures of the platform are for operators and auditors; the page says so."""
    response = sign_in("shop").get("/console")
    assert response.status_code == 200
    assert "Your payments of the last 24 hours" in response.text
    assert "The figures of the platform are for operators and auditors." in response.text
    assert "Dead letters of charges" not in response.text


def test_who_may_only_pay_out_gets_the_list_of_payouts(
    sign_in: Callable[[str], Person], work: Work
) -> None:
    """Neither the figures of the platform nor payments are for this role."""
    response = sign_in("paymaster").get("/console")
    assert response.headers["Location"] == "/console/payouts"
    assert work.awaiting_payouts[0] in sign_in("paymaster").get("/console/payouts").text


def test_pages_show_which_service_does_not_answer() -> None:
    """While MonitoringService is down, the overview says so, and keeps the links to the queues. A
    page about one thing is 503.
    """
    with serve_pages(lambda: PublicCalls(*unreachable())) as browser:
        overview = browser.get("/console")
        assert overview.status_code == 200
        assert "The metrics could not be read.</strong> The service does not" in overview.text
        assert "The pages of the queues show what waits." in overview.text
        assert overview.text.count("not known") > 10
        metrics = browser.get("/console/metrics")
        assert metrics.status_code == 200
        assert metrics.text.count("The service does not answer") == 9
        for path in ("traces", f"traces/{'a' * 32}"):
            assert browser.get(f"/console/{path}").status_code == 503
        payment_page = browser.get("/console/payments/p")
        assert payment_page.status_code == 503
        assert "DEPENDENCY_UNAVAILABLE, from payment.GetPayment" in payment_page.text
        search = browser.get("/console/search?q=x").text
        assert "A part could not be searched" in search
