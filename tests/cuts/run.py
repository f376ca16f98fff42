"""Runs cases on a platform whose provider is the look-alike, and reads what both have recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg

from tallystick import Client, new_order
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_sandbox.stripe.checkout_sessions import BuyerCard
from tallystick_sandbox.stripe.context import StripeRules
from tallystick_sandbox.stripe.sandbox import StripeSandbox
from tallystick_server.app.configuration import Settings, load
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import migration_folders
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.providers.stripe.charges import StripeCharges
from tallystick_server.providers.stripe.client import StripeApi
from tallystick_server.providers.stripe.payouts import StripePayouts
from tallystick_server.providers.stripe.settings import StripeSettings
from tallystick_server.verify.report import Report
from tallystick_server.verify.run import verify
from tallystick_storage.database import Database
from tests.cuts.flows import CLOSE_PAGE, READ_PAGE, Case, Expiry, Page
from tests.cuts.provider import Buyer, CuttingTransport
from tests.support.charges import WAIT_FOR_ACCEPTANCE, timestamp_in
from tests.support.hosted_pages import SHOP, page
from tests.support.payouts import (
    create_destination,
    create_payout,
    create_sale,
    get_payout,
    state_name,
)
from tests.support.platform import eventually, serve_platform
from tests.support.stripe_transport import NamedCharges, NamedPayouts

DEAD_LETTER = "dead letter"
_NAME = "stripe"
_API_KEY = "sk_test_cut_calls"
_PAYMENT_AMOUNT, _PAYOUT_AMOUNT = "10.00", "2.00"
_WAIT_SECONDS = 60.0
_EXPIRE_SECONDS = 25 * 3600.0
"""When a payment expires: after its key. One that never expires and is not found is for an
operator.
"""
_RULES = StripeRules(search_lag_seconds=0.0, debit_seconds=1.0)
_ADVANCES = {Expiry.NOTHING: "0", Expiry.LEASE: "10 minutes", Expiry.KEY: "28 hours"}
"""How far the clocks are advanced so that it has expired."""
_FINAL_STATES = frozenset({"SUCCESS", "FAILED", "PAID", "RETURNED"})
_RETRY = {
    ("", reason): RetryPolicy(RetryStrategy.FIXED, seconds, seconds, max_tries)
    for reason, seconds, max_tries in (
        (RetryReason.NO_ANSWER, 0.1, 2),
        (RetryReason.SERVER_ERROR, 0.1, 2),
        (RetryReason.NOT_SENT, 0.3, 50),
        (RetryReason.PENDING, 0.3, None),
        (RetryReason.POST_COMPLETION_POLL, 0.3, 10),
        (RetryReason.NOT_FOUND, 1.0, None),
        (RetryReason.LOOKUP_INCONCLUSIVE, 1.0, None),
        (RetryReason.OUTCOME_UNKNOWN, 0.3, 3),
    )
}


@dataclass(frozen=True, slots=True)
class CutResult:
    """What became of a case. `moves`: how often the provider took the buyer's money, or paid the
    seller, and did not take it back; `unapplied`: the unapplied charges that are listed.
    """

    case: Case
    state: str
    moves: int
    unapplied: int
    calls: Sequence[str]

    @property
    def problems(self) -> list[str]:
        """What must never be."""
        is_paid, end = self.state in ("SUCCESS", "PAID"), self.case.flow.end
        checks = {
            "it made other calls": not self._made_the_calls,
            f"it is {self.state}": not self._has_ended,
            f"without a cut it is {self.state}": not self.case.cut and self.state != end,
            f"the provider has moved money {self.moves} times": self.moves > 1,
            "paid, and nothing was moved": is_paid and not self.moves,
            f"{self.state}, and money was moved": not is_paid and self.moves != self.unapplied,
        }
        return [problem for problem, is_violated in checks.items() if is_violated]

    @property
    def _made_the_calls(self) -> bool:
        """Whether its calls were those of the flow, up to the one that was cut."""
        count = self.case.index + 1 if self.case.cut else len(self.case.flow.calls)
        return tuple(self.calls[:count]) == self.case.flow.calls[:count]

    @property
    def _has_ended(self) -> bool:
        """A payout whose transfer is not found after the key window is for an operator."""
        may_be_dead = self.case.flow.is_payout and self.case.expiry is Expiry.KEY
        return self.state in _FINAL_STATES or (may_be_dead and self.state == DEAD_LETTER)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums in minor units, by the look-alike's balance transactions and by the ledger."""

    charged: int
    paid_out: int
    left_on_accounts: int
    ledger_charged: int
    ledger_paid_out: int

    @property
    def problems(self) -> list[str]:
        """How the provider and the ledger differ."""
        checks = {
            f"the ledger has {self.ledger_charged} charged, the provider {self.charged}": (
                self.ledger_charged != self.charged
            ),
            f"the ledger has {self.ledger_paid_out} paid out, the provider {self.paid_out}": (
                self.ledger_paid_out != self.paid_out
            ),
            f"{self.left_on_accounts} is left on connected accounts": self.left_on_accounts != 0,
        }
        return [problem for problem, is_violated in checks.items() if is_violated]


@dataclass(frozen=True, slots=True)
class CutRun:
    """All results of one platform."""

    results: Mapping[str, CutResult]
    """By the id of the case."""
    totals: Totals
    report: Report


def run_cases(databases: DatabaseUrls, cases: Sequence[Case]) -> CutRun:
    """Runs all cases at the same time, and waits until each has ended. The database is used for
    nothing else.
    """
    database = Database(databases.service("sandbox"), connections=4)
    transport = CuttingTransport(StripeSandbox(database, _RULES))
    try:
        with (
            serve_platform(databases, _settings(), dependencies=_dependencies(transport)) as served,
            served.client() as client,
        ):
            _run(client, databases, transport, cases)
            results = _read_results(client, databases, transport, cases)
            totals = _read_totals(client, databases)
    finally:
        database.close()
    return CutRun(results, totals, verify(databases))


def _settings() -> Settings:
    settings = load(
        {
            "TALLYSTICK_PROVIDERS__STRIPE__API_KEY": _API_KEY,
            "TALLYSTICK_PROVIDERS__PAYMENT": _NAME,
            "TALLYSTICK_PROVIDERS__PAYOUT": _NAME,
        }
    )
    return settings.replace(
        retry=_RETRY,
        worker__scan_interval=0.2,
        breaker__failure_threshold=1_000_000,
        payment__return_origins={"dev": frozenset({SHOP})},
    )


def _dependencies(transport: CuttingTransport) -> Dependencies:
    settings = StripeSettings(api_key=_API_KEY, url="http://stripe.invalid")
    terms, api = _settings().providers.terms(_NAME), StripeApi(settings, transport)
    return Dependencies(
        providers={_NAME: NamedCharges(StripeCharges(terms, api))},
        payout_providers={_NAME: NamedPayouts(StripePayouts(terms, api))},
    )


def _run(
    client: Client, databases: DatabaseUrls, transport: CuttingTransport, cases: Sequence[Case]
) -> None:
    create_sale(client, "1000.00")  # the provider's balance is less than the sales, by its fees
    for case in cases:
        if case.cut is not None:
            transport.cuts[_operation_id(case)] = (case.index, case.cut)
        if case.flow.page in (Page.PAID, Page.PAID_LATE):
            before = READ_PAGE if case.flow.page is Page.PAID else CLOSE_PAGE
            transport.buyers[_operation_id(case)] = Buyer(BuyerCard(case.flow.token), before)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda case: _create(client, case), cases))
        cancelled = [case for case in cases if case.flow.is_cancelled]
        eventually(lambda: all(transport.calls[_operation_id(case)] for case in cancelled))
        list(pool.map(lambda case: client.payment.CancelPayment(_cancel_request(case)), cancelled))
    for expiry in Expiry:
        if expiry is Expiry.KEY:
            transport.forget_keys()
        _advance_clocks(databases, _ADVANCES[expiry])
        _wait(client, [case for case in cases if case.expiry is expiry])


def _operation_id(case: Case) -> str:
    if case.flow.is_payout:
        return case.id
    return f"{'c' if case.flow.page else 'o'}-{case.id}"


def _cancel_request(case: Case) -> payment_service_pb2.CancelPaymentRequest:
    return payment_service_pb2.CancelPaymentRequest(checkout_id=case.id, reason="cancelled")


def _create(client: Client, case: Case) -> None:
    if case.flow.is_payout:
        seller, separator = case.id, ":" if ":" in case.flow.token else "::"
        create_sale(client, _PAYOUT_AMOUNT, seller)
        create_destination(client, seller, f"{case.flow.token}{separator}{seller}")
        create_payout(client, seller, payout_id=case.id)
        return
    order = new_order(case.id, "buyer-1", "seller-1", _PAYMENT_AMOUNT, "EUR")
    method: dict[str, Any] = (
        {"hosted_page": page()}
        if case.flow.page
        else {
            "credit_card_info": case.flow.token,
            "expire_time": timestamp_in(_EXPIRE_SECONDS),
        }
    )
    client.create_payment(case.id, [order], wait_for=WAIT_FOR_ACCEPTANCE, **method)


def _advance_clocks(databases: DatabaseUrls, interval: str) -> None:
    """Sets the clocks of all schemas to `interval` after the real time."""
    with psycopg.connect(databases.admin, autocommit=True) as connection:
        for schema in migration_folders():
            connection.execute(
                f"create or replace function {schema}.clock() returns timestamptz language sql "
                f"volatile as $$select clock_timestamp() + interval '{interval}'$$"
            )


def _wait(client: Client, cases: Sequence[Case]) -> None:
    open_cases = list(cases)

    def all_have_ended() -> bool:
        dead_letters = _dead_letters(client)
        open_cases[:] = [case for case in open_cases if not _has_ended(client, case, dead_letters)]
        return not open_cases

    eventually(all_have_ended, _WAIT_SECONDS)


def _dead_letters(client: Client) -> set[str]:
    """The ids of the cases that have become a dead letter."""
    request = operator_pb2.ListDeadLettersRequest(page_size=200)
    return {
        dead_letter.resource_name.rpartition("/")[2].removeprefix("o-").removeprefix("c-")
        for list_page in (client.payment.ListDeadLetters, client.payout.ListDeadLetters)
        for dead_letter in client.pages(list_page, request, "dead_letters")
    }


def _has_ended(client: Client, case: Case, dead_letters: set[str]) -> bool:
    state, is_booked = _read_state(client, case)
    is_final = state in _FINAL_STATES and (case.flow.end != "RETURNED" or state != "PAID")
    return case.id in dead_letters or (is_final and is_booked)


def _read_state(client: Client, case: Case) -> tuple[str, bool]:
    """The state of an order or a payout, and whether it is booked."""
    if case.flow.is_payout:
        payout = get_payout(client, case.id).payout
        return state_name(payout), payout.ledger_updated
    payment = client.get_payment(case.id)
    status = payment.payment_orders[0].payment_order_status
    name = payment_pb2.PaymentOrderStatus.Name(status).removeprefix("PAYMENT_ORDER_STATUS_")
    return name, payment.payment_state != payment_pb2.PAYMENT_STATE_OPEN


def _read_results(
    client: Client, databases: DatabaseUrls, transport: CuttingTransport, cases: Sequence[Case]
) -> dict[str, CutResult]:
    dead_letters, moves = _dead_letters(client), _read_moves(databases)
    unapplied = _read_unapplied(client)
    return {
        case.id: CutResult(
            case,
            DEAD_LETTER if case.id in dead_letters else _read_state(client, case)[0],
            moves.count(_operation_id(case)),
            unapplied.count(case.id),
            transport.calls[_operation_id(case)],
        )
        for case in cases
    }


def _read_moves(databases: DatabaseUrls) -> list[str]:
    """The id of the operation of each charge and payout that the look-alike has made."""
    statement = (
        "select coalesce(body->'metadata'->>'charge_id', body->'metadata'->>'payout_id')"
        " from stripe_object where (type = 'payment_intent' and body->>'status' = 'succeeded')"
        " or (type = 'payout' and body->>'status' in ('pending', 'in_transit', 'paid'))"
    )
    with psycopg.connect(databases.reader("sandbox")) as connection:
        return [operation_id for (operation_id,) in connection.execute(statement)]


def _read_unapplied(client: Client) -> list[str]:
    """The checkout of each unapplied charge."""
    request = payment_service_pb2.ListUnappliedChargesRequest(page_size=200)
    charges = client.pages(client.payment.ListUnappliedCharges, request, "unapplied_charges")
    return [charge.checkout_id for charge in charges]


def _read_totals(client: Client, databases: DatabaseUrls) -> Totals:
    statement = """
        select coalesce(sum((body->>'amount')::bigint) filter (where body->>'type' = 'charge'), 0),
            -coalesce(sum((body->>'amount')::bigint) filter (where body->>'type' ~ '^payout'), 0),
            coalesce(sum((body->>'net')::bigint) filter (where account <> 'acct_platform'), 0)
        from stripe_object where type = 'balance_transaction'
    """
    with psycopg.connect(databases.reader("sandbox")) as connection:
        ((charged, paid_out, left_on_accounts),) = connection.execute(statement)
    return Totals(
        int(charged),
        int(paid_out),
        int(left_on_accounts),
        -_ledger_balance(client, f"psp/{_NAME}/clearing"),
        _ledger_balance(client, f"payouts/{_NAME}/clearing"),
    )


def _ledger_balance(client: Client, account: str) -> int:
    """In minor units; 0 if nothing was booked."""
    request = ledger_service_pb2.ListAccountsRequest(prefix=account, currency="EUR")
    accounts = client.ledger.ListAccounts(request).accounts
    return sum(int(Decimal(item.balance) * 100) for item in accounts)
