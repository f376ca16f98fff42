"""What other services refuse or do not answer, and dead letters by the thousand."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest

from tallystick import Client, new_order
from tallystick.ledger.v1 import ledger_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick_core.provider import Trouble
from tallystick_core.refusal import Reason, Refused
from tallystick_server.ledger.handlers import LedgerHandlers
from tallystick_server.process.configuration import Settings, load
from tallystick_server.process.databases import Databases
from tallystick_server.process.failure import Failure
from tallystick_server.process.verify import verify
from tallystick_server.runtime.retry import DEFAULTS, Policies, Policy, Strategy
from tallystick_server.wallet.handlers import WalletHandlers

from .conftest import eventually, serving
from .test_payout import destination

ACCEPTANCE = payment_service_pb2.WAIT_FOR_ACCEPTANCE
SOON = Policy(Strategy.FIXED, 0.1, 0.1, None)


def rows(databases: Databases, service: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(databases.reader(service).replace("+psycopg", "")) as connection:
        return connection.execute(query, values).fetchall()


@dataclass
class WalletFault:
    """What a wallet does to a call before it does its work; a fault that a bug of its own would be."""

    poison: str = ""
    """A call with an item of this seller, or cause, fails with INTERNAL."""
    error: Exception | None = None
    """What every call fails with."""
    calls: list[int] = field(default_factory=list)
    """The number of items of each call."""


@pytest.fixture
def wallet_fault(monkeypatch: pytest.MonkeyPatch) -> WalletFault:
    """Faults in the wallet's own handlers: the peers are real."""
    fault = WalletFault()

    def broken(name: str, items: Callable[[Any], Any]) -> None:
        original = getattr(WalletHandlers, name)

        async def handler(self: WalletHandlers, request: Any, call: Any) -> Any:
            fault.calls.append(len(items(request)))
            if fault.error is not None:
                raise fault.error
            if fault.poison and any(fault.poison in str(item) for item in items(request)):
                raise ValueError("a bug that one item triggers")
            return await original(self, request, call)

        monkeypatch.setattr(WalletHandlers, name, handler)

    broken("BatchCredit", lambda request: request.credits)
    broken("BatchRelease", lambda request: request.releases)
    broken("BatchPlaceHold", lambda request: request.holds)
    return fault


def settings(**others: Any) -> Settings:
    retry = {("", Trouble.UNSETTLED): SOON, ("", Trouble.CALLER_REJECTED): SOON, ("", Trouble.SETTLING_FAILED): Policy(Strategy.FIXED, 0.1, 0.1, 3)}
    return Settings(retry=retry, sweep_interval=0.05, monitor_interval=0.1, release_delay=3600, **others)


def pay_all(client: Client, prefix: str, sellers: list[str]) -> None:
    """A paid order to each seller, all at once."""

    def one(number: int) -> None:
        order = new_order(f"o-{prefix}-{number}", "ann", sellers[number], "1.00", "EUR")
        client.create_payment(f"c-{prefix}-{number}", [order], credit_card_info="tok_delay:300", wait_for=ACCEPTANCE)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(one, range(len(sellers))))


def settled(databases: Databases) -> int:
    return int(rows(databases, "payment", "select count(*) from payment_order where wallet_updated and ledger_updated")[0][0])


def test_one_poisonous_item_delays_nobody_and_becomes_a_dead_letter(own_database: Databases, wallet_fault: WalletFault) -> None:
    """Of 50 orders that settle together one makes the wallet fail: the other 49 are settled, that one is tried as its policy says, then set aside."""
    wallet_fault.poison = "poison"
    with serving(own_database, settings()) as platform, platform.client() as client:
        pay_all(client, "a", ["poison" if number == 7 else f"s{number}" for number in range(50)])
        assert eventually(lambda: settled(own_database) == 49)
        letters = "select subject, cause, tries, detail from dead_letter"
        assert eventually(lambda: rows(own_database, "payment", letters))
        ((subject, cause, tries, detail),) = rows(own_database, "payment", letters)
        assert (subject, cause, tries) == ("charges/o-o-a-7", "SETTLING_FAILED", 3)
        assert detail.startswith("tallystick.wallet.v1.BatchCredit was refused: INTERNAL")
        wallet_fault.poison = ""
        (letter,) = client.payment.ListDeadLetters(payment_service_pb2.ListDeadLettersRequest()).dead_letters
        client.payment.RetryDeadLetter(payment_service_pb2.RetryDeadLetterRequest(dead_letter_id=letter.dead_letter_id, reason="mended"))
        assert eventually(lambda: settled(own_database) == 50)
    assert verify(own_database).passed


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Refused(Reason.SHUTTING_DOWN, "away"), "ORDER_STUCK"),
        (Refused(Reason.METHOD_UNKNOWN, "an older release"), "CALLER_REJECTED"),
        (Refused(Reason.CREDENTIALS_INVALID, "a wrong token"), "CALLER_REJECTED"),
    ],
)
def test_what_the_platform_owes_to_itself_is_tried_without_end(
    own_database: Databases, wallet_fault: WalletFault, error: Exception, kind: str
) -> None:
    """A wallet that is away, or accepts no call of ours, makes no dead letters, whatever the policy says of tries: orders wait, an alert says so, and
    they settle by themselves once it is back."""
    wallet_fault.error = error
    bounded = {("", Trouble.UNSETTLED): Policy(Strategy.FIXED, 0.05, 0.05, 2), ("", Trouble.CALLER_REJECTED): Policy(Strategy.FIXED, 0.05, 0.05, 2)}
    patient = replace(settings(), retry=bounded, alert_after={"SUCCESS": 0.2})
    with serving(own_database, patient) as platform, platform.client() as client:
        pay_all(client, "a", [f"s{number}" for number in range(20)])
        trouble = "UNSETTLED" if kind == "ORDER_STUCK" else kind
        tried = "select count(*) from due where (tries ->> %s)::int > 3"
        assert eventually(lambda: rows(own_database, "payment", tried, trouble)[0][0] == 20, 60)
        kinds = {alert.kind for alert in client.payment.ListAlerts(payment_service_pb2.ListAlertsRequest(page_size=200)).alerts}
        assert kind in kinds
        assert rows(own_database, "payment", "select count(*) from dead_letter") == [(0,)]
        wallet_fault.error = None
        assert eventually(lambda: settled(own_database) == 20, 30)
        assert eventually(lambda: not client.payment.ListAlerts(payment_service_pb2.ListAlertsRequest()).alerts)


def test_a_wallet_that_fails_on_everything_counts_as_away(own_database: Databases, wallet_fault: WalletFault) -> None:
    """When the wallet fails on each item of a large batch by itself no item is at fault: none burns its tries."""
    wallet_fault.error = ValueError("its database is read-only")
    with serving(own_database, settings()) as platform, platform.client() as client:
        pay_all(client, "a", [f"s{number}" for number in range(30)])
        assert eventually(lambda: rows(own_database, "payment", "select count(*) from due where trouble = 'UNSETTLED'")[0][0] > 0)
        wallet_fault.error = None
        assert eventually(lambda: settled(own_database) == 30 - rows(own_database, "payment", "select count(*) from dead_letter")[0][0], 30)
    assert settled(own_database) >= 22


def test_a_hold_that_the_wallet_fails_on_delays_no_other_payout(own_database: Databases, wallet_fault: WalletFault) -> None:
    """Of payouts that are prepared together one makes the wallet fail: the others are paid, that one is a dead letter in CREATED, and goes on when retried."""
    wallet_fault.poison = "p-poison"
    with serving(own_database, replace(settings(), release_delay=0)) as platform, platform.client() as client:
        sellers = [f"s{number}" for number in range(10)]
        pay_all(client, "a", sellers)
        assert eventually(lambda: settled(own_database) == 10)
        for seller in sellers:
            destination(client, seller)

        def pay_out(number: int) -> None:
            payout_id = "p-poison" if number == 3 else f"p-{number}"
            request = payout_service_pb2.CreatePayoutRequest(payout_id=payout_id, seller_account=f"s{number}", amount="1.00", currency="EUR")
            client.payout.CreatePayout(request)

        with ThreadPoolExecutor(10) as pool:
            list(pool.map(pay_out, range(10)))
        assert eventually(lambda: rows(own_database, "payout", "select count(*) from payout where state = 'PAID' and settled")[0][0] == 9)
        letters = "select subject, cause, tries from dead_letter"
        assert eventually(lambda: rows(own_database, "payout", letters) == [("payouts/p-poison", "SETTLING_FAILED", 3)])
        wallet_fault.poison = ""
        (letter,) = client.payout.ListDeadLetters(payout_service_pb2.ListDeadLettersRequest()).dead_letters
        client.payout.RetryDeadLetter(payout_service_pb2.RetryDeadLetterRequest(dead_letter_id=letter.dead_letter_id, reason="mended"))
        assert eventually(lambda: rows(own_database, "payout", "select count(*) from payout where state = 'PAID' and settled")[0][0] == 10)
    assert verify(own_database).passed


def test_a_release_that_the_wallet_fails_on_delays_no_other(own_database: Databases, wallet_fault: WalletFault) -> None:
    """Of deliveries one makes the wallet fail: the others are released, that one waits longer each time, with an alert, and is released in the end."""
    with serving(own_database, settings()) as platform, platform.client() as client:
        pay_all(client, "a", ["seller"] * 10)
        assert eventually(lambda: settled(own_database) == 10)
        wallet_fault.poison = "o-a-3"
        for number in range(10):
            client.payment.ConfirmDelivery(payment_service_pb2.ConfirmDeliveryRequest(payment_order_id=f"o-a-{number}"))
        waiting = "select payment_order_id, tries >= 2, refused like '%%INTERNAL%%' from to_release"
        assert eventually(lambda: rows(own_database, "payment", waiting) == [("o-a-3", True, True)])
        alerts = client.payment.ListAlerts
        assert eventually(lambda: [alert.kind for alert in alerts(payment_service_pb2.ListAlertsRequest()).alerts] == ["RELEASE_STUCK"])
        wallet_fault.poison = ""
        assert eventually(lambda: not rows(own_database, "payment", waiting), 30)
    assert verify(own_database).passed


def test_an_unapplied_charge_that_the_ledger_fails_on_delays_no_other(own_database: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of unapplied charges one makes the ledger fail: the others are booked, that one is tried again and booked in the end."""
    original, poison = LedgerHandlers.BatchPost, [""]

    async def post(self: LedgerHandlers, request: Any, call: Any) -> Any:
        causes = [posting.cause_id for posting in request.postings if posting.kind == ledger_pb2.TRANSACTION_KIND_UNAPPLIED]
        if causes and poison == [""]:
            poison[0] = causes[0]
        if set(causes) & set(poison):
            raise ValueError("a bug that one posting triggers")
        return await original(self, request, call)

    monkeypatch.setattr(LedgerHandlers, "BatchPost", post)
    with serving(own_database, settings()) as platform, platform.client() as client:
        for number, amount in enumerate(("11.00", "12.00", "13.00")):
            order = new_order(f"o-{number}", "ann", "seller", amount, "EUR")
            client.create_payment(f"c-{number}", [order], credit_card_info="tok_other_amount")
        booked = "select count(*) from unapplied_charge where ledger_updated"
        assert eventually(lambda: rows(own_database, "payment", booked) == [(2,)])
        assert eventually(lambda: rows(own_database, "payment", "select tries >= 2 from unbooked") == [(True,)])
        poison.clear()
        assert eventually(lambda: rows(own_database, "payment", booked) == [(3,)], 30)
        assert rows(own_database, "payment", "select count(*) from unbooked") == [(0,)]
    assert verify(own_database).passed


def test_settings_cannot_bound_what_the_platform_owes_to_itself() -> None:
    """A policy with a bound on tries for `unsettled` is refused by name."""
    with pytest.raises(Failure, match="unsettled 0 tries"):
        load({"TALLYSTICK_RETRY": "unsettled=exponential:1:60:60"})
    assert Policies().of("sandbox", Trouble.UNSETTLED).tries is None
    assert DEFAULTS[Trouble.SETTLING_FAILED].tries == 30
