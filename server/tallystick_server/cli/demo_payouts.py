"""The steps of the demo that pay sellers. They need the look-alike: it has connected accounts."""

from __future__ import annotations

from tallystick import AsyncClient
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick_server.cli.demo_output import (
    SELLERS,
    print_step,
    require,
    show_payout,
    show_wallets,
    wait_until,
)
from tallystick_server.cli.demo_provider import RunningLookAlike
from tallystick_server.cli.output import print_line

_ACCOUNTS = {"seller-books": "acct_slow:2:books", "seller-music": "acct_returned:2:music"}
"""The connected accounts. The id tells the look-alike how the bank behaves, within two seconds."""
_TOP_UP = "5000"
"""In cents."""


async def pay_out(client: AsyncClient, checkout: str, look_alike: RunningLookAlike) -> None:
    """Steps 9 and 10: a payout run pays both sellers. The bank of one seller returns the money."""
    print_step("9  A payout run pays both sellers, here requested before the schedule's cut-off")
    await look_alike.post("/v1/topups", amount=_TOP_UP, currency="eur")
    print_line("     the platform adds 50.00 EUR to its balance at the provider, because the")
    print_line("     provider has kept its own fees of the charges")
    for seller, token in _ACCOUNTS.items():
        await _create_destination(client, f"{checkout}-{seller}", seller, token)
    print_line("     the names tell the look-alike: this bank is slow, that one returns money")
    schedule = await client.payout.SetPayoutSchedule(
        payout_service_pb2.SetPayoutScheduleRequest(
            currency="EUR",
            interval=payout_pb2.PAYOUT_INTERVAL_DAILY,
            cut_off="16:00",
            time_zone="Europe/Berlin",
            fee="0.25",
            minimum_amount="1.00",
        )
    )
    print_line(
        f"     the payout schedule: daily at {schedule.payout_schedule.cut_off} in "
        f"{schedule.payout_schedule.time_zone}, fee {schedule.payout_schedule.fee} EUR"
    )
    create_request = payout_service_pb2.CreatePayoutBatchRequest(
        payout_batch_id=f"{checkout}-run", run=payout_service_pb2.NewPayoutRun(currency="EUR")
    )
    await client.payout.CreatePayoutBatch(create_request)
    await wait_until(lambda: _is_batch_done(client, f"{checkout}-run"), "the run should be done")
    request = payout_service_pb2.GetPayoutBatchRequest(
        payout_batch_id=f"{checkout}-run", page_size=200
    )
    items = [item async for item in client.pages(client.payout.GetPayoutBatch, request, "items")]
    payouts = {
        item.seller_account: item.payout.payout_id
        for item in items
        if item.WhichOneof("result") == "payout"
    }
    require(
        set(SELLERS) <= payouts.keys(),
        f"both sellers should have a payout, but only {sorted(payouts)} have one",
    )
    books, music = (payouts[seller] for seller in SELLERS)
    await show_payout(client, books)
    books_state = (await client.get_payout(books)).payout_state
    require(
        books_state == payout_pb2.PAYOUT_STATE_PAID,
        f"the payout to {SELLERS[0]} should be PAID, but is "
        f"{payout_pb2.PayoutState.Name(books_state)}",
    )

    print_step(f"10  The bank of {SELLERS[1]} returns the money, and the wallet gets it back")
    print_line("     the platform keeps its fee")
    await wait_until(
        lambda: _is_returned(client, music), f"the payout to {SELLERS[1]} should be RETURNED"
    )
    await show_payout(client, music)
    await show_wallets(client)


async def _create_destination(client: AsyncClient, id_: str, seller: str, token: str) -> None:
    fields = {
        "payout_destination_id": id_,
        "seller_account": seller,
        "currency": "EUR",
        "bank_account_token": token,
    }
    await client.payout.CreatePayoutDestination(
        payout_service_pb2.CreatePayoutDestinationRequest(**fields)
    )
    get_request = payout_service_pb2.GetPayoutDestinationRequest(payout_destination_id=id_)

    async def is_verified() -> bool:
        state = (await client.payout.GetPayoutDestination(get_request)).payout_destination.state
        return state == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED

    await wait_until(is_verified, f"the bank account of {seller} should be verified")
    print_line(f"     {seller:<14} has the connected account {token}, verified")


async def _is_batch_done(client: AsyncClient, batch_id: str) -> bool:
    response = await client.payout.GetPayoutBatch(
        payout_service_pb2.GetPayoutBatchRequest(payout_batch_id=batch_id, page_size=1)
    )
    return response.payout_batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE


async def _is_returned(client: AsyncClient, payout_id: str) -> bool:
    payout = await client.get_payout(payout_id)
    return payout.payout_state == payout_pb2.PAYOUT_STATE_RETURNED and payout.ledger_updated
