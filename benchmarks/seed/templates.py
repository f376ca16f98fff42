"""Creates the templates: the platform runs for a moment, and is called like by any caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from tallystick import AsyncClient, new_order
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2, reconciliation_service_pb2
from tallystick_core.payment.checkout import MAX_ORDERS
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app import serve
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.errors import StartupError
from tallystick_server.app.services import service_names
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy

SELLER = "t-seller"
DESTINATION_ID = "t-bank"
BATCH_ID = "t-batch"
STATEMENT_FILE_ID = "t-statement"
CLEARING_ACCOUNT = "psp/sandbox/clearing"
BREAKS = {"OPEN": "f1-1", "RESOLVED": "f1-2"}
"""The states of breaks, and the id of the template of each: a line that the ledger does not have.
"""
ORDER_AMOUNT, PLATFORM_FEE = 1000, 50  # minor units
PAYMENT_TOKENS = {
    "PAID": "tok_visa",
    "OPEN": "tok_pending:review",
    "FAILED": "tok_decline:insufficient_funds",
    "DEAD": "tok_rejected",
}
"""The kinds of payments, and the token by which the sandbox lets each come about. The charge of a
DEAD payment is a dead letter.
"""
DEAD_LETTER_ID = "charges-o-t-dead-o-1"
LARGE_PAYMENT_ID, LARGE_PAYMENT_SELLER = "t-large", "t-large-seller"
"""A payment with as many orders as one may have. It is not cloned."""
PAYOUT_AMOUNTS = {"PAID": 200, "AWAITING_APPROVAL": 400, "FAILED": 100}
"""The states of payouts, and the amount of each in minor units."""

_BUYER = "t-buyer"
_REJECTED_DESTINATION_ID = "t-bad"
_BANK_ACCOUNT_TOKENS = {DESTINATION_ID: "ba_ok", _REJECTED_DESTINATION_ID: "ba_decline"}
_APPROVAL_THRESHOLD = 300  # minor units
_POLL_SECONDS = 0.05
_MAX_POLLS = 1200


def template_id(kind: str) -> str:
    """The checkout id of the template of a kind, or the payout id of the template in a state."""
    return f"t-{kind.lower()}"


def payment_request(
    checkout_id: str, order_id: str, buyer: str, seller: str, token: str = PAYMENT_TOKENS["PAID"]
) -> payment_service_pb2.CreatePaymentRequest:
    """The request of a seeded payment."""
    return payment_service_pb2.CreatePaymentRequest(
        checkout_id=checkout_id,
        buyer_info="Ada Lovelace, London",
        seller_info="a seller",
        buyer_country="GB",
        credit_card_info=token,
        payment_orders=[new_order(order_id, buyer, seller, "10.00", "EUR", platform_fee="0.50")],
    )


async def create_templates(database_urls: DatabaseUrls) -> None:
    """Creates all templates. Raises StartupError if one does not reach its state."""
    async with _serve_platform(database_urls) as client:
        for kind in PAYMENT_TOKENS:
            await _create_payment(client, kind)
        for destination_id in _BANK_ACCOUNT_TOKENS:
            await _create_destination(client, destination_id)
        await _set_schedules(client)
        for state in PAYOUT_AMOUNTS:
            await _create_payout(client, state)
        await _reconcile_statement(client)
        await _create_large_payment(client)


async def create_destination_template(database_urls: DatabaseUrls) -> None:
    """Creates the seller with a verified destination, and nothing else. Raises StartupError if it
    is not verified.
    """
    async with _serve_platform(database_urls) as client:
        await _create_destination(client, DESTINATION_ID)


@asynccontextmanager
async def _serve_platform(database_urls: DatabaseUrls) -> AsyncIterator[AsyncClient]:
    """Serves all services while the block runs, and until all events are published."""
    with TemporaryDirectory() as folder:
        address = f"unix:{folder}/seed"
        settings = Settings().replace(
            server__listen=address,
            worker__scan_interval=0.05,
            payout__approval_threshold={"EUR": _APPROVAL_THRESHOLD},
            payout__destination_cooldown=0.0,
            retry={
                ("", retry_reason): RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 1)
                for retry_reason in (RetryReason.REJECTED, RetryReason.NOT_SENT)
            },
        )
        server = await serve.start(service_names(), settings, database_urls.all(), None)
        client = AsyncClient(address)
        try:
            yield client
            await _wait_until(
                "all events are published", partial(_are_events_published, database_urls)
            )
        finally:
            await client.close()
            await server.stop(5.0)


async def _create_payment(client: AsyncClient, kind: str) -> None:
    id_ = template_id(kind)
    await client.payment.CreatePayment(
        payment_request(id_, f"{id_}-o", _BUYER, SELLER, PAYMENT_TOKENS[kind])
    )
    await _wait_until(f"payment {id_} is {kind}", partial(_is_payment_of_kind, client, kind))


async def _create_large_payment(client: AsyncClient) -> None:
    await client.payment.CreatePayment(
        payment_service_pb2.CreatePaymentRequest(
            checkout_id=LARGE_PAYMENT_ID,
            credit_card_info=PAYMENT_TOKENS["PAID"],
            payment_orders=[
                new_order(
                    f"{LARGE_PAYMENT_ID}-{number}", _BUYER, LARGE_PAYMENT_SELLER, "10.00", "EUR"
                )
                for number in range(MAX_ORDERS)
            ],
        )
    )
    await _wait_until(
        f"payment {LARGE_PAYMENT_ID} is PAID", partial(_is_large_payment_paid, client)
    )


async def _is_large_payment_paid(client: AsyncClient) -> bool:
    response = await client.payment.GetPayment(
        payment_service_pb2.GetPaymentRequest(checkout_id=LARGE_PAYMENT_ID)
    )
    return bool(response.payment.is_payment_done)


async def _is_payment_of_kind(client: AsyncClient, kind: str) -> bool:
    if kind == "DEAD":
        dead_letters = await client.payment.ListDeadLetters(operator_pb2.ListDeadLettersRequest())
        return bool(dead_letters.dead_letters)
    if kind == "OPEN":
        order = await client.payment.GetPaymentOrder(
            payment_service_pb2.GetPaymentOrderRequest(payment_order_id=f"{template_id(kind)}-o")
        )
        return bool(
            order.payment_order.payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_PENDING
        )
    response = await client.payment.GetPayment(
        payment_service_pb2.GetPaymentRequest(checkout_id=template_id(kind))
    )
    return response.payment.payment_state == payment_pb2.PaymentState.Value(f"PAYMENT_STATE_{kind}")


async def _create_destination(client: AsyncClient, destination_id: str) -> None:
    await client.payout.CreatePayoutDestination(
        payout_service_pb2.CreatePayoutDestinationRequest(
            payout_destination_id=destination_id,
            seller_account=SELLER,
            currency="EUR",
            bank_account_token=_BANK_ACCOUNT_TOKENS[destination_id],
        )
    )
    await _wait_until(
        f"destination {destination_id} is VERIFIED",
        partial(_is_destination_verified, client, destination_id),
    )


async def _is_destination_verified(client: AsyncClient, destination_id: str) -> bool:
    response = await client.payout.GetPayoutDestination(
        payout_service_pb2.GetPayoutDestinationRequest(payout_destination_id=destination_id)
    )
    return bool(response.payout_destination.state == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED)


async def _set_schedules(client: AsyncClient) -> None:
    """Sets the default schedule and one of the seller, whose cut-off is ten days away."""
    await client.payout.SetPayoutSchedule(
        payout_service_pb2.SetPayoutScheduleRequest(
            currency="EUR", interval=payout_pb2.PAYOUT_INTERVAL_MANUAL
        )
    )
    await client.payout.SetPayoutSchedule(
        payout_service_pb2.SetPayoutScheduleRequest(
            seller_account=SELLER,
            currency="EUR",
            interval=payout_pb2.PAYOUT_INTERVAL_MONTHLY,
            day_of_month=(datetime.now(UTC) + timedelta(days=10)).day,
            cut_off="12:00",
            time_zone="UTC",
        )
    )


async def _create_payout(client: AsyncClient, state: str) -> None:
    """Creates the payout that reaches the state; the one that is PAID as the only payout of a
    batch.
    """
    payout_id = template_id(state)
    fields = {
        "payout_id": payout_id,
        "seller_account": SELLER,
        "amount": f"{PAYOUT_AMOUNTS[state] / 100:.2f}",
        "currency": "EUR",
        "payout_destination_id": (
            _REJECTED_DESTINATION_ID if state == "FAILED" else DESTINATION_ID
        ),
    }
    if state == "PAID":
        await _create_batch(client, payout_pb2.NewPayout(**fields))
    else:
        await client.payout.CreatePayout(payout_service_pb2.CreatePayoutRequest(**fields))
    await _wait_until(
        f"payout {payout_id} is {state}", partial(_is_payout_in_state, client, payout_id, state)
    )


async def _is_payout_in_state(client: AsyncClient, payout_id: str, state: str) -> bool:
    response = await client.payout.GetPayout(
        payout_service_pb2.GetPayoutRequest(payout_id=payout_id)
    )
    payout = response.payout
    is_booked = state == "AWAITING_APPROVAL" or payout.wallet_updated
    return bool(
        payout.payout_state == payout_pb2.PayoutState.Value(f"PAYOUT_STATE_{state}") and is_booked
    )


async def _create_batch(client: AsyncClient, payout: payout_pb2.NewPayout) -> None:
    await client.payout.CreatePayoutBatch(
        payout_service_pb2.CreatePayoutBatchRequest(
            payout_batch_id=BATCH_ID, list=payout_service_pb2.PayoutList(payouts=[payout])
        )
    )
    await _wait_until(f"batch {BATCH_ID} is DONE", partial(_is_batch_done, client))


async def _is_batch_done(client: AsyncClient) -> bool:
    response = await client.payout.GetPayoutBatch(
        payout_service_pb2.GetPayoutBatchRequest(payout_batch_id=BATCH_ID)
    )
    return bool(response.payout_batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE)


async def _reconcile_statement(client: AsyncClient) -> None:
    """Reconciles a file with two lines that the ledger does not have, and accepts one of them."""
    lines = [
        reconciliation_pb2.StatementLine(
            line_number=number,
            line_type=reconciliation_pb2.LINE_TYPE_CHARGE,
            code="charge",
            amount=f"{ORDER_AMOUNT / 100:.2f}",
            currency="EUR",
            charge_reference=f"t-{number}",
        )
        for number in range(2, 2 + len(BREAKS))
    ]
    start = reconciliation_pb2.StatementStart(line_number=1, currency="EUR")
    end = reconciliation_pb2.StatementEnd(
        line_number=len(lines) + 2,
        line_count=len(lines),
        total=f"{len(lines) * ORDER_AMOUNT / 100:.2f}",
    )
    await client.reconcile_statement_file(
        reconciliation_service_pb2.CreateStatementFileRequest(
            statement_file_id=STATEMENT_FILE_ID,
            file_name=f"{STATEMENT_FILE_ID}.csv",
            content_sha256="0" * 64,
            format="seed",
            account=CLEARING_ACCOUNT,
        ),
        [
            reconciliation_service_pb2.StatementItem(start=start),
            *(reconciliation_service_pb2.StatementItem(line=line) for line in lines),
            reconciliation_service_pb2.StatementItem(end=end),
        ],
    )
    await client.reconciliation.ResolveBreak(
        reconciliation_service_pb2.ResolveBreakRequest(
            break_id=BREAKS["RESOLVED"],
            resolution=reconciliation_pb2.RESOLUTION_ACCEPT,
            reason="a template",
        )
    )


async def _are_events_published(database_urls: DatabaseUrls) -> bool:
    """Whether the stream has all events of the templates, so that they can be cloned."""
    async with await psycopg.AsyncConnection.connect(database_urls.admin) as connection:
        cursor = await connection.execute("""
            select not exists (select from payment.outbox)
                and not exists (select from payout.outbox)
                and not exists (select from wallet.outbox)
                and not exists (select from ledger.outbox)
                and not exists (select from reconciliation.outbox)
                and (select sequence from ledger.relayed) = (select sequence from ledger.head)
        """)
        return bool((await cursor.fetchone() or (False,))[0])


async def _wait_until(description: str, condition: Callable[[], Any]) -> None:
    for _ in range(_MAX_POLLS):
        if await condition():
            return
        await asyncio.sleep(_POLL_SECONDS)
    raise StartupError(f"Gave up after {_MAX_POLLS} polls while waiting until {description}.")
