"""What other services refuse or do not answer, and dead letters by the thousand."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest

from tallystick import Client, ClientSettings, FailedPreconditionError, InvalidArgumentError, TallystickError, new_order
from tallystick.ledger.v1 import ledger_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick.recovery.v1 import recovery_pb2
from tallystick_core.provider import Trouble
from tallystick_core.refusal import Reason, Refused
from tallystick_server.ledger.handlers import LedgerHandlers
from tallystick_server.process.configuration import Settings, load
from tallystick_server.process.databases import Databases
from tallystick_server.process.failure import Failure
from tallystick_server.process.verify import verify
from tallystick_server.runtime.retry import DEFAULTS, Policies, Policy, Strategy
from tallystick_server.wallet.handlers import WalletHandlers

from .conftest import command_line, eventually, flow_of, serving
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
    """A call with an item of this seller, cause or hold fails with INTERNAL."""
    method: str = ""
    """The only method that poison is for; "": all."""
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
            if fault.poison and fault.method in ("", name) and any(fault.poison in str(item) for item in items(request)):
                raise ValueError("a bug that one item triggers")
            return await original(self, request, call)

        monkeypatch.setattr(WalletHandlers, name, handler)

    broken("BatchCredit", lambda request: request.credits)
    broken("BatchRelease", lambda request: request.releases)
    broken("BatchPlaceHold", lambda request: request.holds)
    broken("BatchCaptureHold", lambda request: request.captures)
    return fault


def settings(**others: Any) -> Settings:
    retry = {("", Trouble.UNSETTLED): SOON, ("", Trouble.CALLER_REJECTED): SOON, ("", Trouble.SETTLING_FAILED): Policy(Strategy.FIXED, 0.1, 0.1, 3)}
    return Settings(retry=retry, sweep_interval=0.1, monitor_interval=0.2, release_delay=3600, **others)


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


def test_a_seller_that_the_wallet_fails_on_refuses_no_other_payment(own_database: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of payments whose sellers' owners are asked for together one makes the wallet fail: it alone is told to come back, the others are accepted."""
    original, all_wait, asked = WalletHandlers.BatchClaimSellers, asyncio.Event(), list[int]()

    async def claim(self: WalletHandlers, request: Any, call: Any) -> Any:
        asked.append(len(request.claims))
        await all_wait.wait()
        if any(item.seller_account == "poison" for item in request.claims):
            raise ValueError("a bug that one item triggers")
        return await original(self, request, call)

    async def open_() -> None:
        all_wait.set()

    monkeypatch.setattr(WalletHandlers, "BatchClaimSellers", claim)

    def pay(client: Client, number: int) -> str:
        order = new_order(f"o-{number}", "ann", "poison" if number == 7 else f"s{number}", "1.00", "EUR")
        try:
            client.create_payment(f"c-{number}", [order], credit_card_info="tok_visa", wait_for=ACCEPTANCE)
        except TallystickError as error:
            return error.reason
        return ""

    with (
        serving(own_database, settings()) as platform,
        Client(platform.address, settings=ClientSettings(attempts=1)) as client,
        ThreadPoolExecutor(20) as pool,
    ):
        asking = flow_of(platform)._sellers.asking
        calls = [pool.submit(pay, client, number) for number in range(20)]
        assert eventually(lambda: asking.waiting + sum(asked) >= 20)
        platform.run(open_)
        assert [call.result(60) for call in calls] == ["DEPENDENCY_UNAVAILABLE" if number == 7 else "" for number in range(20)]


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


def pay_out_all(client: Client, payouts: Sequence[str], token: str = "") -> None:
    """A payout of each id, to a seller `s{n}` who has sold before, all at once; `token`: of their destinations' bank accounts."""
    pay_all(client, "sale", [f"s{number}" for number in range(len(payouts))])
    for number in range(len(payouts)):
        destination(client, f"s{number}", f"{token}:{number}" if token else "")

    def one(number: int) -> None:
        request = payout_service_pb2.CreatePayoutRequest(payout_id=payouts[number], seller_account=f"s{number}", amount="1.00", currency="EUR")
        assert eventually(lambda: accepted(request), 30)

    def accepted(request: payout_service_pb2.CreatePayoutRequest) -> bool:
        try:
            client.payout.CreatePayout(request)
        except FailedPreconditionError as error:  # the sale is not in the wallet yet
            assert error.reason == "INSUFFICIENT_FUNDS"
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(one, range(len(payouts))))


def test_a_payout_that_the_wallet_fails_on_delays_no_other(own_database: Databases, wallet_fault: WalletFault) -> None:
    """Of payouts that settle together the wallet fails on the capture of one: the others settle, that one is a dead letter with its money held, and
    settles once when an operator has it tried again."""
    wallet_fault.poison, wallet_fault.method = "p-poison", "BatchCaptureHold"
    with serving(own_database, replace(settings(), release_delay=0)) as platform, platform.client() as client:
        pay_out_all(client, [*(f"p-{number}" for number in range(9)), "p-poison"])
        settled_payouts = "select count(*) from payout where state = 'PAID' and settled"
        assert eventually(lambda: rows(own_database, "payout", settled_payouts)[0][0] == 9, 30)
        letters = "select subject, cause, tries from dead_letter"
        assert eventually(lambda: rows(own_database, "payout", letters) == [("payouts/p-poison", "SETTLING_FAILED", 3)], 30)
        assert rows(own_database, "wallet", "select count(*) from hold where state = 'OPEN'") == [(1,)]
        wallet_fault.poison = ""
        many = payout_service_pb2.RetryDeadLettersRequest(filter=recovery_pb2.DeadLetterFilter(cause="SETTLING_FAILED"), reason="mended")
        assert client.payout.RetryDeadLetters(many).retried == 1
        assert eventually(lambda: rows(own_database, "payout", settled_payouts)[0][0] == 10, 30)
        assert rows(own_database, "wallet", "select count(*) from wallet_entry where kind = 'HOLD_CAPTURED'") == [(10,)]
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


def set_aside(client: Client, prefix: str, count: int, token: str = "tok_rejected") -> None:
    """So many dead letters of one cause."""

    def one(number: int) -> None:
        order = new_order(f"o-{prefix}-{number}", "ann", "seller", "1.00", "EUR")
        client.create_payment(f"c-{prefix}-{number}", [order], credit_card_info=token, wait_for=ACCEPTANCE)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(one, range(count)))


def open_letters(client: Client, **criteria: Any) -> list[recovery_pb2.DeadLetter]:
    request = payment_service_pb2.ListDeadLettersRequest(
        state=recovery_pb2.DEAD_LETTER_STATE_OPEN, filter=recovery_pb2.DeadLetterFilter(**criteria), page_size=200
    )
    return list(client.pages(client.payment.ListDeadLetters, request, "dead_letters"))


def retry_many(client: Client, reason: str = "mended", **values: Any) -> payment_service_pb2.RetryDeadLettersResponse:
    request = payment_service_pb2.RetryDeadLettersRequest(reason=reason, **values)
    return client.payment.RetryDeadLetters(request)


def test_dead_letters_are_retried_in_bulk_by_filter(own_database: Databases) -> None:
    """A dry run counts and names them and changes nothing; then those of the filter are tried again, with operator, reason and event; the rest stay."""
    quick = Settings(retry={("", Trouble.UNRESOLVED): Policy(Strategy.CANCEL)}, sweep_interval=60)
    with serving(own_database, quick) as platform, platform.client() as client:
        set_aside(client, "a", 12)
        assert eventually(lambda: len(open_letters(client)) == 12)
        wanted = recovery_pb2.DeadLetterFilter(cause="REJECTED", provider="sandbox")
        found = retry_many(client, filter=wanted, dry_run=True)
        assert (found.matched, len(found.sample), found.next_page_token) == (12, 12, "")
        assert [(one.cause, one.provider, one.count) for one in found.counts] == [("REJECTED", "sandbox", 12)]
        assert len(open_letters(client, cause="REJECTED")) == 12
        assert retry_many(client, filter=recovery_pb2.DeadLetterFilter(cause="UNRESOLVED")).matched == 0
        assert open_letters(client, cause="UNRESOLVED") == []
        middle = sorted(open_letters(client), key=lambda letter: letter.create_time.ToNanoseconds())[6].create_time
        assert len(open_letters(client, from_time=middle)) + len(open_letters(client, until_time=middle)) == 12
        early = retry_many(client, filter=recovery_pb2.DeadLetterFilter(until_time=middle))
        late = retry_many(client, filter=recovery_pb2.DeadLetterFilter(from_time=middle))
        assert (early.retried + late.retried, early.skipped[:], late.skipped[:]) == (12, [], [])
        assert retry_many(client, all=True).matched == 0, "a repeat finds nothing to do"
        ends = "select state, operator <> '', reason, count(*) from dead_letter group by 1, 2, 3"
        assert rows(own_database, "payment", ends) == [("RETRIED", True, "mended", 12)]
        assert rows(own_database, "payment", "select count(*) from due where next_attempt_time is not null") == [(12,)]
        ended = "select count(*) from event where aggregate_id like 'deadLetters/%%' and aggregate_version = 2"
        assert eventually(lambda: rows(own_database, "event", ended) == [(12,)])
    assert verify(own_database).passed


def test_dead_letters_are_closed_in_bulk_as_one_by_one(own_database: Databases) -> None:
    """Closing many asks each provider as closing one does: what it knows nothing of fails, what it knows is applied instead, what waits for the wallet is
    skipped with the reason."""
    with serving(own_database, settings()) as platform, platform.client() as client:
        set_aside(client, "a", 25)
        assert eventually(lambda: len(open_letters(client)) == 25, 30)
        request = payment_service_pb2.CloseDeadLettersRequest(all=True, reason="never came", evidence="their support says so")
        dry = payment_service_pb2.CloseDeadLettersRequest(all=True, reason="never came", evidence="x", dry_run=True)
        assert (client.payment.CloseDeadLetters(dry).matched, len(client.payment.CloseDeadLetters(dry).sample)) == (25, 20)
        assert len(open_letters(client)) == 25
        first = client.payment.CloseDeadLetters(request)
        assert (first.matched, first.closed, first.skipped[:]) == (20, 20, [])
        request.page_token = first.next_page_token
        second = client.payment.CloseDeadLetters(request)
        assert (second.matched, second.closed, second.next_page_token) == (5, 5, "")
        ends = "select state, reason, evidence, count(*) from dead_letter group by 1, 2, 3"
        assert rows(own_database, "payment", ends) == [("CLOSED", "never came", "their support says so", 25)]
    assert verify(own_database).passed


def test_closing_in_bulk_skips_what_was_charged(own_database: Databases, wallet_fault: WalletFault) -> None:
    """A charge that was made and cannot be settled is never closed: it is skipped with the refusal that closing it alone gets."""
    wallet_fault.poison = "poison"
    with serving(own_database, settings()) as platform, platform.client() as client:
        pay_all(client, "a", ["poison", "s1"])
        assert eventually(lambda: [letter.cause for letter in open_letters(client)] == ["SETTLING_FAILED"])
        answer = client.payment.CloseDeadLetters(payment_service_pb2.CloseDeadLettersRequest(all=True, reason="no", evidence="none"))
        assert (answer.matched, answer.closed, answer.resolved) == (1, 0, 0)
        assert [(one.cause, one.error_reason) for one in answer.skipped] == [("SETTLING_FAILED", "STATE_FORBIDS")]
        assert len(open_letters(client)) == 1


def open_payout_letters(client: Client, **criteria: Any) -> list[recovery_pb2.DeadLetter]:
    request = payout_service_pb2.ListDeadLettersRequest(
        state=recovery_pb2.DEAD_LETTER_STATE_OPEN, filter=recovery_pb2.DeadLetterFilter(**criteria), page_size=200
    )
    return list(client.pages(client.payout.ListDeadLetters, request, "dead_letters"))


def test_dead_letters_of_payouts_are_retried_and_closed_in_bulk(own_database: Databases) -> None:
    """As of charges: a dry run counts and changes nothing, a filter leaves the others alone, retried ones that are rejected again are new dead letters,
    and closing goes page by page, gives the money back, and finds nothing when repeated."""
    payouts = [f"p-{number:02}" for number in range(25)]
    with serving(own_database, replace(settings(), release_delay=0)) as platform, platform.client() as client:
        pay_out_all(client, payouts, "ba_rejected")
        assert eventually(lambda: len(open_payout_letters(client)) == 25, 60)
        retry = payout_service_pb2.RetryDeadLettersRequest(reason="mended", dry_run=True)
        retry.filter.CopyFrom(recovery_pb2.DeadLetterFilter(cause="REJECTED", provider="sandbox"))
        dry = client.payout.RetryDeadLetters(retry)
        assert (dry.matched, dry.retried, len(dry.sample), dry.next_page_token) == (25, 0, 20, "")
        assert [(one.cause, one.provider, one.count) for one in dry.counts] == [("REJECTED", "sandbox", 25)]
        other = payout_service_pb2.RetryDeadLettersRequest(filter=recovery_pb2.DeadLetterFilter(cause="UNRESOLVED"), reason="mended")
        assert client.payout.RetryDeadLetters(other).matched == 0
        assert rows(own_database, "payout", "select count(*) from dead_letter where state <> 'OPEN'") == [(0,)]
        middle = sorted(open_payout_letters(client), key=lambda letter: letter.create_time.ToNanoseconds())[12].create_time
        before = len(open_payout_letters(client, until_time=middle))
        early = payout_service_pb2.RetryDeadLettersRequest(filter=recovery_pb2.DeadLetterFilter(until_time=middle), reason="mended")
        answer = client.payout.RetryDeadLetters(early)
        assert (answer.matched, answer.retried, answer.skipped[:]) == (before, before, [])
        ends = "select state, operator <> '', reason, count(*) from dead_letter where state <> 'OPEN' group by 1, 2, 3"
        assert rows(own_database, "payout", ends) == [("RETRIED", True, "mended", before)]
        assert eventually(lambda: len(open_payout_letters(client)) == 25, 60), "those that were tried again are rejected again"
        close = payout_service_pb2.CloseDeadLettersRequest(all=True, reason="never came", evidence="their support says so", dry_run=True)
        assert client.payout.CloseDeadLetters(close).matched == 25
        assert len(open_payout_letters(client)) == 25
        close.dry_run = False
        first = client.payout.CloseDeadLetters(close)
        assert (first.matched, first.closed, first.skipped[:]) == (20, 20, [])
        close.page_token = first.next_page_token
        second = client.payout.CloseDeadLetters(close)
        assert (second.matched, second.closed, second.next_page_token) == (5, 5, "")
        close.page_token = ""
        assert client.payout.CloseDeadLetters(close).matched == 0
        failed = "select count(*) from payout where state = 'FAILED' and failure_reason = 'CLOSED_BY_OPERATOR' and settled"
        assert eventually(lambda: rows(own_database, "payout", failed) == [(25,)], 30)
        assert rows(own_database, "wallet", "select sum(balance), sum(held) from wallet") == [(2500, 0)]
    assert verify(own_database).passed


def test_closing_payouts_in_bulk_skips_what_was_paid(own_database: Databases, wallet_fault: WalletFault) -> None:
    """A payout that was paid and cannot be settled is never closed: it is skipped with the refusal that closing it alone gets."""
    wallet_fault.poison, wallet_fault.method = "p-poison", "BatchCaptureHold"
    with serving(own_database, replace(settings(), release_delay=0)) as platform, platform.client() as client:
        pay_out_all(client, ["p-0", "p-poison"])
        assert eventually(lambda: [letter.cause for letter in open_payout_letters(client)] == ["SETTLING_FAILED"], 30)
        answer = client.payout.CloseDeadLetters(payout_service_pb2.CloseDeadLettersRequest(all=True, reason="no", evidence="none"))
        assert (answer.matched, answer.closed, answer.resolved) == (1, 0, 0)
        assert [(one.cause, one.error_reason) for one in answer.skipped] == [("SETTLING_FAILED", "STATE_FORBIDS")]
        assert len(open_payout_letters(client)) == 1


def test_twelve_thousand_dead_letters_are_retried_within_a_minute(own_database: Databases) -> None:
    """Each call does a bounded part, and what becomes a dead letter after the first call is left alone."""
    with serving(own_database, Settings(sweep_interval=600)) as platform, platform.client() as client:
        set_aside(client, "a", 1)
        assert eventually(lambda: len(open_letters(client)) == 1)
        with psycopg.connect(own_database.admin, autocommit=True) as admin:
            admin.execute("set session_replication_role = replica")  # rows that no payment is behind; only their number matters
            admin.execute("set search_path = payment")
            admin.execute(
                "insert into dead_letter (dead_letter_id, subject, number, cause, detail, tries, state, operator, reason, evidence, create_time, provider)"
                " select 'charges-o-x' || n || '-1', 'charges/o-x' || n, 1, 'UNRESOLVED', '', 1, 'OPEN', '', '', '', clock(), 'sandbox' from generate_series(1, 12000) n"
            )
        started, token, retried, calls = time.monotonic(), "", 0, 0
        while token or not calls:
            answer = retry_many(client, filter=recovery_pb2.DeadLetterFilter(cause="UNRESOLVED"), page_token=token)
            token, retried, calls = answer.next_page_token, retried + answer.retried, calls + 1
        assert (retried, calls) == (12_000, 24)
        assert time.monotonic() - started < 60
        assert [letter.cause for letter in open_letters(client)] == ["REJECTED"]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "filter"),
        ({"filter": {"cause": "BAD_LUCK"}}, "filter.cause"),
        ({"filter": {"provider": "no provider"}}, "filter.provider"),
        ({"filter": {"cause": "REJECTED"}, "all": True}, "all"),
        ({"filter": {"from_time": {"seconds": 2}, "until_time": {"seconds": 1}}}, "filter.until_time"),
        ({"filter": {"from_time": {"seconds": -1 << 40}}}, "filter.from_time"),
        ({"all": True, "reason": ""}, "reason"),
        ({"all": True, "page_token": "x"}, "page_token"),
    ],
)
def test_bulk_calls_name_the_field_that_is_wrong(client: Client, values: dict[str, Any], field: str) -> None:
    """A filter without a criterion, of an unknown cause or of no time is refused by name, and nothing is changed."""
    with pytest.raises(InvalidArgumentError) as error:
        client.payment.RetryDeadLetters(payment_service_pb2.RetryDeadLettersRequest(**{"reason": "mended", **values}))
    assert [violation.field for violation in error.value.field_violations] == [field]


def test_the_command_line_works_through_many(own_database: Databases) -> None:
    """A dry run, then the work page by page with progress, and a report as text or JSON; an id and a filter at once are refused."""
    with serving(own_database, settings()) as platform, platform.client() as client:

        def command(*arguments: str) -> tuple[int, str, str]:
            done = command_line(*arguments, "--address", platform.address)
            return done.returncode, done.stdout, done.stderr

        set_aside(client, "a", 23)
        assert eventually(lambda: len(open_letters(client)) == 23, 30)
        code, out, _ = command("dead-letters", "close", "--cause", "REJECTED", "--reason", "r", "--evidence", "e", "--dry-run")
        assert (code, out.splitlines()[:2]) == (0, ["23 matched; nothing was changed", "  23 REJECTED of sandbox"])
        code, out, progress = command("dead-letters", "close", "--from", "2026-01-01T00:00:00Z", "--reason", "r", "--evidence", "e", "--json")
        report = json.loads(out)
        assert (code, report["matched"], report["closed"], report["skipped"]) == (0, 23, 23, [])
        assert progress.splitlines() == ["20 of 23: 20 closed, 0 resolved, 0 skipped", "23 of 23: 23 closed, 0 resolved, 0 skipped"]
        code, _, wrong = command("dead-letters", "retry", "o-x-1", "--all", "--reason", "r")
        assert (code != 0, "either a dead letter's id, or a filter" in wrong) == (True, True)
        assert open_letters(client) == []
