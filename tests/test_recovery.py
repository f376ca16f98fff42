"""Failure and delay in pay-in: what is tried again, looked up, waited for and given up; through the SDK, against the provider's own log."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tallystick import Client
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.provider import Trouble
from tallystick_server.process.configuration import Settings
from tallystick_server.process.databases import Databases
from tallystick_server.process.verify import verify
from tallystick_server.runtime.retry import Policy, Strategy

from .conftest import QUICK, Platform, eventually, fresh_database, serving
from .test_pay_in import charges, pay

ACCEPTANCE = payment_service_pb2.WAIT_FOR_ACCEPTANCE
TWICE = Policy(Strategy.FIXED, 0.05, 0.05, 2)
SOON = Policy(Strategy.FIXED, 0.05, 0.05, 100)


@pytest.fixture(scope="module")
def impatient(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform that tries everything twice."""
    with fresh_database(admin_url, tmp_path_factory.mktemp("impatient")) as known:
        retry = {("", trouble): TWICE for trouble in Trouble} | {("", Trouble.WAITING): SOON}
        with serving(known, Settings(retry=retry, sweep_interval=0.05)) as running:
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
        statement = "select tries, trouble, looking, maybe_sent, next_attempt_time is not null from due where charge_id = %s"
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
        retry={("", trouble): SOON for trouble in Trouble}, sweep_interval=0.05, lease=2.5, provider_timeout=0.1, provider_key_window=3.0
    )
    with serving(own_database, settings) as running, running.client() as client:
        payment = pay(client, "5.00", token="tok_lost_after:40", wait_for=ACCEPTANCE)
        assert ended(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        assert len(charges(own_database, payment.checkout_id)) == 1


def test_an_answer_that_is_on_disk_is_judged_not_asked_for_again(own_database: Databases) -> None:
    """A holder that wrote down a success and died before the order moved: the next one applies it, though the provider is gone."""
    with serving(own_database, Settings(retry=QUICK, sweep_interval=0.05)) as running, running.client() as client:
        payment = pay(client, "5.00", token="tok_lost_before:1000", wait_for=ACCEPTANCE)
        order = payment.payment_orders[0]
        with psycopg.connect(own_database.admin) as connection:
            connection.execute("set search_path = payment")
            connection.execute(
                "update attempt set outcome = 'SUCCEEDED', provider_reference = 'from-afar', charged_amount = 500, charged_currency = 'EUR',"
                " end_time = clock() where charge_id = %s",
                (order.charge_id,),
            )
        assert ended(client, payment).provider_reference == "from-afar"
    assert verify(own_database).passed


def test_everything_is_quiet_in_the_end(impatient: Platform) -> None:
    """After all of the above every check holds."""
    report = verify(impatient.databases)
    assert report.passed, report.as_text()
