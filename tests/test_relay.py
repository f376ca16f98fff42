"""Relays: an event that EventService refuses delays those of its aggregate, and no others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest

from tallystick import Client, new_order
from tallystick.event.v1 import event_service_pb2
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.recovery.v1 import recovery_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.ledger import transaction_id
from tallystick_core.refusal import Reason, Refused
from tallystick_server.event.handlers import EventHandlers
from tallystick_server.process.configuration import Settings
from tallystick_server.process.databases import Databases
from tallystick_server.process.verify import verify

from .conftest import eventually, serving

SETTINGS = Settings(monitor_interval=0.2, sweep_interval=0.1)
WAITING = ("payment", "wallet", "payout", "ledger")
MESSAGES: dict[str, Any] = {"payment": payment_service_pb2, "wallet": wallet_service_pb2, "ledger": ledger_service_pb2}
"""The services that have something to tell of a payment."""
INVALID = Refused(Reason.FIELD_INVALID, "caller must be an id.", field="events[0].caller")


@dataclass
class EventFault:
    """What EventService does to a call before it does its work; a fault that a bug of its own would be."""

    poison: set[str] = field(default_factory=set)
    """A call with an event whose id begins so is refused."""
    error: Exception = INVALID
    calls: list[int] = field(default_factory=list)
    """The number of events of each call."""


@pytest.fixture
def event_fault(monkeypatch: pytest.MonkeyPatch) -> EventFault:
    """Faults in EventService's own handler: relays and network are real."""
    fault, original = EventFault(), EventHandlers.BatchPublish

    async def publish(self: EventHandlers, request: event_service_pb2.BatchPublishRequest, call: Any) -> event_service_pb2.BatchPublishResponse:
        fault.calls.append(len(request.events))
        if any(event.event_id.startswith(tuple(fault.poison)) for event in request.events):
            raise fault.error
        return await original(self, request, call)

    monkeypatch.setattr(EventHandlers, "BatchPublish", publish)
    return fault


def query(databases: Databases, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(databases.admin) as connection:
        return connection.execute(statement).fetchall()


def pay_all(client: Client, count: int, seller: str = "") -> None:
    """So many paid orders `o-{n}` at once, each to a seller of its own or all to one."""

    def one(number: int) -> None:
        client.create_payment(f"c-{number}", [new_order(f"o-{number}", "ann", seller or f"s{number}", "1.00", "EUR")], credit_card_info="tok_visa")

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(one, range(count)))


def versions(client: Client) -> dict[str, list[int]]:
    """The versions of each aggregate's events, in the order in which they were published."""
    found: dict[str, list[int]] = defaultdict(list)
    for event in client.events():
        found[event.aggregate_id].append(event.aggregate_version)
    return found


def whole(client: Client, count: int, without: int = 0) -> bool:
    """Whether all four events of so many orders are published."""
    return sum(len(known) == 4 for name, known in versions(client).items() if name.startswith("paymentOrders/")) == count - without


def in_order(client: Client) -> bool:
    return all(known == list(range(1, len(known) + 1)) for known in versions(client).values())


def refused_aggregates(databases: Databases) -> set[str]:
    return {row[0] for schema in WAITING for row in query(databases, f"select aggregate_id from {schema}.refused_aggregate")}


def alerts(client: Client, kind: str = "EVENT_REFUSED", *, service: str = "payment", ended: bool = False) -> list[recovery_pb2.Alert]:
    found = getattr(client, service).ListAlerts(MESSAGES[service].ListAlertsRequest(ended=ended, page_size=200)).alerts
    return [alert for alert in found if alert.kind == kind]


@pytest.mark.parametrize("error", [INVALID, ValueError("a bug that one event triggers")])
def test_a_refused_event_delays_only_its_aggregate(own_database: Databases, event_fault: EventFault, error: Exception) -> None:
    """Of hundreds of events one of an order, of a wallet and of the ledger is refused: all others are published, and an alert of each service names its
    own with what EventService says; once the cause is gone everything is published in order, and the alerts end."""
    refused = {"payment": "paymentOrders/o-7", "wallet": "wallets/s9/EUR", "ledger": f"transactions/{transaction_id(5)}"}
    event_fault.poison, event_fault.error = {f"{name}/" for name in refused.values()}, error
    with serving(own_database, SETTINGS) as platform, platform.client() as client:
        pay_all(client, 60)
        assert eventually(lambda: whole(client, 60, without=1), 60)
        assert not {*refused.values()} & versions(client).keys()
        assert eventually(lambda: refused_aggregates(own_database) == {*refused.values()})
        raised = {service: eventually(lambda: alerts(client, service=service), 30) for service in refused}  # noqa: B023
        assert {service: [alert.subject for alert in found] for service, found in raised.items()} == {one: [name] for one, name in refused.items()}
        ids = {service: f"{service}-EVENT_REFUSED-{name.replace('/', '-')}-1" for service, name in refused.items()}
        assert {service: alert.alert_id for service, (alert,) in raised.items()} == ids
        status = "INVALID_ARGUMENT" if error is INVALID else "INTERNAL"
        assert [alert.detail for (alert,) in raised.values() if not alert.detail.startswith(f"version 1: {status}")] == []
        assert verify(own_database).passed, verify(own_database).as_text()
        event_fault.poison = set()
        assert eventually(lambda: not refused_aggregates(own_database), 60)
        assert whole(client, 60)
        assert in_order(client)
        for service, id_ in ids.items():
            assert eventually(lambda: not alerts(client, service=service), 30)  # noqa: B023
            assert [one.HasField("end_time") for one in alerts(client, service=service, ended=True)] == [True]
            assert eventually(lambda: versions(client)[f"alerts/{id_}"] == [1, 2], 30)  # noqa: B023
    assert verify(own_database).passed, verify(own_database).as_text()


@pytest.mark.parametrize("error", [Refused(Reason.SHUTTING_DOWN, "away", retry_after=0.1), Refused(Reason.CREDENTIALS_INVALID, "a wrong token")])
def test_events_that_are_not_published_raise_an_alert(own_database: Databases, event_fault: EventFault, error: Exception) -> None:
    """While EventService is away, or accepts no call, payments are paid and an alert of each service says that its events wait; it ends once they are out."""
    event_fault.poison, event_fault.error = {""}, error
    with serving(own_database, replace(SETTINGS, events_alert_after=0.3)) as platform, platform.client() as client:
        pay_all(client, 3)
        for service in MESSAGES:
            (alert,) = eventually(lambda: alerts(client, "EVENTS_WAIT", service=service), 30)  # noqa: B023
            assert alert.subject == "services/event"
        assert not refused_aggregates(own_database)
        event_fault.poison = set()
        assert eventually(lambda: not any(alerts(client, "EVENTS_WAIT", service=service) for service in MESSAGES), 30)
        assert eventually(lambda: whole(client, 3))
    assert verify(own_database).passed, verify(own_database).as_text()


@pytest.mark.parametrize(("service", "collection"), [("wallet", "wallets/"), ("ledger", "transactions/")])
def test_a_service_whose_calls_alone_are_rejected_raises_an_alert(
    own_database: Databases, event_fault: EventFault, service: str, collection: str
) -> None:
    """When EventService rejects the calls of WalletService or LedgerService alone, an alert of that service says that its events wait, and of no other."""
    event_fault.poison, event_fault.error = {collection}, Refused(Reason.CREDENTIALS_INVALID, "a wrong token")
    with serving(own_database, replace(SETTINGS, events_alert_after=0.3)) as platform, platform.client() as client:
        pay_all(client, 3)
        assert eventually(lambda: [one for one in MESSAGES if alerts(client, "EVENTS_WAIT", service=one)] == [service], 30)
        event_fault.poison = set()
        assert eventually(lambda: not alerts(client, "EVENTS_WAIT", service=service), 30)
        assert eventually(lambda: whole(client, 3))
    assert verify(own_database).passed, verify(own_database).as_text()


def test_events_wait_behind_a_refused_one_over_a_restart(own_database: Databases, event_fault: EventFault) -> None:
    """What precedes the refused version is published and what follows it waits, also what is written later and after a restart; then all comes in order."""
    event_fault.poison = {"paymentOrders/o-3/2", "wallets/shop/EUR/4"}
    with serving(own_database, SETTINGS) as platform, platform.client() as client:
        pay_all(client, 10, "shop")
        assert eventually(lambda: refused_aggregates(own_database) == {"paymentOrders/o-3", "wallets/shop/EUR"})
        assert eventually(lambda: whole(client, 10, without=1))
    with serving(own_database, SETTINGS) as platform, platform.client() as client:
        client.create_payment("c-late", [new_order("o-late", "ann", "shop", "1.00", "EUR")], credit_card_info="tok_visa")
        assert eventually(lambda: whole(client, 11, without=1))
        assert eventually(lambda: query(own_database, "select max(version) from wallet.refused_event") == [(11,)])
        assert eventually(lambda: query(own_database, "select min(refusals) >= 2 from wallet.refused_aggregate") == [(True,)], 30)
        known = versions(client)
        assert (known["paymentOrders/o-3"], known["wallets/shop/EUR"]) == ([1], [1, 2, 3])
        assert [alert.subject for alert in eventually(lambda: alerts(client))] == ["paymentOrders/o-3"]
        event_fault.poison = set()
        assert eventually(lambda: not refused_aggregates(own_database), 60)
        assert whole(client, 11)
        assert versions(client)["wallets/shop/EUR"] == list(range(1, 12))
    assert verify(own_database).passed


def test_an_event_service_that_refuses_everything_loses_nothing(own_database: Databases, event_fault: EventFault) -> None:
    """When each event is refused by itself all of them wait, in bounded turns, with few alerts; once the cause is gone all come in order."""
    event_fault.poison = {""}
    with serving(own_database, SETTINGS) as platform, platform.client() as client:
        pay_all(client, 120)
        assert eventually(lambda: len(refused_aggregates(own_database)) > 400, 60)
        assert list(client.events()) == []
        event_fault.poison = set()
        assert eventually(lambda: not refused_aggregates(own_database), 120)
        assert eventually(lambda: whole(client, 120))
        assert in_order(client)
    assert verify(own_database).passed


def test_hundreds_of_refused_transactions_keep_no_others_waiting(own_database: Databases, event_fault: EventFault) -> None:
    """Where EventService refuses more of the ledger's next events than a turn finds out, the others are published, and what is posted later as well."""
    refused = {f"transactions/{transaction_id(number)}" for number in range(1, 251)}
    event_fault.poison, event_fault.error = {"transactions/"}, Refused(Reason.CREDENTIALS_INVALID, "a wrong token")

    def post(client: Client, causes: Iterable[str]) -> None:
        sides = (("x/a", ledger_pb2.DIRECTION_DEBIT), ("x/b", ledger_pb2.DIRECTION_CREDIT))
        entries = [ledger_pb2.Entry(account=account, amount="1.00", currency="EUR", direction=direction) for account, direction in sides]
        kind = ledger_pb2.TRANSACTION_KIND_ADJUSTMENT
        postings = [ledger_service_pb2.Posting(kind=kind, cause_id=cause, caller="test", entries=entries) for cause in causes]
        client.ledger.BatchPost(ledger_service_pb2.BatchPostRequest(postings=postings))

    def published(client: Client) -> int:
        return sum(name.startswith("transactions/") for name in versions(client))

    with serving(own_database, SETTINGS) as platform, platform.client() as client:
        post(client, [f"j-{number}" for number in range(300)])
        assert not published(client)
        event_fault.poison, event_fault.error = {f"{name}/" for name in refused}, INVALID
        assert eventually(lambda: published(client) == 50, 30)
        post(client, ["later"])
        assert eventually(lambda: published(client) == 51, 30)
        assert refused_aggregates(own_database) == refused
        event_fault.poison = set()
        assert eventually(lambda: published(client) == 301, 60)
        assert eventually(lambda: not refused_aggregates(own_database), 30)
    assert verify(own_database).passed


@pytest.mark.parametrize(
    ("service", "name"), [("payment", "paymentOrders/o-0"), ("wallet", "wallets/s0/EUR"), ("ledger", f"transactions/{transaction_id(1)}")]
)
def test_refused_events_of_alerts_raise_one_alert(own_database: Databases, event_fault: EventFault, service: str, name: str) -> None:
    """An alert about a refused event has an event too: when that is refused one alert is about all such, and no others follow from it."""
    event_fault.poison = {f"{name}/", "alerts/"}
    with serving(own_database, SETTINGS) as platform, platform.client() as client:
        pay_all(client, 1)
        refused = f"select count(*) from {service}.refused_aggregate where aggregate_id like 'alerts/%' and refusals > 1"
        assert eventually(lambda: query(own_database, refused) == [(2,)], 30)
        assert {alert.subject for alert in alerts(client, service=service)} == {name, "alerts/-"}
        event_fault.poison = set()
        assert eventually(lambda: not alerts(client, service=service), 30)
        assert eventually(lambda: not refused_aggregates(own_database), 30)
    assert verify(own_database).passed, verify(own_database).as_text()


def test_events_wait_while_event_service_rejects_the_caller(own_database: Databases, event_fault: EventFault) -> None:
    """A refusal of this service's calls is no event's fault: nothing is set apart, everything waits, and comes in order afterwards."""
    event_fault.poison, event_fault.error = {""}, Refused(Reason.CREDENTIALS_INVALID, "a wrong token")
    with serving(own_database, replace(SETTINGS, relay_interval=0.05)) as platform, platform.client() as client:
        pay_all(client, 5)
        assert eventually(lambda: len(event_fault.calls) > 4)
        assert refused_aggregates(own_database) == set()
        event_fault.poison = set()
        assert eventually(lambda: whole(client, 5), 30)
        assert in_order(client)
