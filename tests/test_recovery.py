"""Failure and delay in pay-in: what is tried again, looked up, waited for and given up; through the SDK, against the provider's own log."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from threading import Event, Thread
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, Engine, event

from tallystick import (
    AlreadyExistsError,
    Client,
    ClientSettings,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    new_order,
)
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick.recovery.v1 import recovery_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.provider import (
    ChargeDemand,
    Declined,
    FailureReason,
    FinalNotFound,
    Found,
    NotFound,
    NotSent,
    Outcome,
    Pending,
    PendingReason,
    Succeeded,
    Trouble,
    Unknown,
)
from tallystick_core.recovery import Step
from tallystick_sandbox.sandbox import Sandbox
from tallystick_server.payment.charge import Charge, stored_charges
from tallystick_server.payment.flow import PayIn
from tallystick_server.payment.unapplied import find_unapplied
from tallystick_server.process.configuration import Settings
from tallystick_server.process.databases import Databases
from tallystick_server.process.verify import verify
from tallystick_server.process.wiring import Ports
from tallystick_server.providers.sandbox import InProcess
from tallystick_server.runtime.demand import Answered
from tallystick_server.runtime.postpone import Postpone, Troubled
from tallystick_server.runtime.retry import Policy, Strategy
from tallystick_storage import duty
from tallystick_storage.database import Database, DataRefused
from tallystick_storage.due import Answer, claim_aside, held, record_answers
from tallystick_storage.payment import orders as payment_store

from .banks import Bank
from .conftest import QUICK, Platform, command_line, eventually, flow_of, fresh_database, replayed, serving, unique
from .policies import scaled_defaults
from .test_pay_in import charges, pay
from .test_payout import comes_to, destination, pay_out, sell, wallet

ACCEPTANCE = payment_service_pb2.WAIT_FOR_ACCEPTANCE
TWICE = Policy(Strategy.FIXED, 0.05, 0.05, 2)
SOON = Policy(Strategy.FIXED, 0.05, 0.05, 100)


@pytest.fixture(scope="module")
def impatient(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform that tries everything twice."""
    with fresh_database(admin_url, tmp_path_factory.mktemp("impatient")) as known:
        retry = {("", trouble): TWICE for trouble in Trouble}
        retry |= {("", Trouble.WAITING): SOON, ("", Trouble.REJECTED): Policy(Strategy.CANCEL)}
        with serving(known, Settings(retry=retry, sweep_interval=0.1, risk_blocked_accounts=frozenset({"mallory"}))) as running:
            yield running


@pytest.fixture(scope="module")
def client(impatient: Platform) -> Iterator[Client]:
    with impatient.client() as made:
        yield made


def order_of(client: Client, payment: payment_pb2.Payment) -> payment_pb2.PaymentOrder:
    request = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=payment.payment_orders[0].payment_order_id)
    return client.payment.GetPaymentOrder(request).payment_order


def ended(client: Client, payment: payment_pb2.Payment) -> payment_pb2.PaymentOrder:
    """The payment's order once it is final and settled."""

    def look() -> payment_pb2.PaymentOrder | None:
        found = client.get_payment(payment.checkout_id)
        return found.payment_orders[0] if found.payment_state != payment_pb2.PAYMENT_STATE_OPEN else None

    order = eventually(look)
    assert order is not None, "the order did not come to its end"
    return order


def due(databases: Databases, charge: str) -> tuple[object, ...] | None:
    """(tries, trouble, looking, maybe_sent, whether it is due) of a charge that is not done."""
    with psycopg.connect(databases.reader("payment").replace("+psycopg", "")) as connection:
        tries = "(select coalesce(sum(value::int), 0)::int from jsonb_each_text(tries))"
        statement = f"select {tries}, trouble, looking, maybe_sent, next_attempt_time is not null from due where demand_id = %s"
        return connection.execute(statement, (charge,)).fetchone()


def failure(order: payment_pb2.PaymentOrder) -> str:
    return payment_pb2.FailureReason.Name(order.failure_reason).removeprefix("FAILURE_REASON_")


@pytest.mark.parametrize("token", ["tok_unreachable", "tok_busy", "tok_lost_before", "tok_error_after"])
def test_passing_trouble_passes(client: Client, impatient: Platform, token: str) -> None:
    """What fails once is tried again under the same key, and charged once."""
    payment = pay(client, "5.00", token=token)
    assert payment.is_payment_done
    assert len(charges(impatient.databases, payment.checkout_id)) == 1


def test_a_provider_that_is_never_reached_fails_the_order(client: Client, impatient: Platform) -> None:
    """Exhausted with nothing but NotSent: FAILED(PROVIDER_UNREACHABLE), and the provider knows of no charge."""
    payment = pay(client, "5.00", token="tok_unreachable:9")
    order = ended(client, payment)
    assert failure(order) == "PROVIDER_UNREACHABLE"
    assert charges(impatient.databases, payment.checkout_id) == []
    assert due(impatient.databases, order.charge_id) is None


def test_a_definite_refusal_is_a_failure_at_once(client: Client) -> None:
    """A charge that the provider will never make is FAILED(PROVIDER_REFUSED), and not tried again."""
    payment = pay(client, "0.01", token="tok_refused")
    assert failure(payment.payment_orders[0]) == "PROVIDER_REFUSED"
    assert payment.payment_orders[0].decline_code == "amount_too_small"


def test_an_error_that_is_replayed_for_ever_is_looked_up(client: Client, impatient: Platform) -> None:
    """When sending has been given up the provider is asked what became of the demand; its word counts."""
    payment = pay(client, "5.00", token="tok_error_stored")
    assert failure(ended(client, payment)) == "PROVIDER_DECLINED"
    assert [state for _, state, _ in charges(impatient.databases, payment.checkout_id)] == ["ERROR"]


def test_a_lost_charge_is_found_by_look_up(client: Client, impatient: Platform) -> None:
    """The answer is lost more often than it is asked for: the look-up finds the one charge that was made."""
    payment = pay(client, "5.00", token="tok_lost_after:2")
    assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    assert [state for _, state, _ in charges(impatient.databases, payment.checkout_id)] == ["SUCCEEDED"]


@pytest.mark.parametrize(("token", "state"), [("tok_pending:paid", "PAID"), ("tok_pending:declined", "FAILED")])
def test_a_pending_order_is_polled(client: Client, token: str, state: str) -> None:
    """Where no webhook comes the provider is asked now and then until it tells."""
    payment = pay(client, "5.00", token=token)
    ended(client, payment)
    assert client.get_payment(payment.checkout_id).payment_state == payment_pb2.PaymentState.Value(f"PAYMENT_STATE_{state}")


def test_a_provider_that_stays_pending_is_asked_for_ever(client: Client, impatient: Platform) -> None:
    """Pending is never failed for taking long."""
    payment = pay(client, "5.00", token="tok_pending")
    charge = payment.payment_orders[0].charge_id
    assert eventually(lambda: (found := due(impatient.databases, charge)) is not None and int(str(found[0])) > 4)
    assert order_of(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_PENDING


def test_past_the_keys_window_a_charge_is_looked_up_and_never_sent_again(own_database: Databases) -> None:
    """K3: a provider that has forgotten the key would charge again, so it is only asked."""
    settings = Settings(
        retry={("", trouble): SOON for trouble in Trouble}, sweep_interval=0.1, lease=2.5, provider_timeout=0.1, provider_key_window=4.5
    )
    with serving(own_database, settings) as running, running.client() as client:
        payment = pay(client, "5.00", token="tok_lost_after:1000", wait_for=ACCEPTANCE)
        assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        assert len(charges(own_database, payment.checkout_id)) == 1


def test_a_charge_that_was_never_sent_is_sent_however_long_its_provider_was_away(own_database: Databases) -> None:
    """K3: a provider that could not be reached until past the key's window is asked once whether it knows the charge, and sent it as it does not: nobody
    has to decide, and it is charged once."""
    away, asked = [True], list[Step]()

    def says(demand: ChargeDemand) -> Found:
        asked.append(Step.LOOK_UP)
        return NotFound()

    async def send(demand: ChargeDemand) -> Outcome:
        if away[0]:
            return NotSent("nobody listens")
        asked.append(Step.SEND)
        return Succeeded(f"ch_{demand.charge_id}", demand.amount, demand.currency)

    provider = Scripted(says)
    provider.send = send  # type: ignore[method-assign]
    provider.key_window = 4.5
    settings = Settings(
        retry={("", trouble): Policy(Strategy.FIXED, 0.05, 0.05, 1000) for trouble in Trouble}, sweep_interval=0.1, lease=2.5, provider_timeout=0.1
    )
    with serving(own_database, settings, ports=Ports(providers={"sandbox": provider})) as running, running.client() as client:
        payment = pay(client, "5.00", wait_for=ACCEPTANCE)
        assert eventually(lambda: asked), "it was not looked up"
        away[0] = False
        assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        assert asked == [Step.LOOK_UP, Step.SEND]
    assert verify(own_database).passed


def test_an_answer_that_is_on_disk_is_judged_not_asked_for_again(own_database: Databases) -> None:
    """A holder that wrote down a success and died before the order moved: the next one applies it, though the provider is gone."""
    with serving(own_database, Settings(retry=QUICK, sweep_interval=0.1)) as running, running.client() as client:
        payment = pay(client, "5.00", token="tok_lost_before:1000", wait_for=ACCEPTANCE)
        order = payment.payment_orders[0]
        with psycopg.connect(own_database.service("payment").replace("+psycopg", "")) as connection:  # as a holder would
            connection.execute(
                "update attempt set outcome = 'SUCCEEDED', provider_reference = 'from-afar', moved_amount = 500, moved_currency = 'EUR',"
                " end_time = clock() where demand_id = %s",
                (order.charge_id,),
            )
        assert ended(client, payment).provider_reference == "from-afar"
    assert verify(own_database).passed


def set_aside(client: Client, payment: payment_pb2.Payment) -> recovery_pb2.DeadLetter:
    """The open dead letter of the payment's charge."""
    subject = f"charges/{payment.payment_orders[0].charge_id}"

    def look() -> recovery_pb2.DeadLetter | None:
        request = payment_service_pb2.ListDeadLettersRequest(state=recovery_pb2.DEAD_LETTER_STATE_OPEN, page_size=200)
        return next((letter for letter in client.payment.ListDeadLetters(request).dead_letters if letter.subject == subject), None)

    letter = eventually(look)
    assert letter is not None, "no dead letter"
    return letter


def state_of(client: Client, letter: recovery_pb2.DeadLetter) -> str:
    found = client.payment.GetDeadLetter(payment_service_pb2.GetDeadLetterRequest(dead_letter_id=letter.dead_letter_id)).dead_letter
    return recovery_pb2.DeadLetterState.Name(found.state).removeprefix("DEAD_LETTER_STATE_")


def events_of(client: Client, aggregate: str) -> list[int]:
    return [event.aggregate_version for event in client.events(aggregate_id=aggregate)]


def close(client: Client, letter: recovery_pb2.DeadLetter, **values: str) -> recovery_pb2.DeadLetter:
    given = {"reason": "asked them", "evidence": "ticket 7: no charge", **values}
    return client.payment.CloseDeadLetter(payment_service_pb2.CloseDeadLetterRequest(dead_letter_id=letter.dead_letter_id, **given)).dead_letter


def retry(client: Client, letter: recovery_pb2.DeadLetter, reason: str = "mended") -> recovery_pb2.DeadLetter:
    request = payment_service_pb2.RetryDeadLetterRequest(dead_letter_id=letter.dead_letter_id, reason=reason)
    return client.payment.RetryDeadLetter(request).dead_letter


def test_what_cannot_be_retried_is_set_aside_and_closed(client: Client, impatient: Platform) -> None:
    """A call that the provider rejects waits for a person with its cause; closing it fails the order, and tells of both."""
    payment = pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE)
    letter = set_aside(client, payment)
    assert (letter.cause, letter.tries, letter.detail) == ("REJECTED", 1, "status 400 request_malformed")
    assert due(impatient.databases, payment.payment_orders[0].charge_id) == (1, "REJECTED", False, True, False)
    assert client.get_payment(payment.checkout_id).payment_orders[0].payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_EXECUTING
    closed = close(client, letter)
    assert (closed.operator, closed.reason, closed.evidence) == ("dev", "asked them", "ticket 7: no charge")
    assert close(client, letter) == closed  # a repeat changes nothing
    order = ended(client, payment)
    assert failure(order) == "CLOSED_BY_OPERATOR"
    assert eventually(lambda: events_of(client, f"deadLetters/{letter.dead_letter_id}") == [1, 2])
    with pytest.raises(FailedPreconditionError) as refused:
        close(client, letter, reason="again")
    assert refused.value.reason == "STATE_FORBIDS"
    with pytest.raises(FailedPreconditionError):
        retry(client, letter)


def test_a_dead_letter_is_tried_again(client: Client, impatient: Platform) -> None:
    """Retried it goes the same way under the same key; rejected once more it is a new dead letter, and the old one stays as history."""
    payment = pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE)
    first = set_aside(client, payment)
    assert retry(client, first) == retry(client, first)
    assert state_of(client, first) == "RETRIED"
    second = set_aside(client, payment)
    assert second.dead_letter_id != first.dead_letter_id
    assert charges(impatient.databases, payment.checkout_id) == []


def test_of_operators_at_once_one_retries(client: Client) -> None:
    """Each with a reason of his own: one is told that it was his, and his reason is kept; the others are refused."""
    letter = set_aside(client, pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE))

    def attempt(number: int) -> recovery_pb2.DeadLetter | str:
        try:
            return retry(client, letter, f"reason {number}")
        except FailedPreconditionError as error:
            return error.reason

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(attempt, range(8)))
    (won,) = [one for one in said if isinstance(one, recovery_pb2.DeadLetter)]
    assert said.count("STATE_FORBIDS") == 7
    request = payment_service_pb2.GetDeadLetterRequest(dead_letter_id=letter.dead_letter_id)
    assert client.payment.GetDeadLetter(request).dead_letter.reason == won.reason


def test_repeats_of_what_people_decide_are_marked(client: Client) -> None:
    """K1: the first call of a cancellation, a retry or a closing is not marked, its repeat is."""
    pending = pay(client, "5.00", token="tok_pending", wait_for=ACCEPTANCE)
    letters = [set_aside(client, pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE)).dead_letter_id for _ in range(2)]
    service, pb = client.payment, payment_service_pb2
    for method, request in (
        (service.CancelPayment, pb.CancelPaymentRequest(checkout_id=pending.checkout_id, reason="x")),
        (service.RetryDeadLetter, pb.RetryDeadLetterRequest(dead_letter_id=letters[0], reason="x")),
        (service.CloseDeadLetter, pb.CloseDeadLetterRequest(dead_letter_id=letters[1], reason="x", evidence="y")),
    ):
        assert [replayed(method, request) for _ in range(2)] == [False, True], method


def test_a_charge_that_nobody_finds_ends_with_a_person(own_database: Databases) -> None:
    """An outcome that stays unknown is never failed by itself: once its key may be forgotten, and not before, it is set aside, its order still EXECUTING."""
    retry = {("", trouble): TWICE for trouble in Trouble}
    settings = Settings(retry=retry, sweep_interval=0.1, lease=4, provider_timeout=0.1, provider_key_window=6.0)
    with serving(own_database, settings) as running, running.client() as client:
        payment = pay(client, "5.00", token="tok_lost_before:1000000", wait_for=ACCEPTANCE)
        letter = set_aside(client, payment)
        assert letter.cause == "UNRESOLVED"
        age = letter.create_time.ToNanoseconds() - payment.create_time.ToNanoseconds()
        assert age > 1.5e9  # as long as the key outlasts a lease
        assert client.get_payment(payment.checkout_id).payment_orders[0].payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_EXECUTING
        close(client, letter)
        assert failure(ended(client, payment)) == "CLOSED_BY_OPERATOR"


@pytest.mark.parametrize("token", ["tok_error_before:9", "tok_lost_before:9", "tok_busy:9"])
def test_what_the_provider_does_not_know_is_sent_again(client: Client, impatient: Platform, token: str) -> None:
    """A charge that fails more often than its policy allows is looked up and sent again by turns while its key is honoured: it is paid, once, and is
    no dead letter."""
    payment = pay(client, "5.00", token=token)
    assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    assert [state for _, state, _ in charges(impatient.databases, payment.checkout_id)] == ["SUCCEEDED"]


def soon_final(**values: Any) -> Settings:
    """Settings by which "not found" is proof a moment after the last sending."""
    retry = {("", trouble): Policy(Strategy.FIXED, 0.1, 0.1, 3) for trouble in Trouble}
    return Settings(retry=retry, sweep_interval=0.1, provider_not_found_after=0.6, provider_not_found_times=2, **values)


def in_seconds(seconds: float) -> Timestamp:
    """A time from now."""
    at = Timestamp()
    at.FromNanoseconds(time.time_ns() + int(seconds * 1e9))
    return at


def test_an_expired_charge_is_not_sent_again(own_database: Databases) -> None:
    """A charge whose sendings were lost is not sent any more once it has expired: its provider, which does not know it, is asked to end it, and it is
    FAILED(EXPIRED); nobody is charged."""
    with serving(own_database, soon_final()) as running, running.client() as client:
        payment = pay(client, "5.00", token="tok_lost_before:1000000", wait_for=ACCEPTANCE, expire_time=in_seconds(2))
        assert failure(ended(client, payment)) == "EXPIRED"
        assert charges(own_database, payment.checkout_id) == []
        assert due(own_database, payment.payment_orders[0].charge_id) is None
    assert verify(own_database).passed


def test_an_expired_charge_that_was_made_is_paid(own_database: Databases) -> None:
    """What the provider charged before it expired counts: asked to end it, the provider says that it was charged, and the order is SUCCESS."""
    with serving(own_database, soon_final()) as running, running.client() as client:
        payment = pay(client, "5.00", token="tok_lost_after:1000000", wait_for=ACCEPTANCE, expire_time=in_seconds(4))
        assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS


def left_by_a_dead_process(running: Platform, client: Client, **values: Any) -> payment_pb2.Payment:
    """A payment that was accepted and never sent: the process that has its charge dies before, and its lease ends in a while."""
    taken: list[Charge] = []

    async def die(item: Charge) -> None:
        taken.append(item)

    flow = flow_of(running)
    flow.bring_on = die  # type: ignore[method-assign]
    payment = pay(client, "5.00", wait_for=ACCEPTANCE, **values)
    assert eventually(lambda: taken)
    del flow.bring_on
    return payment


@pytest.mark.parametrize("reason", ["EXPIRED", "CALLER_CANCELLED"])
def test_a_charge_that_a_dead_process_left_is_not_sent_once_it_is_not_wanted(own_database: Databases, reason: str) -> None:
    """A process dies with a charge it has accepted and not sent; another takes it up when it has expired, or was cancelled: "not found" fails it."""
    with serving(own_database, soon_final(lease=4, provider_timeout=0.4)) as running, running.client() as client:
        if reason == "EXPIRED":
            payment = left_by_a_dead_process(running, client, expire_time=in_seconds(1.0))
        else:
            payment = left_by_a_dead_process(running, client)
            client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r"))
        assert failure(ended(client, payment)) == reason
        assert charges(own_database, payment.checkout_id) == []
    assert verify(own_database).passed


def test_an_order_that_risk_has_not_passed_is_never_sent(own_database: Databases) -> None:
    """A due charge of an order that is still NOT_STARTED asks no provider: it is a dead letter that says so."""
    with serving(own_database, soon_final(lease=4, provider_timeout=0.4)) as running, running.client() as client:
        payment = left_by_a_dead_process(running, client)
        with psycopg.connect(own_database.admin) as connection:
            connection.execute("set session_replication_role = replica")
            connection.execute("update payment.payment_order set status = 'NOT_STARTED'")
        letter = set_aside(client, payment)
        assert (letter.cause, letter.detail) == ("REJECTED", "risk has not passed it")
        assert charges(own_database, payment.checkout_id) == []


def test_a_few_server_errors_leave_no_charge_behind(own_database: Databases) -> None:
    """With the default policies, at another speed: a provider that answers 5xx seven times in a row charges once it works again, without anybody's help."""
    retry = {("", trouble): policy for trouble, policy in scaled_defaults(0.1).items()}
    with serving(own_database, Settings(retry=retry, sweep_interval=0.1)) as running, running.client() as client:
        payment = pay(client, "5.00", token="tok_error_before:7", wait_for=ACCEPTANCE)
        assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        assert len(charges(own_database, payment.checkout_id)) == 1


@pytest.mark.parametrize("token", ["tok_lost_before:1000000", "tok_busy:1000000", "tok_error_before:1000000"])
def test_a_cancelled_charge_that_the_provider_does_not_know_fails(own_database: Databases, token: str) -> None:
    """A charge that may have been sent and was cancelled is FAILED(CALLER_CANCELLED) once "not found" is proof, and not before."""
    with serving(own_database, soon_final()) as running, running.client() as client:
        payment = pay(client, "5.00", token=token, wait_for=ACCEPTANCE)
        charge = payment.payment_orders[0].charge_id
        assert eventually(lambda: (due(own_database, charge) or (0, "", False, False))[3])
        client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r"))
        order = ended(client, payment)
        assert failure(order) == "CALLER_CANCELLED"
        assert order.update_time.ToNanoseconds() - order.create_time.ToNanoseconds() > 0.6e9
        assert charges(own_database, payment.checkout_id) == []
    assert verify(own_database).passed


class Polled(InProcess):
    """A sandbox whose look-ups take a while."""

    def __init__(self, database: Database, seconds: float) -> None:
        super().__init__(Sandbox(database), 86_400.0)
        self.seconds = seconds
        self.asked = 0

    async def look_up(self, demand: ChargeDemand) -> Found:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        return await super().look_up(demand)


def test_a_cancellation_during_a_look_up_is_acted_on_at_once(own_database: Databases) -> None:
    """CancelPayment that comes while a holder looks a pending charge up is not put off to the next look, an hour later."""
    log = Database(own_database.service("sandbox"), connections=2)
    provider = Polled(log, 3.0)
    settings = Settings(retry={("", Trouble.WAITING): Policy(Strategy.FIXED, 3600, 3600, None)}, sweep_interval=0.1)
    with serving(own_database, settings, ports=Ports(providers={"sandbox": provider})) as running, running.client() as client:

        async def start() -> None:
            provider._sandbox.start()

        running.run(start)
        payment = pay(client, "5.00", token="tok_pending:review")
        assert eventually(lambda: (due(own_database, payment.payment_orders[0].charge_id) or ("", ""))[1] == "WAITING")
        with psycopg.connect(own_database.admin) as connection:
            connection.execute("update payment.due set next_attempt_time = now()")
        assert eventually(lambda: provider.asked)
        client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r"), timeout=1.5)
        assert failure(ended(client, payment)) == "CALLER_CANCELLED"
    log.close()


@pytest.mark.parametrize("expires", [False, True])
def test_a_cancellation_or_expiry_ends_a_charge_that_is_a_dead_letter(own_database: Databases, expires: bool) -> None:
    """A dead letter whose payment is cancelled, or expires, is taken up again without an operator: it is not sent, but fails once its provider proves
    not to know it, and the dead letter says by whom and why."""
    with serving(own_database, soon_final()) as running, running.client() as client:
        expire_time = in_seconds(3) if expires else None
        payment = pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE, expire_time=expire_time)
        letter = set_aside(client, payment)
        if not expires:
            cancel(client, payment, "sold out")
        assert failure(ended(client, payment)) == ("EXPIRED" if expires else "CALLER_CANCELLED")
        found = client.payment.GetDeadLetter(payment_service_pb2.GetDeadLetterRequest(dead_letter_id=letter.dead_letter_id)).dead_letter
        assert found.state == recovery_pb2.DEAD_LETTER_STATE_RETRIED
        assert found.operator == ("platform" if expires else "dev")
        assert ("time" if expires else "sold out") in found.reason
        assert charges(own_database, payment.checkout_id) == []
    assert verify(own_database).passed


def rejected_at_once() -> Settings:
    """As `soon_final`, where a charge that is rejected or misdirected is not tried again."""
    return replace(
        soon_final(), retry={**soon_final().retry, **{("", one): Policy(Strategy.CANCEL) for one in (Trouble.REJECTED, Trouble.MISDIRECTED)}}
    )


async def _after(moment: Timestamp, answer: Outcome) -> Outcome:
    """An answer that comes when a time has passed."""
    await asyncio.sleep(max(moment.ToNanoseconds() - time.time_ns(), 0) / 1e9 + 0.2)
    return answer


def test_a_charge_that_expires_while_its_answer_makes_a_dead_letter_of_it_is_ended(own_database: Databases) -> None:
    """A payment that expires while its provider rejects the charge needs no operator: the dead letter is retried by the platform, and the charge is
    FAILED(EXPIRED) once its provider proves not to know it."""
    expire_time = in_seconds(2)
    provider = Scripted(lambda demand: NotFound())

    provider.send = lambda demand: _after(expire_time, Unknown("no such call", Trouble.REJECTED))  # type: ignore[method-assign]
    with serving(own_database, rejected_at_once(), ports=Ports(providers={"sandbox": provider})) as running, running.client() as client:
        payment = pay(client, "5.00", wait_for=ACCEPTANCE, expire_time=expire_time)
        assert failure(ended(client, payment)) == "EXPIRED"
        letters = client.payment.ListDeadLetters(payment_service_pb2.ListDeadLettersRequest()).dead_letters
        retried = ("REJECTED", recovery_pb2.DEAD_LETTER_STATE_RETRIED, "platform")
        assert [(letter.cause, letter.state, letter.operator) for letter in letters] == [retried]
    assert verify(own_database).passed


def test_an_expired_charge_that_cannot_be_ended_stays_a_dead_letter(own_database: Databases) -> None:
    """A charge that expires while its provider answers with another's money is ended once; where that fails too, its dead letter waits for an operator."""
    expire_time = in_seconds(2)
    asked: list[str] = []

    def says(demand: ChargeDemand) -> Found:
        asked.append(demand.charge_id)
        return Unknown("what?", Trouble.MISDIRECTED)

    provider = Scripted(says)
    provider.send = lambda demand: _after(expire_time, Unknown("what?", Trouble.MISDIRECTED))  # type: ignore[method-assign]
    with serving(own_database, rejected_at_once(), ports=Ports(providers={"sandbox": provider})) as running, running.client() as client:
        payment = pay(client, "5.00", wait_for=ACCEPTANCE, expire_time=expire_time)
        charge = payment.payment_orders[0].charge_id
        assert eventually(lambda: asked and (due(own_database, charge) or (0, "", False, False, True))[4] is False)
        with psycopg.connect(own_database.admin) as connection:
            row = connection.execute("select recheck_time from payment.due where demand_id = %s", (charge,)).fetchone()
            assert row == (None,)
        letter = set_aside(client, payment)
        assert letter.detail.startswith("EXPIRED, and not ended")
        assert len(asked) == 1


def test_what_is_misdirected_is_closed_on_evidence_of_its_own(own_database: Databases) -> None:
    """A charge whose provider answers about another one is skipped by a call that closes many, and closed by one that is about it alone."""
    provider = Scripted(lambda demand: Unknown("what?", Trouble.MISDIRECTED))
    with serving(own_database, soon_final(), ports=Ports(providers={"sandbox": provider})) as running, running.client() as client:
        letter = set_aside(client, pay(client, "5.00", wait_for=ACCEPTANCE))
        many = payment_service_pb2.CloseDeadLettersRequest(all=True, reason="month's end", evidence="none in particular")
        assert [(one.dead_letter_id, one.error_reason) for one in client.payment.CloseDeadLetters(many).skipped] == [
            (letter.dead_letter_id, "STATE_FORBIDS")
        ]
        assert state_of(client, letter) == "OPEN"
        one = payment_service_pb2.CloseDeadLetterRequest(dead_letter_id=letter.dead_letter_id, reason="never made", evidence="ticket 7")
        client.payment.CloseDeadLetter(one)
        assert state_of(client, letter) == "CLOSED"
    assert verify(own_database).passed


def test_a_cancelled_dead_letter_that_cannot_be_ended_says_so(own_database: Databases) -> None:
    """What its provider does not end is a dead letter again, which says that its payment is cancelled; a repeat of the cancellation does not stir it."""
    provider = Scripted(lambda demand: Unknown("what?", Trouble.MISDIRECTED))
    with serving(own_database, soon_final(), ports=Ports(providers={"sandbox": provider})) as running, running.client() as client:
        payment = pay(client, "5.00", wait_for=ACCEPTANCE)
        first = set_aside(client, payment)
        request = payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="sold out")
        client.payment.CancelPayment(request, timeout=1)
        assert state_of(client, first) == "RETRIED"
        again = set_aside(client, payment)
        assert again.dead_letter_id != first.dead_letter_id
        assert again.detail.startswith("CALLER_CANCELLED")
        client.payment.CancelPayment(request, timeout=1)
        assert state_of(client, again) == "OPEN"
    assert verify(own_database).passed


def test_a_cancellation_while_a_charge_becomes_a_dead_letter_is_not_lost(own_database: Databases) -> None:
    """CancelPayment that comes while a holder has the answer by which a charge is set aside: it is not set aside, but ended at its provider."""
    asked, go = Event(), Event()
    provider = Scripted(lambda demand: Declined(FailureReason.CALLER_CANCELLED))

    async def send(demand: ChargeDemand) -> Outcome:
        asked.set()
        assert await asyncio.to_thread(go.wait, 30)
        return Unknown("what?", Trouble.REJECTED)

    provider.send = send  # type: ignore[method-assign]
    settings = replace(soon_final(), retry={("", Trouble.REJECTED): Policy(Strategy.CANCEL)})
    with serving(own_database, settings, ports=Ports(providers={"sandbox": provider})) as running, running.client() as client:
        payment = pay(client, "5.00", wait_for=ACCEPTANCE)
        assert asked.wait(30)
        client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r"), timeout=1)
        go.set()
        assert failure(ended(client, payment)) == "CALLER_CANCELLED"
        assert not client.payment.ListDeadLetters(payment_service_pb2.ListDeadLettersRequest()).dead_letters
    assert verify(own_database).passed


def charge_by_hand(databases: Databases, payment: payment_pb2.Payment, reference: str, amount: int = 500) -> None:
    """Makes the provider say that it charged after all."""
    charge = payment.payment_orders[0].charge_id
    with psycopg.connect(databases.admin) as connection:
        connection.execute(
            "insert into sandbox.charge values (%s, 1, '', %s, %s, 'SUCCEEDED', %s, 'EUR', '', '', clock_timestamp())",
            (f"dev-{charge}-1", charge, reference, amount),
        )


def test_closing_asks_the_provider_first(client: Client, impatient: Platform) -> None:
    """Should the provider know of a charge by then, it is applied, whatever the operator believes: the dead letter is RESOLVED, the order paid."""
    payment = pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE)
    letter = set_aside(client, payment)
    charge_by_hand(impatient.databases, payment, f"late-{payment.checkout_id}")
    assert close(client, letter).state == recovery_pb2.DEAD_LETTER_STATE_RESOLVED
    assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS


@pytest.mark.parametrize(("reason", "evidence", "field"), [("", "x", "reason"), ("x", "  ", "evidence"), ("x", "y" * 256, "evidence")])
def test_closing_needs_a_reason_and_evidence(client: Client, reason: str, evidence: str, field: str) -> None:
    """Both are kept in history; without them nothing is closed."""
    payment = pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE)
    letter = set_aside(client, payment)
    with pytest.raises(InvalidArgumentError) as refused:
        close(client, letter, reason=reason, evidence=evidence)
    assert [violation.field for violation in refused.value.field_violations] == [field]
    assert state_of(client, letter) == "OPEN"


def unapplied(client: Client, payment: payment_pb2.Payment) -> list[payment_pb2.UnappliedCharge]:
    """The payment's unapplied charges that are booked."""
    found = client.payment.ListUnappliedCharges(payment_service_pb2.ListUnappliedChargesRequest(page_size=200)).unapplied_charges
    return [charge for charge in found if charge.checkout_id == payment.checkout_id and charge.ledger_updated]


async def held_charge(flow: PayIn, charge_id: str, token: int) -> Charge:
    """The charge as who holds it under a lease token knows it."""
    rows = await flow._database.read(lambda connection: payment_store.charges(connection, [charge_id]))
    return stored_charges(rows, {charge_id: token}, 0.0, 60.0)[0]


async def told(flow: PayIn, *answers: tuple[Charge, Outcome]) -> None:
    """Writes answers down, in one batch."""
    await asyncio.gather(*(flow._record.submit(Answered(charge, outcome)) for charge, outcome in answers))


def test_another_amount_is_an_unapplied_charge(client: Client) -> None:
    """P2: the order fails, and the money that was taken all the same is booked once under unapplied/{provider}, and told of."""
    payment = pay(client, "5.00", token="tok_other_amount")
    assert failure(payment.payment_orders[0]) == "PROVIDER_MISMATCH"
    assert eventually(lambda: unapplied(client, payment))
    (charge,) = unapplied(client, payment)
    assert (charge.amount, charge.currency, charge.cause) == ("5.01", "EUR", payment_pb2.UNAPPLIED_CAUSE_MISMATCH)
    request = ledger_service_pb2.ListTransactionsRequest(cause_id=charge.unapplied_charge_id)
    (transaction,) = client.ledger.ListTransactions(request).transactions
    assert [(entry.account, entry.amount) for entry in transaction.entries] == [("psp/sandbox/clearing", "5.01"), ("unapplied/sandbox", "5.01")]
    assert eventually(lambda: events_of(client, f"unappliedCharges/{charge.unapplied_charge_id}") == [1, 2])


def acknowledged(charge: payment_pb2.UnappliedCharge, reason: str = "refunded") -> payment_service_pb2.AcknowledgeUnappliedChargeRequest:
    return payment_service_pb2.AcknowledgeUnappliedChargeRequest(unapplied_charge_id=charge.unapplied_charge_id, reason=reason)


def test_an_unapplied_charge_is_acknowledged_once(client: Client) -> None:
    """Acknowledged by an operator with a reason it leaves the list, and stays booked as it is; a repeat is marked, with another reason it is KEY_REUSED."""
    payment = pay(client, "5.00", token="tok_other_amount")
    (charge,) = eventually(lambda: unapplied(client, payment))
    acknowledge = client.payment.AcknowledgeUnappliedCharge
    assert [replayed(acknowledge, acknowledged(charge)) for _ in range(2)] == [False, True]
    with pytest.raises(AlreadyExistsError) as reused:
        acknowledge(acknowledged(charge, "another"))
    assert reused.value.reason == "KEY_REUSED"
    assert not unapplied(client, payment)
    every = client.pages(
        client.payment.ListUnappliedCharges, payment_service_pb2.ListUnappliedChargesRequest(acknowledged=True, page_size=200), "unapplied_charges"
    )
    (found,) = [one for one in every if one.unapplied_charge_id == charge.unapplied_charge_id]
    assert (found.acknowledged_by, found.acknowledge_reason, found.version) == ("dev", "refunded", 3)
    assert found.acknowledge_time == found.update_time
    assert (found.amount, found.cause, found.ledger_updated) == (charge.amount, charge.cause, True)
    request = ledger_service_pb2.ListTransactionsRequest(cause_id=charge.unapplied_charge_id)
    assert len(client.ledger.ListTransactions(request).transactions) == 1
    assert eventually(lambda: events_of(client, f"unappliedCharges/{charge.unapplied_charge_id}") == [1, 2, 3])


def test_what_cannot_be_acknowledged_says_why(client: Client) -> None:
    """An id that nobody knows is NOT_FOUND, and a reason that says nothing is FIELD_REQUIRED."""
    unknown = payment_pb2.UnappliedCharge(unapplied_charge_id="u-nothing")
    with pytest.raises(NotFoundError):
        client.payment.AcknowledgeUnappliedCharge(acknowledged(unknown))
    with pytest.raises(InvalidArgumentError) as refused:
        client.payment.AcknowledgeUnappliedCharge(acknowledged(unknown, " "))
    assert (refused.value.reason, refused.value.field_violations[0].field) == ("FIELD_REQUIRED", "reason")


def test_money_that_comes_after_the_failure_is_unapplied(client: Client, impatient: Platform) -> None:
    """P2: a holder that stood still tells of a success when the order has been closed: FAILED stands, and the money is booked."""
    payment = pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE)
    letter = set_aside(client, payment)
    charge_id, flow = payment.payment_orders[0].charge_id, flow_of(impatient)
    held = impatient.run(held_charge, flow, charge_id, 1)
    close(client, letter)
    assert failure(ended(client, payment)) == "CLOSED_BY_OPERATOR"
    for _ in range(2):
        impatient.run(told, flow, (held, Succeeded(f"ref-{charge_id}", 500, "EUR")))
    assert eventually(lambda: unapplied(client, payment))
    (late,) = unapplied(client, payment)
    assert (late.amount, late.cause) == ("5.00", payment_pb2.UNAPPLIED_CAUSE_LATE)
    assert failure(client.get_payment(payment.checkout_id).payment_orders[0]) == "CLOSED_BY_OPERATOR"


def test_what_was_charged_twice_is_unapplied_beside_a_refused_sibling(client: Client, impatient: Platform) -> None:
    """P2: a second charge of orders that are charged together is booked, though risk has refused one of the payment's orders."""
    checkout = unique("c")
    orders = [new_order(f"{checkout}-{seller}", "b", seller, "5.00", "EUR") for seller in ("honest", "mallory")]
    together = {"charging": payment_pb2.CHARGING_TOGETHER, "wait_for": ACCEPTANCE}
    payment = client.create_payment(checkout, orders, credit_card_info="tok_rejected", **together)
    set_aside(client, payment)
    charge = impatient.run(held_charge, flow_of(impatient), payment.payment_orders[0].charge_id, 0)
    impatient.run(told, flow_of(impatient), (charge, Succeeded(f"first-{checkout}", 500, "EUR")))
    assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    impatient.run(told, flow_of(impatient), (charge, Succeeded(f"second-{checkout}", 500, "EUR")))
    (twice,) = eventually(lambda: unapplied(client, payment))
    assert (twice.provider_reference, twice.amount, twice.cause) == (f"second-{checkout}", "5.00", payment_pb2.UNAPPLIED_CAUSE_TWICE)


@pytest.mark.parametrize("first", [Succeeded("", 500, "EUR"), Declined(FailureReason.PROVIDER_DECLINED, "no")], ids=["paid", "declined"])
def test_a_second_charge_is_kept_while_the_first_answer_is_not_judged(client: Client, impatient: Platform, first: Succeeded | Declined) -> None:
    """P2: two holders who lost their leases tell of one charge before its order has moved: what the second tells of is unapplied, not dropped."""
    payment = pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE)
    set_aside(client, payment)
    charge_id, flow = payment.payment_orders[0].charge_id, flow_of(impatient)
    lost: Any = impatient.run(held_charge, flow, charge_id, 0)
    for outcome in (replace(first, reference=f"first-{charge_id}"), Succeeded(f"second-{charge_id}", 500, "EUR")):
        with psycopg.connect(
            impatient.databases.service("payment").replace("+psycopg", "")
        ) as connection:  # nobody judges the answer between the two
            connection.execute("update payment.due set next_attempt_time = 'infinity' where demand_id = %s", (charge_id,))
        impatient.run(told, flow, (lost, outcome))
    (second,) = eventually(lambda: unapplied(client, payment))
    cause = payment_pb2.UNAPPLIED_CAUSE_TWICE if isinstance(first, Succeeded) else payment_pb2.UNAPPLIED_CAUSE_LATE
    assert (second.provider_reference, second.cause) == (f"second-{charge_id}", cause)
    with psycopg.connect(impatient.databases.service("payment").replace("+psycopg", "")) as connection:
        connection.execute("update payment.due set next_attempt_time = now() where demand_id = %s", (charge_id,))
    ended(client, payment)


class Scripted:
    """A provider that answers as it is told to."""

    name = "sandbox"
    key_window = 86_400.0
    final_not_found: FinalNotFound | None = FinalNotFound(0.2, 1)

    def __init__(self, says: Callable[[ChargeDemand], Found]) -> None:
        self.says = says

    async def send(self, demand: ChargeDemand) -> Outcome:
        answer = self.says(demand)
        assert not isinstance(answer, NotFound)
        return answer

    async def look_up(self, demand: ChargeDemand) -> Found:
        return self.says(demand)

    cancel = look_up


def test_a_dead_letter_whose_provider_is_configured_no_more_is_closed(own_database: Databases) -> None:
    """Where nobody is left to ask, an operator's evidence decides: the order is FAILED, and a payout's money is its seller's again."""
    bank = Bank()
    old = Ports(
        providers={"old": Scripted(lambda _: Unknown("malformed", Trouble.REJECTED)), "sandbox": Scripted(_paid)},
        payout_providers={"old": bank},
    )
    new = Ports(providers={"sandbox": Scripted(_paid)}, payout_providers={"sandbox": Bank()})
    first = Settings(sweep_interval=0.1, payout_provider="old", payout_waiting_period=0)
    with serving(own_database, first, ports=old) as running, running.client() as client:
        seller = sell(client, "10.00")
        bank.script[destination(client, seller)].append(Unknown("malformed", Trouble.REJECTED))
        payout = pay_out(client, seller, "4.00")
        assert eventually(lambda: client.payout.ListDeadLetters(payout_service_pb2.ListDeadLettersRequest()).dead_letters)
    with serving(own_database, Settings(sweep_interval=0.1, provider="old"), ports=old) as running, running.client() as client:
        payment = pay(client, "5.00", wait_for=ACCEPTANCE)
        set_aside(client, payment)
    with serving(own_database, Settings(sweep_interval=0.1), ports=new) as running, running.client() as client:
        assert close(client, set_aside(client, payment)).state == recovery_pb2.DEAD_LETTER_STATE_CLOSED
        assert failure(ended(client, payment)) == "CLOSED_BY_OPERATOR"
        (letter,) = client.payout.ListDeadLetters(payout_service_pb2.ListDeadLettersRequest()).dead_letters
        assert letter.subject == f"payouts/{payout.payout_id}"
        request = payout_service_pb2.CloseDeadLetterRequest(
            dead_letter_id=letter.dead_letter_id, reason="the bank is gone", evidence="its receiver's letter"
        )
        assert client.payout.CloseDeadLetter(request).dead_letter.state == recovery_pb2.DEAD_LETTER_STATE_CLOSED
        assert eventually(lambda: wallet(client, seller) == ("10.00", "0.00", "0.00"))
        comes_to(client, payout.payout_id, "FAILED")
    assert verify(own_database).passed


def _paid(demand: ChargeDemand) -> Found:
    return Succeeded(f"ch_{demand.charge_id}", demand.amount, demand.currency)


@pytest.mark.parametrize("echoes", [True, False])
def test_one_charge_of_a_provider_pays_one_order(own_database: Databases, echoes: bool) -> None:
    """P1: a provider that answers everybody with the first one's charge: only that one is paid, the others are dead letters that say why."""
    first: list[str] = []

    def says(demand: ChargeDemand) -> Found:
        first.append(demand.charge_id)
        return Succeeded("ch_1", demand.amount, demand.currency, first[0] if echoes else "")

    with serving(own_database, soon_final(), ports=Ports(providers={"sandbox": Scripted(says)})) as running, running.client() as client:
        assert pay(client, "5.00").is_payment_done
        for _ in range(2):
            other = pay(client, "5.00", wait_for=ACCEPTANCE)
            letter = set_aside(client, other)
            assert letter.cause == "MISDIRECTED"
            assert ("another demand" if echoes else "ch_1") in letter.detail
            assert not client.get_payment(other.checkout_id).payment_orders[0].provider_reference
        assert not client.payment.ListUnappliedCharges(payment_service_pb2.ListUnappliedChargesRequest()).unapplied_charges
    assert verify(own_database).passed


def test_a_charge_that_its_provider_answers_with_anothers_money_is_closed_on_evidence(own_database: Databases) -> None:
    """A provider that goes on answering with another charge's reference keeps no order open: an operator closes its dead letter, by itself; the order
    fails, no money moves by the answer, and what was charged after all is found and booked as unapplied."""
    own: list[str] = []

    def says(demand: ChargeDemand) -> Found:
        return Succeeded("ch_own" if demand.charge_id in own else "ch_1", demand.amount, demand.currency)

    watched = {("", Trouble.WATCHED): Policy(Strategy.FIXED, 0.2, 0.2, 100_000)}
    settings = replace(soon_final(), retry={**soon_final().retry, **watched})
    with serving(own_database, settings, ports=Ports(providers={"sandbox": Scripted(says)})) as running, running.client() as client:
        assert pay(client, "5.00").is_payment_done
        other = pay(client, "5.00", wait_for=ACCEPTANCE)
        letter = set_aside(client, other)
        many = payment_service_pb2.CloseDeadLettersRequest(all=True, reason="month's end", evidence="none in particular")
        assert [one.error_reason for one in client.payment.CloseDeadLetters(many).skipped] == ["STATE_FORBIDS"]
        assert state_of(client, letter) == "OPEN"
        close = payment_service_pb2.CloseDeadLetterRequest(dead_letter_id=letter.dead_letter_id, reason="the buyer gave up", evidence="ticket 7")
        closed = client.payment.CloseDeadLetter(close).dead_letter
        assert (closed.state, closed.evidence) == (recovery_pb2.DEAD_LETTER_STATE_CLOSED, "ticket 7")
        assert failure(ended(client, other)) == "CLOSED_BY_OPERATOR"
        assert not unapplied(client, other)
        own.append(other.payment_orders[0].charge_id)
        (late,) = eventually(lambda: unapplied(client, other))
        assert (late.provider_reference, late.cause) == ("ch_own", payment_pb2.UNAPPLIED_CAUSE_LATE)
    assert verify(own_database).passed


@pytest.mark.parametrize("unapplied_first", [True, False])
def test_one_reference_of_a_provider_is_the_money_of_one_charge_at_the_same_moment(
    client: Client, impatient: Platform, unapplied_first: bool
) -> None:
    """P1: of two transactions at once that store one reference, as an unapplied charge and as another charge's success, the second waits and is refused."""
    flow, payments = flow_of(impatient), [pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE) for _ in range(2)]
    for payment in payments:
        set_aside(client, payment)
    ids, reference = [payment.payment_orders[0].charge_id for payment in payments], unique("ref")
    both: list[Any] = [impatient.run(held_charge, flow, id_, 0) for id_ in ids]
    writes: list[tuple[Charge, Succeeded]] = [(both[0], Succeeded(reference, 501, "EUR")), (both[1], Succeeded(reference, 500, "EUR"))]
    written, commit = Event(), Event()

    def first(connection: Connection) -> None:
        charge, outcome = writes[0 if unapplied_first else 1]
        if unapplied_first:
            find_unapplied(connection, [(charge, outcome)])
        else:
            record_answers(connection, [Answer(charge.charge_id, 1, "SUCCEEDED", reference, outcome.amount, outcome.currency, "", "")])
        written.set()
        assert commit.wait(30)

    def second(connection: Connection) -> None:
        charge, outcome = writes[1 if unapplied_first else 0]
        if unapplied_first:
            record_answers(connection, [Answer(charge.charge_id, 1, "SUCCEEDED", reference, outcome.amount, outcome.currency, "", "")])
        else:
            find_unapplied(connection, [(charge, outcome)])

    with ThreadPoolExecutor(2) as pool, psycopg.connect(impatient.databases.admin, autocommit=True) as admin:
        holds = pool.submit(impatient.run, flow._database.transact, first)
        assert written.wait(30)
        waits = pool.submit(impatient.run, flow._database.transact, second)
        locked = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and state = 'active'"
        assert eventually(lambda: waits.done() or admin.execute(locked).fetchone() != (0,))
        commit.set()
        holds.result(30)
        with pytest.raises(DataRefused, match="provider_money_pkey"):
            waits.result(30)
    kept = ids[:1] if unapplied_first else []
    assert eventually(lambda: [charge.charge_id for payment in payments for charge in unapplied(client, payment)] == kept)


def test_not_found_is_no_proof_where_the_provider_does_not_say_so(own_database: Databases) -> None:
    """An adapter whose "not found" is never conclusive: a cancelled charge is asked about until its key may be forgotten, then it is a dead letter."""
    provider = Scripted(lambda demand: NotFound())
    provider.send = lambda demand: _lost()  # type: ignore[method-assign]
    provider.key_window, provider.final_not_found = 7.0, None
    settings = soon_final(lease=4, provider_timeout=0.4)
    with serving(own_database, settings, ports=Ports(providers={"sandbox": provider})) as running, running.client() as client:
        payment = pay(client, "5.00", wait_for=ACCEPTANCE)
        client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r"), timeout=2)
        assert set_aside(client, payment).cause == "UNRESOLVED"
        assert client.get_payment(payment.checkout_id).payment_orders[0].payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_EXECUTING


def test_money_of_a_failed_charge_that_may_have_been_sent_is_found(own_database: Databases) -> None:
    """P2: a cancelled charge fails because its provider does not know it; the provider is asked again, and what it charged after all is unapplied."""
    late: list[Found] = [NotFound()]

    def says(demand: ChargeDemand) -> Found:
        return late[0]

    provider = Scripted(says)
    provider.send = lambda demand: _lost()  # type: ignore[method-assign]
    settings = replace(soon_final(), retry={**soon_final().retry, ("", Trouble.WATCHED): Policy(Strategy.FIXED, 0.2, 0.2, 100)})
    with serving(own_database, settings, ports=Ports(providers={"sandbox": provider})) as running, running.client() as client:
        payment = pay(client, "5.00", wait_for=ACCEPTANCE)
        charge = payment.payment_orders[0].charge_id
        assert eventually(lambda: (due(own_database, charge) or (0, "", False, False))[3])
        client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r"))
        assert failure(ended(client, payment)) == "CALLER_CANCELLED"
        late[0] = Succeeded("late", 500, "EUR", charge)
        assert eventually(lambda: unapplied(client, payment))
        (found,) = unapplied(client, payment)
        assert (found.amount, found.cause, found.charge_id) == ("5.00", payment_pb2.UNAPPLIED_CAUSE_LATE, charge)
        assert failure(client.get_payment(payment.checkout_id).payment_orders[0]) == "CALLER_CANCELLED"
        with psycopg.connect(own_database.admin) as connection:
            assert eventually(lambda: connection.execute("select count(*) from payment.watch").fetchone() == (0,))
    assert verify(own_database).passed


def test_one_process_asks_what_became_of_failed_charges(own_database: Databases) -> None:
    """Of two processes one asks the provider about failed charges that may have been sent; the other does once that one has not come back for some seconds."""
    asked: dict[str, list[str]] = {"often": [], "seldom": []}

    def scripted(who: str) -> Ports:
        def says(demand: ChargeDemand) -> Found:
            asked[who].append(demand.charge_id)
            return NotFound()

        provider = Scripted(says)
        provider.send = lambda demand: _lost()  # type: ignore[method-assign]
        return Ports(providers={"sandbox": provider})

    often = replace(soon_final(), retry={**soon_final().retry, ("", Trouble.WATCHED): Policy(Strategy.FIXED, 0.0, 0.0, 1_000_000)})
    with serving(own_database, replace(often, sweep_interval=3600), ports=scripted("seldom")) as other:
        with serving(own_database, often, ports=scripted("often")) as running, running.client() as client:
            payment = pay(client, "5.00", wait_for=ACCEPTANCE)
            assert eventually(lambda: (due(own_database, payment.payment_orders[0].charge_id) or (0, "", False, False))[3])
            client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r"))
            assert failure(ended(client, payment)) == "CALLER_CANCELLED"
            looks = len(asked["often"])
            assert eventually(lambda: len(asked["often"]) > looks)
            other.run(flow_of(other).watching._work)
            assert asked["seldom"] == []
        with psycopg.connect(own_database.admin) as connection:
            connection.execute("update payment.duty set until_time = now() where name like 'watch%'")
        other.run(flow_of(other).watching._work)
        assert asked["seldom"] == [payment.payment_orders[0].charge_id]


def test_a_watched_charge_that_is_said_to_be_anothers_money_raises_an_alert(own_database: Databases) -> None:
    """A failed charge of which its provider reports another charge's money: stored once, an alert until an operator acknowledges it; no money moves."""
    late: list[Found] = [NotFound()]

    def says(demand: ChargeDemand) -> Found:
        return Succeeded("first", demand.amount, demand.currency) if demand.payment_token == "tok_first" else late[0]

    provider = Scripted(says)
    provider.send = lambda demand: _lost() if demand.payment_token != "tok_first" else _first(demand)  # type: ignore[method-assign]
    watched = {("", Trouble.WATCHED): Policy(Strategy.FIXED, 0.1, 0.1, 100_000)}
    settings = replace(soon_final(), retry={**soon_final().retry, **watched}, monitor_interval=0.2)
    with serving(own_database, settings, ports=Ports(providers={"sandbox": provider})) as running, running.client() as client:
        first = pay(client, "5.00", token="tok_first").payment_orders[0].charge_id
        payment = pay(client, "5.00", wait_for=ACCEPTANCE)
        charge, order_id = payment.payment_orders[0].charge_id, payment.payment_orders[0].payment_order_id
        assert eventually(lambda: (due(own_database, charge) or (0, "", False, False))[3])
        client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r"))
        assert failure(ended(client, payment)) == "CALLER_CANCELLED"
        late[0] = Succeeded("first", 500, "EUR")
        (alert,) = eventually(lambda: alerts_of(client, f"charges/{charge}"))
        assert (alert.kind, first in alert.detail) == ("CHARGE_CONTRADICTED", True)
        get = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order_id)
        (report,) = client.payment.GetPaymentOrder(get).conflicting_reports
        assert (report.number, report.acknowledged_by) == (1, "")
        request = payment_service_pb2.AcknowledgeChargeRequest(charge_id=charge, report_number=1, reason="asked")
        assert client.payment.AcknowledgeCharge(request).conflicting_report.acknowledge_reason == "asked"
        assert replayed(client.payment.AcknowledgeCharge, request)
        with pytest.raises(AlreadyExistsError):
            client.payment.AcknowledgeCharge(payment_service_pb2.AcknowledgeChargeRequest(charge_id=charge, report_number=1, reason="other"))
        with pytest.raises(NotFoundError):
            client.payment.AcknowledgeCharge(payment_service_pb2.AcknowledgeChargeRequest(charge_id=charge, report_number=2, reason="asked"))
        assert eventually(lambda: not alerts_of(client, f"charges/{charge}"))
        assert len(client.payment.GetPaymentOrder(get).conflicting_reports) == 1
        assert not client.payment.ListUnappliedCharges(payment_service_pb2.ListUnappliedChargesRequest()).unapplied_charges
    assert verify(own_database).passed


def test_another_amount_of_what_was_charged_raises_an_alert(client: Client, impatient: Platform) -> None:
    """A charge that succeeded is reported again in another amount: it stays as it was, the amount is not booked, and an operator is told."""
    payment = pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE)
    set_aside(client, payment)
    charge_id, reference = payment.payment_orders[0].charge_id, unique("ref")
    charge = impatient.run(held_charge, flow_of(impatient), charge_id, 0)
    impatient.run(told, flow_of(impatient), (charge, Succeeded(reference, 500, "EUR")))
    assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    impatient.run(told, flow_of(impatient), (charge, Succeeded(reference, 501, "EUR")))
    get = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=payment.payment_orders[0].payment_order_id)
    (report,) = client.payment.GetPaymentOrder(get).conflicting_reports
    assert report.report == f"Succeeded {reference} 501 EUR, reported before as 500 EUR"
    assert not unapplied(client, payment)


async def _first(demand: ChargeDemand) -> Outcome:
    return Succeeded("first", demand.amount, demand.currency)


async def _lost() -> Outcome:
    return Unknown("lost")


def test_orders_that_do_not_move_keep_their_work(client: Client, impatient: Platform) -> None:
    """P5: a holder that knows its orders at an older version moves none of them, and takes none of their work from the queue."""
    payment = pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE)
    set_aside(client, payment)
    order, flow = client.get_payment(payment.checkout_id).payment_orders[0], flow_of(impatient)

    async def move() -> tuple[int, bool]:
        def work(connection: Connection) -> tuple[int, bool]:
            with connection.begin_nested() as savepoint:  # rolled back, so that the dead letter rests as it did
                token = claim_aside(connection, order.charge_id, 1.0)
                assert token is not None
                stale = payment_store.OrderMove(
                    order.payment_order_id, order.charge_id, token, order.version - 1, "FAILED", "GIVEN_UP", failure_reason="PROVIDER_UNREACHABLE"
                )
                moved = payment_store.move_orders(connection, [stale])
                found = len(moved), held(connection, [order.charge_id]) == {order.charge_id: token}
                savepoint.rollback()
            return found

        return await flow._database.transact(work)

    assert impatient.run(move) == (0, True)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("paid", [True, False])
def test_the_answer_on_disk_is_what_moves_orders(client: Client, impatient: Platform, paid: bool, at_once: bool) -> None:
    """Who lost the lease wrote down a success, then who has it hears otherwise: the orders follow what was written first; a second charge is unapplied."""
    payment = pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE)
    set_aside(client, payment)
    order, flow = payment.payment_orders[0], flow_of(impatient)

    async def claim() -> int:
        token = await flow._database.transact(lambda connection: claim_aside(connection, order.charge_id, 1.0))
        assert token is not None
        return token

    first = Succeeded(f"first-{order.charge_id}", 500, "EUR")
    second = Succeeded(f"second-{order.charge_id}", 500, "EUR") if paid else Declined(FailureReason.PROVIDER_DECLINED, "no", "ref")
    lost: Any = impatient.run(held_charge, flow, order.charge_id, 0)
    held: Any = impatient.run(held_charge, flow, order.charge_id, impatient.run(claim))
    for answers in [((lost, first), (held, second))] if at_once else [((lost, first),), ((held, second),)]:
        impatient.run(told, flow, *answers)
    order = ended(client, payment)
    assert order.payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    assert order.provider_reference == first.reference
    assert eventually(lambda: events_of(client, f"paymentOrders/{order.payment_order_id}")[-1:] == [order.version])
    if paid:
        (twice,) = eventually(lambda: unapplied(client, payment))
        assert (twice.provider_reference, twice.cause) == (f"second-{order.charge_id}", payment_pb2.UNAPPLIED_CAUSE_TWICE)


@pytest.mark.parametrize("late", [Unknown("no answer"), Pending(PendingReason.PROVIDER_REVIEW)])
@pytest.mark.parametrize("first", [True, False])
def test_of_two_answers_at_once_the_final_one_is_written_down(client: Client, impatient: Platform, late: Outcome, first: bool) -> None:
    """Two holders' answers to one demand in one batch: what ends it is its outcome, whichever came first."""
    payment = pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE)
    set_aside(client, payment)
    charge_id, flow = payment.payment_orders[0].charge_id, flow_of(impatient)
    charge: Any = impatient.run(held_charge, flow, charge_id, 1)
    answers: list[tuple[Charge, Outcome]] = [(charge, late), (charge, Succeeded(f"ref-{charge_id}", 500, "EUR"))]
    impatient.run(told, flow, *(answers if first else reversed(answers)))
    order = ended(client, payment)
    request = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order.payment_order_id)
    (attempt,) = client.payment.GetPaymentOrder(request).attempts
    assert attempt.outcome == payment_pb2.OUTCOME_SUCCEEDED
    assert order.payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS


def test_the_command_line_does_what_an_operator_does(client: Client, impatient: Platform) -> None:
    """`tallystick dead-letters` lists, shows, retries and closes; `unapplied-charges` lists and acknowledges; what is refused is one sentence and exit 1."""
    payment = pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE)
    letter = set_aside(client, payment)

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command_line(*arguments, "--address", impatient.address)

    listed = [json.loads(line) for line in command("dead-letters", "list").stdout.splitlines()]
    assert letter.dead_letter_id in [one["dead_letter_id"] for one in listed]
    assert json.loads(command("dead-letters", "show", letter.dead_letter_id).stdout)["payment_orders"][0]["checkout_id"] == payment.checkout_id
    closed = command("dead-letters", "close", letter.dead_letter_id, "--reason", "r", "--evidence", "e")
    assert json.loads(closed.stdout)["dead_letter"]["state"] == "DEAD_LETTER_STATE_CLOSED"
    refused = command("dead-letters", "retry", letter.dead_letter_id, "--reason", "r")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "STATE_FORBIDS: The dead letter is CLOSED and cannot be retried." in refused.stderr
    other = pay(client, "5.00", token="tok_other_amount")
    (charge,) = eventually(lambda: unapplied(client, other))
    shown = command("unapplied-charges", "acknowledge", charge.unapplied_charge_id, "--reason", "refunded")
    assert json.loads(shown.stdout)["acknowledge_reason"] == "refunded", shown.stderr
    assert charge.unapplied_charge_id not in command("unapplied-charges", "list").stdout
    assert charge.unapplied_charge_id in command("unapplied-charges", "list", "--all").stdout


def test_who_lost_a_lease_does_not_give_it_back(patient: Client, waiting: Platform) -> None:
    """A holder whose lease another has taken over changes nothing of when the charge is taken up again."""
    payment = pay(patient, "5.00", token="tok_lost_before", wait_for=ACCEPTANCE)
    charge_id = payment.payment_orders[0].charge_id
    assert eventually(lambda: (due(waiting.databases, charge_id) or ("", ""))[1] == "NO_ANSWER")
    flow = flow_of(waiting)

    async def give_back() -> None:
        rows = await flow._database.read(lambda connection: payment_store.charges(connection, [charge_id]))
        (charge,) = stored_charges(rows, {charge_id: 0}, 0.0, 60.0)
        await flow._postpone.submit(Troubled(charge, Trouble.SERVER_ERROR, "late", Step.SEND))

    before = due(waiting.databases, charge_id)
    waiting.run(give_back)
    assert due(waiting.databases, charge_id) == before


@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize("answer", [Succeeded("heard", 500, "EUR"), Declined(FailureReason.PROVIDER_DECLINED, "no", "heard")])
def test_an_answer_without_the_lease_makes_its_charge_due(patient: Client, waiting: Platform, answer: Outcome, is_held: bool) -> None:
    """A charge whose answer is written down by a process that lost the lease is paid or fails at once, not at its next attempt in ten minutes; where
    another process holds it, as soon as that gives it back."""
    payment = pay(patient, "5.00", token="tok_lost_before:1000000", wait_for=ACCEPTANCE)
    charge_id = payment.payment_orders[0].charge_id
    assert eventually(lambda: (due(waiting.databases, charge_id) or ("", ""))[1] == "NO_ANSWER")
    flow = flow_of(waiting)
    holder: Any = None
    if is_held:
        with psycopg.connect(waiting.databases.service("payment").replace("+psycopg", "")) as connection:
            row = connection.execute(
                "update due set lease_until = clock() + interval '100 seconds', lease_token = lease_token + 1, held = true where demand_id = %s"
                " returning lease_token",
                (charge_id,),
            ).fetchone()
        assert row is not None
        holder = waiting.run(held_charge, flow, charge_id, row[0])
    lost: Any = waiting.run(held_charge, flow, charge_id, 0)
    waiting.run(told, flow, (lost, replace(answer, reference=f"heard-{charge_id}")))  # type: ignore[arg-type]

    async def give_back() -> None:
        await flow._postpone.submit(Troubled(holder, Trouble.NO_ANSWER, "lost", Step.LOOK_UP))

    if is_held:
        waiting.run(give_back)
    order = ended(patient, payment)
    assert order.provider_reference == f"heard-{charge_id}"
    paid = isinstance(answer, Succeeded)
    assert order.payment_order_status == (payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS if paid else payment_pb2.PAYMENT_ORDER_STATUS_FAILED)


def test_an_answer_that_cannot_be_applied_becomes_a_dead_letter(own_database: Databases) -> None:
    """A stored success that the database refuses to apply is tried as its policy says, then a dead letter that cannot be closed; retried once the cause is
    removed it is applied, and its provider is never asked again."""
    asked: list[str] = []

    def says(demand: ChargeDemand) -> Found:
        asked.append(demand.charge_id)
        return Unknown("lost")

    retry_as = {("", Trouble.NO_ANSWER): Policy(Strategy.FIXED, 600, 600, 5), ("", Trouble.APPLYING_FAILED): Policy(Strategy.FIXED, 0.1, 0.1, 3)}
    settings, ports = Settings(retry=retry_as, sweep_interval=0.1), Ports(providers={"sandbox": Scripted(says)})
    with serving(own_database, settings, ports=ports) as running, running.client() as client, psycopg.connect(own_database.admin) as admin:
        admin.autocommit = True
        payment = pay(client, "5.00", wait_for=ACCEPTANCE)
        charge_id = payment.payment_orders[0].charge_id
        assert eventually(lambda: (due(own_database, charge_id) or ("", ""))[1] == "NO_ANSWER")
        admin.execute("alter table payment.payment_order add constraint no_poison check (provider_reference <> 'poison')")
        lost: Any = running.run(held_charge, flow_of(running), charge_id, 0)
        running.run(told, flow_of(running), (lost, Succeeded("poison", 500, "EUR")))
        first = set_aside(client, payment)
        assert (first.cause, first.tries) == ("APPLYING_FAILED", 1 + 3)
        with pytest.raises(FailedPreconditionError) as refused:
            close(client, first)
        assert "retry the dead letter" in str(refused.value)
        assert state_of(client, first) == "OPEN"
        retry(client, first)
        second = set_aside(client, payment)
        assert (second.cause, second.tries) == ("APPLYING_FAILED", 3)
        admin.execute("alter table payment.payment_order drop constraint no_poison")
        retry(client, second)
        assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        assert asked == [charge_id]
    assert verify(own_database).passed


_WAITING = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and state = 'active'"


def test_a_retry_and_a_cancellation_of_one_dead_letter_do_not_deadlock(own_database: Databases) -> None:
    """RetryDeadLetter and CancelPayment that meet at one dead letter lock it in the same order, after its due work: neither is chosen as a deadlock's victim."""
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    with (
        serving(own_database, rejected_at_once()) as running,
        running.client() as client,
        ThreadPoolExecutor(2) as pool,
        psycopg.connect(own_database.admin) as holder,
        psycopg.connect(own_database.admin, autocommit=True) as admin,
    ):
        payment = pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE)
        letter = set_aside(client, payment)
        holder.execute("select from payment.dead_letter where dead_letter_id = %s for update", (letter.dead_letter_id,))
        retried = pool.submit(retry, client, letter)
        assert eventually(lambda: admin.execute(_WAITING).fetchone() == (1,))
        cancelled = pool.submit(cancel, client, payment)
        assert eventually(lambda: admin.execute(_WAITING).fetchone() == (2,))
        holder.commit()
        assert retried.result(30).state == recovery_pb2.DEAD_LETTER_STATE_RETRIED
        cancelled.result(30)
        assert admin.execute(deadlocks).fetchone() == (0,)


def test_a_batch_that_is_postponed_locks_due_work_in_one_pass(patient: Client, waiting: Platform) -> None:
    """Of a batch in which one charge fails and another waits, the work of both is locked by id: whoever waits for the first holds nothing of the second."""
    payments = [pay(patient, "5.00", token="tok_unreachable:1000", wait_for=ACCEPTANCE) for _ in range(2)]
    first, last = sorted(payment.payment_orders[0].charge_id for payment in payments)
    for charge_id in (first, last):
        assert eventually(lambda charge_id=charge_id: (due(waiting.databases, charge_id) or ("", ""))[1] == "NOT_SENT")  # type: ignore[misc]
    flow = flow_of(waiting)
    with psycopg.connect(waiting.databases.admin) as holder, psycopg.connect(waiting.databases.admin, autocommit=True) as admin:
        tokens: dict[str, int] = dict(admin.execute("select demand_id, lease_token from payment.due").fetchall())
        waits: Any = waiting.run(held_charge, flow, first, tokens[first])
        fails: Any = waiting.run(held_charge, flow, last, tokens[last])
        batch = [
            Troubled(waits, Trouble.NOT_SENT, "away", Step.SEND),
            Troubled(fails, Trouble.NOT_SENT, "away", Step.GIVE_UP, give_up=FailureReason.EXPIRED),
        ]
        holder.execute("select from payment.due where demand_id = %s for update", (first,))
        postpone = Postpone(flow._database, flow._policies, flow.lock_undecided, flow.fail)
        with ThreadPoolExecutor(1) as pool:
            postponed = pool.submit(waiting.run, postpone.run, batch)
            assert eventually(lambda: admin.execute(_WAITING).fetchone() == (1,))
            admin.execute("select from payment.due where demand_id = %s for update nowait", (last,))
            holder.commit()
            postponed.result(30)
    assert due(waiting.databases, last) is None


def test_nothing_is_set_aside_beside_an_answer(patient: Client, waiting: Platform) -> None:
    """A holder that leaves a charge to a person while another's success has just been written down leaves it to be judged: it is paid."""
    payment = pay(patient, "5.00", token="tok_lost_before", wait_for=ACCEPTANCE)
    charge_id = payment.payment_orders[0].charge_id
    assert eventually(lambda: (due(waiting.databases, charge_id) or ("", ""))[1] == "NO_ANSWER")
    flow = flow_of(waiting)
    with psycopg.connect(waiting.databases.service("payment").replace("+psycopg", "")) as connection:  # as another holder would
        row = connection.execute(
            "update due set next_attempt_time = clock(), lease_until = clock() + interval '1 second', lease_token = lease_token + 1, held = true"
            " where demand_id = %s returning lease_token",
            (charge_id,),
        ).fetchone()
        connection.execute(
            "update attempt set outcome = 'SUCCEEDED', provider_reference = %s, moved_amount = 500, moved_currency = 'EUR', end_time = clock()"
            " where demand_id = %s",
            (f"ref-{charge_id}", charge_id),
        )
    assert row is not None

    async def set_it_aside() -> None:
        rows = await flow._database.read(lambda connection: payment_store.charges(connection, [charge_id]))
        (charge,) = stored_charges(rows, {charge_id: row[0]}, 0.0, 60.0)
        await flow._postpone.submit(Troubled(charge, Trouble.REJECTED, "no use", Step.SEND))

    waiting.run(set_it_aside)
    assert ended(patient, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    request = payment_service_pb2.ListDeadLettersRequest(page_size=200)
    assert f"charges/{charge_id}" not in {letter.subject for letter in patient.payment.ListDeadLetters(request).dead_letters}


def cancel(client: Client, payment: payment_pb2.Payment, reason: str = "sold out") -> payment_pb2.Payment:
    return client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason=reason)).payment


def test_a_payment_that_was_never_sent_is_cancelled_for_good(patient: Client, waiting: Platform) -> None:
    """An order that waits for a provider which is not there fails at once, and nothing is ever sent."""
    payment = pay(patient, "5.00", token="tok_unreachable:3", wait_for=ACCEPTANCE)
    charge = payment.payment_orders[0].charge_id
    assert eventually(lambda: (due(waiting.databases, charge) or ("", ""))[1] == "NOT_SENT")
    cancelled = cancel(patient, payment)
    assert failure(cancelled.payment_orders[0]) == "CALLER_CANCELLED"
    assert cancelled.payment_state == payment_pb2.PAYMENT_STATE_FAILED
    assert cancel(patient, payment) == cancelled
    with pytest.raises(AlreadyExistsError) as reused:
        cancel(patient, payment, "another reason")
    assert (reused.value.reason, reused.value.metadata) == ("KEY_REUSED", {"field": "reason"})
    assert charges(waiting.databases, payment.checkout_id) == []


def test_a_pending_payment_is_cancelled_at_the_provider(client: Client, impatient: Platform) -> None:
    """What was sent is ended by the provider first: only its word makes the order FAILED."""
    payment = pay(client, "5.00", token="tok_pending:action")
    cancelled = cancel(client, payment)
    assert failure(cancelled.payment_orders[0]) == "CALLER_CANCELLED"
    assert [state for _, state, _ in charges(impatient.databases, payment.checkout_id)] == ["DECLINED"]


def test_what_was_charged_stays_charged(patient: Client, waiting: Platform) -> None:
    """A cancellation that comes too late finds the charge: the order is SUCCESS, and the seller is paid."""
    payment = pay(patient, "5.00", token="tok_lost_after", wait_for=ACCEPTANCE)
    assert eventually(lambda: (due(waiting.databases, payment.payment_orders[0].charge_id) or ("", ""))[1] == "NO_ANSWER")
    assert cancel(patient, payment).is_payment_done
    with pytest.raises(FailedPreconditionError) as refused:
        cancel(patient, pay(patient, "5.00"))
    assert refused.value.reason == "STATE_FORBIDS"


def test_another_callers_payment_cannot_be_cancelled(client: Client) -> None:
    """A payment that is not there is NOT_FOUND, and cancelling needs words."""
    with pytest.raises(NotFoundError):
        client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id="nobody", reason="x"))
    with pytest.raises(InvalidArgumentError):
        client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id="nobody"))


def test_an_order_that_was_not_sent_in_time_expires(client: Client, impatient: Platform) -> None:
    """Past expire_time it is FAILED(EXPIRED) and never sent; what was sent before goes on."""
    past = Timestamp(seconds=1_000_000_000)
    payment = pay(client, "5.00", expire_time=past)
    assert failure(ended(client, payment)) == "EXPIRED"
    assert charges(impatient.databases, payment.checkout_id) == []
    assert payment.expire_time == past
    with pytest.raises(AlreadyExistsError) as reused:
        pay(client, "5.00", checkout=payment.checkout_id, expire_time=Timestamp(seconds=1_000_000_001))
    assert "expire_time" in str(reused.value)
    soon = Timestamp()
    soon.FromNanoseconds(client.get_payment(payment.checkout_id).create_time.ToNanoseconds() + 3_600_000_000_000)
    assert pay(client, "5.00", expire_time=soon).is_payment_done


def test_a_buyer_who_does_not_act_in_time_is_not_waited_for(own_database: Databases) -> None:
    """Past resolve_by_time the demand is ended at the provider, then the order is FAILED(EXPIRED); a review goes on."""
    quick = {("", trouble): SOON for trouble in Trouble}
    settings = Settings(retry=quick, sweep_interval=0.1, pending_action=0.3, pending_review=0.3)
    with serving(own_database, settings) as running, running.client() as client:
        acting = pay(client, "5.00", token="tok_pending:action")
        order = acting.payment_orders[0]
        assert order.resolve_by_time.ToNanoseconds() - order.update_time.ToNanoseconds() == pytest.approx(0.3e9, rel=0.2)
        reviewed = pay(client, "5.00", token="tok_pending:review")
        assert failure(ended(client, acting)) == "EXPIRED"
        assert order_of(client, reviewed).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_PENDING
        assert [state for _, state, _ in charges(own_database, acting.checkout_id)] == ["DECLINED"]


def test_a_buyers_time_is_up_when_it_is_up(own_database: Databases) -> None:
    """However long a policy waits between looks, a pending order is looked at when resolve_by_time has come, and ends."""
    settings = Settings(retry={("", Trouble.WAITING): Policy(Strategy.FIXED, 600, 600, None)}, sweep_interval=0.1, pending_action=0.3)
    with serving(own_database, settings) as running, running.client() as client:
        assert failure(ended(client, pay(client, "5.00", token="tok_pending:action"))) == "EXPIRED"


@pytest.mark.parametrize(
    ("token", "first", "then", "url"),
    [("tok_pending:review-action", "PROVIDER_REVIEW", "BUYER_ACTION", True), ("tok_pending:action-review", "BUYER_ACTION", "PROVIDER_REVIEW", False)],
)
def test_a_pending_order_says_what_it_waits_for_now(own_database: Databases, token: str, first: str, then: str, url: bool) -> None:
    """When what a pending order waits for changes, that is one version, with its history row and its event, and who watches sees it; the URL and the
    buyer's time follow the reason, and the same answer again changes nothing."""
    settings = Settings(retry={("", Trouble.WAITING): Policy(Strategy.FIXED, 0.3, 0.3, None)}, sweep_interval=0.1, pending_action=3600)
    with serving(own_database, settings) as running, running.client() as client:
        payment = pay(client, "5.00", token=token)
        charge = payment.payment_orders[0].charge_id
        seen: list[payment_pb2.PaymentOrder] = []

        def watch() -> None:
            seen.extend(stood.payment_orders[0] for stood in islice(client.watch_payment(payment.checkout_id), 2))

        Thread(target=watch, daemon=True).start()
        assert eventually(lambda: len(seen) == 2)
        assert [payment_pb2.PendingReason.Name(order.pending_reason).removeprefix("PENDING_REASON_") for order in seen] == [first, then]
        assert [order.version for order in seen] == [3, 4]
        assert [bool(order.next_action_url) for order in seen] == [not url, url]
        assert [order.HasField("resolve_by_time") for order in seen] == [not url, url]
        tries = due(own_database, charge)
        assert eventually(lambda: due(own_database, charge) != tries)
        assert eventually(lambda: int(str((due(own_database, charge) or (0,))[0])) > 3)
        order = order_of(client, payment)
        assert (order.version, order.payment_order_status) == (4, payment_pb2.PAYMENT_ORDER_STATUS_PENDING)
        history = client.payment.GetPaymentOrder(payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order.payment_order_id)).history
        assert [(row.from_status, row.to_status) for row in history][-1] == (order.payment_order_status, order.payment_order_status)
        assert eventually(lambda: events_of(client, f"paymentOrders/{order.payment_order_id}") == [1, 2, 3, 4])
    assert verify(own_database).passed


def test_a_buyer_who_has_acted_is_not_cancelled(own_database: Databases) -> None:
    """A buyer acts in time, and the bank takes longer than the buyer had: the order goes on waiting, and is paid."""
    settings = Settings(
        retry={("", Trouble.WAITING): Policy(Strategy.FIXED, 0.2, 0.2, None)}, sweep_interval=0.1, pending_action=3.0, pending_review=0.1
    )
    with serving(own_database, settings) as running, running.client() as client:
        payment = pay(client, "5.00", token=f"tok_pending:action-{'-'.join(['review'] * 25)}-paid")
        assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS


@pytest.fixture(scope="module")
def waiting(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform that waits long before it tries again."""
    with fresh_database(admin_url, tmp_path_factory.mktemp("waiting")) as known:
        retry = {("", trouble): Policy(Strategy.FIXED, 600, 600, 5) for trouble in (Trouble.NOT_SENT, Trouble.NO_ANSWER)}
        with serving(known, Settings(retry=retry, sweep_interval=0.1)) as running:
            yield running


@pytest.fixture(scope="module")
def patient(waiting: Platform) -> Iterator[Client]:
    with waiting.client() as made:
        yield made


def alerts_of(client: Client, subject: str, *, ended: bool = False) -> list[recovery_pb2.Alert]:
    found = client.payment.ListAlerts(payment_service_pb2.ListAlertsRequest(ended=ended, page_size=200)).alerts
    return [alert for alert in found if alert.subject == subject]


def test_what_does_not_come_on_raises_one_alert_that_ends(own_database: Databases, caplog: pytest.LogCaptureFixture) -> None:
    """P5: an order past its state's threshold is an alert: a row, an event and a log line; found again it is the same one, and it ends with the cause."""
    retry = {("", Trouble.NOT_SENT): Policy(Strategy.FIXED, 0.4, 0.4, 4)}
    settings = Settings(retry=retry, sweep_interval=0.1, monitor_interval=0.2, alert_after={"EXECUTING": 0.2})
    with serving(own_database, settings) as running, running.client() as client:
        payment = pay(client, "5.00", token="tok_unreachable:99", wait_for=ACCEPTANCE)
        subject = f"paymentOrders/{payment.payment_orders[0].payment_order_id}"
        assert eventually(lambda: alerts_of(client, subject))
        assert failure(ended(client, payment)) == "PROVIDER_UNREACHABLE"
        assert eventually(lambda: not alerts_of(client, subject))
        (alert,) = alerts_of(client, subject, ended=True)
        assert (alert.kind, alert.HasField("end_time")) == ("ORDER_STUCK", True)
        assert alert.detail.startswith("EXECUTING since 2")
        assert eventually(lambda: events_of(client, f"alerts/{alert.alert_id}") == [1, 2])
    assert sum(f"alert ORDER_STUCK: {subject}" in record.getMessage() for record in caplog.records) == 1


def test_two_monitors_take_turns(own_database: Databases) -> None:
    """One process looks for all of them, and another takes over when it comes back no more."""
    database = Database(own_database.service("payment"), connections=2)
    first, second = uuid4(), uuid4()

    def turn(holder: UUID, seconds: float) -> bool:
        return asyncio.run(database.transact(lambda connection: duty.take_turn(connection, "monitor", holder, seconds)))

    assert turn(first, 60)
    assert not turn(second, 60)
    assert turn(first, 0)
    assert turn(second, 60)
    assert not turn(first, 60)
    database.close()


def test_dead_letters_and_unapplied_charges_are_alerts(own_database: Databases) -> None:
    """What waits for an operator says so, until it has been closed or acknowledged."""
    with serving(own_database, Settings(sweep_interval=0.1, monitor_interval=0.2)) as running, running.client() as client:
        letter = set_aside(client, pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE))
        assert eventually(lambda: alerts_of(client, f"deadLetters/{letter.dead_letter_id}"))
        payment = pay(client, "5.00", token="tok_other_amount")
        assert eventually(lambda: unapplied(client, payment))
        (charge,) = unapplied(client, payment)
        assert eventually(lambda: alerts_of(client, f"unappliedCharges/{charge.unapplied_charge_id}"))
        client.payment.AcknowledgeUnappliedCharge(acknowledged(charge))
        assert eventually(lambda: not alerts_of(client, f"unappliedCharges/{charge.unapplied_charge_id}"))
        close(client, letter)
        assert eventually(lambda: not alerts_of(client, f"deadLetters/{letter.dead_letter_id}"))
    assert verify(own_database).passed


class Kept(InProcess):
    """A sandbox that keeps what is sent to it until it is let go."""

    def __init__(self, database: Database) -> None:
        super().__init__(Sandbox(database), 86_400.0)
        self.sent: list[str] = []
        self.let_go = asyncio.Event()

    async def send(self, demand: ChargeDemand) -> Outcome:
        self.sent.append(demand.charge_id)
        await self.let_go.wait()
        return await super().send(demand)


@contextmanager
def keeping(databases: Databases, lease: float = 62.5) -> Iterator[tuple[Platform, Client, Kept, Callable[[bool], object]]]:
    """A platform that asks its provider one thing at a time; the last says whether the provider keeps what it is sent from now on.

    A charge may wait for room until 62 s are left of its lease: by default half a second.
    """
    log = Database(databases.service("sandbox"), connections=2)
    provider = Kept(log)
    settings = Settings(lease=lease, provider_timeout=60, provider_calls=1, sweep_interval=0.1)
    with serving(databases, settings, ports=Ports(providers={"sandbox": provider})) as running, running.client() as client:

        async def start() -> None:
            provider._sandbox.start()

        async def keep(kept: bool) -> None:
            (provider.let_go.clear if kept else provider.let_go.set)()

        running.run(start)
        yield running, client, provider, lambda kept: running.run(keep, kept)
        running.run(provider._sandbox.stop)
    log.close()


def test_nothing_is_closed_while_the_provider_cannot_be_asked(own_database: Databases) -> None:
    """Closing a dead letter that finds no room to ask the provider in time changes nothing and says to come back."""
    with keeping(own_database) as (running, client, provider, keep):
        keep(False)
        letter = set_aside(client, pay(client, "5.00", token="tok_rejected", wait_for=ACCEPTANCE))
        keep(True)
        other = pay(client, "5.00", wait_for=ACCEPTANCE).payment_orders[0].charge_id
        assert eventually(lambda: other in provider.sent)
        with Client(running.address, settings=ClientSettings(attempts=1)) as hasty, pytest.raises(UnavailableError) as refused:
            close(hasty, letter)
        assert refused.value.reason == "PROVIDER_UNAVAILABLE"
        request = payment_service_pb2.GetDeadLetterRequest(dead_letter_id=letter.dead_letter_id)
        assert client.payment.GetDeadLetter(request).dead_letter.state == recovery_pb2.DEAD_LETTER_STATE_OPEN
        keep(False)
        assert eventually(lambda: due(own_database, other) is None)


def test_what_finds_no_room_was_never_sent(own_database: Databases) -> None:
    """A charge that waits for other calls to its provider longer than its lease is given back as never sent: cancelled then, it fails at once."""
    with keeping(own_database) as (_, client, provider, keep):
        first = pay(client, "5.00", wait_for=ACCEPTANCE)
        assert eventually(lambda: provider.sent == [first.payment_orders[0].charge_id])
        last = pay(client, "5.00", wait_for=ACCEPTANCE)
        assert eventually(lambda: (due(own_database, last.payment_orders[0].charge_id) or ("", ""))[1] == "HELD_BACK")
        request = payment_service_pb2.CancelPaymentRequest(checkout_id=last.checkout_id, reason="r")
        cancelled = client.payment.CancelPayment(request, timeout=60).payment
        assert failure(cancelled.payment_orders[0]) == "CALLER_CANCELLED"
        keep(False)
        assert client.wait_for_payment(first.checkout_id, 30).is_payment_done
        assert provider.sent == [first.payment_orders[0].charge_id]
    assert verify(own_database).passed


def test_what_is_cancelled_while_it_waits_for_room_is_not_sent(own_database: Databases) -> None:
    """A charge that waits for other calls to its provider, and is cancelled meanwhile, is not sent when its turn has come."""
    settings = Settings(provider_calls=1, sweep_interval=0.1)
    with serving(own_database, settings) as running, running.client() as client:
        slow = pay(client, "5.00", token="tok_delay:6000", wait_for=ACCEPTANCE)
        waits = pay(client, "5.00", wait_for=ACCEPTANCE)
        assert client.get_payment(slow.checkout_id).payment_state == payment_pb2.PAYMENT_STATE_OPEN
        client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id=waits.checkout_id, reason="r"), timeout=60)
        assert failure(ended(client, waits)) == "CALLER_CANCELLED"
        assert charges(own_database, waits.checkout_id) == []
        assert client.wait_for_payment(slow.checkout_id, 60).is_payment_done
    assert verify(own_database).passed


def test_what_expires_while_it_waits_for_room_is_not_sent(own_database: Databases) -> None:
    """A charge that waits for other calls to its provider, and expires meanwhile, is not sent when its turn has come: it is FAILED(EXPIRED)."""
    with keeping(own_database, lease=120) as (_, client, provider, keep):
        slow = pay(client, "5.00", wait_for=ACCEPTANCE)
        assert eventually(lambda: provider.sent == [slow.payment_orders[0].charge_id])
        expiry = in_seconds(2)
        waits = pay(client, "5.00", wait_for=ACCEPTANCE, expire_time=expiry)
        assert eventually(lambda: time.time_ns() > expiry.ToNanoseconds() + 100_000_000)
        keep(False)
        assert failure(ended(client, waits)) == "EXPIRED"
        assert client.wait_for_payment(slow.checkout_id, 30).is_payment_done
        assert provider.sent == [slow.payment_orders[0].charge_id]
        assert charges(own_database, waits.checkout_id) == []
    assert verify(own_database).passed


def test_what_callers_look_at_holds_no_charge_up(own_database: Databases) -> None:
    """A charge that has waited for room is sent at its turn, though every connection for callers' reads is taken by reads that hang."""
    settings = Settings(provider_calls=1, sweep_interval=0.1)
    with serving(own_database, settings) as running, running.client() as client:
        slow = pay(client, "5.00", token="tok_delay:6000", wait_for=ACCEPTANCE)
        waits = pay(client, "5.00", wait_for=ACCEPTANCE)
        with ThreadPoolExecutor(24) as callers, psycopg.connect(own_database.admin) as admin:
            admin.execute("lock table payment.dead_letter in access exclusive mode")
            hanging = [callers.submit(_look_in_vain, running.address) for _ in range(24)]
            assert eventually(lambda: charges(own_database, waits.checkout_id), 20)
            assert charges(own_database, slow.checkout_id)
            assert not any(look.done() for look in hanging)
            admin.rollback()
            assert [look.result() for look in hanging]
        assert client.wait_for_payment(waits.checkout_id, 30).is_payment_done
    assert verify(own_database).passed


def _look_in_vain(address: str) -> bool:
    """Lists dead letters, for as long as it takes."""
    with Client(address) as client:
        client.payment.ListDeadLetters(payment_service_pb2.ListDeadLettersRequest(), timeout=60)
    return True


def test_a_provider_that_does_not_accept_us_is_left_alone_and_told_of(own_database: Databases) -> None:
    """One 401 or 403 is enough: others are not sent meanwhile, an alert names the provider, and once it accepts us again all are paid and the alert ends."""
    retry = {("", Trouble.FORBIDDEN): Policy(Strategy.FIXED, 0.1, 0.1, 50)}
    settings = Settings(retry=retry, sweep_interval=0.1, breaker_failures=99, breaker_rest=0.4, breaker_longest_rest=0.4, monitor_interval=0.2)
    with serving(own_database, settings) as running, running.client() as client:
        first = pay(client, "5.00", token="tok_forbidden:4", wait_for=ACCEPTANCE)
        assert eventually(lambda: (due(own_database, first.payment_orders[0].charge_id) or ("", ""))[1] == "FORBIDDEN")
        other = pay(client, "5.00", wait_for=ACCEPTANCE)
        assert eventually(lambda: "PROVIDER_FORBIDS" in {alert.kind for alert in alerts_of(client, "providers/sandbox")})
        assert all(client.wait_for_payment(payment.checkout_id, 30).is_payment_done for payment in (first, other))
        assert eventually(lambda: not alerts_of(client, "providers/sandbox"))
    assert verify(own_database).passed


def test_an_outage_leaves_orders_waiting_and_drains_by_itself(own_database: Databases) -> None:
    """A provider that is down is left alone: payments are accepted and wait up to a depth, then are refused with nothing stored; no try is spent on
    them meanwhile, and when it is back all are paid, each charged once."""
    retry = {("", Trouble.NOT_SENT): Policy(Strategy.FIXED, 0.1, 0.1, 5)}
    settings = Settings(retry=retry, sweep_interval=0.1, breaker_failures=3, breaker_rest=0.3, waiting_depth=20, monitor_interval=0.2)
    with serving(own_database, settings) as running, running.client() as client:
        sandbox = flow_of(running)._providers["sandbox"]._sandbox
        sandbox.down = True
        payments = [pay(client, "5.00", wait_for=ACCEPTANCE) for _ in range(4)]
        assert eventually(lambda: any((due(own_database, p.payment_orders[0].charge_id) or ("", ""))[1] == "HELD_BACK" for p in payments))
        payments += [pay(client, "5.00", wait_for=ACCEPTANCE) for _ in range(16)]
        assert eventually(lambda: [alert.kind for alert in alerts_of(client, "providers/sandbox")]) == ["PROVIDER_FAILS"]
        with Client(running.address, settings=ClientSettings(attempts=1)) as hasty, pytest.raises(UnavailableError) as refused:
            pay(hasty, "5.00", checkout="one-too-many", wait_for=ACCEPTANCE)
        assert (refused.value.reason, refused.value.retry_after) == ("PROVIDER_UNAVAILABLE", 30.0)
        with pytest.raises(NotFoundError):
            client.get_payment("one-too-many")
        new = new_order("one-too-many-1", "buyer-1", "nobodys", "5.00", "EUR")
        with Client(running.address, settings=ClientSettings(attempts=1)) as hasty, pytest.raises(UnavailableError):
            hasty.create_payment("one-too-many", [new], credit_card_info="tok_visa")
        assert not client.wallet.GetSeller(wallet_service_pb2.GetSellerRequest(seller_account="nobodys")).HasField("seller")
        assert pay(client, "5.00", checkout=payments[0].checkout_id, wait_for=ACCEPTANCE).checkout_id == payments[0].checkout_id
        sandbox.down = False
        for payment in payments:
            assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
            assert len(charges(own_database, payment.checkout_id)) == 1
        assert eventually(lambda: not alerts_of(client, "providers/sandbox"))
    assert verify(own_database).passed


def test_what_a_provider_did_is_found_out_while_sends_to_it_are_held_back(own_database: Databases) -> None:
    """A charge whose answer was lost, at a provider that is left alone for an hour, is looked up meanwhile and succeeds: it is sent once. One that
    the provider does not know still waits to be sent, and says so."""
    retry = {("", Trouble.NO_ANSWER): SOON}
    settings = Settings(retry=retry, sweep_interval=0.1, breaker_failures=2, breaker_rest=3600, breaker_longest_rest=3600)
    with serving(own_database, settings) as running, running.client() as client:
        unknown = pay(client, "5.00", token="tok_lost_before:99", wait_for=ACCEPTANCE).payment_orders[0].charge_id
        assert eventually(lambda: (due(own_database, unknown) or ("", ""))[1] == "NO_ANSWER")
        payment = pay(client, "5.00", token="tok_lost_after")
        assert client.wait_for_payment(payment.checkout_id, 30).is_payment_done
        assert len(charges(own_database, payment.checkout_id)) == 1
        assert flow_of(running).execute.is_held_back("sandbox")
        assert eventually(lambda: (due(own_database, unknown) or ("", ""))[1:3] == ("HELD_BACK", False))
    assert verify(own_database).passed


@pytest.mark.parametrize("depth", [0, 1])
def test_a_new_payment_finds_out_that_a_provider_answers_again(own_database: Databases, depth: int) -> None:
    """While a provider is left alone, as much waits as may, and none of that is sent for an hour: after the rest one new payment is accepted, whatever the
    number of its charges, and once it is paid all others are."""
    retry = {("", Trouble.NOT_SENT): Policy(Strategy.FIXED, 3600.0, 3600.0, 5)}
    settings = Settings(retry=retry, sweep_interval=0.1, breaker_failures=1, breaker_rest=0.1, breaker_longest_rest=0.1, waiting_depth=depth)
    with (
        serving(own_database, settings) as running,
        running.client() as client,
        Client(running.address, settings=ClientSettings(attempts=1)) as hasty,
    ):
        sandbox = flow_of(running)._providers["sandbox"]._sandbox
        sandbox.down = True
        first = pay(client, "5.00", wait_for=ACCEPTANCE)
        assert eventually(lambda: (due(own_database, first.payment_orders[0].charge_id) or ("", ""))[1] == "NOT_SENT")
        sandbox.down = False

        def paid() -> payment_pb2.Payment | None:
            try:
                return pay(hasty, "5.00", "6.00", checkout="two-charges")
            except UnavailableError:
                return None

        probe = eventually(paid, 10)
        assert probe is not None
        assert client.wait_for_payment(probe.checkout_id, 30).is_payment_done
        assert pay(hasty, "5.00").is_payment_done
        assert client.get_payment(first.checkout_id).payment_state == payment_pb2.PAYMENT_STATE_OPEN


class Named(InProcess):
    """A sandbox under another name, as another provider."""

    def __init__(self, name: str, database: Database) -> None:
        self.sandbox = Sandbox(database)
        super().__init__(self.sandbox, 86_400.0)
        self.name = name


def test_other_providers_do_not_notice_an_outage(own_database: Databases) -> None:
    """While one provider is down with as much waiting as may wait, payments through another are paid at once, and are not refused."""
    log = Database(own_database.service("sandbox"), connections=2)
    ours, theirs = ({name: Named(name, log) for name in ("first", "second")} for _ in range(2))  # each process reaches both
    retry = {("", Trouble.NOT_SENT): Policy(Strategy.FIXED, 0.1, 0.1, 50)}
    settings = Settings(retry=retry, sweep_interval=0.1, breaker_failures=2, breaker_rest=0.2, waiting_depth=5)
    with (
        serving(own_database, replace(settings, provider="first"), ports=Ports(providers=ours)) as one,
        serving(own_database, replace(settings, provider="second"), ports=Ports(providers=theirs)) as other,
        one.client() as client,
        other.client() as unaware,
        Client(one.address, settings=ClientSettings(attempts=1)) as hasty,
    ):

        async def start(providers: dict[str, Named]) -> None:
            for provider in providers.values():
                provider.sandbox.start()

        one.run(start, ours)
        other.run(start, theirs)
        ours["first"].sandbox.down = theirs["first"].sandbox.down = True
        waiting = [pay(client, "5.00", wait_for=ACCEPTANCE) for _ in range(5)]
        assert eventually(lambda: any((due(own_database, p.payment_orders[0].charge_id) or ("", ""))[1] == "HELD_BACK" for p in waiting))
        with pytest.raises(UnavailableError):
            pay(hasty, "5.00", wait_for=ACCEPTANCE)
        paid = [pay(unaware, "5.00") for _ in range(10)]
        assert all(payment.is_payment_done and payment.payment_orders[0].provider == "second" for payment in paid)
        ours["first"].sandbox.down = theirs["first"].sandbox.down = False
        for payment in waiting:
            assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    log.close()
    assert verify(own_database).passed


def test_in_an_outage_one_count_serves_all_new_payments(own_database: Databases) -> None:
    """While enough waits for a provider that fails, payments of new sellers are refused without a count of what waits for each of them."""
    retry = {("", Trouble.NOT_SENT): Policy(Strategy.FIXED, 0.1, 0.1, 50)}
    settings = Settings(
        retry=retry, sweep_interval=3600, monitor_interval=3600, breaker_failures=2, breaker_rest=3600, breaker_longest_rest=3600, waiting_depth=2
    )
    counts: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "from (select from due where phase" in statement:
            counts.append(statement)

    with serving(own_database, settings) as platform, Client(platform.address, settings=ClientSettings(attempts=1)) as client:
        waiting = [pay(client, "1.00", token="tok_unreachable", wait_for=ACCEPTANCE) for _ in range(2)]
        assert eventually(lambda: all((due(own_database, p.payment_orders[0].charge_id) or ("", ""))[1] for p in waiting))

        def refused(_: int) -> bool:
            try:
                pay(client, "1.00", wait_for=ACCEPTANCE)
            except UnavailableError:
                return True
            return False

        assert eventually(lambda: refused(0))
        event.listen(Engine, "before_cursor_execute", note)
        try:
            with ThreadPoolExecutor(20) as pool:
                assert all(pool.map(refused, range(100)))
        finally:
            event.remove(Engine, "before_cursor_execute", note)
    assert len(counts) < 50


def test_charges_that_fail_for_ever_do_not_stand_for_their_provider(own_database: Databases) -> None:
    """Keys that replay a 5xx open the breaker when nothing else is asked; they are looked up soon, and neither they nor others wait behind them."""
    retry = {("", Trouble.SERVER_ERROR): Policy(Strategy.FIXED, 0.05, 0.05, 2)}
    settings = Settings(retry=retry, sweep_interval=0.05, breaker_failures=2, breaker_rest=0.02)
    with serving(own_database, settings) as running, running.client() as client:
        poisoned = [pay(client, "5.00", token="tok_error_stored", wait_for=ACCEPTANCE) for _ in range(6)]
        assert pay(client, "5.00").is_payment_done
        for payment in poisoned:
            assert failure(ended(client, payment)) == "PROVIDER_DECLINED"


def test_everything_is_quiet_in_the_end(impatient: Platform, waiting: Platform) -> None:
    """After all of the above every check holds."""
    for platform in (impatient, waiting):
        report = verify(platform.databases)
        assert report.passed, report.as_text()


def _waiting_charges(client: Client, count: int) -> list[str]:
    """Payments whose charges were not sent at first, and are due again at once."""
    return [pay(client, "1.00", token="tok_unreachable", wait_for=ACCEPTANCE).checkout_id for _ in range(count)]


def test_a_full_sweep_is_followed_by_another_at_once(own_database: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due is taken up without a pause for as long as there is more of it than one sweep claims."""
    monkeypatch.setattr("tallystick_server.runtime.flow._MOST_CLAIMED", 3)
    at_once = {("", Trouble.NOT_SENT): Policy(Strategy.FIXED, 0.0, 0.0, 1000)}
    with serving(own_database, Settings(retry=at_once, sweep_interval=3600, breaker_failures=1000)) as platform, platform.client() as client:
        checkouts = _waiting_charges(client, 12)
        eventually(lambda: flow_of(platform).in_hand == 0)

        async def wake() -> None:
            flow_of(platform).wake()

        platform.run(wake)
        assert eventually(lambda: all(client.get_payment(checkout).is_payment_done for checkout in checkouts))


def test_a_caller_that_goes_away_strands_nothing(own_database: Databases) -> None:
    """CancelPayment calls that are cancelled at any point leave no charge of others leased to nobody."""
    at_once = {("", Trouble.NOT_SENT): Policy(Strategy.FIXED, 0.0, 0.0, 1000)}
    with serving(own_database, Settings(retry=at_once, sweep_interval=3600, breaker_failures=1000)) as platform, platform.client() as client:
        mine = pay(client, "1.00", token="tok_pending").checkout_id
        checkouts = _waiting_charges(client, 12)
        eventually(lambda: flow_of(platform).in_hand == 0)

        async def cancel_and_go(milliseconds: int) -> None:
            task = asyncio.ensure_future(flow_of(platform).cancel(mine, "dev", "gone"))
            await asyncio.sleep(milliseconds / 1000)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        for milliseconds in range(0, 30, 2):
            platform.run(cancel_and_go, milliseconds)
        assert eventually(lambda: all(client.get_payment(checkout).is_payment_done for checkout in checkouts))


def test_a_process_takes_no_more_than_its_bound(own_database: Databases) -> None:
    """Above `in_flight` new payments are refused with OVERLOADED and a time to retry, and nothing is stored."""
    settings = Settings(in_flight=10, sandbox_latency=60.0)
    with serving(own_database, settings) as platform, Client(platform.address, settings=ClientSettings(attempts=1)) as client:
        for _ in range(10):
            pay(client, "1.00", wait_for=ACCEPTANCE)
        checkout = unique("c")
        with pytest.raises(UnavailableError) as refused:
            client.create_payment(checkout, [new_order(f"{checkout}-1", "b", "s", "1.00", "EUR")], credit_card_info="tok_visa", wait_for=ACCEPTANCE)
        assert refused.value.reason == "OVERLOADED"
        with pytest.raises(NotFoundError):
            client.get_payment(checkout)
