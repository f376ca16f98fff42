"""What a statement has and the ledger lacks is looked up at the provider."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psycopg
import pytest

from tallystick import Client, new_order
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.reconciliation import lookup_requests
from tallystick_server.reconciliation.lookup_requests import LookupRequests
from tallystick_server.rpc.service_client import ServiceCallRejected
from tallystick_storage.database import Database
from tests.support.platform import (
    ServedPlatform,
    eventually,
    fresh_database,
    serve_platform,
    unique_id,
)
from tests.support.reconciliation import Provider, breaks_of, charge, kinds_of, reconcile

NOW = datetime.now(UTC)
_NEVER = RetryPolicy(RetryStrategy.FIXED, 3600.0, 3600.0, 50)


@pytest.fixture(scope="module")
def platform(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPlatform]:
    """All services. A charge without an answer is looked up an hour later."""
    settings = Settings().replace(
        retry={("", reason): _NEVER for reason in RetryReason},
        worker__scan_interval=0.1,
        reconciliation__posting_interval=0.1,
        reconciliation__lookup_interval=0.1,
    )
    with (
        fresh_database(admin_url, tmp_path_factory.mktemp("lookups")) as databases,
        serve_platform(databases, settings) as served_platform,
    ):
        yield served_platform


def test_a_charge_whose_answer_was_lost_is_found_by_the_statement(
    platform: ServedPlatform, client: Client
) -> None:
    """The provider charged the buyer, and the order waits. The statement has the charge, so the
    provider is asked at once, the order succeeds, and the break ends by itself.
    """
    checkout_id = unique_id("c")
    client.create_payment(
        checkout_id,
        [new_order(f"{checkout_id}-1", "buyer-1", "seller-1", "10.00", "EUR")],
        credit_card_info="tok_lost_after",
        wait_for="WAIT_FOR_ACCEPTANCE",
    )
    with psycopg.connect(platform.databases.reader("sandbox")) as connection:
        row = eventually(
            lambda: connection.execute(
                "select reference from charge where charge_id = %s", (f"o-{checkout_id}-1",)
            ).fetchone()
        )
    assert row is not None
    line = charge(10_00, row[0], client_reference=f"o-{checkout_id}-1", booking_date="")
    file = reconcile(client, "psp/sandbox/clearing", [line]).statement_file
    assert kinds_of(file) == {"CHARGE_NOT_BOOKED": 1}

    def resolved() -> bool:
        (found,) = breaks_of(client, statement_file_id=file.statement_file_id)
        return found.state == reconciliation_pb2.BREAK_STATE_RESOLVED

    assert eventually(resolved)
    payment = client.get_payment(checkout_id)
    assert payment.payment_state == payment_pb2.PAYMENT_STATE_PAID
    (found,) = breaks_of(client, statement_file_id=file.statement_file_id)
    assert found.resolution == reconciliation_pb2.RESOLUTION_MATCH
    assert [item.source_id for item in found.ledger_items] == [f"{checkout_id}-1"]


class _Service:
    """Accepts lookups, but none of a reference that begins with "bad"."""

    def __init__(self) -> None:
        self.references: list[str] = []
        self.event_ids: set[str] = set()
        self.call_count = 0

    def stub(self, stub_class: object, address: str) -> _Service:
        return self

    BatchReceiveWebhookEvents = None

    async def call(
        self, method: object, request: operator_pb2.BatchReceiveWebhookEventsRequest
    ) -> None:
        self.call_count += 1
        if any(event.reference.startswith("bad") for event in request.events):
            raise ServiceCallRejected("BatchReceiveWebhookEvents", "INVALID_ARGUMENT", "bad")
        self.references += [event.reference for event in request.events]
        self.event_ids |= {event.event_id for event in request.events}


def _waiting_lines(references: Iterable[str]) -> list[reconciliation_pb2.StatementLine]:
    return [charge(10_00, reference, client_reference="o-none") for reference in references]


def _look_up(platform: ServedPlatform, service: Any, days: Sequence[datetime]) -> None:
    """Runs the lookups at these times."""

    async def run() -> None:
        with closing(
            Database(platform.databases.service("reconciliation"), connections=2)
        ) as database:
            requests = LookupRequests(database, service, "payment", "payout")
            for time in days:
                now = SimpleNamespace(now=lambda connection, time=time: time)
                with patch.object(lookup_requests, "clock", now):
                    await requests.run_once()

    asyncio.run(run())


def test_a_line_that_cannot_be_looked_up_holds_up_no_other(
    platform: ServedPlatform, client: Client
) -> None:
    """A reference that looks like a card number is not sent, and a lookup that the service rejects
    is left out.
    """
    provider = Provider(client)
    references = [f"ch-{number}" for number in range(5)]
    lines = _waiting_lines(["4242424242424242", "bad-1", *references, "bad-2"])
    reconcile(client, provider.account, lines)
    service = _Service()
    _look_up(platform, service, [NOW])
    assert set(service.references) >= {"", *references}
    with psycopg.connect(platform.databases.admin) as connection:
        assert eventually(
            lambda: connection.execute(
                "select 1 from payment.webhook_event where provider = %s and reference = 'ch-4'",
                (provider.name,),
            ).fetchone()
        )


def test_each_break_is_looked_up_once_a_day(platform: ServedPlatform, client: Client) -> None:
    """A lookup that found nothing is made again the next day, and not each minute. A break that is
    found meanwhile is looked up at once.
    """
    provider = Provider(client)
    reconcile(client, provider.account, _waiting_lines(["ch-a", "ch-b"]))
    service = _Service()
    minutes = [NOW + timedelta(minutes=number) for number in range(5)]
    _look_up(platform, service, minutes)
    assert service.references.count("ch-a") == 1
    service = _Service()
    hours = [NOW + timedelta(hours=number) for number in range(1, 48)]
    _look_up(platform, service, hours)
    assert service.references.count("ch-a") == len({time.date() for time in hours})
    assert len(service.event_ids) == len(service.references)
