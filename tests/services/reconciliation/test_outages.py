"""Reconciliation while answers are lost, or another service does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from tallystick import Client, ClientSettings, TallystickError
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import service_names
from tallystick_server.ledger.handlers import LedgerHandlers
from tallystick_server.reconciliation import posting_sender
from tallystick_server.reconciliation.reconcile import Reconciliation
from tallystick_storage import database as database_module
from tallystick_storage.reconciliation import breaks as break_store
from tests.support.break_operator import Operator, state_of
from tests.support.platform import (
    ServedPlatform,
    eventually,
    fresh_database,
    serve_platform,
    unique_id,
)
from tests.support.reconciliation import (
    Provider,
    breaks_of,
    charge,
    clearing,
    entries_of,
    kinds_of,
    only_break,
    outcomes_of,
    posted_clearing,
    reconcile,
    require_explained,
    transactions_of,
)

SETTINGS = Settings().replace(
    worker__scan_interval=0.1,
    worker__monitor_interval=0.2,
    reconciliation__posting_interval=0.1,
    reconciliation__alert_postings_after=0.3,
    reconciliation__alert_breaks_after=0.3,
)


@dataclass
class LedgerFault:
    """Fails calls to LedgerService's BatchPost that have a posting of reconciliation."""

    fails_before: int = 0
    """How many calls still fail before they take effect."""
    fails_after: int = 0
    """How many calls still fail after they took effect."""
    rejected: frozenset[str] = frozenset()
    """Postings in these currencies are rejected."""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = LedgerHandlers.BatchPost

        async def post(
            handlers: LedgerHandlers, request: ledger_service_pb2.BatchPostRequest, call: Any
        ) -> ledger_service_pb2.BatchPostResponse:
            if not request.postings[0].description:  # of a test
                return await original(handlers, request, call)
            if self.fails_before:
                self.fails_before -= 1
                raise ApiError(ErrorReason.OVERLOADED, "no answer", retry_after=0.1)
            for posting in request.postings:
                if posting.entries[0].currency in self.rejected:
                    posting.source_id = "not an id"
            response = await original(handlers, request, call)
            if self.fails_after:
                self.fails_after -= 1
                raise ApiError(ErrorReason.OVERLOADED, "the answer was lost", retry_after=0.1)
            return response

        monkeypatch.setattr(LedgerHandlers, "BatchPost", post)


@pytest.fixture(scope="module")
def fault() -> LedgerFault:
    """The faults of LedgerService."""
    return LedgerFault()


@pytest.fixture(scope="module")
def platform(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory, fault: LedgerFault
) -> Iterator[ServedPlatform]:
    """A platform whose LedgerService can fail."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        fresh_database(admin_url, tmp_path_factory.mktemp("outages")) as databases,
    ):
        fault.install(monkeypatch)
        with serve_platform(databases, SETTINGS) as served_platform:
            yield served_platform


class LostCommit:
    """Loses the answer to one COMMIT: that of the next transaction in which `name` is called on
    `owner`.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, takes_effect: bool
    ) -> None:
        self.times_lost = 0
        self._connection: Any = None
        original_commit, original = database_module.commit, getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            if not self.times_lost:
                first = arguments[0]
                self._connection = getattr(first, "_connection", first)
            return result

        def commit(connection: Any) -> None:
            if connection is not self._connection:
                original_commit(connection)
                return
            self._connection = None
            self.times_lost += 1
            if takes_effect:
                original_commit(connection)
            connection.close()
            raise psycopg.OperationalError("the answer was lost")

        monkeypatch.setattr(owner, name, call)
        monkeypatch.setattr(database_module, "commit", commit)


@pytest.mark.parametrize("takes_effect", [True, False])
def test_a_file_whose_commit_was_lost_is_compared_once(
    client: Client, provider: Provider, monkeypatch: pytest.MonkeyPatch, takes_effect: bool
) -> None:
    """Whether the transaction was committed or not: the client gets the file, and each line
    counts once.
    """
    provider.pay_in(10_00, "ch-1")
    lost = LostCommit(monkeypatch, Reconciliation, "run", takes_effect=takes_effect)
    lines = [charge(10_00, "ch-1", fee=30), charge(5_00, "ch-9")]
    file = reconcile(client, provider.account, lines).statement_file
    assert lost.times_lost == 1
    assert (file.matched_count, kinds_of(file)) == (1, {"CHARGE_UNKNOWN": 1})
    assert outcomes_of(client, file.statement_file_id) == ["MATCHED", "BREAK"]
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.statement_balance) == ("9.70", "14.70")
    assert report.unexplained == "0.00"
    assert len(breaks_of(client, account=provider.account)) == 1


@pytest.mark.parametrize("takes_effect", [True, False])
def test_a_resolution_whose_commit_was_lost_is_posted_once(
    client: Client, provider: Provider, monkeypatch: pytest.MonkeyPatch, takes_effect: bool
) -> None:
    """The break has one change, and the ledger one transaction."""
    provider.pay_in(10_00, "ch-1")
    reconcile(client, provider.account, [charge(9_00, "ch-1")])
    break_id = only_break(client, provider.account).break_id
    lost = LostCommit(monkeypatch, break_store, "change", takes_effect=takes_effect)
    assert state_of(Operator(client).resolve(break_id, "ADJUST")) == "RESOLVED"
    assert lost.times_lost == 1
    assert posted_clearing(client, provider.account).ledger_balance == "9.00"
    found = only_break(client, provider.account)
    assert [change.action for change in found.changes] == ["FOUND", "RESOLVED"]
    assert len(transactions_of(client, provider.account)) == 2


@pytest.mark.parametrize("name", ["fails_before", "fails_after"])
def test_a_posting_without_an_answer_is_sent_again(
    client: Client, provider: Provider, fault: LedgerFault, name: str
) -> None:
    """The ledger has it once, whether the first call took effect or not."""
    setattr(fault, name, 12)
    provider.pay_in(10_00, "ch-1")
    lines = [
        charge(10_00, "ch-1", fee=30),
        charge(-2_00, line_type="SETTLEMENT", reference=unique_id("set")),
    ]
    reconcile(client, provider.account, lines)
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained) == ("7.70", "0.00")
    assert len(transactions_of(client, provider.account)) == 3
    assert getattr(fault, name) < 12


def test_a_posting_that_the_ledger_rejects_holds_up_no_other(
    client: Client,
    provider: Provider,
    fault: LedgerFault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many are rejected, those after them are posted; once accepted, all are."""
    monkeypatch.setattr(posting_sender, "_PAGE", 2)
    fault.rejected = frozenset({"EUR"})
    for number, currency in enumerate(["EUR"] * 5 + ["USD"] * 3):
        line = charge(-1_00, line_type="FEE", reference=f"fee-{number}", currency=currency)
        reconcile(client, provider.account, [line])
    assert posted_clearing(client, provider.account, "USD").ledger_balance == "-3.00"
    report = clearing(client, provider.account)
    assert (report.ledger_balance, report.unposted, report.unexplained) == (
        "0.00",
        "-5.00",
        "0.00",
    )
    fault.rejected = frozenset()
    assert posted_clearing(client, provider.account).ledger_balance == "-5.00"


def test_what_is_not_posted_yet_is_explained(
    client: Client, provider: Provider, fault: LedgerFault
) -> None:
    """Fees, settlements and moved payouts: each account has what is to be posted, but for the
    transit account, which gets its money only with the settlement.
    """

    def send(number: int) -> None:
        provider.pay_in(10_00, f"ch-{number}")
        provider.payout(2_00, f"tr-{number}")
        lines = [
            charge(10_00, f"ch-{number}", fee=30),
            charge(-2_00, f"tr-{number}", line_type="PAYOUT"),
            charge(-1_00, line_type="FEE", reference=f"fee-{number}"),
            charge(-4_00, line_type="SETTLEMENT", reference=unique_id("set")),
        ]
        reconcile(client, provider.account, lines)

    send(1)
    posted_clearing(client, provider.account)
    fault.rejected = frozenset({"EUR"})
    try:
        send(2)
        accounts = {item.account: item for item in require_explained(client)}
    finally:
        fault.rejected = frozenset()
    assert accounts[provider.account].unposted == "-7.30"
    assert accounts[provider.payouts_account].unposted == "2.00"
    assert accounts["banks/transit"].unposted == "0.00"
    assert posted_clearing(client, provider.account).ledger_balance == "5.40"


def test_reconciliation_waits_for_the_ledger(scratch_database: DatabaseUrls) -> None:
    """Without LedgerService no file is compared, and operators can still decide about breaks; what
    is to be posted is posted once it answers. An alert says that the ledger lacks it.
    """
    others = tuple(name for name in service_names() if name != "reconciliation")
    account = "psp/p/clearing"
    with ExitStack() as stack:
        rest = stack.enter_context(serve_platform(scratch_database, SETTINGS, names=others))
        everybody = stack.enter_context(rest.client())
        Provider(everybody, "p").pay_in(10_00, "ch-1")
        addresses = dict.fromkeys(others, rest.address)
        with (
            serve_platform(
                scratch_database,
                SETTINGS.replace(service_addresses=addresses),
                names=("reconciliation",),
            ) as alone,
            alone.client() as client,
        ):
            reconcile(client, account, [charge(9_00, "ch-1")])
            break_id = only_break(client, account).break_id
        with serve_platform(
            scratch_database,
            SETTINGS.replace(service_addresses={**addresses, "ledger": "127.0.0.1:1"}),
            names=("reconciliation",),
        ) as alone:
            client = stack.enter_context(Client(alone.address, settings=ClientSettings(tries=1)))
            operator = Operator(client)
            assert state_of(operator.resolve(break_id, "ADJUST")) == "RESOLVED"
            for call in (
                lambda: reconcile(client, account, [charge(5_00, "ch-2")]),
                lambda: reconcile(client, account, [charge(5_00, "ch-3")], preview=True),
                lambda: require_explained(client),
            ):
                with pytest.raises(TallystickError) as error:
                    call()
                assert error.value.reason == "DEPENDENCY_UNAVAILABLE"
                assert error.value.retry_after
            assert eventually(lambda: alert_kinds(client) == {"ADJUSTMENT_STUCK"})
        with (
            serve_platform(
                scratch_database,
                SETTINGS.replace(service_addresses=addresses),
                names=("reconciliation",),
            ) as alone,
            alone.client() as client,
        ):
            file = reconcile(client, account, [charge(5_00, "ch-2")]).statement_file
            assert kinds_of(file) == {"CHARGE_UNKNOWN": 1}
            assert posted_clearing(client, account).ledger_balance == "9.00"
            assert entries_of(transactions_of(everybody, account)[-1]) == {
                account: "-1.00",
                "platform/adjustments": "1.00",
            }
            assert eventually(lambda: alert_kinds(client) == {"BREAK_OVERDUE"})
            (found,) = breaks_of(client, statement_file_id=file.statement_file_id)
            Operator(client).resolve(found.break_id, "ACCEPT")
            assert eventually(lambda: not alert_kinds(client))
            resources = {alert.resource_name for alert in alerts(client, ended=True)}
            assert f"breaks/{found.break_id}" in resources


def alerts(client: Client, *, ended: bool = False) -> list[operator_pb2.Alert]:
    request = operator_pb2.ListAlertsRequest(ended=ended)
    return list(client.reconciliation.ListAlerts(request).alerts)


def alert_kinds(client: Client) -> set[str]:
    """The kinds of the alerts that last."""
    return {
        operator_pb2.AlertKind.Name(alert.kind).removeprefix("ALERT_KIND_")
        for alert in alerts(client)
    }
