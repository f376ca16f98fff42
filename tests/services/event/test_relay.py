"""Relays: an event that EventService rejects delays the events of its aggregate, and no others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from tallystick import Client, new_order
from tallystick.event.v1 import event_service_pb2
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.ledger.identifiers import BOOK, TransactionId
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import SERVICES
from tallystick_server.event.handlers import EventHandlers
from tallystick_server.verify.run import verify
from tallystick_storage import outbox
from tallystick_storage.sql import Connection, connect
from tests.support.platform import eventually, serve_platform

SETTINGS = Settings().replace(worker__monitor_interval=0.2)
RELAYING_SERVICES = [spec.name for spec in SERVICES if spec.publishes_events]
PAYMENT_SERVICES = ("payment", "wallet", "ledger")
"""The services that publish events about a payment."""
INVALID_ERROR = ApiError(
    ErrorReason.FIELD_INVALID, "caller must be an id.", field="events[0].caller"
)


@dataclass
class EventFault:
    """Fails a call to EventService before its handler runs, as a bug of EventService would."""

    poison: set[str] = field(default_factory=set)
    """A call with an event whose id has this prefix is rejected."""
    error: Exception = INVALID_ERROR
    calls: list[int] = field(default_factory=list)
    """The number of events of each call."""


@pytest.fixture
def event_fault(monkeypatch: pytest.MonkeyPatch) -> EventFault:
    """Faults in EventService's own handler; relays and network are real."""
    fault, original = EventFault(), EventHandlers.BatchPublish

    async def publish(
        self: EventHandlers, request: event_service_pb2.BatchPublishRequest, call: Any
    ) -> event_service_pb2.BatchPublishResponse:
        fault.calls.append(len(request.events))
        if any(event.event_id.startswith(tuple(fault.poison)) for event in request.events):
            raise fault.error
        return await original(self, request, call)

    monkeypatch.setattr(EventHandlers, "BatchPublish", publish)
    return fault


def run_query(databases: DatabaseUrls, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(databases.admin) as connection:
        return connection.execute(statement).fetchall()


def pay_all(client: Client, count: int, seller: str = "") -> None:
    """The given number of concurrent paid orders `o-{n}`, each for its own seller or all for
    one.
    """

    def pay(number: int) -> None:
        client.create_payment(
            f"c-{number}",
            [new_order(f"o-{number}", "ann", seller or f"s{number}", "1.00", "EUR")],
            credit_card_info="tok_visa",
        )

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(pay, range(count)))


def published_versions(client: Client) -> dict[str, list[int]]:
    """The versions of each aggregate's events, in the order in which they were published."""
    versions_by_aggregate: dict[str, list[int]] = defaultdict(list)
    for event in client.events():
        versions_by_aggregate[event.aggregate_id].append(event.aggregate_version)
    return versions_by_aggregate


def are_all_published(client: Client, count: int, missing: int = 0) -> bool:
    """Whether all four events of the given number of orders are published."""
    return (
        sum(
            len(versions_) == 4
            for name, versions_ in published_versions(client).items()
            if name.startswith("paymentOrders/")
        )
        == count - missing
    )


def are_in_order(client: Client) -> bool:
    return all(
        versions_ == list(range(1, len(versions_) + 1))
        for versions_ in published_versions(client).values()
    )


def rejected_aggregates(databases: DatabaseUrls) -> set[str]:
    return {
        row[0]
        for schema in RELAYING_SERVICES
        for row in run_query(databases, f"select aggregate_id from {schema}.rejected_aggregate")
    }


def list_alerts(
    client: Client,
    kind: operator_pb2.AlertKind.ValueType = operator_pb2.ALERT_KIND_EVENT_REJECTED,
    *,
    service: str = "payment",
    include_ended: bool = False,
) -> list[operator_pb2.Alert]:
    request = operator_pb2.ListAlertsRequest(ended=include_ended, page_size=200)
    listed_alerts = getattr(client, service).ListAlerts(request).alerts
    return [alert for alert in listed_alerts if alert.kind == kind]


@pytest.mark.parametrize("error", [INVALID_ERROR, ValueError("a bug that one event triggers")])
def test_a_rejected_event_delays_only_its_aggregate(
    scratch_database: DatabaseUrls, event_fault: EventFault, error: Exception
) -> None:
    """Of hundreds of events one of an order, one of a wallet and one of the ledger are rejected.
    All others are published, and an alert of each service names its own event with EventService's
    error. After the cause is removed everything is published in order, and the alerts end.
    """
    rejected_by_service = {
        "payment": "paymentOrders/o-7",
        "wallet": "wallets/s9/EUR",
        "ledger": f"transactions/{TransactionId(BOOK, 5)}",
    }
    event_fault.poison, event_fault.error = (
        {f"{name}/" for name in rejected_by_service.values()},
        error,
    )
    with serve_platform(scratch_database, SETTINGS) as platform, platform.client() as client:
        pay_all(client, 30)
        assert eventually(lambda: are_all_published(client, 30, missing=1), 60)
        assert not {*rejected_by_service.values()} & published_versions(client).keys()
        assert eventually(
            lambda: rejected_aggregates(scratch_database) == {*rejected_by_service.values()}
        )
        alerts_by_service = {
            service: eventually(lambda: list_alerts(client, service=service), 30)  # noqa: B023
            for service in rejected_by_service
        }
        assert {
            service: [alert.resource_name for alert in service_alerts]
            for service, service_alerts in alerts_by_service.items()
        } == {service_name: [name] for service_name, name in rejected_by_service.items()}
        ids = {
            service: f"{service}-EVENT_REJECTED-{name.replace('/', '-')}-1"
            for service, name in rejected_by_service.items()
        }
        assert {service: alert.alert_id for service, (alert,) in alerts_by_service.items()} == ids
        status = "INVALID_ARGUMENT" if error is INVALID_ERROR else "INTERNAL"
        assert [
            alert.detail
            for (alert,) in alerts_by_service.values()
            if not alert.detail.startswith(f"version 1: {status}")
        ] == []
        assert verify(scratch_database).passed, verify(scratch_database).as_text()
        event_fault.poison = set()
        assert eventually(lambda: not rejected_aggregates(scratch_database), 60)
        assert are_all_published(client, 30)
        assert are_in_order(client)
        for service, id_ in ids.items():
            assert eventually(lambda: not list_alerts(client, service=service), 30)  # noqa: B023
            assert [
                service_name.HasField("end_time")
                for service_name in list_alerts(client, service=service, include_ended=True)
            ] == [True]
            assert eventually(lambda: published_versions(client)[f"alerts/{id_}"] == [1, 2], 30)  # noqa: B023
    assert verify(scratch_database).passed, verify(scratch_database).as_text()


def test_small_transactions_are_published_together(scratch_database: DatabaseUrls) -> None:
    """A relay reads as many transactions at once as have 1,000 events together, and at least a
    given number. It knows whether later ones wait.
    """
    settings = SETTINGS.replace(worker__relay_interval=3600)
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        for number in range(10):  # one after the other: each alone in its transactions
            client.create_payment(
                f"c-{number}",
                [new_order(f"o-{number}", "ann", f"s{number}", "1.00", "EUR")],
                credit_card_info="tok_visa",
            )
    with connect(scratch_database.service("wallet"), Connection) as connection:

        def numbers(min_rows: int, max_rows: int, max_events: int) -> list[tuple[int, bool]]:
            """The events of each row, and whether later rows wait."""
            return [
                (row.event_count, row.has_later)
                for row in outbox.list_unpublished(connection, min_rows, max_rows, max_events)
            ]

        waiting = len(numbers(1, 200, 1000))
        assert waiting >= 10
        assert numbers(1, 200, 1000) == [(1, True)] * (waiting - 1) + [(1, False)]
        assert numbers(2, 200, 5) == [(1, True)] * 5
        assert numbers(2, 4, 5) == [(1, True)] * 4
        assert numbers(7, 200, 5) == [(1, True)] * 7


@pytest.mark.parametrize(
    "error",
    [
        ApiError(ErrorReason.SHUTTING_DOWN, "away", retry_after=0.1),
        ApiError(ErrorReason.CREDENTIALS_INVALID, "a wrong token"),
    ],
)
def test_events_that_are_not_published_raise_an_alert(
    scratch_database: DatabaseUrls, event_fault: EventFault, error: Exception
) -> None:
    """During an outage of EventService, or while it rejects every call, payments are paid and an
    alert of each service says that its events wait. The alert ends once they are published.
    """
    event_fault.poison, event_fault.error = {""}, error
    with (
        serve_platform(
            scratch_database, SETTINGS.replace(worker__events_alert_after=0.3)
        ) as platform,
        platform.client() as client,
    ):
        pay_all(client, 3)
        for service in PAYMENT_SERVICES:
            (alert,) = eventually(
                lambda: list_alerts(
                    client,
                    operator_pb2.ALERT_KIND_EVENTS_DELAYED,
                    service=service,  # noqa: B023
                ),
                30,
            )
            assert alert.resource_name == "services/event"
        assert not rejected_aggregates(scratch_database)
        event_fault.poison = set()
        assert eventually(
            lambda: (
                not any(
                    list_alerts(client, operator_pb2.ALERT_KIND_EVENTS_DELAYED, service=service)
                    for service in PAYMENT_SERVICES
                )
            ),
            30,
        )
        assert eventually(lambda: are_all_published(client, 3))
    assert verify(scratch_database).passed, verify(scratch_database).as_text()


@pytest.mark.parametrize(
    ("service", "collection"), [("wallet", "wallets/"), ("ledger", "transactions/")]
)
def test_a_service_whose_calls_alone_are_rejected_raises_an_alert(
    scratch_database: DatabaseUrls, event_fault: EventFault, service: str, collection: str
) -> None:
    """When EventService rejects the calls of WalletService or LedgerService alone, only that
    service raises an alert about waiting events.
    """
    event_fault.poison, event_fault.error = (
        {collection},
        ApiError(ErrorReason.CREDENTIALS_INVALID, "a wrong token"),
    )
    with (
        serve_platform(
            scratch_database, SETTINGS.replace(worker__events_alert_after=0.3)
        ) as platform,
        platform.client() as client,
    ):
        pay_all(client, 3)
        assert eventually(
            lambda: (
                [
                    service_name
                    for service_name in PAYMENT_SERVICES
                    if list_alerts(
                        client, operator_pb2.ALERT_KIND_EVENTS_DELAYED, service=service_name
                    )
                ]
                == [service]
            ),
            30,
        )
        event_fault.poison = set()
        assert eventually(
            lambda: (
                not list_alerts(client, operator_pb2.ALERT_KIND_EVENTS_DELAYED, service=service)
            ),
            30,
        )
        assert eventually(lambda: are_all_published(client, 3))
    assert verify(scratch_database).passed, verify(scratch_database).as_text()


def test_events_wait_for_a_rejected_one_across_a_restart(
    scratch_database: DatabaseUrls, event_fault: EventFault
) -> None:
    """Versions before the rejected one are published; later ones wait, including those written
    after a restart. Then all are published in order.
    """
    event_fault.poison = {"paymentOrders/o-3/2", "wallets/shop/EUR/4"}
    with serve_platform(scratch_database, SETTINGS) as platform, platform.client() as client:
        pay_all(client, 10, "shop")
        assert eventually(
            lambda: (
                rejected_aggregates(scratch_database) == {"paymentOrders/o-3", "wallets/shop/EUR"}
            )
        )
        assert eventually(lambda: are_all_published(client, 10, missing=1))
    with serve_platform(scratch_database, SETTINGS) as platform, platform.client() as client:
        client.create_payment(
            "c-late",
            [new_order("o-late", "ann", "shop", "1.00", "EUR")],
            credit_card_info="tok_visa",
        )
        assert eventually(lambda: are_all_published(client, 11, missing=1))
        assert eventually(
            lambda: (
                run_query(scratch_database, "select max(version) from wallet.rejected_event")
                == [(11,)]
            )
        )
        assert eventually(
            lambda: (
                run_query(
                    scratch_database,
                    "select min(rejection_count) >= 2 from wallet.rejected_aggregate",
                )
                == [(True,)]
            ),
            30,
        )
        versions_before = published_versions(client)
        assert (versions_before["paymentOrders/o-3"], versions_before["wallets/shop/EUR"]) == (
            [1],
            [1, 2, 3],
        )
        assert [alert.resource_name for alert in eventually(lambda: list_alerts(client))] == [
            "paymentOrders/o-3"
        ]
        event_fault.poison = set()
        assert eventually(lambda: not rejected_aggregates(scratch_database), 60)
        assert are_all_published(client, 11)
        assert published_versions(client)["wallets/shop/EUR"] == list(range(1, 12))
    assert verify(scratch_database).passed


def test_no_event_is_lost_while_all_are_rejected(
    scratch_database: DatabaseUrls, event_fault: EventFault
) -> None:
    """When each event is rejected individually all of them wait, in bounded relay runs, with few
    alerts; after the cause is removed all are published in order.
    """
    event_fault.poison = {""}
    with serve_platform(scratch_database, SETTINGS) as platform, platform.client() as client:
        pay_all(client, 120)
        assert eventually(lambda: len(rejected_aggregates(scratch_database)) > 400, 60)
        assert list(client.events()) == []
        event_fault.poison = set()
        assert eventually(lambda: not rejected_aggregates(scratch_database), 120)
        assert eventually(lambda: are_all_published(client, 120))
        assert are_in_order(client)
    assert verify(scratch_database).passed


def test_many_rejected_transactions_do_not_block_others(
    scratch_database: DatabaseUrls, event_fault: EventFault
) -> None:
    """If EventService rejects more of the ledger's next events than one relay run can isolate, the
    others are still published, and so are later postings.
    """
    rejected_ids = {f"transactions/{TransactionId(BOOK, number)}" for number in range(1, 251)}
    event_fault.poison, event_fault.error = (
        {"transactions/"},
        ApiError(ErrorReason.CREDENTIALS_INVALID, "a wrong token"),
    )

    def post(client: Client, source_ids: Iterable[str]) -> None:
        sides = (("x/a", ledger_pb2.DIRECTION_DEBIT), ("x/b", ledger_pb2.DIRECTION_CREDIT))
        entries = [
            ledger_pb2.Entry(account=account, amount="1.00", currency="EUR", direction=direction)
            for account, direction in sides
        ]
        kind = ledger_pb2.TRANSACTION_KIND_ADJUSTMENT
        postings = [
            ledger_service_pb2.Posting(
                kind=kind, source_id=source_id, caller="test", entries=entries
            )
            for source_id in source_ids
        ]
        client.ledger.BatchPost(ledger_service_pb2.BatchPostRequest(postings=postings))

    def published(client: Client) -> int:
        return sum(name.startswith("transactions/") for name in published_versions(client))

    with serve_platform(scratch_database, SETTINGS) as platform, platform.client() as client:
        post(client, [f"j-{number}" for number in range(300)])
        assert not published(client)
        event_fault.poison, event_fault.error = {f"{name}/" for name in rejected_ids}, INVALID_ERROR
        assert eventually(lambda: published(client) == 50, 30)
        post(client, ["later"])
        assert eventually(lambda: published(client) == 51, 30)
        assert rejected_aggregates(scratch_database) == rejected_ids
        event_fault.poison = set()
        assert eventually(lambda: published(client) == 301, 60)
        assert eventually(lambda: not rejected_aggregates(scratch_database), 30)
    assert verify(scratch_database).passed


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ("payment", "paymentOrders/o-0"),
        ("wallet", "wallets/s0/EUR"),
        ("ledger", f"transactions/{TransactionId(BOOK, 1)}"),
    ],
)
def test_rejected_events_of_alerts_raise_one_alert(
    scratch_database: DatabaseUrls, event_fault: EventFault, service: str, name: str
) -> None:
    """An alert about a rejected event also has an event. If that is rejected too, one alert covers
    all such events, and no others follow.
    """
    event_fault.poison = {f"{name}/", "alerts/"}
    with serve_platform(scratch_database, SETTINGS) as platform, platform.client() as client:
        pay_all(client, 1)
        rejected_query = (
            f"select count(*) from {service}.rejected_aggregate where aggregate_id like 'alerts/%' "
            "and rejection_count > 1"
        )
        assert eventually(lambda: run_query(scratch_database, rejected_query) == [(2,)], 30)
        assert {alert.resource_name for alert in list_alerts(client, service=service)} == {
            name,
            "alerts/-",
        }
        event_fault.poison = set()
        assert eventually(lambda: not list_alerts(client, service=service), 30)
        assert eventually(lambda: not rejected_aggregates(scratch_database), 30)
    assert verify(scratch_database).passed, verify(scratch_database).as_text()


def test_events_wait_while_event_service_rejects_the_caller(
    scratch_database: DatabaseUrls, event_fault: EventFault
) -> None:
    """If EventService rejects all calls of a service, no event is isolated: everything waits, and
    is published in order afterwards.
    """
    event_fault.poison, event_fault.error = (
        {""},
        ApiError(ErrorReason.CREDENTIALS_INVALID, "a wrong token"),
    )
    with (
        serve_platform(scratch_database, SETTINGS.replace(worker__relay_interval=0.05)) as platform,
        platform.client() as client,
    ):
        pay_all(client, 5)
        assert eventually(lambda: len(event_fault.calls) > 4)
        assert rejected_aggregates(scratch_database) == set()
        event_fault.poison = set()
        assert eventually(lambda: are_all_published(client, 5), 30)
        assert are_in_order(client)
