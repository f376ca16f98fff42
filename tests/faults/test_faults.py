"""Everything broken one at a time: the right rule fires in time, its runbook leads to the cause,
and the console shows it. docs/operations/alerts/README.md has the table that these tests prove.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import orjson
import psycopg
import pytest

from tallystick import new_order
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick_core.provider.webhook import WebhookEvent, WebhookSubject
from tallystick_server.app.configuration import Settings
from tallystick_server.http.console.navigation import NAVIGATION
from tallystick_server.http.console.pages import symptoms
from tests.fakes.webhook_source import sign
from tests.faults.conftest import Marketplace
from tests.faults.firing import Healthy, alarms, firing
from tests.faults.runbook import Runbook
from tests.faults.table import Fault, read_faults, read_rules
from tests.support.callers import token_of
from tests.support.charges import WAIT_FOR_ACCEPTANCE, wait_for_dead_letter
from tests.support.console import Person
from tests.support.metrics import Scrape, scrape
from tests.support.platform import ROOT, eventually, unique_id

FAULTS = read_faults()
_SELLER = "seller-books"  # each test's healthy payment makes it known
_ALERTING = ("payment", "payout", "wallet", "ledger", "reconciliation")


def pay(marketplace: Marketplace, token: str = "tok_visa") -> payment_pb2.Payment:
    """A payment that is accepted, and charged and booked if it can be."""
    checkout_id = unique_id("c")
    order = new_order(checkout_id, "buyer-1", _SELLER, "5.00", "EUR")
    with marketplace.platform.client(token_of("shop")) as client:
        return client.create_payment(
            checkout_id, [order], credit_card_info=token, wait_for=WAIT_FOR_ACCEPTANCE
        )


def is_paid(marketplace: Marketplace, payment: payment_pb2.Payment) -> bool:
    with marketplace.platform.client(token_of("shop")) as client:
        return client.wait_for_payment(payment.checkout_id, 30).is_payment_done


def deliver_webhook(marketplace: Marketplace) -> None:
    """A webhook that the provider delivers."""
    body = orjson.dumps(
        {
            "event_id": unique_id("evt"),
            "event_type": "customer.created",
            "subject": "other",
            "time": 1_700_000_000,
        }
    )
    marketplace.post_webhook(body, sign(body))


def open_alerts(marketplace: Marketplace, service: str) -> set[str]:
    """The kinds of the open alerts of a service."""
    with marketplace.operator(service) as client:
        stub = getattr(client, service)
        request = operator_pb2.ListAlertsRequest(page_size=200)
        return {
            operator_pb2.AlertKind.Name(alert.kind).removeprefix("ALERT_KIND_")
            for alert in stub.ListAlerts(request).alerts
        }


def observe(marketplace: Marketplace) -> Healthy:
    """The platform without a fault, while it pays and receives a webhook."""
    assert eventually(lambda: not any(open_alerts(marketplace, name) for name in _ALERTING))
    start = scrape(marketplace.platform)
    assert is_paid(marketplace, pay(marketplace))
    deliver_webhook(marketplace)
    counted = ("tallystick_charges_completed_total", "tallystick_webhooks_received_total")

    def counts(figures: Scrape) -> list[float]:
        return [figures.total(name) for name in counted]

    def is_exported() -> bool:
        """A scrape may be a second old. Another process may just have become a monitor."""
        end = scrape(marketplace.platform)
        return all(
            later > earlier for later, earlier in zip(counts(end), counts(start), strict=True)
        ) and all(end.has("tallystick_outbox_lag_seconds", service=name) for name in _ALERTING)

    assert eventually(is_exported)
    return Healthy(start, scrape(marketplace.platform))


@pytest.fixture
def healthy(marketplace: Marketplace) -> Healthy:
    return observe(marketplace)


class Notice(NamedTuple):
    """What proves that a broken platform is noticed as the table of faults says."""

    marketplace: Marketplace
    console: Person
    healthy: Healthy
    folder: Path

    def check(
        self,
        fault: Fault,
        *found: str,
        values: Mapping[str, str] | None = None,
        threshold_seconds: float = 0,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """The rule fires in time, the runbook finds `found`, and the console shows the fault.

        `values`: for the words in capitals of the runbook. `threshold_seconds`: how much of the
        time passes before the alert is raised, by default. `meanwhile`: more traffic.
        """
        rule = read_rules()[fault.rule]
        path, _, heading = rule["annotations"]["runbook_url"].partition("#")
        assert (ROOT / path, heading) == (fault.runbook, fault.heading)
        if kind := rule["labels"].get("kind"):
            assert eventually(lambda: kind in open_alerts(self.marketplace, "payment"))
        minutes = fault.minutes - round(threshold_seconds / 60)

        def fires() -> bool:
            meanwhile()
            broken = scrape(self.marketplace.platform)
            return firing(fault.rule, self.healthy, broken, minutes, self.folder)

        assert eventually(fires), f"{fault.rule} does not fire"
        runbook = Runbook(fault.runbook, fault.heading, values or {})
        assert eventually(lambda: runbook.found(self._follow(runbook)) == list(found)), (
            self._follow(runbook)
        )

        def is_shown() -> bool:
            meanwhile()
            return shows(self.console, fault)

        assert eventually(is_shown, 40), fault.text

    def _follow(self, runbook: Runbook) -> str:
        marketplace = self.marketplace
        return runbook.follow(
            marketplace.addresses,
            marketplace.platform.url,
            marketplace.databases.admin,
            token_of("alice"),
        )


def shows(console: Person, fault: Fault) -> bool:
    """Whether the page of the console has the text, for a symptom in a row that says "too high".
    The choices of its forms do not count.
    """
    page = re.sub(r"<option.*?</option>", "", console.get(_path_of(fault)).text, flags=re.DOTALL)
    if not fault.is_symptom:
        return fault.text in page
    rows = re.findall(r"<tr>.*?</tr>", page, re.DOTALL)
    return any(fault.text in row and "too high" in row for row in rows)


def _path_of(fault: Fault) -> str:
    return dict(link for _, links in NAVIGATION for link in links)[fault.page]


@pytest.fixture
def notice(marketplace: Marketplace, console: Person, healthy: Healthy, tmp_path: Path) -> Notice:
    return Notice(marketplace, console, healthy, tmp_path)


def test_a_healthy_platform_raises_no_alarm(
    marketplace: Marketplace, console: Person, healthy: Healthy, tmp_path: Path
) -> None:
    """No rule fires, and the console shows none of the faults. One that exports nothing does."""
    # on a busy machine one transaction may be slow, which is drawn out to one in each minute
    assert alarms(healthy, tmp_path) == "" or alarms(observe(marketplace), tmp_path) == ""
    nothing = Scrape(())
    assert "TallystickServiceDown" in alarms(Healthy(nothing, nothing), tmp_path)

    def is_quiet() -> bool:
        return not any(shows(console, fault) for fault in FAULTS.values())

    # of the first transactions one in a hundred may be slow
    assert eventually(is_quiet), [f.name for f in FAULTS.values() if shows(console, f)]


def test_a_slow_provider(marketplace: Marketplace, notice: Notice) -> None:
    """Its answers come, after 6 seconds by the clock of the gateway."""
    marketplace.provider.latency_seconds = 6
    try:
        for _ in range(3):
            pay(marketplace)
        notice.check(FAULTS["provider slow"], "Succeeded", values={"PROVIDER": "sandbox"})
    finally:
        marketplace.provider.latency_seconds = 0


def test_a_dead_provider(marketplace: Marketplace, notice: Notice) -> None:
    """It cannot be connected to. Afterwards what waited is paid."""
    marketplace.provider.sandbox.down = True
    try:
        payments = [pay(marketplace) for _ in range(3)]
        notice.check(FAULTS["provider dead"], "circuit breaker is open")
    finally:
        marketplace.provider.sandbox.down = False
    assert all(is_paid(marketplace, payment) for payment in payments)


def test_revoked_credentials(marketplace: Marketplace, notice: Notice) -> None:
    """The provider answers 401. Once it accepts the credentials, what waited is paid."""
    marketplace.provider.rejects_credentials = True
    try:
        payment = pay(marketplace)
        notice.check(FAULTS["credentials revoked"], "UNAUTHORIZED")
    finally:
        marketplace.provider.rejects_credentials = False
    assert is_paid(marketplace, payment)


def test_a_slow_database(marketplace: Marketplace, notice: Notice) -> None:
    """Each transaction of WalletService waits for more than a second, for another session."""
    with slow_writes(marketplace.databases.admin, "wallet.commit_marker"):
        notice.check(FAULTS["database slow"], "Lock", meanwhile=lambda: pay(marketplace))


@contextmanager
def slow_writes(admin_url: str, table: str) -> Iterator[None]:
    """Takes a lock on a table again and again, until a session has waited for it for a second."""
    ended = threading.Event()
    waiting = (
        "select exists (select from pg_stat_activity where %s = any (pg_blocking_pids(pid)) "
        "and clock_timestamp() - query_start > interval '1.1 s')"
    )

    def lock_again_and_again() -> None:
        with (
            psycopg.connect(admin_url) as holder,
            psycopg.connect(admin_url, autocommit=True) as observer,
        ):

            def has_delayed() -> bool:
                pid = holder.info.backend_pid
                return ended.is_set() or observer.execute(waiting, (pid,)).fetchone() == (True,)

            while not ended.is_set():
                holder.execute(f"lock table {table} in access exclusive mode".encode())
                eventually(has_delayed, 5)
                holder.rollback()

    thread = threading.Thread(target=lock_again_and_again, name="slow database")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)


@pytest.mark.parametrize("service", ["wallet", "ledger"])
def test_a_dead_service(marketplace: Marketplace, notice: Notice, service: str) -> None:
    """Nothing listens at its address. Payments are booked once it runs again."""
    with marketplace.without(service):
        payment = pay(marketplace)
        notice.check(
            FAULTS[f"{service} dead"],
            "connection refused",
            values={"ADDRESS": marketplace.addresses[service]},
        )
    assert is_paid(marketplace, payment)


def test_a_dead_event_service(marketplace: Marketplace, notice: Notice) -> None:
    """Nothing listens at its address, and events wait. They are published once it runs again."""
    with marketplace.without("event"):
        pay(marketplace)
        notice.check(
            FAULTS["event service dead"],
            "connection refused",
            values={"ADDRESS": marketplace.addresses["event"]},
            threshold_seconds=Settings().worker.events_alert_after,
        )


def test_silent_webhooks(
    marketplace: Marketplace, notice: Notice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider delivers nothing, and lists what it did not deliver. The last webhook that it
    delivered is soon too old for the console, whose two hours are seconds here.
    """
    short = timedelta(seconds=10)
    symptom_list = tuple(
        replace(symptom, window=short, step=short)
        if symptom.rule == "TallystickWebhooksSilent"
        else symptom
        for symptom in symptoms.SYMPTOMS
    )
    monkeypatch.setattr(symptoms, "SYMPTOMS", symptom_list)

    def happen() -> None:
        event = WebhookEvent(
            "sandbox",
            unique_id("evt"),
            "customer.created",
            WebhookSubject.OTHER,
            datetime.now(UTC),
        )
        marketplace.webhooks.undelivered.append(event)

    notice.check(
        FAULTS["webhooks silent"],
        "CREDENTIALS_INVALID",
        values={"PROVIDER": "sandbox"},
        meanwhile=happen,
    )


def test_a_poisoned_operation(marketplace: Marketplace, notice: Notice) -> None:
    """The provider rejects one charge as malformed, always. Others are paid meanwhile."""
    with marketplace.operator() as alice:
        dead_letter = wait_for_dead_letter(alice, pay(marketplace, "tok_rejected"))
        assert is_paid(marketplace, pay(marketplace))
        notice.check(
            FAULTS["poisoned operation"], "REJECTED", values={"ID": dead_letter.dead_letter_id}
        )
        alice.payment.CloseDeadLetter(
            operator_pb2.CloseDeadLetterRequest(
                dead_letter_id=dead_letter.dead_letter_id, reason="tried", evidence="their ticket 7"
            )
        )


def test_a_stuck_relay(marketplace: Marketplace, notice: Notice) -> None:
    """A forgotten session holds the lock by which events are numbered. EventService is healthy."""
    with psycopg.connect(marketplace.databases.admin) as connection:
        connection.execute("select from event.head for update")
        pay(marketplace)
        notice.check(
            FAULTS["relay stuck"],
            "Lock",
            values={"ADDRESS": marketplace.addresses["event"]},
            threshold_seconds=Settings().worker.events_alert_after,
        )


def test_a_disk_nearly_full(
    marketplace: Marketplace, notice: Notice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot of a replica that is gone keeps the write-ahead log."""
    used = shutil.disk_usage(marketplace.folder)._replace(total=100, used=95, free=5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: used)
    slot = unique_id("gone").replace("-", "_")
    with psycopg.connect(marketplace.databases.admin, autocommit=True) as connection:
        connection.execute("select pg_create_physical_replication_slot(%s, true)", (slot,))
        try:
            notice.check(FAULTS["disk nearly full"], "inactive slot")
        finally:
            connection.execute("select pg_drop_replication_slot(%s)", (slot,))


def test_a_wrong_clock(marketplace: Marketplace, notice: Notice) -> None:
    """The database's clock is a minute ahead."""
    create = (
        "create or replace function payment.clock() returns timestamptz language sql volatile as "
        "'select clock_timestamp() + interval ''{} s'''"
    )
    with psycopg.connect(marketplace.databases.admin, autocommit=True) as connection:
        connection.execute(create.format(60).encode())
        try:
            notice.check(
                FAULTS["clock wrong"],
                "the database is wrong",
                values={"TIME": datetime.now(UTC).isoformat()},
            )
        finally:
            connection.execute(create.format(0).encode())


def test_each_fault_of_the_table_is_broken_here() -> None:
    """The table has twelve faults, and each is in a test."""
    page = Path(__file__).read_text()
    named = {name for name in FAULTS if f'FAULTS["{name}"]' in page}
    assert named | {"wallet dead", "ledger dead"} == FAULTS.keys()
    assert len(FAULTS) == 12
