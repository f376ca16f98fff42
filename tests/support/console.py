"""The console of a platform: people who sign in, work for them, and a signed-in HTTP client."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from html import unescape

import grpc
import httpx
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.duration_pb2 import Duration

from tallystick import Client
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick.monitoring.v1 import trace_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick_core.access import Role
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, SERVICES, service_names
from tallystick_server.app.settings_display import show_settings
from tallystick_server.app.statement_upload import read_statement
from tallystick_server.http.console.calls import PublicCalls
from tallystick_server.http.console.pages.settings import SettingsPage
from tallystick_server.http.console.pages.statements import StatementUpload
from tallystick_server.http.console.pages.table import ACT_PAGES, FORM_PAGES, PAGES
from tallystick_server.http.console.session import Sessions
from tallystick_server.http.console.site import Console, ConsoleOptions
from tallystick_server.http.console.statement_reader import StatementReader
from tallystick_server.http.http_rules import http_rules
from tallystick_server.http.routing import Route
from tests.support.callers import settings_with_callers, token_of
from tests.support.http import serve_routes
from tests.support.monitoring import new_span
from tests.support.payments import create_payment
from tests.support.payouts import create_destination, create_payout, create_sale, wait_for_state
from tests.support.platform import FAST_RETRY, ServedPlatform, eventually, serve_platform
from tests.support.reconciliation import Provider, breaks_of, charge, reconcile

WAIT_FOR_ACCEPTANCE = payment_service_pb2.WAIT_FOR_ACCEPTANCE
PEOPLE = {
    "alice": ("", {Role.OPERATOR, Role.SERVICE}),
    "bob": ("", {Role.OPERATOR}),
    "auditor": ("", {Role.AUDITOR}),
    "shop": ("market", {Role.TEAM}),
    "payer": ("market", {Role.PAYOUTS, Role.OPERATOR}),
    "paymaster": ("market", {Role.PAYOUTS}),
}
"""The owner and the roles of each caller."""
ALL_PAGES = {
    **PAGES,
    "settings": SettingsPage("127.0.0.1:1", show_settings(Settings())).show,
}
"""The pages of a console whose process has the default settings."""
SESSION_KEY = "the-session-key-of-the-tests-aaaaaaaa"
SETTINGS = settings_with_callers(
    PEOPLE,
    retry=FAST_RETRY,
    worker__scan_interval=0.5,
    worker__monitor_interval=0.5,
    monitoring__record_interval=0.5,
    console__enabled=True,
    console__session_key=SESSION_KEY,
    payout__approval_threshold={"EUR": 50_00},
    payout__destination_cooldown=0,
    reconciliation__posting_interval=0.5,
    reconciliation__approval_threshold={"EUR": 100_00},
)


@contextmanager
def serve_console(
    databases: DatabaseUrls, settings: Settings = SETTINGS
) -> Iterator[ServedPlatform]:
    """A platform with the console and the callers of PEOPLE."""
    with serve_platform(databases, settings, (*service_names(), HTTP_SERVER)) as platform:
        yield platform


@dataclass(frozen=True)
class Work:
    """What there is to look at, and to do."""

    paid: str
    declined: str
    seller: str
    destination: str
    awaiting_payouts: tuple[str, ...]
    dead_letters: tuple[str, ...]
    unapplied_charge: str
    account: str
    statement_file: str
    breaks: tuple[str, ...]
    trace_id: str


def create_work(platform: ServedPlatform) -> Work:
    """Payments, payouts that await approval, dead letters, an unapplied charge, and breaks."""
    with (
        platform.client(token_of("shop")) as shop,
        platform.client(token_of("payer")) as payer,
        platform.client(token_of("alice")) as alice,
    ):
        seller = "seller-books"
        for amount in ("120.00", "80.00"):
            create_sale(shop, amount, seller)
        paid = create_payment(shop, "12.50", "7.00").checkout_id
        declined = create_payment(shop, "24.90", token="tok_decline:lost_card").checkout_id
        for _ in range(2):
            create_payment(shop, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
        create_payment(shop, "33.00", token="tok_other_amount", wait_for=WAIT_FOR_ACCEPTANCE)
        destination = create_destination(payer, seller)
        awaiting = [
            create_payout(payer, seller, amount, payout_destination_id=destination).payout_id
            for amount in ("60.00", "70.00")
        ]
        paid_payout = create_payout(payer, seller, "10.00", payout_destination_id=destination)
        wait_for_state(payer, paid_payout.payout_id, "PAID")
        provider = Provider(alice, "acme")
        for reference in ("ch-1", "ch-2", "ch-3"):
            provider.pay_in(10_00, reference)
        lines = [charge(10_00, "ch-1"), charge(9_00, "ch-2"), charge(500_00, "ch-9")]
        file = reconcile(alice, provider.account, lines, file_name="acme-march.csv").statement_file
        return Work(
            paid=paid,
            declined=declined,
            seller=seller,
            destination=destination,
            awaiting_payouts=tuple(awaiting),
            dead_letters=tuple(eventually(lambda: _two_dead_letters(alice))),
            unapplied_charge=eventually(lambda: _unapplied_charge(alice)),
            account=provider.account,
            statement_file=file.statement_file_id,
            trace_id=_record_trace(alice),
            breaks=tuple(item.break_id for item in breaks_of(alice, account=provider.account)),
        )


def _record_trace(client: Client) -> str:
    """A trace with a failed transaction and a call of another service."""
    server, call = trace_pb2.SPAN_KIND_SERVER, "tallystick.wallet.v1.WalletService/BatchCredit"
    spans = [
        new_span(
            900,
            1,
            name="tallystick.payment.v1.PaymentService/CreatePayment",
            kind=server,
            duration=Duration(seconds=8),
        ),
        new_span(900, 2, parent=1, name="payment.create", duration=Duration(seconds=2)),
        new_span(900, 3, parent=2, name="transaction", failed=True),
        new_span(900, 4, parent=1, name=call, kind=server, duration=Duration(seconds=4)),
        new_span(900, 5, parent=4, name="transaction", duration=Duration(seconds=3)),
    ]
    client.monitoring.BatchRecordSpans(pb.BatchRecordSpansRequest(spans=spans))
    return spans[0].trace_id


def dead_letters_of(client: Client) -> list[str]:
    """The open dead letters of charges, up to 200."""
    request = operator_pb2.ListDeadLettersRequest(
        state=operator_pb2.DEAD_LETTER_STATE_OPEN, page_size=200
    )
    return [item.dead_letter_id for item in client.payment.ListDeadLetters(request).dead_letters]


def _two_dead_letters(client: Client) -> list[str]:
    ids = dead_letters_of(client)
    return ids if len(ids) == 2 else []


def _unapplied_charge(client: Client) -> str:
    response = client.payment.ListUnappliedCharges(
        payment_service_pb2.ListUnappliedChargesRequest()
    )
    return next((item.unapplied_charge_id for item in response.unapplied_charges), "")


def unreachable() -> tuple[list[MethodDescriptor], dict[str, grpc.aio.Channel]]:
    """The arguments of PublicCalls for services that do not answer. To be made in an event loop."""
    methods = [rule.method for rule in http_rules(spec.descriptor for spec in SERVICES)]
    channel = grpc.aio.insecure_channel("127.0.0.1:1")
    return methods, {method.containing_service.full_name: channel for method in methods}


@contextmanager
def serve_pages(
    make_calls: Callable[[], PublicCalls], read: StatementReader = read_statement
) -> Iterator[httpx.Client]:
    """A console without a platform, and a browser that is signed in to it."""
    sessions = Sessions(SESSION_KEY, 3600, lambda: datetime.now(UTC))

    def routes() -> list[Route]:
        options = ConsoleOptions(is_encrypted=False, authenticates=True)
        upload = StatementUpload(read, 1_000_000)
        return Console(
            make_calls(), sessions, options, ALL_PAGES, ACT_PAGES, FORM_PAGES, upload
        ).routes()

    with (
        serve_routes(routes) as url,
        httpx.Client(
            base_url=url, cookies={"tallystick-console": sessions.begin("t")}, timeout=30
        ) as browser,
    ):
        yield browser


class Person:
    """Someone with a browser that runs no scripts."""

    def __init__(self, url: str) -> None:
        no_idle = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(base_url=url, timeout=30, limits=no_idle)
        self.last: httpx.Response | None = None

    def sign_in(self, token: str) -> httpx.Response:
        return self.http.post("/console/sign-in", data={"token": token})

    def get(self, path: str) -> httpx.Response:
        return self.http.get(path)

    def csrf_token(self) -> str:
        """The token in the forms of the pages."""
        match = re.search(r'name="csrf_token" value="([^"]+)"', self.get("/console/search").text)
        assert match is not None
        return unescape(match[1])

    def act(self, path: str, **fields: str) -> httpx.Response:
        """Sends a form of a page."""
        return self.http.post(path, data={"csrf_token": self.csrf_token(), **fields})
