"""Every request of the adapter is valid by Stripe's own description of its API: stripe-mock rejects
unknown and missing parameters, and values of a wrong type.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tallystick_core.provider.payment_provider import ChargeRequest, RefundRequest
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_server.providers.stripe import charges as charges_module
from tallystick_server.providers.stripe.charges import StripeCharges
from tallystick_server.providers.stripe.client import RequestBody
from tallystick_server.providers.stripe.payouts import StripePayouts
from tallystick_server.providers.stripe.reports import ReportRequest, StripeReports
from tallystick_server.providers.stripe.webhooks import StripeWebhooks
from tests.providers.stripe import (
    test_charges,
    test_checkout_sessions,
    test_payouts,
    test_verification,
)
from tests.providers.stripe.scripted_stripe import (
    TERMS,
    Answer,
    ScriptedTransport,
    api_of,
    error,
    settings_with,
)
from tests.support.platform import ROOT, eventually, free_address

_BINARY = shutil.which("stripe-mock", path=f"{ROOT}/.data/go/bin") or shutil.which("stripe-mock")
REQUESTS = {
    "payment_intents.create": "POST /v1/payment_intents",
    "payment_intents.retrieve": "GET /v1/payment_intents/pi_1",
    "payment_intents.search": "GET /v1/payment_intents/search",
    "payment_intents.cancel": "POST /v1/payment_intents/pi_1/cancel",
    "checkout.sessions.create": "POST /v1/checkout/sessions",
    "checkout.sessions.retrieve": "GET /v1/checkout/sessions/cs_1",
    "checkout.sessions.list": "GET /v1/checkout/sessions",
    "checkout.sessions.expire": "POST /v1/checkout/sessions/cs_1/expire",
    "refunds.create": "POST /v1/refunds",
    "transfers.create": "POST /v1/transfers",
    "transfers.retrieve": "GET /v1/transfers/tr_1",
    "transfers.list": "GET /v1/transfers",
    "transfers.reversals.create": "POST /v1/transfers/tr_1/reversals",
    "payouts.create": "POST /v1/payouts",
    "payouts.retrieve": "GET /v1/payouts/po_1",
    "payouts.list": "GET /v1/payouts",
    "accounts.retrieve": "GET /v1/accounts/acct_1",
    "events.list": "GET /v1/events",
    "reporting.report_runs.create": "POST /v1/reporting/report_runs",
    "reporting.report_runs.retrieve": "GET /v1/reporting/report_runs/frr_1",
}
"""Each call of Stripe's library that the adapter makes, and its request."""


class CheckingTransport(ScriptedTransport):
    """Sends each request to stripe-mock, and answers as its script says."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.rejected: list[str] = []
        self._url = url

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: RequestBody
    ) -> tuple[int, Mapping[str, str], bytes]:
        path = url.removeprefix("http://stripe.invalid")
        async with httpx.AsyncClient() as client:
            answer = await client.request(
                method, self._url + path, headers=dict(headers), content=body or None
            )
        if answer.status_code != 200:
            self.rejected.append(f"{method} {path}: {answer.status_code} {answer.text}")
        return await super().send(method, url, headers, body)


@pytest.fixture(scope="module")
def stripe_mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a stripe-mock."""
    if _BINARY is None:
        pytest.skip("stripe-mock is not here; .ci/run installs it where Go is")
    address = free_address()
    log = tmp_path_factory.mktemp("stripe-mock") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [_BINARY, "-http-addr", address], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            url = f"http://{address}"
            assert eventually(lambda: _answers(url)), log.read_text()
            yield url
        finally:
            process.kill()
            process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 401
    except httpx.HTTPError:
        return False


def scripted(url: str) -> CheckingTransport:
    """A Stripe whose charge is declined, whose payout was paid and has failed."""
    transport = CheckingTransport(url)
    declined = test_charges.intent(
        "requires_payment_method", last_payment_error=test_charges.DECLINE
    )
    found = {"object": "search_result", "data": [declined], "has_more": False}
    transport.script(test_charges.CREATE, test_charges.card_error())
    transport.script(test_charges.SEARCH, found)
    transport.script(test_charges.READ, declined, test_charges.intent("requires_action"))
    transport.script(test_charges.CANCEL, test_charges.canceled())
    transport.script("POST /v1/refunds", error(500, "api_error"))
    session = test_checkout_sessions.session("open")
    transport.script(test_checkout_sessions.CREATE, session)
    transport.script(test_checkout_sessions.READ, session)
    transport.script(test_checkout_sessions.LIST, test_payouts.page(session))
    transport.script(test_checkout_sessions.EXPIRE, test_checkout_sessions.session("expired"))
    transport.script(test_payouts.TRANSFER, test_payouts.transfer())
    transport.script(test_payouts.READ_TRANSFER, test_payouts.transfer())
    transport.script(test_payouts.LIST_TRANSFERS, test_payouts.page(test_payouts.transfer()))
    replayed = {"Idempotent-Replayed": "true"}
    transport.script(
        test_payouts.PAYOUT, Answer(body=test_payouts.payout("pending"), headers=replayed)
    )
    failed = test_payouts.payout("failed")
    transport.script(
        test_payouts.LIST_PAYOUTS,
        test_payouts.page(failed | {"metadata": {}}, has_more=True),
        test_payouts.page(failed),
    )
    transport.script(test_payouts.READ_PAYOUT, failed)
    transport.script(
        test_payouts.EVENTS,
        test_payouts.page(test_payouts.paid_event("po_0"), has_more=True),
        test_payouts.page(),
    )
    transport.script(test_payouts.REVERSE, error(500, "api_error"))
    transport.script(test_verification.ACCOUNT, test_verification.account())
    transport.script("POST /v1/reporting/report_runs", error(500, "api_error"))
    transport.script("GET /v1/reporting/report_runs/frr_1", error(500, "api_error"))
    return transport


async def make_every_request(transport: CheckingTransport) -> None:
    """Calls every method of the adapter, on ways that need each of its requests."""
    api = api_of(transport)
    charges = StripeCharges(TERMS, api, "SHOP")
    charge = test_charges.REQUEST
    apple_pay = ChargeRequest("k", "o-po2", 50, "JPY", "pm_card_visa", "APPLE_PAY")
    for request in (charge, apple_pay):
        await charges.send(request)
    await charges.look_up(charge)
    for _ in range(2):
        await charges.cancel(test_charges.WITH_REFERENCE)
    await charges.refund(RefundRequest("k", "r1", "pi_1", 500, "EUR"))
    page_request = test_checkout_sessions.REQUEST
    for reference in ("", "cs_1", "pi_1"):
        await charges.look_up(replace(page_request, reference=reference))
    await charges.cancel(replace(page_request, reference="cs_1"))
    payouts = StripePayouts(TERMS, api)
    payout: PayoutRequest = test_payouts.REQUEST
    await payouts.submit([payout])
    for reference in ("", "tr_1"):
        await payouts.look_up(PayoutRequest(payout.key, "p1", 900, "EUR", "acct_1", reference))
    await payouts.verify("acct_1", "EUR")
    await StripeWebhooks("stripe", settings_with(), api).list_events("", datetime.now(UTC))
    reports = StripeReports(api)
    since, until = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
    all_payouts, one_payout = settings_with().payout_report, settings_with().single_payout_report
    await reports.request(ReportRequest("k", all_payouts, ("net",), since, until))
    await reports.request(ReportRequest("k", one_payout, ("net",), payout="po_1"))
    await reports.poll("frr_1")


def test_stripe_mock_rejects_no_request(stripe_mock: str) -> None:
    """Each request that the adapter can make is made, and stripe-mock accepts all of them."""
    transport = scripted(stripe_mock)
    asyncio.run(make_every_request(transport))
    assert not transport.rejected
    sent = {f"{request.method} {request.path}" for request in transport.requests}
    assert sent == set(REQUESTS.values())


def test_every_call_of_the_library_is_listed() -> None:
    """A request that is added to the adapter is added here too."""
    folder = Path(charges_module.__file__).parent
    calls = {
        call
        for path in folder.glob("*.py")
        for call in re.findall(r"\bv1\.([a-z_.]+)_async\b", path.read_text())
    }
    assert calls == set(REQUESTS)


@pytest.mark.parametrize(
    "change",
    [{"amount": "ten"}, {"currency": None}, {"confirm": "perhaps"}, {"unknown": "1"}],
)
def test_stripe_mock_notices_an_invalid_request(stripe_mock: str, change: dict[str, Any]) -> None:
    """Otherwise its silence would say nothing."""
    values = {"amount": "1000", "currency": "eur", **change}
    form = {name: value for name, value in values.items() if value is not None}
    headers = {"Authorization": "Bearer sk_test_scripted"}
    answer = httpx.post(f"{stripe_mock}/v1/payment_intents", data=form, headers=headers)
    assert answer.status_code == 400, answer.text
