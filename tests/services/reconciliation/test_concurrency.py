"""Files, operators and the reader of the ledger at the same time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import psycopg
import pytest

from tallystick import Client, TallystickError
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_server.app.configuration import Settings
from tallystick_server.app.services import service_names
from tallystick_storage.reconciliation import breaks as break_store
from tests.support.break_operator import Operator
from tests.support.platform import ServedPlatform, fresh_database, serve_platform, unique_id
from tests.support.reconciliation import (
    Provider,
    breaks_of,
    charge,
    entries_of,
    file_request,
    kinds_of,
    posted_clearing,
    reconcile,
    require_explained,
    require_verified,
    statement,
    transactions_of,
)


@pytest.fixture(scope="module")
def platform(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPlatform]:
    """All services, of which another process serves reconciliation as well."""
    settings = Settings().replace(
        worker__scan_interval=0.1,
        reconciliation__posting_interval=0.05,
    )
    with (
        fresh_database(admin_url, tmp_path_factory.mktemp("concurrency")) as databases,
        serve_platform(databases, settings) as served_platform,
    ):
        yield served_platform


@pytest.fixture(scope="module")
def clients(platform: ServedPlatform, client: Client) -> Iterator[Sequence[Client]]:
    """Clients of the two processes that serve reconciliation."""
    others = [name for name in service_names() if name != "reconciliation"]
    settings = platform.settings.replace(service_addresses=dict.fromkeys(others, platform.address))
    with (
        serve_platform(platform.databases, settings, ("reconciliation",)) as second,
        ExitStack() as stack,
    ):
        addresses = [platform.address, second.address] * 2
        yield [stack.enter_context(Client(address)) for address in addresses]


def run_at_once(*calls: Callable[[], object]) -> list[object]:
    """The results of calls that begin together."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        barrier.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_the_same_file_by_several_clients_is_one_file(
    platform: ServedPlatform, client: Client, clients: Sequence[Client], provider: Provider
) -> None:
    """Each client gets the reconciled file, and its lines count once."""
    provider.pay_in_all(10_00, references := [f"ch-{number}" for number in range(30)])
    lines = [charge(10_00, reference, fee=30) for reference in references]
    lines += [charge(-1_00, line_type="FEE"), charge(5_00, "ch-none")]
    items = statement(lines)
    request = file_request(provider.account, items)

    def send(sender: Client) -> object:
        return sender.reconcile_statement_file(request, items).statement_file

    files = run_at_once(*(partial(send, sender) for sender in clients))
    assert all(file == files[0] for file in files)
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.statement_balance) == ("290.00", "295.00")
    assert len(breaks_of(client, account=provider.account)) == 1
    require_stored_once(client, platform)


def test_the_same_lines_in_files_at_once_count_once(
    platform: ServedPlatform, client: Client, clients: Sequence[Client], provider: Provider
) -> None:
    """Two files overlap: in each pair of equal lines one is repeated, whichever is first."""
    provider.pay_in_all(10_00, references := [f"ch-{number}" for number in range(40)])
    lines = [charge(10_00, reference, fee=30) for reference in references]
    lines += [charge(-1_00, line_type="FEE", reference="fee-1"), charge(5_00, "ch-none")]
    files = run_at_once(
        lambda: reconcile(clients[0], provider.account, lines[:30]).statement_file,
        lambda: reconcile(clients[1], provider.account, lines[10:]).statement_file,
        lambda: reconcile(clients[2], provider.account, lines).statement_file,
    )
    counts = [
        (file.matched_count, file.repeated_count, sum(kinds_of(file).values()))  # type: ignore[attr-defined, arg-type]
        for file in files
    ]
    assert sum(matched for matched, _, _ in counts) == 41
    assert sum(repeated for _, repeated, _ in counts) == len(lines) + 30 + 32 - 42
    assert sum(broken for _, _, broken in counts) == 1
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.statement_balance) == ("387.00", "392.00")
    require_stored_once(client, platform)


def test_a_bank_and_a_provider_at_once_match_no_entry_twice(
    platform: ServedPlatform, client: Client, clients: Sequence[Client], provider: Provider
) -> None:
    """Both statements have the payouts: one of them matches each, and in the other it is a break.
    Its money moves once.
    """
    references = [unique_id("tr") for _ in range(20)]
    for reference in references:
        provider.payout(10_00, reference)
    bank = f"banks/{unique_id('b')}"
    provider_lines = [
        charge(-10_00, line_type="PAYOUT", charge_reference=reference) for reference in references
    ]
    bank_lines = [
        charge(-10_00, line_type="BANK_ENTRY", reference=reference) for reference in references
    ]
    run_at_once(
        lambda: reconcile(clients[0], provider.account, provider_lines[:15]),
        lambda: reconcile(clients[1], bank, bank_lines[5:]),
        lambda: reconcile(clients[2], provider.account, provider_lines),
        lambda: reconcile(clients[3], bank, bank_lines),
    )
    assert posted_clearing(client, provider.payouts_account).ledger_balance == "0.00"
    moved = [entries_of(item) for item in transactions_of(client, provider.payouts_account)[20:]]
    assert sum(float(entries[provider.payouts_account]) for entries in moved) == 200
    found = breaks_of(client, account=provider.account) + breaks_of(client, account=bank)
    assert len(found) == 20, "each payout is in one of the two statements too many"
    require_stored_once(client, platform)


@pytest.mark.parametrize("seed", [1, 2])
def test_all_at_once_stays_explained(
    platform: ServedPlatform, client: Client, clients: Sequence[Client], seed: int
) -> None:
    """Charges are booked, files are compared, operators resolve, match and reopen breaks, and the
    report is read: every report explains all accounts, nothing deadlocks, and nothing is lost.
    """
    providers = [Provider(client) for _ in range(2)]
    seeded_random = random.Random(seed)
    plans = [random.Random(seeded_random.random()) for _ in range(6)]
    resolutions = ("ADJUST", "WRITE_OFF", "ACCEPT")

    def book(plan: random.Random) -> None:
        for number in range(60):
            provider = plan.choice(providers)
            provider.pay_in(10_00 + number, f"ch-{number}", f"{provider.name}-{number}")

    def load(plan: random.Random) -> None:
        for start in range(0, 60, 6):
            provider = plan.choice(providers)
            lines = [
                charge(
                    10_00 + number + plan.choice([0, 0, 0, 1, 7]),
                    f"ch-{number}",
                    fee=plan.choice([0, 30]),
                    client_reference=f"o-{provider.name}-{number}",
                )
                for number in range(start, start + 8)
            ]
            reconcile(plan.choice(clients), provider.account, lines)

    def decide(plan: random.Random) -> None:
        for _ in range(40):
            account = plan.choice(providers).account
            listed = breaks_of(client, account=account)
            for found in plan.sample(listed, min(3, len(listed))):
                operator = Operator(plan.choice(clients))
                try:
                    if found.state == reconciliation_pb2.BREAK_STATE_RESOLVED:
                        operator.reopen(found.break_id, f"reason {plan.randrange(1000)}")
                    elif plan.random() < 0.3:
                        operator.match(*(item.break_id for item in listed[:3]))
                    else:
                        operator.resolve(found.break_id, plan.choice(resolutions))
                except TallystickError as error:
                    assert error.reason in {"INVALID_STATE", "FIELD_INVALID"}, error

    def watch(plan: random.Random) -> None:
        for _ in range(40):
            require_explained(plan.choice(clients))

    work = (book, load, load, decide, decide, watch)
    run_at_once(
        *(lambda call=call, plan=plan: call(plan) for call, plan in zip(work, plans, strict=True))
    )
    for provider in providers:
        posted_clearing(client, provider.account)
    require_stored_once(client, platform)


def test_a_comparison_holds_up_no_decision(
    platform: ServedPlatform, client: Client, provider: Provider
) -> None:
    """A comparison of minutes has changed all sums of the clearing report. Breaks are decided
    meanwhile, and no sum is lost.
    """
    provider.pay_in_all(10_00, ["ch-1", "ch-2"])
    reconcile(client, provider.account, [charge(12_00, "ch-1"), charge(13_00, "ch-2")])
    first, second = breaks_of(client, account=provider.account)
    operator = Operator(client)
    with psycopg.connect(platform.databases.admin) as comparison:
        comparison.execute("update reconciliation.break_sum set amount = amount")
        operator.resolve(first.break_id, "WRITE_OFF")
        operator.reopen(first.break_id)
        operator.resolve(second.break_id, "ADJUST")
    assert query(
        platform,
        f"select count(*) from reconciliation.break_sum where account = '{provider.account}'",
    ) == (2,)
    operator.resolve(first.break_id, "WRITE_OFF")
    posted_clearing(client, provider.account)
    require_stored_once(client, platform)


def require_stored_once(client: Client, platform: ServedPlatform) -> None:
    """All invariants hold; an entry is open or closed, and no posting is in the ledger twice."""
    require_verified(client, platform.databases)
    items, keys, postings = query(
        platform,
        """
        with item as (
            select book, sequence, entry_number from reconciliation.open_item union all
            select book, sequence, entry_number from reconciliation.closed_item)
        select count(*), count(distinct (book, sequence, entry_number)), (
            select count(*) from reconciliation.ledger_posting p where is_posted and (
                select count(*) from ledger.tx t
                where t.kind = p.kind and t.source_id = p.source_id) <> 1)
        from item
        """,
    )
    assert items == keys > 0
    assert postings == 0


def query(platform: ServedPlatform, statement: str) -> tuple[int, ...]:
    """The only row of a query."""
    with psycopg.connect(platform.databases.admin) as connection:
        (row,) = connection.execute(statement).fetchall()
    return tuple(row)


def cancelling_lines(reference: str) -> list[reconciliation_pb2.StatementLine]:
    """A transfer, and its reversal: neither is in the ledger."""
    return [
        charge(-10_00, reference, line_type="PAYOUT", client_reference="pay-9"),
        charge(10_00, reference, line_type="PAYOUT_RETURN", client_reference="pay-9"),
    ]


def test_a_file_does_not_wait_for_an_operator(
    platform: ServedPlatform, client: Client, provider: Provider
) -> None:
    """An operator decides on a break that the file would end: the file leaves it to the operator.
    If each waited for the other, one of the two would fail.
    """
    out, back = cancelling_lines(unique_id("tr"))
    reconcile(client, provider.account, [out])
    (first,) = breaks_of(client, account=provider.account)
    with psycopg.connect(platform.databases.admin) as operator:
        operator.execute(
            "select from reconciliation.break where break_id = %s for update", (first.break_id,)
        )
        reconcile(client, provider.account, [back])
    found = breaks_of(client, account=provider.account)
    assert {item.state for item in found} == {reconciliation_pb2.BREAK_STATE_OPEN}
    Operator(client).match(*(item.break_id for item in found))
    require_explained(client)


def test_a_break_that_is_decided_meanwhile_does_not_fail_a_file(
    client: Client, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator was faster than the file: the break stays as the operator has decided."""
    out, back = cancelling_lines(unique_id("tr"))
    reconcile(client, provider.account, [out])
    (first,) = breaks_of(client, account=provider.account)
    list_cancelled = break_store.list_cancelled

    def decide_after(*arguments: Any) -> Any:
        found = list_cancelled(*arguments)
        if found:
            Operator(client).resolve(first.break_id, "ACCEPT", "decided")
        return found

    monkeypatch.setattr(break_store, "list_cancelled", decide_after)
    reconcile(client, provider.account, [back])
    found = breaks_of(client, account=provider.account)
    assert [reconciliation_pb2.Resolution.Name(item.resolution) for item in found] == [
        "RESOLUTION_ACCEPT",
        "RESOLUTION_UNSPECIFIED",
    ]
    require_explained(client)
