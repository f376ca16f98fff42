"""The provider's reference of a charge: stored once it is known, and sent with later calls."""

from __future__ import annotations

from functools import partial

import psycopg
import pytest

from tallystick import Client
from tallystick.payment.v1 import payment_pb2
from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    Declined,
    FailureReason,
    FinalNotFound,
    Pending,
    PendingReason,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_storage.payment import charges as charge_store
from tallystick_storage.webhook_events import SubjectKey
from tests.support.charges import (
    FAST_RETRY_POLICY,
    WAIT_FOR_ACCEPTANCE,
    cancel_payment,
    client_of_platform,
    failure_reason,
    get_order,
    is_paid,
    wait_for_final_order,
)
from tests.support.payments import create_payment
from tests.support.platform import database_of, eventually, serve_platform

FAST_SETTINGS = Settings().replace(
    retry={("", reason): FAST_RETRY_POLICY for reason in RetryReason}, worker__scan_interval=0.1
)
PENDING = Pending(PendingReason.PROVIDER_REVIEW, "pi_1")


class ReferenceProvider:
    """Knows a charge by its own reference only, which `first` reports. Lookups and cancellations
    without it find nothing out.
    """

    name = "sandbox"
    key_window = 86_400.0
    final_not_found: FinalNotFound | None = None
    hosts_pages: bool = False

    def __init__(self, first: ChargeOutcome, later: ChargeLookupOutcome) -> None:
        self._first = first
        self.later = later
        self.lookup_references: list[str] = []
        self.cancel_references: list[str] = []

    def reject_amount(self, amount: int, currency: str, method: str) -> str | None:
        return None

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        return self._first

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        self.lookup_references.append(request.reference)
        return self.later if request.reference else Unknown("a lookup needs the reference")

    async def cancel(self, request: ChargeRequest) -> ChargeLookupOutcome:
        self.cancel_references.append(request.reference)
        if not request.reference:
            return Unknown("a cancellation needs the reference")
        return Declined(FailureReason.CALLER_CANCELLED, reference=request.reference)


def create_accepted_payment(client: Client) -> payment_pb2.Payment:
    return create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)


def wait_until_pending(client: Client, payment: payment_pb2.Payment) -> None:
    assert eventually(
        lambda: (
            get_order(client, payment).payment_order_status
            == payment_pb2.PAYMENT_ORDER_STATUS_PENDING
        )
    )


def test_lookup_and_cancellation_after_a_restart_name_the_reference(
    scratch_database: DatabaseUrls,
) -> None:
    """A pending charge has its reference on disk: a process that never saw the answer looks up and
    cancels by it.
    """
    provider = ReferenceProvider(PENDING, PENDING)
    with client_of_platform(scratch_database, FAST_SETTINGS, provider) as client:
        payment = create_accepted_payment(client)
        wait_until_pending(client, payment)
    provider = ReferenceProvider(PENDING, PENDING)
    with client_of_platform(scratch_database, FAST_SETTINGS, provider) as client:
        assert eventually(lambda: provider.lookup_references)
        cancel_payment(client, payment)
        order = wait_for_final_order(client, payment)
        assert failure_reason(order) == "CALLER_CANCELLED"
    assert set(provider.lookup_references) == set(provider.cancel_references) == {"pi_1"}


def test_an_answer_without_a_reference_does_not_erase_it(scratch_database: DatabaseUrls) -> None:
    """A lookup that gets no answer keeps the reference that the first answer named."""
    provider = ReferenceProvider(PENDING, Unknown("lost"))
    with client_of_platform(scratch_database, FAST_SETTINGS, provider) as client:
        payment = create_accepted_payment(client)
        assert eventually(lambda: len(provider.lookup_references) > 2)
        assert set(provider.lookup_references) == {"pi_1"}
        provider.later = Succeeded("pi_1", 500, "EUR")
        assert is_paid(client, payment)


def test_an_unknown_outcome_may_name_a_reference(scratch_database: DatabaseUrls) -> None:
    """A provider that creates a charge and confirms it in a second request may lose the second
    answer: what it has created is looked up by its reference.
    """
    provider = ReferenceProvider(
        Unknown("the confirmation was not answered", RetryReason.SERVER_ERROR, reference="pi_1"),
        Succeeded("pi_1", 500, "EUR"),
    )
    settings = FAST_SETTINGS.replace(
        retry={
            **FAST_SETTINGS.retry,
            ("", RetryReason.SERVER_ERROR): RetryPolicy(RetryStrategy.CANCEL),
        }
    )
    with client_of_platform(scratch_database, settings, provider) as client:
        assert is_paid(client, create_accepted_payment(client))
    assert provider.lookup_references == ["pi_1"]


@pytest.mark.parametrize(
    "later",
    [
        PENDING,
        Succeeded("pi_1", 500, "EUR"),
        Declined(FailureReason.PROVIDER_DECLINED, "no", "pi_1"),
    ],
    ids=lambda outcome: type(outcome).__name__,
)
def test_a_charge_is_found_by_its_reference(
    scratch_database: DatabaseUrls, later: ChargeLookupOutcome
) -> None:
    """Whatever became of a charge, the provider's reference finds it, and only at its provider."""
    provider = ReferenceProvider(PENDING, later)
    dependencies = Dependencies(providers={"sandbox": provider})
    with (
        serve_platform(scratch_database, FAST_SETTINGS, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        payment = create_accepted_payment(client)
        assert eventually(lambda: provider.lookup_references)
        if later is not PENDING:
            wait_for_final_order(client, payment)
        order = get_order(client, payment)
        assert order.provider_reference == "pi_1"
        for name, reference, found in (
            ("sandbox", "pi_1", order.charge_id),
            ("sandbox", "pi_2", None),
            ("other", "pi_1", None),
        ):
            key = SubjectKey(name, reference, "")
            find = partial(charge_store.find_reported, keys=[key])
            reported = platform.run_in_loop(database_of(platform, "payment").load, find)
            assert reported.get(key) == found


def test_a_success_changes_no_index_of_its_attempt(scratch_database: DatabaseUrls) -> None:
    """A charge that succeeds at once has its reference in `provider_money`: its attempt is updated
    in place.
    """
    with client_of_platform(scratch_database, FAST_SETTINGS) as client:
        for _ in range(3):
            assert is_paid(client, create_accepted_payment(client))

    def count_updates() -> tuple[int, int]:
        with psycopg.connect(scratch_database.admin) as connection:
            row = connection.execute(
                "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables "
                "where schemaname = 'payment' and relname = 'attempt'"
            ).fetchone()
        assert row is not None
        return row[0], row[1]

    assert eventually(lambda: count_updates()[0] == 3)  # counted once its session has ended
    assert count_updates() == (3, 3)
