"""What a page of the console costs: the SQL statements that it causes in all services."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import make_url

from benchmarks.console.paths import Ids, Queries, paths_of
from benchmarks.console.run import MAX_STATEMENTS, PAGE_WITHOUT_STATEMENTS, QUIET_REQUESTS
from benchmarks.growth.plans import QueryPlans, StatementRecorders, count_statements
from benchmarks.seed.kept import QUIET_SETTINGS
from tallystick.payout.v1 import payout_service_pb2
from tallystick_server.app.errors import StartupError
from tallystick_server.app.services import HTTP_SERVER, SERVICES, service_names
from tallystick_server.http.console.pages.table import PAGES
from tests.support.callers import token_of
from tests.support.console import SETTINGS, Person, Work, create_work, serve_console
from tests.support.payments import create_payment
from tests.support.platform import ServedPlatform, eventually, fresh_database, serve_platform

_MANY_ORDERS = 30


@dataclass(frozen=True)
class CountedConsole:
    """The console of a platform that runs no statements by itself, and a person in it."""

    person: Person
    recorders: StatementRecorders
    ids: Ids
    queries: Queries

    def plans_of(self, path: str) -> QueryPlans:
        """The statements that a page causes."""
        plans = QueryPlans()
        with plans.capture(*self.recorders.all):
            assert self.person.get(path).status_code in (200, 303, 404)
        return plans

    def is_quiet(self) -> bool:
        """Whether nothing but pages causes statements: what runs at the start has run."""
        return not any(
            self.plans_of(PAGE_WITHOUT_STATEMENTS).statements for _ in range(QUIET_REQUESTS)
        )


@pytest.fixture(scope="module")
def console(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountedConsole]:
    """A console on a database with work to do, and a payment of many orders."""
    recorders = StatementRecorders()
    with fresh_database(admin_url, tmp_path_factory.mktemp("costs")) as databases:
        with serve_console(databases) as busy_platform:
            work = create_work(busy_platform)
            ids = _ids(busy_platform, work)
        with serve_platform(
            databases,
            SETTINGS.replace(**QUIET_SETTINGS),
            (*service_names(), HTTP_SERVER),
            recorders.dependencies,
        ) as platform:
            person = Person(platform.url)
            assert person.sign_in(token_of("alice")).status_code == 303
            console = CountedConsole(person, recorders, ids, _queries(ids, work))
            assert eventually(console.is_quiet)
            yield console


def _queries(ids: Ids, work: Work) -> Queries:
    searches = [{"q": id_} for values in ids.values() for id_ in values]
    others = [{"q": text} for text in ("buyer-1", "ch-1", work.account, "unknown-id")]
    return {
        "search": searches + others,
        "accounts": [{"account": work.account}],
        "expected-entries": [{"account": work.account, "currency": "EUR"}],
    }


def _ids(platform: ServedPlatform, work: Work) -> Ids:
    with platform.client(token_of("shop")) as shop, platform.client(token_of("payer")) as payer:
        large = create_payment(shop, *["1.00"] * _MANY_ORDERS).checkout_id
        payouts = payer.payout.ListPayouts(payout_service_pb2.ListPayoutsRequest()).payouts
    return {
        "checkout_id": [work.paid, work.declined, large],
        "payment_order_id": [f"{work.paid}-0", f"{work.declined}-0"],
        "charge_id": [f"o-{work.paid}-0"],
        "payout_id": [payout.payout_id for payout in payouts],
        "seller_account": [work.seller],
        "transaction_id": ["main-1"],
        "dead_letter_id": work.dead_letters,
        "break_id": work.breaks,
        "statement_file_id": [work.statement_file],
        "trace_id": ["1".zfill(32)],
        "entry_number": ["1"],
        "payout_destination_id": [work.destination],
    }


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_page_causes_few_statements(console: CountedConsole, page: str) -> None:
    """At most 20 in all services together, however many orders, payouts or breaks it is about."""
    for path in paths_of([page], console.ids, console.queries):
        plans = console.plans_of(path)
        statements = "\n".join(statement[:200] for _, statement, _ in plans.statements)
        assert bool(plans.statements) == (path != PAGE_WITHOUT_STATEMENTS), path
        assert count_statements(plans) <= MAX_STATEMENTS, f"{path}:\n{statements}"


def test_statements_of_all_services_are_counted(console: CountedConsole) -> None:
    """The story of a payment is read from four services."""
    plans = console.plans_of(f"/console/payments/{console.ids['checkout_id'][0]}")
    users = {make_url(url).username or "" for url, _, _ in plans.statements}
    counted = {spec.name for spec in SERVICES if any(spec.name in user for user in users)}
    assert counted == {"payment", "wallet", "ledger", "event"}


def test_a_new_page_needs_ids_to_be_counted() -> None:
    """A page with a variable that has no ids is not left out by mistake."""
    with pytest.raises(StartupError, match="thing_id has no ids"):
        list(paths_of(["things/{thing_id}"], {}, {}))
    with pytest.raises(StartupError, match="expected-entries cannot be asked for"):
        list(paths_of(["expected-entries"], {}, {}))
    assert list(paths_of(["", "things/{thing_id}"], {"thing_id": ["a/b"]}, {"": [{"q": "1"}]})) == [
        "/console",
        "/console?q=1",
        "/console/things/a%2Fb",
    ]
