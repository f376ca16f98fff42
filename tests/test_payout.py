"""Pay-out, through the contract on a real socket, from the wallet to the bank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text

from tallystick import Client, TallystickError, new_order
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick.recovery.v1 import recovery_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.payout import PayoutState
from tallystick_core.provider import Declined, InTransit, NotFound, PayoutFailure, PayoutOutcome, Returned, Submitted, Succeeded, Trouble, Unknown
from tallystick_core.recovery import Step
from tallystick_core.refusal import Reason, Refused
from tallystick_server.payout.payout import Payout, stored_payouts
from tallystick_server.payout.settle import Settle
from tallystick_server.payout.watch import Watch
from tallystick_server.process.configuration import Settings
from tallystick_server.process.databases import Databases
from tallystick_server.process.verify import verify
from tallystick_server.process.wiring import Ports
from tallystick_server.runtime.postpone import Troubled
from tallystick_server.runtime.retry import Policies, Policy, Strategy
from tallystick_storage.due import Again, again_later
from tallystick_storage.payout import payouts as store

from .banks import Bank
from .conftest import QUICK, Platform, eventually, fresh_database, serving, unique

RETRY = {**QUICK, ("", Trouble.WATCHED): Policy(Strategy.FIXED, 0.2, 0.2, 3), ("", Trouble.SERVER_ERROR): Policy(Strategy.FIXED, 0.1, 0.1, 2)}


@pytest.fixture(scope="module")
def bank() -> Bank:
    return Bank()


@pytest.fixture(scope="module")
def paying(admin_url: str, tmp_path_factory: pytest.TempPathFactory, bank: Bank) -> Iterator[Platform]:
    """All services, with a bank that does as it is told, on a database of their own: nobody else asks another bank what became of these payouts."""
    settings = Settings(retry=RETRY, sweep_interval=0.1, monitor_interval=0.2, payout_approve_above={"EUR": 100_000})
    folder, ports = tmp_path_factory.mktemp("paying"), Ports(payout_providers={"sandbox": bank})
    with fresh_database(admin_url, folder) as known, serving(known, settings, ports=ports) as running:
        yield running


@pytest.fixture(scope="module")
def teller(paying: Platform) -> Iterator[Client]:
    with paying.client() as made:
        yield made


def sell(client: Client, amount: str, seller: str = "") -> str:
    """A seller who has sold for an amount in EUR."""
    seller, checkout = seller or unique("s"), unique("c")
    assert client.create_payment(
        checkout, [new_order(f"{checkout}-1", "buyer-1", seller, amount, "EUR")], credit_card_info="tok_visa"
    ).is_payment_done
    return seller


def destination(client: Client, seller: str, token: str = "") -> str:
    """A verified destination of a seller; its token is its id unless one is given."""
    id_ = unique("d")
    client.payout.CreatePayoutDestination(
        pb.CreatePayoutDestinationRequest(payout_destination_id=id_, seller_account=seller, currency="EUR", bank_account_token=token or id_)
    )
    got = pb.GetPayoutDestinationRequest(payout_destination_id=id_)
    assert eventually(lambda: client.payout.GetPayoutDestination(got).payout_destination.state == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED)
    return id_


def pay_out(client: Client, seller: str, amount: str = "", *, timeout: float | None = None, **values: Any) -> payout_pb2.Payout:
    request = pb.CreatePayoutRequest(payout_id=values.pop("payout_id", unique("p")), seller_account=seller, amount=amount, currency="EUR", **values)
    return client.payout.CreatePayout(request, timeout=timeout).payout


def state(payout: payout_pb2.Payout) -> str:
    return payout_pb2.PayoutState.Name(payout.payout_state).removeprefix("PAYOUT_STATE_")


def story(client: Client, payout_id: str) -> pb.GetPayoutResponse:
    return client.payout.GetPayout(pb.GetPayoutRequest(payout_id=payout_id))


def comes_to(client: Client, payout_id: str, wanted: str) -> pb.GetPayoutResponse:
    """The payout's story once it is in a state, and settled if it is at rest."""
    resting = {"PAID", "FAILED", "REJECTED", "CANCELLED", "RETURNED"}

    def there() -> bool:
        payout = story(client, payout_id).payout
        return state(payout) == wanted and (payout.ledger_updated or wanted not in resting)

    eventually(there)
    found = story(client, payout_id)
    assert (state(found.payout), found.payout.ledger_updated) == (wanted, wanted in resting), found
    return found


def wallet(client: Client, seller: str) -> tuple[str, str, str]:
    """What is available, held and owed."""
    found = client.wallet.GetWallet(wallet_service_pb2.GetWalletRequest(seller_account=seller, currency="EUR")).wallet
    return found.available, found.held, found.owed


def balance(client: Client, account: str) -> str:
    return client.ledger.GetAccount(ledger_service_pb2.GetAccountRequest(account=account, currency="EUR")).account.balance


def test_a_payout_is_paid(teller: Client) -> None:
    """The hold is captured, the ledger posted, each move kept: what leaves the wallet is what the bank got and the fee."""
    seller = sell(teller, "50.00")
    to = destination(teller, seller)
    payout = pay_out(teller, seller, "20.00")
    found = comes_to(teller, payout.payout_id, "PAID")
    assert [t.cause for t in found.history] == ["ACCEPTED", "FUNDS_HELD", "SENDING", "PROVIDER_ANSWER", "SETTLED"]
    assert [t.version for t in found.history] == [1, 2, 3, 4, 5]
    assert (found.payout.payout_destination_id, found.payout.net_amount, found.payout.paid_amount) == (to, "20.00", "20.00")
    (attempt,) = found.attempts
    assert (attempt.provider_key, attempt.outcome) == (f"dev-p-{payout.payout_id}-1", payout_pb2.PAYOUT_OUTCOME_SUCCEEDED)
    (transfer,) = found.transfers
    assert (transfer.fit, transfer.amount) == (payout_pb2.TRANSFER_FIT_AS_ASKED, "20.00")
    assert wallet(teller, seller) == ("30.00", "0.00", "0.00")
    assert balance(teller, f"sellers/{seller}") == "30.00"
    hold = teller.wallet.GetHold(wallet_service_pb2.GetHoldRequest(hold_id=f"payouts/{payout.payout_id}")).hold
    assert (hold.state, hold.captured_amount) == (wallet_pb2.HOLD_STATE_CAPTURED, "20.00")


def test_who_held_a_payout_before_it_came_to_rest_is_fenced(paying: Platform, teller: Client) -> None:
    """A payout that is reopened has lease tokens above all that it had before, however often: who held it then can neither move nor postpone it."""
    seller = sell(teller, "50.00")
    destination(teller, seller)
    payout_id = pay_out(teller, seller, "20.00").payout_id
    comes_to(teller, payout_id, "PAID")
    (handlers,) = (service.servicer for service in paying.running._services if service.name == "payout")
    flow, demand = handlers._flow, f"p-{payout_id}"  # type: ignore[attr-defined]
    most = 1_000_000_000
    """More claims than there ever are."""

    def reopened(connection: Connection) -> tuple[list[int], list[dict[str, bool]]]:
        tokens, postponed = [most], []
        with connection.begin_nested() as savepoint:  # rolled back: the payout stays at rest
            for _ in range(3):
                store.reopen(connection, [payout_id])
                claimed = connection.execute(
                    text("update due set lease_token = lease_token + 1 where demand_id = :id returning lease_token"), {"id": demand}
                )
                tokens.append(claimed.scalar_one())
                lost = [Again(demand, token, 1.0, False, 0, False, {}, "", "", "") for token in (1, 2, *tokens[:-1])]
                postponed += [again_later(connection, [one]) for one in lost]
                connection.execute(text("update due set lease_token = lease_token + :most where demand_id = :id"), {"id": demand, "most": most})
                tokens.append(tokens[-1] + most)
                connection.execute(text("delete from due where demand_id = :id"), {"id": demand})
            savepoint.rollback()
        return tokens, postponed

    found: Any = paying.run(flow._database.transact, reopened)
    assert found[0] == sorted(set(found[0]))
    assert not any(found[1])


def reason_of(error: pytest.ExceptionInfo[TallystickError]) -> str:
    return str(error.value.reason)


def test_the_fee_stays_with_the_platform(teller: Client) -> None:
    """What leaves the wallet is the fee and what the bank gets; the ledger says so, and the terms are those of the seller's schedule."""
    seller = sell(teller, "50.00")
    destination(teller, seller)
    manual = payout_pb2.PAYOUT_INTERVAL_MANUAL
    teller.payout.SetPayoutSchedule(
        pb.SetPayoutScheduleRequest(seller_account=seller, currency="EUR", interval=manual, minimum_amount="5.00", fee="0.35", reserve="10.00")
    )
    payout = pay_out(teller, seller)
    assert (payout.amount, payout.fee, payout.net_amount) == ("40.00", "0.35", "39.65")
    found = comes_to(teller, payout.payout_id, "PAID")
    assert found.payout.paid_amount == "39.65"
    assert wallet(teller, seller) == ("10.00", "0.00", "0.00")
    (transaction,) = teller.ledger.ListTransactions(ledger_service_pb2.ListTransactionsRequest(cause_id=payout.payout_id)).transactions
    assert {(entry.account, entry.amount) for entry in transaction.entries} == {
        (f"sellers/{seller}", "40.00"),
        ("payouts/sandbox/clearing", "39.65"),
        ("platform/fees", "0.35"),
    }
    with pytest.raises(TallystickError) as error:
        pay_out(teller, seller, "4.99")
    assert reason_of(error) == "AMOUNT_OUT_OF_RANGE"


def test_the_same_payout_again_is_the_same_payout(teller: Client, bank: Bank) -> None:
    """K1: equal values answer with the payout as it stands, also where the amount was left open; other values and other callers are refused."""
    seller = sell(teller, "9.00")
    destination(teller, seller)
    payout = pay_out(teller, seller)
    comes_to(teller, payout.payout_id, "PAID")
    again = pay_out(teller, seller, payout_id=payout.payout_id)
    assert (again.amount, state(again)) == ("9.00", "PAID")
    assert [demand.payout_id for demand in bank.submitted].count(payout.payout_id) == 1
    with pytest.raises(TallystickError) as error:
        pay_out(teller, seller, "9.00", payout_id=payout.payout_id)
    assert (reason_of(error), error.value.field_violations[0].field) == ("KEY_REUSED", "amount")


@pytest.mark.parametrize(
    ("amount", "with_destination", "reason"),
    [
        ("10.01", True, "INSUFFICIENT_FUNDS"),
        ("1.00", False, "DESTINATION_UNUSABLE"),
        ("0", True, "AMOUNT_OUT_OF_RANGE"),
        ("1.001", True, "AMOUNT_PRECISION"),
    ],
)
def test_a_refused_payout_leaves_nothing(teller: Client, amount: str, with_destination: bool, reason: str) -> None:
    """What cannot be paid is refused by name, is not kept, and its id stays free."""
    seller = sell(teller, "10.00")
    if with_destination:
        destination(teller, seller)
    with pytest.raises(TallystickError) as error:
        pay_out(teller, seller, amount, payout_id=(id_ := unique("p")))
    assert reason_of(error) == reason
    with pytest.raises(TallystickError) as missing:
        story(teller, id_)
    assert reason_of(missing) == "NOT_FOUND"
    assert wallet(teller, seller) == ("10.00", "0.00", "0.00")


def test_a_declined_payout_gives_the_money_back(teller: Client, bank: Bank) -> None:
    """FAILED only on a definite answer, and then the hold is released; an account at fault ends the destination and what was to be paid there."""
    seller = sell(teller, "10.00")
    to = destination(teller, seller)
    bank.script[to].append(Declined(PayoutFailure.DESTINATION_REFUSED, "account_closed"))
    payout = pay_out(teller, seller, "4.00")
    found = comes_to(teller, payout.payout_id, "FAILED")
    assert found.payout.failure_reason == payout_pb2.PAYOUT_FAILURE_REASON_DESTINATION_REFUSED
    assert found.payout.decline_code == "account_closed"
    assert wallet(teller, seller) == ("10.00", "0.00", "0.00")
    got = teller.payout.GetPayoutDestination(pb.GetPayoutDestinationRequest(payout_destination_id=to)).payout_destination
    assert got.state == payout_pb2.PAYOUT_DESTINATION_STATE_UNUSABLE
    with pytest.raises(TallystickError) as error:
        pay_out(teller, seller, "4.00")
    assert reason_of(error) == "DESTINATION_UNUSABLE"


def test_a_payout_goes_through_the_banks(teller: Client, bank: Bank) -> None:
    """SUBMITTED and IN_TRANSIT are honest answers; the provider is asked until it tells the end."""
    seller = sell(teller, "10.00")
    to = destination(teller, seller)
    bank.script[to].extend([Submitted("tr_a"), Submitted("tr_a"), InTransit("tr_a"), Unknown("lost"), Succeeded(unique("tr"), 1000, "EUR")])
    payout = pay_out(teller, seller)
    found = comes_to(teller, payout.payout_id, "PAID")
    states = [payout_pb2.PayoutState.Name(t.to_state).removeprefix("PAYOUT_STATE_") for t in found.history]
    assert states == ["CREATED", "READY", "SUBMITTING", "SUBMITTED", "IN_TRANSIT", "PAID", "PAID"]


def test_a_lost_answer_never_pays_twice(teller: Client, bank: Bank) -> None:
    """An unknown outcome is sent again under the same key, and what was paid under it is found."""
    seller = sell(teller, "10.00")
    to = destination(teller, seller)
    bank.script[to].extend([Unknown("lost"), Unknown("lost")])
    payout = pay_out(teller, seller)
    comes_to(teller, payout.payout_id, "PAID")
    assert {demand.key for demand in bank.submitted if demand.payout_id == payout.payout_id} == {f"dev-p-{payout.payout_id}-1"}


@pytest.mark.parametrize("detail", ["status 500 \0", "\ud800", "\n\x1b[2J"], ids=ascii)
def test_whatever_a_bank_says_of_its_trouble_is_tried_again(teller: Client, bank: Bank, detail: str) -> None:
    """A text that cannot be stored, or shown, spends a try like any other: the payout is paid without waiting for its lease to end."""
    seller = sell(teller, "10.00")
    bank.script[destination(teller, seller)].append(Unknown(detail, Trouble.SERVER_ERROR))
    comes_to(teller, pay_out(teller, seller).payout_id, "PAID")


def test_a_payout_that_the_bank_does_not_know_is_sent_again(teller: Client, bank: Bank) -> None:
    """A bank that fails more often than the policy allows, and then does not know the payout, gets it again under the same key: it is paid once."""
    seller = sell(teller, "10.00")
    to = destination(teller, seller)
    fails = Unknown("500", Trouble.SERVER_ERROR)
    bank.script[to].extend([fails, fails, NotFound(), fails, NotFound()])
    payout = pay_out(teller, seller)
    comes_to(teller, payout.payout_id, "PAID")
    assert [demand.key for demand in bank.submitted if demand.payout_id == payout.payout_id] == [f"dev-p-{payout.payout_id}-1"] * 4
    assert not letters(teller, payout.payout_id)


def test_a_payout_that_comes_back_is_credited_once(teller: Client, bank: Bank) -> None:
    """RETURNED credits what came back, a part too, whenever it is told and however often; the fee is not given back."""
    seller = sell(teller, "10.00")
    to = destination(teller, seller)
    reference = unique("tr")
    back = Returned(reference, 600, "EUR", "account_closed")
    bank.script[to].extend([Succeeded(reference, 1000, "EUR"), back, back, back])
    payout = pay_out(teller, seller)
    found = comes_to(teller, payout.payout_id, "RETURNED")
    assert (found.payout.paid_amount, found.payout.returned_amount, found.payout.decline_code) == ("10.00", "6.00", "account_closed")
    assert wallet(teller, seller) == ("6.00", "0.00", "0.00")
    assert balance(teller, f"sellers/{seller}") == "6.00"


def test_what_was_paid_after_it_failed_is_taken_as_a_fact(teller: Client, bank: Bank) -> None:
    """A payout paid after FAILED stays FAILED; the wallet is debited all the same, what is not available is owed, and an alert is raised."""
    seller = sell(teller, "10.00")
    to = destination(teller, seller)
    reference = unique("tr")
    bank.script[to].append(Declined(PayoutFailure.PROVIDER_DECLINED, "risk"))
    payout_id = unique("p")
    bank.silent.add(payout_id)  # looks without an answer do not count, so all are left when the money turns out to have been paid
    payout = pay_out(teller, seller, payout_id=payout_id)
    comes_to(teller, payout.payout_id, "FAILED")
    second = pay_out(teller, seller, "8.00")
    comes_to(teller, second.payout_id, "PAID")
    bank.script[payout.payout_id].extend([Succeeded(reference, 1000, "EUR")] * 6)
    bank.silent.remove(payout_id)
    assert eventually(lambda: story(teller, payout.payout_id).payout.paid_amount == "10.00")
    found = comes_to(teller, payout.payout_id, "FAILED")
    assert found.transfers[0].fit == payout_pb2.TRANSFER_FIT_LATE
    assert wallet(teller, seller) == ("0.00", "0.00", "8.00")
    assert balance(teller, f"sellers/{seller}") == "-8.00"
    assert eventually(lambda: ("STRAY_TRANSFER", f"payouts/{payout.payout_id}") in alerts(teller), 15)


def alerts(client: Client) -> set[tuple[str, str]]:
    found = client.payout.ListAlerts(pb.ListAlertsRequest(page_size=200)).alerts
    return {(alert.kind, alert.subject) for alert in found}


def test_another_amount_is_a_mismatch(teller: Client, bank: Bank) -> None:
    """A payout that paid another amount is FAILED(PROVIDER_MISMATCH), and what was paid is taken from the seller."""
    seller = sell(teller, "10.00")
    to = destination(teller, seller)
    bank.script[to].append(Succeeded(unique("tr"), 501, "EUR"))
    payout = pay_out(teller, seller, "5.00")
    found = comes_to(teller, payout.payout_id, "FAILED")
    assert found.payout.failure_reason == payout_pb2.PAYOUT_FAILURE_REASON_PROVIDER_MISMATCH
    assert wallet(teller, seller) == ("4.99", "0.00", "0.00")
    assert balance(teller, f"sellers/{seller}") == "4.99"


def test_a_paid_payout_that_is_said_to_have_failed_is_for_a_person(teller: Client, bank: Bank) -> None:
    """Only a return gives a paid payout's money back; that it failed after all changes nothing and raises an alert."""
    seller = sell(teller, "10.00")
    to = destination(teller, seller)
    bank.script[to].extend([Succeeded(unique("tr"), 1000, "EUR"), *[Declined(PayoutFailure.PROVIDER_DECLINED, "late")] * 3])
    payout = pay_out(teller, seller)
    comes_to(teller, payout.payout_id, "PAID")
    assert eventually(lambda: ("PAYOUT_CONTRADICTED", f"payouts/{payout.payout_id}") in alerts(teller), 15)
    comes_to(teller, payout.payout_id, "PAID")
    assert wallet(teller, seller) == ("0.00", "0.00", "0.00")


def test_what_comes_back_in_parts_is_for_a_person(teller: Client, bank: Bank) -> None:
    """After a part has come back the provider is still asked; that more came back under the same reference raises an alert."""
    seller = sell(teller, "10.00")
    to = destination(teller, seller)
    reference = unique("tr")
    bank.script[to].extend([Succeeded(reference, 1000, "EUR"), Returned(reference, 100, "EUR"), *[Returned(reference, 1000, "EUR")] * 3])
    payout = pay_out(teller, seller)
    comes_to(teller, payout.payout_id, "RETURNED")
    assert eventually(lambda: ("PAYOUT_CONTRADICTED", f"payouts/{payout.payout_id}") in alerts(teller), 15)
    assert comes_to(teller, payout.payout_id, "RETURNED").payout.returned_amount == "1.00"
    assert wallet(teller, seller) == ("1.00", "0.00", "0.00")


def test_what_becomes_known_while_it_is_settled_keeps_nobody_waiting(
    teller: Client, paying: Platform, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fact that comes between wallet and flag moves the payout on under its settling, which is done again at once, not when its lease ends."""
    (handlers,) = (service.servicer for service in paying.running._services if service.name == "payout")
    post, payout_id, reference = Settle._post, unique("p"), unique("tr")
    heard: list[object] = []

    async def hear_meanwhile(settle: Settle, facts: Sequence[Any]) -> Any:
        item = next((item for item, _ in facts if item.payout_id == payout_id and item.state is PayoutState.RETURNED), None)
        if item is not None and not heard:
            heard.append(await handlers._flow.record(item, Returned(reference, 1000, "EUR")))  # type: ignore[attr-defined]
        return await post(settle, facts)

    monkeypatch.setattr(Settle, "_post", hear_meanwhile)
    seller = sell(teller, "10.00")
    to = destination(teller, seller)
    bank.script[to].extend([Succeeded(reference, 1000, "EUR"), *[Returned(reference, 100, "EUR")] * 3])
    pay_out(teller, seller, payout_id=payout_id)
    assert comes_to(teller, payout_id, "RETURNED").payout.returned_amount == "1.00"
    assert heard
    assert wallet(teller, seller) == ("1.00", "0.00", "0.00")


@pytest.mark.parametrize(
    ("trouble", "delay"),
    [(Refused(Reason.DEPENDENCY_UNAVAILABLE, "away", retry_after=1.0), 0.0), (Refused(Reason.STATE_FORBIDS, "no"), 600.0), (ValueError(), 600.0)],
    ids=lambda value: type(value).__name__,
)
def test_a_look_that_cannot_be_recorded_is_made_again(
    teller: Client, paying: Platform, bank: Bank, trouble: Exception, delay: float, caplog: pytest.LogCaptureFixture
) -> None:
    """While the database is away a payout is looked at again at once, with no error of its own; what is wrong with its answer keeps no other waiting."""
    (handlers,) = (service.servicer for service in paying.running._services if service.name == "payout")
    flow = handlers._flow  # type: ignore[attr-defined]
    seller = sell(teller, "10.00")
    destination(teller, seller)
    payout = pay_out(teller, seller)
    comes_to(teller, payout.payout_id, "PAID")
    policies = Policies({("", Trouble.WATCHED): Policy(Strategy.FIXED, 600, 600, None)})

    async def record(_item: Payout, _outcome: object) -> object:
        raise trouble

    async def look() -> store.Look:
        rows = await flow._database.read(lambda connection: store.to_do(connection, [payout.payout_id]))
        return await Watch(flow._database, flow.execute, policies, record, record, lambda _: True).look(stored_payouts(rows, {}, "")[0], 3)

    assert paying.run(look) == store.Look(payout.payout_id, delay, 3)
    assert bool([one for one in caplog.records if one.levelname == "ERROR" and payout.payout_id in one.getMessage()]) == (delay > 0)


@pytest.mark.parametrize(
    "answer", [Succeeded("tr", 1000, "eur"), Succeeded("tr", 0, "EUR"), Succeeded("", 1000, "EUR"), Returned("tr", 1000, "")], ids=repr
)
def test_what_is_no_money_is_no_answer(teller: Client, bank: Bank, answer: PayoutOutcome) -> None:
    """An answer in no currency, of no amount or without a reference says nothing: the payout is asked for again under its key."""
    seller = sell(teller, "10.00")
    to = destination(teller, seller)
    bank.script[to].extend([answer] * 2)
    payout = pay_out(teller, seller)
    assert comes_to(teller, payout.payout_id, "PAID").payout.paid_amount == "10.00"
    assert balance(teller, f"sellers/{seller}") == "0.00"


def test_an_answer_about_another_payout_is_set_aside_alone(teller: Client, bank: Bank) -> None:
    """A reference that is another payout's cannot be stored: that payout alone waits for an operator; those beside it are paid. Closed on evidence while
    the provider goes on saying so, it gives the seller the money back; what it still says of that reference is an alert, and moves nothing."""
    sellers = [sell(teller, "10.00") for _ in range(8)]
    places = [destination(teller, seller) for seller in sellers]
    first = pay_out(teller, sellers[0])
    reference = comes_to(teller, first.payout_id, "PAID").payout.provider_reference
    bank.script[places[1]].extend([Succeeded(reference, 1000, "EUR")] * 50)
    with ThreadPoolExecutor(8) as pool:
        payouts = list(pool.map(lambda seller: pay_out(teller, seller, timeout=2), sellers[1:]))
    for payout in payouts[1:]:
        comes_to(teller, payout.payout_id, "PAID")
    assert eventually(lambda: letters(teller, payouts[0].payout_id))
    (letter,) = letters(teller, payouts[0].payout_id)
    assert letter.cause == "MISDIRECTED"
    assert state(story(teller, payouts[0].payout_id).payout) == "SUBMITTING"
    many = pb.CloseDeadLettersRequest(filter=recovery_pb2.DeadLetterFilter(cause="MISDIRECTED"), reason="x", evidence="y")
    assert letter.dead_letter_id in {one.dead_letter_id for one in teller.payout.CloseDeadLetters(many).skipped}
    close = pb.CloseDeadLetterRequest(dead_letter_id=letter.dead_letter_id, reason="its bank has nothing", evidence="ticket 7")
    assert teller.payout.CloseDeadLetter(close).dead_letter.state == recovery_pb2.DEAD_LETTER_STATE_CLOSED
    comes_to(teller, payouts[0].payout_id, "FAILED")
    assert wallet(teller, sellers[1]) == ("10.00", "0.00", "0.00")
    alerts = pb.ListAlertsRequest(page_size=200)
    assert eventually(lambda: [one for one in teller.payout.ListAlerts(alerts).alerts if one.subject == f"payouts/{payouts[0].payout_id}"])
    (report,) = story(teller, payouts[0].payout_id).conflicting_reports
    assert reference in report.report
    assert wallet(teller, sellers[1]) == ("10.00", "0.00", "0.00")
    teller.payout.AcknowledgePayout(pb.AcknowledgePayoutRequest(payout_id=payouts[0].payout_id, report_number=1, reason="seen"))


def letters(client: Client, payout_id: str) -> list[recovery_pb2.DeadLetter]:
    found = client.payout.ListDeadLetters(pb.ListDeadLettersRequest(state=recovery_pb2.DEAD_LETTER_STATE_OPEN, page_size=200)).dead_letters
    return [one for one in found if one.subject == f"payouts/{payout_id}"]


def test_fifty_at_once_one_wins(teller: Client, thorough: bool) -> None:
    """Of fifty concurrent payouts of a wallet's whole balance one is paid, in every round; the others are refused or FAILED, and the wallet is empty, not
    below. Ten rounds, a hundred if thorough."""

    def one(seller: str) -> str:
        try:
            return pay_out(teller, seller, "10.00").payout_id
        except TallystickError as error:
            assert error.reason == "INSUFFICIENT_FUNDS"
            return ""

    with ThreadPoolExecutor(50) as pool:
        for _ in range(100 if thorough else 10):
            seller = sell(teller, "10.00")
            destination(teller, seller)
            ids = [id_ for id_ in pool.map(one, [seller] * 50) if id_]
            ends = [state(teller.wait_for_payout(id_, 30)) for id_ in ids]
            assert ends.count("PAID") == 1
            assert set(ends) <= {"PAID", "FAILED"}
            assert wallet(teller, seller) == ("0.00", "0.00", "0.00")
            assert balance(teller, f"sellers/{seller}") == "0.00"


def test_the_whole_database_verifies(own_database: Databases) -> None:
    """After a return of more than was paid, and a transfer in another currency, every check of `tallystick verify` passes."""
    bank = Bank()
    settings, ports = Settings(retry=RETRY, sweep_interval=0.1), Ports(payout_providers={"sandbox": bank})
    with serving(own_database, settings, ports=ports) as running, running.client() as client:
        seller = sell(client, "10.00")
        to = destination(client, seller)
        reference = unique("tr")
        bank.script[to].extend([Succeeded(reference, 1000, "EUR"), Returned(reference, 1001, "EUR"), Succeeded(unique("tr"), 5, "USD")])
        payout = pay_out(client, seller)
        assert eventually(lambda: len(story(client, payout.payout_id).transfers) == 2)
        assert eventually(lambda: story(client, payout.payout_id).payout.ledger_updated)
    report = verify(own_database)
    assert report.passed, report.as_text()


def test_an_answer_without_the_lease_is_booked_at_once(own_database: Databases) -> None:
    """A payout whose answer is written down while another process holds it is booked as soon as that gives it back, not at its next attempt in ten
    minutes."""
    bank, later = Bank(), {("", Trouble.NO_ANSWER): Policy(Strategy.FIXED, 600, 600, 5)}
    settings, ports = Settings(retry=later, sweep_interval=0.1), Ports(payout_providers={"sandbox": bank})
    with serving(own_database, settings, ports=ports) as running, running.client() as client:
        seller = sell(client, "10.00")
        bank.script[destination(client, seller)].append(Unknown("lost"))
        payout_id = pay_out(client, seller, timeout=2.0).payout_id
        (handlers,) = (service.servicer for service in running.running._services if service.name == "payout")
        flow: Any = handlers._flow  # type: ignore[attr-defined]
        with psycopg.connect(own_database.admin, autocommit=True) as admin:
            waits = "select from payout.due where demand_id = %s and trouble = 'NO_ANSWER' and lease_until <= now()"
            assert eventually(lambda: admin.execute(waits, (f"p-{payout_id}",)).fetchone() is not None)
            row = admin.execute(
                "update payout.due set lease_until = now() + interval '100 seconds', lease_token = lease_token + 1, held = true where demand_id = %s"
                " returning lease_token",
                (f"p-{payout_id}",),
            ).fetchone()
        assert row is not None

        async def answer() -> None:
            items = [
                stored_payouts(await flow._database.read(lambda connection: store.to_do(connection, [payout_id])), {f"p-{payout_id}": token}, "dev")[
                    0
                ]
                for token in (0, row[0])
            ]
            await flow.record(items[0], Succeeded("late", 1000, "EUR"))
            await flow._postpone.submit(Troubled(items[1], Trouble.NO_ANSWER, "lost", Step.LOOK_UP))

        running.run(answer)
        comes_to(client, payout_id, "PAID")


def test_trouble_before_the_attempt_says_nothing_of_sending(own_database: Databases) -> None:
    """A payout that was marked as sent before its attempt was begun still fails, and gives its money back, when its provider is never reached."""
    thrice = {("", trouble): Policy(Strategy.FIXED, 0.05, 0.05, 3) for trouble in Trouble}
    with (
        serving(own_database, Settings(retry=thrice, sweep_interval=0.1, payout_approve_above={"EUR": 100})) as platform,
        platform.client() as client,
    ):
        seller = sell(client, "50.00")
        destination(client, seller, "ba_unreachable:99")
        payout = pay_out(client, seller, "50.00")
        assert state(comes_to(client, payout.payout_id, "AWAITING_APPROVAL").payout) == "AWAITING_APPROVAL"
        demand = f"p-{payout.payout_id}"
        with psycopg.connect(own_database.admin, autocommit=True) as admin:  # as a holder leaves it that dies while it holds the money
            admin.execute("update payout.due set maybe_sent = true where demand_id = %s", (demand,))
            admin.execute("set session_replication_role = replica")
            admin.execute("update payout.payout set caller = 'another' where payout_id = %s", (payout.payout_id,))
        client.payout.ApprovePayout(pb.ApprovePayoutRequest(payout_id=payout.payout_id, reason="right"))
        assert comes_to(client, payout.payout_id, "FAILED").payout.failure_reason == payout_pb2.PAYOUT_FAILURE_REASON_PROVIDER_UNREACHABLE
        assert wallet(client, seller) == ("50.00", "0.00", "0.00")


def test_a_provider_that_is_configured_no_more_stops_nobody(own_database: Databases) -> None:
    """Payouts of a removed provider wait, raise an alert that names it, keep no other from being watched, and can be cancelled before they are sent."""
    soon = {("", Trouble.WATCHED): Policy(Strategy.FIXED, 0.5, 0.5, 300)}
    with serving(own_database, Settings(retry=soon, sweep_interval=0.1, monitor_interval=0.2)) as platform, platform.client() as client:
        old, new = sell(client, "50.00"), sell(client, "50.00")
        destination(client, old)
        destination(client, new, "ba_returned:2")
        gone = pay_out(client, old, "10.00").payout_id
        comes_to(client, gone, "PAID")
        with psycopg.connect(own_database.admin, autocommit=True) as admin:
            admin.execute("set session_replication_role = replica")
            admin.execute("update payout.payout set provider = 'oldbank' where payout_id = %s", (gone,))
            admin.execute("update payout.payout_destination set provider = 'oldbank' where seller_account = %s", (old,))
        comes_to(client, pay_out(client, new, "50.00").payout_id, "RETURNED")
        waits = pay_out(client, old, "10.00", timeout=2.0).payout_id
        assert eventually(lambda: [a for a in client.payout.ListAlerts(pb.ListAlertsRequest()).alerts if a.subject == "providers/oldbank"])
        assert state(client.get_payout(waits)) == "CREATED"
        cancelled = pb.CancelPayoutRequest(payout_id=waits, reason="the bank is gone")
        for _ in range(2):
            client.payout.CancelPayout(cancelled)
        comes_to(client, waits, "CANCELLED")
        assert wallet(client, old) == ("40.00", "0.00", "0.00")
