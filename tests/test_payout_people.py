"""What people do with payouts and destinations: approve, reject, cancel, disable, retry, close."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import psycopg
import pytest

from tallystick import Client, TallystickError
from tallystick.payout.v1 import payout_pb2, payout_service_pb2_grpc
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick.recovery.v1 import recovery_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.caller import Caller, Role
from tallystick_core.payable import DestinationHappening
from tallystick_core.provider import (
    Declined,
    PayoutDemand,
    PayoutFailure,
    PayoutFound,
    Pending,
    PendingReason,
    Returned,
    Submitted,
    Succeeded,
    Trouble,
    Unknown,
)
from tallystick_server.payout.destination import end_destinations
from tallystick_server.payout.flow import PayOut
from tallystick_server.process.configuration import Settings
from tallystick_server.process.verify import verify
from tallystick_server.process.wiring import Ports
from tallystick_server.runtime.retry import Policy, Strategy

from .banks import Bank
from .conftest import QUICK, Platform, command_line, eventually, fresh_database, replayed, serving, unique
from .test_payout import comes_to, destination, pay_out, reason_of, sell, state, story, wallet

TOKENS = {name: f"token-of-{name}-aaaa" for name in ("shop", "other", "boss", "chief", "platform")}
CALLERS = {
    TOKENS["shop"]: Caller("shop", frozenset({Role.TEAM, Role.PAYOUTS})),
    TOKENS["other"]: Caller("other", frozenset({Role.TEAM, Role.PAYOUTS})),
    TOKENS["boss"]: Caller("boss", frozenset({Role.TEAM, Role.PAYOUTS, Role.OPERATOR})),
    TOKENS["chief"]: Caller("chief", frozenset({Role.OPERATOR})),
    TOKENS["platform"]: Caller("platform", frozenset({Role.SERVICE})),
}
RETRY = {**QUICK, ("", Trouble.REJECTED): Policy(Strategy.CANCEL), ("", Trouble.UNRESOLVED): Policy(Strategy.CANCEL)}


@pytest.fixture(scope="module")
def bank() -> Bank:
    return Bank()


@pytest.fixture(scope="module")
def office(admin_url: str, tmp_path_factory: pytest.TempPathFactory, bank: Bank) -> Iterator[Platform]:
    """All services, with callers who have names."""
    settings = Settings(
        retry=RETRY,
        sweep_interval=0.1,
        payout_approve_above={"EUR": 10_000},
        payout_waiting_period=0,
        authentication="tokens",
        callers=CALLERS,
        service_token=TOKENS["platform"],
    )
    folder: Path = tmp_path_factory.mktemp("office")
    with fresh_database(admin_url, folder) as known, serving(known, settings, ports=Ports(payout_providers={"sandbox": bank})) as running:
        yield running


def client_of(platform: Platform, name: str) -> Iterator[Client]:
    with platform.client(TOKENS[name]) as client:
        yield client


@pytest.fixture(scope="module")
def shop(office: Platform) -> Iterator[Client]:
    yield from client_of(office, "shop")


@pytest.fixture(scope="module")
def other(office: Platform) -> Iterator[Client]:
    yield from client_of(office, "other")


@pytest.fixture(scope="module")
def boss(office: Platform) -> Iterator[Client]:
    """Somebody who may create payouts and approve them."""
    yield from client_of(office, "boss")


@pytest.fixture(scope="module")
def chief(office: Platform) -> Iterator[Client]:
    yield from client_of(office, "chief")


def approve(client: Client, payout_id: str, reason: str = "checked") -> payout_pb2.Payout:
    return client.payout.ApprovePayout(pb.ApprovePayoutRequest(payout_id=payout_id, reason=reason)).payout


def reject(client: Client, payout_id: str, reason: str = "no") -> payout_pb2.Payout:
    return client.payout.RejectPayout(pb.RejectPayoutRequest(payout_id=payout_id, reason=reason)).payout


def cancel(client: Client, payout_id: str, reason: str = "no more") -> payout_pb2.Payout:
    return client.payout.CancelPayout(pb.CancelPayoutRequest(payout_id=payout_id, reason=reason)).payout


def refusal(call: object, *arguments: object) -> str:
    with pytest.raises(TallystickError) as error:
        call(*arguments)  # type: ignore[operator]
    return reason_of(error)


def reused_field(call: object, *arguments: object) -> str:
    """The field in which a call differs from the one that used its key first, as the metadata of KEY_REUSED names it."""
    with pytest.raises(TallystickError) as error:
        call(*arguments)  # type: ignore[operator]
    assert reason_of(error) == "KEY_REUSED"
    return error.value.metadata["field"]


def test_two_people_for_large_payouts(shop: Client, boss: Client, chief: Client) -> None:
    """Above the threshold a payout waits, with its money held, for somebody else than its creator; who approved it, and why, is in its history."""
    seller = sell(boss, "300.00")
    destination(boss, seller)
    at_the_threshold = pay_out(boss, seller, "100.00")
    comes_to(boss, at_the_threshold.payout_id, "PAID")
    payout = pay_out(boss, seller, "100.01")
    assert state(payout) == "AWAITING_APPROVAL"
    assert wallet(chief, seller) == ("99.99", "100.01", "0.00")
    assert refusal(approve, boss, payout.payout_id) == "SECOND_PERSON_REQUIRED"
    assert refusal(approve, shop, payout.payout_id) == "METHOD_FORBIDDEN"
    approve(chief, payout.payout_id)
    assert approve(chief, payout.payout_id).payout_id == payout.payout_id
    found = comes_to(boss, payout.payout_id, "PAID")
    (approval,) = [move for move in found.history if move.cause == "APPROVED"]
    assert (approval.actor, approval.reason) == ("chief", "checked")
    assert refusal(approve, chief, payout.payout_id, "another reason") == "STATE_FORBIDS"
    assert refusal(reject, chief, payout.payout_id) == "STATE_FORBIDS"


def test_a_rejected_payout_gives_the_money_back(boss: Client, chief: Client) -> None:
    """The second person's no is final, kept with its reason, and releases the hold; it cannot be approved afterwards."""
    seller = sell(boss, "200.00")
    destination(boss, seller)
    payout = pay_out(boss, seller)
    reject(chief, payout.payout_id)
    found = comes_to(boss, payout.payout_id, "REJECTED")
    assert [(m.actor, m.reason) for m in found.history if m.cause == "REJECTED"] == [("chief", "no")]
    assert wallet(chief, seller) == ("200.00", "0.00", "0.00")
    assert refusal(approve, chief, payout.payout_id) == "STATE_FORBIDS"


def test_a_payout_is_cancelled_before_it_is_sent(shop: Client, other: Client, chief: Client, bank: Bank) -> None:
    """AWAITING_APPROVAL is cancelled by its caller or an operator and nothing is paid; a repeat is a repeat; once it may have been sent it is STATE_FORBIDS."""
    seller = sell(shop, "200.00")
    destination(shop, seller)
    payout = pay_out(shop, seller, "150.00")
    assert refusal(cancel, other, payout.payout_id) == "NOT_FOUND"
    cancel(shop, payout.payout_id)
    comes_to(shop, payout.payout_id, "CANCELLED")
    assert state(cancel(shop, payout.payout_id)) == "CANCELLED"
    assert state(cancel(chief, payout.payout_id)) == "CANCELLED"  # the same for whoever may cancel it
    assert reused_field(cancel, shop, payout.payout_id, "another reason") == "reason"
    assert wallet(chief, seller) == ("200.00", "0.00", "0.00")
    assert payout.payout_id not in {demand.payout_id for demand in bank.submitted}
    paid = pay_out(shop, seller, "10.00")
    comes_to(shop, paid.payout_id, "PAID")
    assert refusal(cancel, shop, paid.payout_id) == "STATE_FORBIDS"


def test_others_see_and_change_nothing(shop: Client, other: Client) -> None:
    """S3: another caller's payout and destination are NOT_FOUND, and their ids are taken without anything being told."""
    seller = sell(shop, "10.00")
    to = destination(shop, seller)
    payout = pay_out(shop, seller, "1.00")
    assert refusal(story, other, payout.payout_id) == "NOT_FOUND"
    assert refusal(lambda: pay_out(other, seller, "1.00", payout_id=payout.payout_id)) == "ID_TAKEN"
    assert refusal(lambda: pay_out(other, seller, "1.00", payout_destination_id=to)) == "NOT_FOUND"
    assert refusal(other.payout.GetPayoutDestination, pb.GetPayoutDestinationRequest(payout_destination_id=to)) == "NOT_FOUND"
    taken = pb.CreatePayoutDestinationRequest(payout_destination_id=to, seller_account=seller, currency="EUR", bank_account_token="t")
    assert refusal(other.payout.CreatePayoutDestination, taken) == "ID_TAKEN"
    assert not list(other.pages(other.payout.ListPayouts, pb.ListPayoutsRequest(seller_account=seller), "payouts"))
    assert [p.payout_id for p in shop.pages(shop.payout.ListPayouts, pb.ListPayoutsRequest(seller_account=seller), "payouts")] == [payout.payout_id]


@pytest.mark.parametrize(
    ("field", "value"), [("seller_account", "other"), ("currency", "USD"), ("bank_account_token", "ba_other"), ("description", "savings")]
)
def test_a_destination_again_with_another_value_names_it(shop: Client, field: str, value: str) -> None:
    """The id of a destination that comes again with another value is KEY_REUSED, and the metadata names the field."""
    values = {"seller_account": sell(shop, "10.00"), "currency": "EUR", "bank_account_token": "ba_ok", "description": "main"}
    id_ = unique("d")
    shop.payout.CreatePayoutDestination(pb.CreatePayoutDestinationRequest(payout_destination_id=id_, **values))
    again = pb.CreatePayoutDestinationRequest(payout_destination_id=id_, **{**values, field: value})
    assert reused_field(shop.payout.CreatePayoutDestination, again) == field


def test_a_disabled_destination_takes_its_unsent_payouts_along(shop: Client, chief: Client) -> None:
    """A payout that waits for approval is CANCELLED with its destination, and its money is free; the destination is final, a repeat is a repeat."""
    seller = sell(shop, "200.00")
    to = destination(shop, seller)
    payout = pay_out(shop, seller, "150.00")
    request = pb.DisablePayoutDestinationRequest(payout_destination_id=to, reason="sold the bank")
    for _ in range(2):
        assert shop.payout.DisablePayoutDestination(request).payout_destination.state == payout_pb2.PAYOUT_DESTINATION_STATE_DISABLED
    found = comes_to(shop, payout.payout_id, "CANCELLED")
    assert found.history[-2].cause == "DESTINATION_ENDED"
    assert wallet(chief, seller) == ("200.00", "0.00", "0.00")
    other_reason = pb.DisablePayoutDestinationRequest(payout_destination_id=to, reason="other")
    assert reused_field(shop.payout.DisablePayoutDestination, other_reason) == "reason"
    assert refusal(approve, chief, payout.payout_id) == "STATE_FORBIDS"


def test_destinations_that_end_together_lock_due_work_in_one_pass(office: Platform, shop: Client) -> None:
    """Where an answer ends two destinations, the work of the payouts to both is locked by id: whoever waits for the first holds nothing of the second."""
    sellers = [sell(shop, "200.00") for _ in range(2)]
    (early, to_early), (late, to_late) = sorted(((seller, destination(shop, seller)) for seller in sellers), key=lambda one: one[1])
    last, first = unique("pz"), unique("pa")
    pay_out(shop, early, "150.00", payout_id=last)
    pay_out(shop, late, "150.00", payout_id=first)
    (flow,) = (service.servicer._flow for service in office.running._services if service.name == "payout")  # type: ignore[attr-defined]

    async def end() -> None:
        await flow._database.transact(lambda connection: end_destinations(connection, [to_early, to_late], DestinationHappening.ACCOUNT_REFUSED))

    with psycopg.connect(office.databases.admin) as holder, psycopg.connect(office.databases.admin, autocommit=True) as admin:
        holder.execute("select from payout.due where demand_id = %s for update", (f"p-{first}",))
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(office.run, end)
            assert eventually(lambda: admin.execute(_WAITING).fetchone() == (1,))
            admin.execute("select from payout.due where demand_id = %s for update nowait", (f"p-{last}",))
            holder.commit()
            ended.result(30)
    for payout_id in (first, last):
        comes_to(shop, payout_id, "CANCELLED")


def test_a_destination_is_verified_before_use(shop: Client, bank: Bank) -> None:
    """Until the provider has said that it can pay there nothing is paid there; its no is final; an answer that is late is waited for."""
    seller = sell(shop, "10.00")
    bad, slow = unique("d"), unique("d")
    bank.verifications[bad].append(Declined(PayoutFailure.DESTINATION_REFUSED, "no_account"))
    bank.verifications[slow].extend([Pending(PendingReason.PROVIDER_REVIEW), Unknown("lost"), Pending(PendingReason.PROVIDER_REVIEW)])

    def register(id_: str) -> None:
        request = pb.CreatePayoutDestinationRequest(payout_destination_id=id_, seller_account=seller, currency="EUR", bank_account_token=id_)
        assert shop.payout.CreatePayoutDestination(request).payout_destination.state == payout_pb2.PAYOUT_DESTINATION_STATE_PENDING_VERIFICATION
        assert refusal(lambda: pay_out(shop, seller, "1.00", payout_destination_id=id_)) == "DESTINATION_UNUSABLE"

    def get(id_: str) -> payout_pb2.PayoutDestination:
        return shop.payout.GetPayoutDestination(pb.GetPayoutDestinationRequest(payout_destination_id=id_)).payout_destination

    register(bad)
    assert eventually(lambda: get(bad).state == payout_pb2.PAYOUT_DESTINATION_STATE_UNUSABLE)
    assert get(bad).decline_code == "no_account"
    register(slow)
    assert eventually(lambda: get(slow).state == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED)
    comes_to(shop, pay_out(shop, seller, "1.00").payout_id, "PAID")


def dead_letter(chief: Client, subject: str) -> recovery_pb2.DeadLetter:
    """The open dead letter of a subject, once there is one."""

    def find() -> list[recovery_pb2.DeadLetter]:
        request = pb.ListDeadLettersRequest(state=recovery_pb2.DEAD_LETTER_STATE_OPEN, page_size=200)
        return [one for one in chief.payout.ListDeadLetters(request).dead_letters if one.subject == subject]

    (found,) = eventually(find)
    return found


def test_a_payout_that_was_set_aside_is_retried(shop: Client, chief: Client, bank: Bank) -> None:
    """What the provider finds fault with is a dead letter, still SUBMITTING with its money held; a retry sends the same key again, once for a request id."""
    seller = sell(shop, "10.00")
    to = destination(shop, seller)
    bank.script[to].append(Unknown("malformed", Trouble.REJECTED))
    payout = pay_out(shop, seller)
    letter = dead_letter(chief, f"payouts/{payout.payout_id}")
    assert letter.cause == "REJECTED"
    shown = chief.payout.GetDeadLetter(pb.GetDeadLetterRequest(dead_letter_id=letter.dead_letter_id))
    assert state(shown.payout) == "SUBMITTING"
    assert wallet(chief, seller) == ("0.00", "10.00", "0.00")
    request = pb.RetryPayoutRequest(payout_id=payout.payout_id, reason="mended", request_id=unique("r"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(shop.payout.RetryPayout, [request] * 8))
    comes_to(shop, payout.payout_id, "PAID")
    shop.payout.RetryPayout(request)
    other_reason = pb.RetryPayoutRequest(payout_id=payout.payout_id, reason="x", request_id=request.request_id)
    assert reused_field(shop.payout.RetryPayout, other_reason) == "reason"
    assert refusal(chief.payout.RetryPayout, request) == "ID_TAKEN"
    again = pb.RetryPayoutRequest(payout_id=payout.payout_id, reason="mended", request_id=unique("r"))
    with pytest.raises(TallystickError, match="The payout is PAID and cannot be retried: it is no dead letter.") as error:
        shop.payout.RetryPayout(again)
    assert (reason_of(error), error.value.metadata) == ("STATE_FORBIDS", {"state": "PAID", "verb": "RETRY"})
    unnamed = pb.RetryPayoutRequest(payout_id=payout.payout_id, reason="mended")
    assert refusal(shop.payout.RetryPayout, unnamed) == "STATE_FORBIDS"  # the SDK has given it an id
    assert not unnamed.request_id
    assert len({demand.key for demand in bank.submitted if demand.payout_id == payout.payout_id}) == 1


def close(chief: Client, letter: recovery_pb2.DeadLetter) -> recovery_pb2.DeadLetter:
    request = pb.CloseDeadLetterRequest(dead_letter_id=letter.dead_letter_id, reason="asked them", evidence="ticket 7")
    return chief.payout.CloseDeadLetter(request).dead_letter


def test_closing_needs_that_nothing_was_paid(shop: Client, chief: Client, bank: Bank) -> None:
    """A dead letter is closed as FAILED with evidence, and the money is free again; if the provider knows of a transfer, that is applied instead."""
    seller = sell(shop, "20.00")
    to = destination(shop, seller)
    bank.script[to].append(Unknown("malformed", Trouble.REJECTED))
    payout = pay_out(shop, seller, "5.00")
    letter = dead_letter(chief, f"payouts/{payout.payout_id}")
    assert close(chief, letter).state == recovery_pb2.DEAD_LETTER_STATE_CLOSED
    found = comes_to(shop, payout.payout_id, "FAILED")
    assert found.payout.failure_reason == payout_pb2.PAYOUT_FAILURE_REASON_CLOSED_BY_OPERATOR
    assert [(move.actor, move.reason) for move in found.history if move.cause == "CLOSED_BY_OPERATOR"] == [("chief", "asked them")]
    assert wallet(chief, seller) == ("20.00", "0.00", "0.00")
    bank.script[to].extend([Unknown("malformed", Trouble.REJECTED), Succeeded(unique("tr"), 600, "EUR")])
    paid = pay_out(shop, seller, "6.00")
    assert close(chief, dead_letter(chief, f"payouts/{paid.payout_id}")).state == recovery_pb2.DEAD_LETTER_STATE_RESOLVED
    comes_to(shop, paid.payout_id, "PAID")
    bank.script[to].extend([Unknown("malformed", Trouble.REJECTED), Submitted("tr_x")])
    slow = pay_out(shop, seller, "7.00")
    assert refusal(close, chief, dead_letter(chief, f"payouts/{slow.payout_id}")) == "STATE_FORBIDS"
    assert wallet(chief, seller) == ("7.00", "7.00", "0.00")


def test_a_closed_payout_is_settled_by_whoever_comes(
    shop: Client, chief: Client, bank: Bank, office: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that has closed a dead letter dies before it settles: once its lease is over another one gives the seller's money back."""
    seller = sell(shop, "10.00")
    to = destination(shop, seller)
    bank.script[to].append(Unknown("malformed", Trouble.REJECTED))
    payout = pay_out(shop, seller, timeout=1)
    letter = dead_letter(chief, f"payouts/{payout.payout_id}")
    monkeypatch.setattr(PayOut, "failed", lambda *_: None)
    assert close(chief, letter).state == recovery_pb2.DEAD_LETTER_STATE_CLOSED
    assert state(story(shop, payout.payout_id).payout) == "FAILED"
    monkeypatch.undo()
    with psycopg.connect(office.databases.admin) as connection:
        connection.execute("update payout.due set lease_until = now() where demand_id = %s", (f"p-{payout.payout_id}",))
    assert eventually(lambda: wallet(chief, seller) == ("10.00", "0.00", "0.00"))


_WAITING = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and state = 'active'"


def go_away(platform: Platform, method: str, request: object, *locked: str) -> None:
    """Calls a method, and cancels the call while its transaction waits for what these statements lock; then that transaction goes on."""
    with psycopg.connect(platform.databases.admin) as blocker, psycopg.connect(platform.databases.admin, autocommit=True) as admin:
        for statement in locked:
            blocker.execute(statement)
        with grpc.insecure_channel(platform.address) as channel:
            call = getattr(payout_service_pb2_grpc.PayoutServiceStub(channel), method).future(request, timeout=30)
            assert eventually(lambda: admin.execute(_WAITING).fetchone() != (0,))
            call.cancel()
            assert eventually(lambda: not platform.running._doors[0]._timeouts)  # the server works on no call any more


def test_a_change_is_answered_while_reads_hang(admin_url: str, tmp_path: Path, bank: Bank) -> None:
    """What a call has changed it shows, though every connection for reads is taken by one that hangs: a change never ends as a read that was too slow."""
    settings = Settings(retry=RETRY, read_connections={"payout": 1}, read_timeout=60, monitor_interval=3600, payout_waiting_period=0)
    ports = Ports(payout_providers={"sandbox": bank})
    with (
        fresh_database(admin_url, tmp_path) as known,
        serving(known, settings, ports=ports) as platform,
        platform.client() as client,
        ThreadPoolExecutor(8) as readers,
    ):
        seller = sell(client, "20.00")
        destination(client, seller)
        earlier = pay_out(client, seller, "1.00").payout_id
        schedule = pb.SetPayoutScheduleRequest(
            seller_account=seller, currency="EUR", interval=payout_pb2.PAYOUT_INTERVAL_DAILY, cut_off="12:00", time_zone="UTC"
        )
        run = pb.NewPayoutRun(seller_account=seller, currency="EUR")
        with psycopg.connect(known.admin) as admin, psycopg.connect(known.admin, autocommit=True) as look:
            admin.execute("lock table payout.conflicting_report in access exclusive mode")
            hanging = [readers.submit(client.payout.GetPayout, pb.GetPayoutRequest(payout_id=earlier), timeout=60) for _ in range(8)]
            assert eventually(lambda: look.execute(_WAITING).fetchone() != (0,))
            client.payout.SetPayoutSchedule(schedule, timeout=10)
            paid = client.payout.CreatePayout(
                pb.CreatePayoutRequest(payout_id=unique("p"), seller_account=seller, amount="1.00", currency="EUR"), timeout=10
            )
            assert paid.payout.payout_state != payout_pb2.PAYOUT_STATE_UNSPECIFIED
            client.payout.CreatePayoutBatch(pb.CreatePayoutBatchRequest(payout_batch_id=unique("b"), run=run), timeout=10)
            assert not all(read.done() for read in hanging)
            admin.rollback()
            assert all(read.result(60).payout.payout_id == earlier for read in hanging)


@pytest.mark.parametrize("call", ["CloseDeadLetter", "CancelPayout", "CreatePayoutDestination"])
def test_a_caller_that_goes_away_strands_nothing(admin_url: str, tmp_path: Path, bank: Bank, call: str) -> None:
    """A call that is cancelled while its change is being committed leaves nothing leased to nobody: what follows from the change is done without a sweep."""
    settings = Settings(retry=RETRY, sweep_interval=3600, payout_approve_above={"EUR": 10_000}, payout_waiting_period=0)
    ports = Ports(payout_providers={"sandbox": bank})
    with fresh_database(admin_url, tmp_path) as known, serving(known, settings, ports=ports) as platform, platform.client() as client:
        seller = sell(client, "200.00")
        if call == "CreatePayoutDestination":
            to = unique("d")
            new = pb.CreatePayoutDestinationRequest(payout_destination_id=to, seller_account=seller, currency="EUR", bank_account_token=to)
            go_away(platform, call, new, "lock table payout.payout_destination in share mode")
            verified = pb.ListPayoutDestinationsRequest(state=payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED)
            assert eventually(lambda: client.payout.ListPayoutDestinations(verified).payout_destinations)
            return
        to = destination(client, seller)
        if call == "CloseDeadLetter":
            bank.script[to].append(Unknown("malformed", Trouble.REJECTED))
            payout_id = pay_out(client, seller, "5.00", timeout=1).payout_id
            letter = dead_letter(client, f"payouts/{payout_id}").dead_letter_id
            request: object = pb.CloseDeadLetterRequest(dead_letter_id=letter, reason="asked them", evidence="ticket 7")
        else:
            payout_id = pay_out(client, seller, "150.00").payout_id
            request = pb.CancelPayoutRequest(payout_id=payout_id, reason="no more")
        go_away(platform, call, request, f"select from payout.due where demand_id = 'p-{payout_id}' for update")
        comes_to(client, payout_id, "FAILED" if call == "CloseDeadLetter" else "CANCELLED")
        assert wallet(client, seller) == ("200.00", "0.00", "0.00")


def test_a_payout_whose_hold_is_refused_as_our_fault_is_set_aside(office: Platform, shop: Client, chief: Client, bank: Bank) -> None:
    """A hold that contradicts another under its id says nothing about the seller's money: a dead letter, CREATED; nothing is sent, and closing is refused."""
    seller = sell(shop, "10.00")
    destination(shop, seller)
    payout_id = unique("p")
    hold = wallet_service_pb2.NewHold(
        hold_id=f"payouts/{payout_id}", caller="shop", seller_account=seller, amount="1.00", currency="EUR", purpose=wallet_pb2.HOLD_PURPOSE_PAYOUT
    )
    with office.client(TOKENS["platform"]) as service:
        service.wallet.BatchPlaceHold(wallet_service_pb2.BatchPlaceHoldRequest(holds=[hold]))
    request = pb.CreatePayoutRequest(payout_id=payout_id, seller_account=seller, amount="5.00", currency="EUR")
    shop.payout.CreatePayout(request, timeout=1)
    letter = dead_letter(chief, f"payouts/{payout_id}")
    assert letter.cause == "SETTLING_REFUSED"
    assert refusal(close, chief, letter) == "STATE_FORBIDS"
    assert refusal(cancel, shop, payout_id) == "STATE_FORBIDS"  # its hold may be another's
    chief.payout.RetryDeadLetter(pb.RetryDeadLetterRequest(dead_letter_id=letter.dead_letter_id, reason="again"))
    assert dead_letter(chief, f"payouts/{payout_id}").dead_letter_id != letter.dead_letter_id
    assert state(story(shop, payout_id).payout) == "CREATED"
    assert payout_id not in {demand.payout_id for demand in bank.submitted}


@pytest.mark.parametrize(
    "policy", [Policy(Strategy.CANCEL), Policy(Strategy.FIXED, 3600, 3600, 5)], ids=["retried dead letter", "waiting for a retry"]
)
def test_a_hold_in_doubt_is_never_released(admin_url: str, tmp_path: Path, bank: Bank, policy: Policy) -> None:
    """Once the wallet has refused a payout's hold, the payout cannot be cancelled before it is held, whether it waits for a retry or was retried."""
    settings = Settings(retry={**RETRY, ("", Trouble.SETTLING_REFUSED): policy}, sweep_interval=3600, payout_waiting_period=0)
    ports = Ports(payout_providers={"sandbox": bank})
    with fresh_database(admin_url, tmp_path) as known, serving(known, settings, ports=ports) as platform, platform.client() as client:
        seller = sell(client, "10.00")
        destination(client, seller)
        payout_id = unique("p")
        of_another = wallet_service_pb2.NewHold(
            hold_id=f"payouts/{payout_id}",
            caller="shop",
            seller_account=seller,
            amount="1.00",
            currency="EUR",
            purpose=wallet_pb2.HOLD_PURPOSE_PAYOUT,
        )
        client.wallet.BatchPlaceHold(wallet_service_pb2.BatchPlaceHoldRequest(holds=[of_another]))
        client.payout.CreatePayout(pb.CreatePayoutRequest(payout_id=payout_id, seller_account=seller, amount="5.00", currency="EUR"), timeout=1)
        if policy.strategy is Strategy.CANCEL:
            dead_letter(client, f"payouts/{payout_id}")
            client.payout.RetryPayout(pb.RetryPayoutRequest(payout_id=payout_id, reason="again", request_id=unique("r")))
        else:
            assert eventually(lambda: _trouble(platform, payout_id) == "SETTLING_REFUSED")
        assert refusal(cancel, client, payout_id) == "STATE_FORBIDS"
        assert state(story(client, payout_id).payout) == "CREATED"
        hold = client.wallet.GetHold(wallet_service_pb2.GetHoldRequest(hold_id=of_another.hold_id)).hold
        assert hold.state == wallet_pb2.HOLD_STATE_OPEN


def _trouble(platform: Platform, payout_id: str) -> str:
    with psycopg.connect(platform.databases.admin) as connection:
        row = connection.execute("select trouble from payout.due where demand_id = %s", [f"p-{payout_id}"]).fetchone()
    return str((row or ("",))[0])


def test_a_payout_does_not_share_its_hold_with_another_hold_of_its_id(office: Platform, shop: Client, chief: Client) -> None:
    """A service's hold whose id is a payout's neither keeps the payout from being held and paid, nor is ended by it."""
    seller = sell(shop, "10.00")
    destination(shop, seller)
    payout_id = unique("p")
    hold = wallet_service_pb2.NewHold(
        hold_id=payout_id, caller="risk", seller_account=seller, amount="1.00", currency="EUR", purpose=wallet_pb2.HOLD_PURPOSE_RESERVE
    )
    with office.client(TOKENS["platform"]) as service:
        assert service.wallet.BatchPlaceHold(wallet_service_pb2.BatchPlaceHoldRequest(holds=[hold])).results[0].hold.hold_id == payout_id
    request = pb.CreatePayoutRequest(payout_id=payout_id, seller_account=seller, amount="5.00", currency="EUR")
    shop.payout.CreatePayout(request, timeout=1)
    assert eventually(lambda: state(story(shop, payout_id).payout) == "PAID")
    assert eventually(lambda: wallet(chief, seller) == ("4.00", "1.00", "0.00"))
    reserved = chief.wallet.GetHold(wallet_service_pb2.GetHoldRequest(hold_id=payout_id)).hold
    assert (reserved.state, reserved.purpose) == (wallet_pb2.HOLD_STATE_OPEN, wallet_pb2.HOLD_PURPOSE_RESERVE)


def test_a_destination_that_nobody_verifies_is_closed(shop: Client, chief: Client, bank: Bank) -> None:
    """A verification that is refused as malformed is a dead letter of the destination; closed, it is UNUSABLE; retried, it is asked again."""
    seller = sell(shop, "10.00")
    one, two = unique("d"), unique("d")
    for id_ in (one, two):
        bank.verifications[id_].extend([Unknown("malformed", Trouble.REJECTED)] * (3 if id_ == one else 1))
        shop.payout.CreatePayoutDestination(
            pb.CreatePayoutDestinationRequest(payout_destination_id=id_, seller_account=seller, currency="EUR", bank_account_token=id_)
        )
    letters = {id_: dead_letter(chief, f"payoutDestinations/{id_}") for id_ in (one, two)}
    shown = chief.payout.GetDeadLetter(pb.GetDeadLetterRequest(dead_letter_id=letters[one].dead_letter_id))
    assert shown.payout_destination.payout_destination_id == one
    assert close(chief, letters[one]).state == recovery_pb2.DEAD_LETTER_STATE_CLOSED
    chief.payout.RetryDeadLetter(pb.RetryDeadLetterRequest(dead_letter_id=letters[two].dead_letter_id, reason="again"))

    def get(id_: str) -> int:
        return shop.payout.GetPayoutDestination(pb.GetPayoutDestinationRequest(payout_destination_id=id_)).payout_destination.state

    assert get(one) == payout_pb2.PAYOUT_DESTINATION_STATE_UNUSABLE
    assert eventually(lambda: get(two) == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED)


def test_the_default_schedule_is_for_operators(shop: Client, chief: Client) -> None:
    """A team sets its sellers' schedules and runs them; the default, which holds for everybody, only an operator."""
    manual = payout_pb2.PAYOUT_INTERVAL_MANUAL
    assert refusal(shop.payout.SetPayoutSchedule, pb.SetPayoutScheduleRequest(currency="SEK", interval=manual)) == "METHOD_FORBIDDEN"
    run = pb.CreatePayoutBatchRequest(payout_batch_id=unique("b"), run=pb.NewPayoutRun(currency="SEK"))
    assert refusal(shop.payout.CreatePayoutBatch, run) == "METHOD_FORBIDDEN"
    chief.payout.SetPayoutSchedule(pb.SetPayoutScheduleRequest(currency="SEK", interval=manual, fee="1.00"))
    own = sell(shop, "1.00")
    got = shop.payout.GetPayoutSchedule(pb.GetPayoutScheduleRequest(seller_account=own, currency="SEK")).payout_schedule
    assert (got.seller_account, got.fee, got.version, got.caller) == ("", "1.00", 1, "chief")


def test_of_two_operators_who_set_a_schedule_one_learns_of_the_other(chief: Client) -> None:
    """A schedule that is to replace another version than the one that holds is refused with that version, also of two at once; a repeat changes nothing."""
    manual = payout_pb2.PAYOUT_INTERVAL_MANUAL

    def schedule(fee: str, version: int) -> pb.SetPayoutScheduleRequest:
        return pb.SetPayoutScheduleRequest(currency="NOK", interval=manual, fee=fee, expected_version=version)

    def outcome(fee: str, version: int) -> str:
        try:
            return str(chief.payout.SetPayoutSchedule(schedule(fee, version)).payout_schedule.version)
        except TallystickError as error:
            return f"{error.reason} {error.metadata.get('version')}"

    assert outcome("1.00", 2) == "VERSION_MISMATCH 0"
    with ThreadPoolExecutor(8) as pool:
        outcomes = sorted(pool.map(lambda number: outcome(f"{number}.00", 0), range(1, 9)))
    assert outcomes == ["1", *["VERSION_MISMATCH 1"] * 7]
    held = chief.payout.GetPayoutSchedule(pb.GetPayoutScheduleRequest(currency="NOK")).payout_schedule
    assert replayed(chief.payout.SetPayoutSchedule, schedule(held.fee, 0))
    assert outcome("9.00", 1) == "2"
    assert outcome("10.00", 1) == "VERSION_MISMATCH 2"
    assert outcome("10.00", -1) == "FIELD_INVALID None"


def acknowledge(
    client: Client, payout_id: str, reason: str = "asked the bank", *, reference: str = "", report: int = 0, again: bool = False
) -> payout_pb2.Payout:
    """Acknowledges a transfer by its reference, or a report by its number; `again`: it is marked as a replay."""
    request = pb.AcknowledgePayoutRequest(payout_id=payout_id, reason=reason)
    if reference:
        request.provider_reference = reference
    if report:
        request.report_number = report
    assert replayed(client.payout.AcknowledgePayout, request) == again
    return story(client, payout_id).payout


def alerts(client: Client, kind: str, payout_id: str) -> list[recovery_pb2.Alert]:
    """All that there ever were of a kind about a payout, newest first."""
    request = pb.ListAlertsRequest(ended=True, page_size=200)
    return [one for one in client.payout.ListAlerts(request).alerts if (one.kind, one.subject) == (kind, f"payouts/{payout_id}")]


def is_raised(client: Client, kind: str, payout_id: str, number: int) -> bool:
    """Whether the alert is open, and is the so many-th."""
    found = alerts(client, kind, payout_id)
    return len(found) == number and not found[0].HasField("end_time")


def is_over(client: Client, kind: str, payout_id: str, number: int) -> bool:
    """Whether there were so many alerts, and all have ended."""
    found = alerts(client, kind, payout_id)
    return len(found) == number and all(one.HasField("end_time") for one in found)


@pytest.fixture
def watching(admin_url: str, tmp_path: Path, bank: Bank) -> Iterator[Platform]:
    """A platform that asks about payouts at rest, and looks for alerts, all the time; what it did verifies."""
    settings = Settings(
        retry={
            **RETRY,
            ("", Trouble.WATCHED): Policy(Strategy.FIXED, 0.1, 0.1, 100_000),
            ("", Trouble.SETTLING_FAILED): Policy(Strategy.CANCEL),
        },
        sweep_interval=0.1,
        monitor_interval=0.2,
        payout_approve_above={"EUR": 10_000},
        payout_waiting_period=0,
        authentication="tokens",
        callers=CALLERS,
        service_token=TOKENS["platform"],
    )
    with fresh_database(admin_url, tmp_path) as known:
        with serving(known, settings, ports=Ports(payout_providers={"sandbox": bank})) as running:
            yield running
        report = verify(known)
        assert report.passed, report.as_text()


def ended_at_once(platform: Platform, letter: recovery_pb2.DeadLetter) -> bool:
    """Whether the transaction that ended the dead letter ended its alert as well."""
    query = """
        select d.state = 'RESOLVED' and d.xmin = a.xmin from payout.dead_letter d join payout.alert a on a.subject = 'deadLetters/' || d.dead_letter_id
        where d.dead_letter_id = %s and a.end_time is not null"""
    with psycopg.connect(platform.databases.admin) as connection:
        return connection.execute(query, (letter.dead_letter_id,)).fetchone() == (True,)


def alerted(chief: Client, subject: str) -> recovery_pb2.DeadLetter:
    """The open dead letter of a subject, once there is an alert about it."""
    letter = dead_letter(chief, subject)
    about = ("DEAD_LETTER", f"deadLetters/{letter.dead_letter_id}")
    assert eventually(lambda: about in {(one.kind, one.subject) for one in chief.payout.ListAlerts(pb.ListAlertsRequest()).alerts})
    return letter


def test_a_disabled_destination_ends_its_dead_letter(watching: Platform, bank: Bank) -> None:
    """Disabling a destination whose verification is a dead letter ends the dead letter and its alert in the same transaction, each with its event."""
    with watching.client(TOKENS["chief"]) as chief, watching.client(TOKENS["shop"]) as shop:
        seller, to = sell(shop, "10.00"), unique("d")
        bank.verifications[to].append(Unknown("malformed", Trouble.REJECTED))
        new = pb.CreatePayoutDestinationRequest(payout_destination_id=to, seller_account=seller, currency="EUR", bank_account_token=to)
        shop.payout.CreatePayoutDestination(new)
        letter = alerted(chief, f"payoutDestinations/{to}")
        shop.payout.DisablePayoutDestination(pb.DisablePayoutDestinationRequest(payout_destination_id=to, reason="a typing error"))
        assert ended_at_once(watching, letter)
        retry = pb.RetryDeadLetterRequest(dead_letter_id=letter.dead_letter_id, reason="again")
        assert refusal(chief.payout.RetryDeadLetter, retry) == "STATE_FORBIDS"
        told = eventually(
            lambda: [event for event in chief.events(aggregate_id=f"deadLetters/{letter.dead_letter_id}") if event.aggregate_version == 2]
        )
        assert [event.dead_letter.state for event in told] == [recovery_pb2.DEAD_LETTER_STATE_RESOLVED]


@pytest.mark.parametrize("by", ["its caller", "its destination"])
def test_a_cancelled_payout_ends_its_dead_letter(watching: Platform, by: str) -> None:
    """A payout that is a dead letter before it was sent, and is cancelled by its caller or with its destination, is no dead letter any more."""
    with watching.client(TOKENS["chief"]) as chief, watching.client(TOKENS["shop"]) as shop:
        seller = sell(shop, "200.00")
        to = destination(shop, seller)
        payout = pay_out(shop, seller, "150.00")
        with psycopg.connect(watching.databases.admin, autocommit=True) as admin:
            admin.execute("create trigger no_attempt before insert on payout.attempt for each row execute function payout.refuse_change()")
            approve(chief, payout.payout_id)
            letter = alerted(chief, f"payouts/{payout.payout_id}")
            admin.execute("drop trigger no_attempt on payout.attempt")
        assert state(story(shop, payout.payout_id).payout) == "READY"
        if by == "its caller":
            cancel(shop, payout.payout_id)
        else:
            shop.payout.DisablePayoutDestination(pb.DisablePayoutDestinationRequest(payout_destination_id=to, reason="sold the bank"))
        assert ended_at_once(watching, letter)
        comes_to(shop, payout.payout_id, "CANCELLED")
        assert eventually(lambda: wallet(chief, seller) == ("200.00", "0.00", "0.00"))


def test_a_conflicting_report_is_acknowledged(watching: Platform, bank: Bank) -> None:
    """Acknowledging ends the alert and moves no money; the same report again raises nothing, another one raises another alert."""
    with watching.client(TOKENS["boss"]) as boss, watching.client(TOKENS["chief"]) as chief, watching.client(TOKENS["shop"]) as shop:
        seller, reference, kind = sell(boss, "10.00"), unique("tr"), "PAYOUT_CONTRADICTED"
        to = destination(boss, seller)
        bank.script[to].extend([Succeeded(reference, 1000, "EUR"), Declined(PayoutFailure.PROVIDER_DECLINED, "late")])
        id_ = pay_out(boss, seller).payout_id
        assert eventually(lambda: is_raised(chief, kind, id_, 1))
        (report,) = comes_to(chief, id_, "PAID").conflicting_reports
        assert (report.number, report.report, report.acknowledged_by) == (1, "Declined late", "")
        assert refusal(lambda: acknowledge(shop, id_, report=1)) == "METHOD_FORBIDDEN"
        before = story(chief, id_).payout
        after = acknowledge(chief, id_, report=1)
        acknowledge(chief, id_, report=1, again=True)
        assert refusal(lambda: acknowledge(chief, id_, "other", report=1)) == "KEY_REUSED"
        assert after.version == before.version + 1
        before.version = after.version
        before.update_time.CopyFrom(after.update_time)
        assert after == before
        found = story(chief, id_)
        assert [(one.acknowledged_by, one.acknowledge_reason) for one in found.conflicting_reports] == [("chief", "asked the bank")]
        assert found.conflicting_reports[0].acknowledge_time == after.update_time
        assert (found.history[-1].cause, found.history[-1].actor, found.history[-1].reason) == ("ACKNOWLEDGED", "chief", "asked the bank")
        assert eventually(lambda: [event.aggregate_version for event in chief.events(aggregate_id=f"payouts/{id_}")][-1] == after.version)
        assert eventually(lambda: is_over(chief, kind, id_, 1))
        bank.script[id_].extend([Declined(PayoutFailure.PROVIDER_DECLINED, "late")] * 2 + [Declined(PayoutFailure.PROVIDER_DECLINED, "risk")])
        assert eventually(lambda: is_raised(chief, kind, id_, 2))
        assert [one.report for one in comes_to(chief, id_, "PAID").conflicting_reports] == ["Declined late", "Declined risk"]
        assert alerts(chief, kind, id_)[0].detail == "Declined risk"
        acknowledge(chief, id_, report=2)
        assert eventually(lambda: is_over(chief, kind, id_, 2))
        assert wallet(chief, seller) == ("0.00", "0.00", "0.00")


def test_a_report_that_comes_again_after_another_raises_an_alert(watching: Platform, bank: Bank) -> None:
    """Reports A, B and A again, each acknowledged before the next: the second A raises an alert, and what is reported on and on raises one."""
    with watching.client(TOKENS["boss"]) as boss, watching.client(TOKENS["chief"]) as chief:
        seller, reference, kind = sell(boss, "10.00"), unique("tr"), "PAYOUT_CONTRADICTED"
        to = destination(boss, seller)
        bank.script[to].append(Succeeded(reference, 1000, "EUR"))
        id_ = pay_out(boss, seller).payout_id
        for number, code in enumerate(("a", "b", "a"), 1):
            bank.script[id_].extend([Declined(PayoutFailure.PROVIDER_DECLINED, code)] * 3)
            assert eventually(lambda number=number: is_raised(chief, kind, id_, number))  # type: ignore[misc]
            comes_to(chief, id_, "PAID")
            acknowledge(chief, id_, report=number)
            assert eventually(lambda number=number: is_over(chief, kind, id_, number))  # type: ignore[misc]
        assert [one.report for one in story(chief, id_).conflicting_reports] == ["Declined a", "Declined b", "Declined a"]


class Asked(Bank):
    """Keeps what was asked about payouts after they were sent."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def look_up(self, demand: PayoutDemand) -> PayoutFound:
        self.asked.append(demand.payout_id)
        return await super().look_up(demand)


def test_one_process_asks_what_became_of_payouts(admin_url: str, tmp_path: Path) -> None:
    """Of two processes one asks the provider about payouts at rest; the other does once that one has not come back for some seconds."""
    mine, others = Asked(), Asked()
    often = Settings(retry={**RETRY, ("", Trouble.WATCHED): Policy(Strategy.FIXED, 0.0, 0.0, 1_000_000)}, sweep_interval=0.1)
    seldom = replace(often, sweep_interval=3600)
    with fresh_database(admin_url, tmp_path) as known, serving(known, seldom, ports=Ports(payout_providers={"sandbox": others})) as other:
        (flow,) = (service.servicer._flow for service in other.running._services if service.name == "payout")  # type: ignore[attr-defined]
        with serving(known, often, ports=Ports(payout_providers={"sandbox": mine})) as platform, platform.client() as client:
            seller = sell(client, "20.00")
            destination(client, seller)
            comes_to(client, pay_out(client, seller, "5.00").payout_id, "PAID")
            assert eventually(lambda: mine.asked)
            other.run(flow.watching._work)
            assert others.asked == []
        with psycopg.connect(known.admin) as connection:
            connection.execute("update payout.duty set until_time = now() where name like 'watch%'")
        other.run(flow.watching._work)
        assert len(others.asked) == 1


def test_an_unmatched_transfer_is_acknowledged(watching: Platform, bank: Bank) -> None:
    """Acknowledging one ends its alert and moves no money; another transfer, or a return of the same one, raises another alert."""
    with watching.client(TOKENS["boss"]) as boss, watching.client(TOKENS["chief"]) as chief:
        seller, first, second, kind = sell(boss, "10.00"), unique("tr"), unique("tr"), "STRAY_TRANSFER"
        to = destination(boss, seller)
        bank.script[to].append(Succeeded(first, 501, "EUR"))
        id_ = pay_out(boss, seller, "5.00").payout_id
        assert eventually(lambda: is_raised(chief, kind, id_, 1))
        comes_to(chief, id_, "FAILED")
        acknowledge(chief, id_, reference=first)
        acknowledge(chief, id_, reference=first, again=True)
        assert refusal(lambda: acknowledge(chief, id_, "other", reference=first)) == "KEY_REUSED"
        (transfer,) = story(chief, id_).transfers
        assert (transfer.acknowledged_by, transfer.acknowledge_reason) == ("chief", "asked the bank")
        assert eventually(lambda: is_over(chief, kind, id_, 1))
        assert wallet(chief, seller) == ("4.99", "0.00", "0.00")
        bank.script[id_].append(Succeeded(second, 100, "EUR"))
        assert eventually(lambda: is_raised(chief, kind, id_, 2))
        assert alerts(chief, kind, id_)[0].detail == f"TWICE {second}"
        comes_to(chief, id_, "FAILED")
        acknowledge(chief, id_, reference=second)
        assert eventually(lambda: is_over(chief, kind, id_, 2))
        bank.script[id_].append(Returned(first, 501, "EUR"))
        assert eventually(lambda: is_raised(chief, kind, id_, 3))
        found = comes_to(chief, id_, "FAILED")
        assert [one.acknowledged_by for one in found.transfers] == ["", "chief"]
        assert [row.actor for row in found.history if row.cause == "ACKNOWLEDGED"] == ["chief", "chief"]
        acknowledge(chief, id_, "it came back", reference=first)
        assert eventually(lambda: is_over(chief, kind, id_, 3))
        assert wallet(chief, seller) == ("9.00", "0.00", "0.00")


def test_what_cannot_be_acknowledged_of_a_payout_says_why(shop: Client, chief: Client) -> None:
    """What is unknown is NOT_FOUND, what is missing FIELD_REQUIRED, and where there is nothing to acknowledge it is STATE_FORBIDS."""
    seller = sell(shop, "10.00")
    destination(shop, seller)
    id_ = comes_to(shop, pay_out(shop, seller).payout_id, "PAID").payout.payout_id
    reference = story(shop, id_).transfers[0].provider_reference
    assert refusal(lambda: acknowledge(chief, "p-nobody", report=1)) == "NOT_FOUND"
    assert refusal(lambda: acknowledge(chief, id_, reference="tr_unknown")) == "NOT_FOUND"
    assert refusal(lambda: acknowledge(chief, id_, reference=reference)) == "STATE_FORBIDS"
    assert refusal(lambda: acknowledge(chief, id_, report=1)) == "STATE_FORBIDS"
    assert refusal(lambda: acknowledge(chief, id_, report=-1)) == "FIELD_INVALID"
    assert refusal(lambda: acknowledge(chief, id_)) == "FIELD_REQUIRED"
    assert refusal(lambda: acknowledge(chief, id_, " ", report=1)) == "FIELD_REQUIRED"
    assert refusal(chief.payout.AcknowledgePayout, pb.AcknowledgePayoutRequest(payout_id=id_, provider_reference="", reason="r")) == "FIELD_REQUIRED"


def test_an_operator_works_from_the_command_line(shop: Client, chief: Client, office: Platform, bank: Bank) -> None:
    """`tallystick payouts`, `payout-batch` and `dead-letters --service payout` do what the calls do, under the operator's token; refusals are one sentence."""
    environment = {"TALLYSTICK_TOKEN": TOKENS["chief"], "TALLYSTICK_LISTEN": office.address}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command_line(*arguments, **environment)

    seller = sell(shop, "300.00")
    to = destination(shop, seller)
    payout = pay_out(shop, seller, "150.00")
    waiting = command("payouts", "list", "--state", "AWAITING_APPROVAL", "--seller", seller).stdout.splitlines()
    assert [json.loads(line)["payout_id"] for line in waiting] == [payout.payout_id]
    none = command("payouts", "list", "--seller", "nobody")
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "No payouts match.\n")
    approved = command("payouts", "approve", payout.payout_id, "--reason", "seen")
    assert json.loads(approved.stdout)["payout_id"] == payout.payout_id, approved.stderr
    comes_to(shop, payout.payout_id, "PAID")
    shown = json.loads(command("payouts", "show", payout.payout_id).stdout)
    assert [(m["actor"], m["reason"]) for m in shown["history"] if m["cause"] == "APPROVED"] == [("chief", "seen")]
    refused = command("payouts", "reject", payout.payout_id, "--reason", "late")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "STATE_FORBIDS" in refused.stderr
    batch_id = unique("b")
    run = pb.NewPayoutRun(seller_account="nobody", currency="EUR")
    chief.payout.CreatePayoutBatch(pb.CreatePayoutBatchRequest(payout_batch_id=batch_id, run=run))
    states = [json.loads(line)["state"] for line in command("payout-batch", batch_id, "--follow").stdout.splitlines()]
    assert states[-1] == "PAYOUT_BATCH_STATE_DONE"
    bank.script[to].append(Unknown("malformed", Trouble.REJECTED))
    stuck = pay_out(shop, seller, "1.00")
    letter = dead_letter(chief, f"payouts/{stuck.payout_id}")
    listed = [json.loads(line)["dead_letter_id"] for line in command("dead-letters", "list", "--service", "payout").stdout.splitlines()]
    assert letter.dead_letter_id in listed
    subject = f"deadLetters/{letter.dead_letter_id}"
    assert eventually(lambda: subject in command("alerts", "--service", "payout").stdout)
    for service in ("wallet", "ledger"):
        none = command("alerts", "--service", service)
        assert (none.returncode, none.stdout, none.stderr) == (0, "", "No alerts match.\n")
    for token, said in (("", "Set TALLYSTICK_TOKEN."), ("ä", "TALLYSTICK_TOKEN must be visible ASCII characters.")):
        environment["TALLYSTICK_TOKEN"] = token
        unknown = command("alerts")
        assert (unknown.returncode, len(unknown.stderr.splitlines())) == (1, 1)
        assert said in unknown.stderr
    environment["TALLYSTICK_TOKEN"] = TOKENS["chief"]
    command("dead-letters", "retry", letter.dead_letter_id, "--service", "payout", "--reason", "again")
    comes_to(shop, stuck.payout_id, "PAID")
    reference = unique("tr")
    bank.script[to].append(Succeeded(reference, 101, "EUR"))
    mismatch = comes_to(shop, pay_out(shop, seller, "1.00").payout_id, "FAILED").payout
    acknowledged = command("payouts", "acknowledge", mismatch.payout_id, "--transfer", reference, "--reason", "seen")
    assert json.loads(acknowledged.stdout)["payout_id"] == mismatch.payout_id, acknowledged.stderr
    assert [one.acknowledge_reason for one in story(chief, mismatch.payout_id).transfers] == ["seen"]
    nothing = command("payouts", "acknowledge", mismatch.payout_id, "--report", "1", "--reason", "seen")
    assert (nothing.returncode, len(nothing.stderr.splitlines())) == (1, 1)
    assert "there is nothing to acknowledge" in nothing.stderr
