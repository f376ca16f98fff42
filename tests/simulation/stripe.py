"""Stripe in a simulation: the real adapters of charges and payouts, whose HTTP calls go over the
simulated network to the look-alike.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from urllib.parse import urlsplit
from uuid import UUID

import orjson

from tallystick.operator.v1 import operator_pb2
from tallystick_core.provider.outcome import FinalNotFound
from tallystick_core.provider.payment_provider import PaymentProvider
from tallystick_core.provider.payout_provider import PayoutProvider
from tallystick_sandbox.stripe.checkout_sessions import BuyerCard
from tallystick_sandbox.stripe.context import StripeRules
from tallystick_sandbox.stripe.sandbox import StripeSandbox
from tallystick_sandbox.stripe.webhooks import (
    ACCOUNT_SECRET,
    CONNECT_SECRET,
    Send,
    sandbox_endpoints,
)
from tallystick_server.operations.periodic import Periodic
from tallystick_server.operations.webhook_handlers import to_received_message
from tallystick_server.providers.provider_type import ProviderTerms
from tallystick_server.providers.stripe.charges import StripeCharges
from tallystick_server.providers.stripe.client import RequestBody, StripeApi, Transport
from tallystick_server.providers.stripe.errors import NoAnswer, NotConnected
from tallystick_server.providers.stripe.payouts import StripePayouts
from tallystick_server.providers.stripe.settings import StripeSettings
from tallystick_server.providers.stripe.webhooks import CONNECT, PLATFORM, StripeWebhooks
from tallystick_storage.database import Database
from tests.simulation.database import START_TIME
from tests.simulation.faults import CALL_FAULTS, CALLER_FAULTS
from tests.simulation.loop import Node
from tests.simulation.network import ConnectionBroken, Unreachable, exchange
from tests.simulation.webhook_load import ParseEvent
from tests.simulation.world import World
from tests.support.stripe_transport import (
    OPERATION_ID,
    Answer,
    NamedCharges,
    NamedPayouts,
    check_answer,
    serve,
)

_SEARCH_LAG_SECONDS = 20.0
"""Shorter than the time after which "not found" is final."""
_DEBIT_SECONDS = 10.0
_INTERVAL_SECONDS = 1.0
_SETTINGS = StripeSettings(
    api_key="sk_test_simulation",
    url="http://stripe.invalid",
    webhook_secrets=(ACCOUNT_SECRET,),
    connect_webhook_secrets=(CONNECT_SECRET,),
)
_PLATFORM_URL, _CONNECT_URL = "http://platform.invalid", "http://platform.invalid/connect"
_TOP_UP = 10**11  # in minor units: more than all payouts of a run
_OBJECT_ID = re.compile(r"/(?:cs|pi|tr|po)_[^/]+")
CHARGES_SQL = """
    select '{provider}', body->'metadata'->>'charge_id',
        case when body->>'status' = 'succeeded' then 'SUCCEEDED'
            when body->>'status' <> 'canceled' then 'PENDING'
            when body->>'last_payment_error' is null then 'CANCELLED' else 'DECLINED' end,
        (body->>'amount_received')::bigint, upper(body->>'currency'), id,
        coalesce(body->'last_payment_error'->>'decline_code', '')
    from sandbox.stripe_object where type = 'payment_intent' order by sequence
"""
"""The look-alike's log of charges, with the columns of the auditor's."""
TRANSFERS_SQL = """
    select t.body->'metadata'->>'payout_id', 1,
        case when p.body->>'status' = 'paid' then 'PAID'
            when p.body->>'status' = 'failed' and p.id in (
                select body->'data'->'object'->>'id' from sandbox.stripe_object
                where type = 'event' and body->>'type' = 'payout.paid') then 'RETURNED'
            when (t.body->>'reversed')::boolean then 'DECLINED' else 'PENDING' end,
        coalesce(p.body->>'amount', t.body->>'amount')::bigint, upper(t.body->>'currency'),
        case when p.body->>'status' = 'failed' then (p.body->>'amount')::bigint end, t.id
    from sandbox.stripe_object t left join sandbox.stripe_object p
        on p.type = 'payout' and p.body->'metadata'->>'transfer' = t.id
    where t.type = 'transfer' order by t.sequence
"""
"""The look-alike's log of transfers, with the columns of the auditor's."""
SESSIONS_SQL = """
    select id, body->'metadata'->>'charge_id', body->>'status' from sandbox.stripe_object
    where type = 'checkout.session' order by sequence
"""
"""The look-alike's Checkout Sessions, with the columns of the auditor's."""
UNSENT_WEBHOOKS_SQL = (
    "select 1 from sandbox.stripe_delivery where next_try_time is not null limit 1"
)


class SimulatedTransport(Transport):
    """The adapter's HTTP calls: each is a port call. `find_node`: the provider's node; None: no
    connection can be made.
    """

    def __init__(
        self,
        world: World,
        find_node: Callable[[], Node | None],
        find_sandbox: Callable[[], StripeSandbox],
    ) -> None:
        super().__init__()
        self._world = world
        self._find_node = find_node
        self._find_sandbox = find_sandbox

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: RequestBody
    ) -> tuple[int, Mapping[str, str], bytes]:
        world, subject = self._world, OPERATION_ID.get()
        request = f"{method.upper()} {_OBJECT_ID.sub('', urlsplit(url).path)} for {subject}"

        async def answer_request(_: Node) -> Answer:
            answer = await serve(self._find_sandbox(), method, url, headers, body)
            world.log(f"Stripe answers {request}: {answer.status}")
            return answer

        try:
            return check_answer(
                await exchange(
                    world,
                    f"{world.loop.current_node.name} sends {request}",
                    CALL_FAULTS,
                    self._find_node,
                    answer_request,
                    propagate_cancel=False,
                )
            )
        except Unreachable:
            raise NotConnected("no connection") from None
        except ConnectionBroken:
            raise NoAnswer("the connection broke") from None


def stripe_charges(
    terms: ProviderTerms, transport: Transport, final_not_found: FinalNotFound
) -> PaymentProvider:
    """The adapter, with a search that does not lag for as long as Stripe's."""
    charges = StripeCharges(terms, StripeApi(_SETTINGS, transport))
    charges.final_not_found = final_not_found
    return NamedCharges(charges)


def stripe_payouts(
    terms: ProviderTerms, transport: Transport, creation_margin_seconds: float
) -> PayoutProvider:
    """The adapter, which waits less long for a payout that may still be created."""
    payouts = StripePayouts(terms, StripeApi(_SETTINGS, transport))
    payouts.creation_margin_seconds = creation_margin_seconds
    return NamedPayouts(payouts)


PageAct = BuyerCard | bool | None
"""What happens on a page: its buyer pays with a card, or passes or fails an authentication. None:
Stripe ends it.
"""


async def act_on_page(
    world: World,
    find_node: Callable[[], Node | None],
    sandbox: StripeSandbox,
    session_id: str,
    act: PageAct,
) -> None:
    """The browser of a buyer sends a page. Raises Unreachable, ConnectionBroken."""

    async def answer(_: Node) -> None:
        match act:
            case None:
                form = f"id={session_id}&status=expired".encode()
                headers = {"Authorization": f"Bearer {_SETTINGS.api_key}"}
                await sandbox.handle("POST", "/sandbox/advance", headers, form)
            case bool():
                await sandbox.authenticate_checkout(session_id, passes=act)
            case card:
                await sandbox.submit_checkout(session_id, card)
        status = (await sandbox.show_checkout(session_id)).session["status"]
        world.log(f"the page of {session_id} gets {act!r}: it is {status}")

    await exchange(
        world,
        f"{world.loop.current_node.name} sends the page",
        CALLER_FAULTS,
        find_node,
        answer,
        propagate_cancel=False,
    )


Report = Callable[[str, ParseEvent], None]
"""Reports an event with this id by webhook."""


class StripeLookAlike:
    """The look-alike on the provider's node. `report`: None: it has no webhooks."""

    def __init__(
        self,
        world: World,
        name: str,
        database: Database,
        new_id: Callable[[], UUID],
        key_window: float,
        report: Report | None,
    ) -> None:
        rules = StripeRules(
            key_window_seconds=key_window,
            search_lag_seconds=_SEARCH_LAG_SECONDS,
            debit_seconds=_DEBIT_SECONDS,
        )
        endpoints = sandbox_endpoints(_PLATFORM_URL, _CONNECT_URL)
        self.sandbox = StripeSandbox(
            database, rules, endpoints=endpoints if report else [], new_id=new_id
        )
        self._tasks = [Periodic("sandbox.due", _INTERVAL_SECONDS, self._advance_due)]
        if report is not None:
            self._deliverer = self.sandbox.deliverer(_sender(world, name, report))
            self._tasks.append(Periodic("sandbox.webhooks", _INTERVAL_SECONDS, self._deliver_due))

    def start(self) -> None:
        self._top_up_task = asyncio.ensure_future(self._top_up())
        for task in self._tasks:
            task.start()

    async def _top_up(self) -> None:
        """Tops the balance up, so that it has money for each payout."""
        authorization = f"Bearer {_SETTINGS.api_key}"
        for currency in ("eur", "jpy"):
            form = f"amount={_TOP_UP}&currency={currency}".encode()
            headers = {"Authorization": authorization, "Idempotency-Key": f"top-up-{currency}"}
            await self.sandbox.handle("POST", "/v1/topups", headers, form)

    async def _advance_due(self) -> None:
        await self.sandbox.advance_due()

    async def _deliver_due(self) -> None:
        await self._deliverer.deliver_due()


def _sender(world: World, name: str, report: Report) -> Send:
    """Each delivery is answered with 200: `report` repeats, delays and drops them."""
    source = StripeWebhooks(name, _SETTINGS, StripeApi(_SETTINGS, Transport()))

    async def send(url: str, headers: Mapping[str, str], body: bytes) -> int:
        endpoint = CONNECT if url == _CONNECT_URL else PLATFORM

        def parse() -> operator_pb2.ReceivedWebhookEvent:
            now = START_TIME + timedelta(seconds=world.loop.now)
            return to_received_message(source.parse(endpoint, body, headers, now))

        report(orjson.loads(body)["id"], parse)
        return 200

    return send
