"""Owners of sellers: who claims a seller, and what another owner may not do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest

from tallystick import Client, TallystickError, new_order
from tallystick.event.v1 import event_pb2, event_service_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick.wallet.v1 import wallet_service_pb2 as wb
from tests.support.callers import token_of
from tests.support.errors import error_reason, expect_error_reason
from tests.support.marketplace import (
    create_paid_order,
    owner_of,
    preview_payout,
    register_destination,
    set_schedule,
)
from tests.support.payouts import (
    create_destination,
    create_payout,
    create_sale,
    list_payouts,
    wait_for_state,
)
from tests.support.platform import ServedPlatform, eventually, unique_id


def count_rows(market: ServedPlatform, table: str, seller: str) -> int:
    """How many rows of a table name the seller."""
    with psycopg.connect(market.databases.reader(table.partition(".")[0])) as connection:
        (count,) = connection.execute(
            f"select count(*) from {table} where seller_account = %s", [seller]
        ).fetchone() or (0,)
        return int(count)


def test_callers_of_one_owner_share_resources(
    checkout_client: Client, payout_client: Client, operator_client: Client
) -> None:
    """A seller with a sale by one caller of an owner is paid by another, and each sees the other's
    resources; ids belong to the owner.
    """
    seller = create_sale(checkout_client, "20.00")
    assert owner_of(operator_client, seller) == "market"
    to = create_destination(payout_client, seller)
    created_payout = create_payout(payout_client, seller, "5.00", payout_destination_id=to)
    assert (created_payout.owner, created_payout.caller) == ("market", "payouts")
    wait_for_state(checkout_client, created_payout.payout_id, "PAID")
    assert [
        payout.payout_id
        for payout in list_payouts(checkout_client)
        if payout.seller_account == seller
    ]
    assert preview_payout(checkout_client, seller).available == "15.00"


def test_a_team_that_takes_payments_cannot_pay_out(
    checkout_client: Client, payout_client: Client
) -> None:
    """Moving money out requires the role payouts; taking money in requires the role team."""
    seller = create_sale(checkout_client, "20.00")
    to = create_destination(payout_client, seller)
    created_payout = create_payout(payout_client, seller, "1.00")
    forbidden_calls: list[Callable[[], object]] = [
        lambda: register_destination(checkout_client, seller),
        lambda: create_payout(checkout_client, seller, "1.00"),
        lambda: set_schedule(checkout_client, seller),
        lambda: checkout_client.payout.DisablePayoutDestination(
            pb.DisablePayoutDestinationRequest(payout_destination_id=to, reason="x")
        ),
        lambda: checkout_client.payout.CancelPayout(
            pb.CancelPayoutRequest(payout_id=created_payout.payout_id, reason="x")
        ),
        lambda: checkout_client.payout.RetryPayout(
            pb.RetryPayoutRequest(
                payout_id=created_payout.payout_id, reason="x", request_id=unique_id("r")
            )
        ),
        lambda: checkout_client.payout.CreatePayoutBatch(
            pb.CreatePayoutBatchRequest(
                payout_batch_id=unique_id("b"),
                run=pb.NewPayoutRun(seller_account=seller, currency="EUR"),
            )
        ),
        lambda: create_paid_order(payout_client, seller),
    ]
    assert [expect_error_reason(call) for call in forbidden_calls] == ["PERMISSION_DENIED"] * len(
        forbidden_calls
    )


def test_another_owners_seller_is_not_found(
    marketplace: ServedPlatform,
    checkout_client: Client,
    payout_client: Client,
    rival_client: Client,
) -> None:
    """For another owner's seller reads, payouts, schedules and runs are NOT_FOUND, orders and
    destinations ALREADY_EXISTS, and nothing is stored.
    """
    seller = create_sale(checkout_client, "500.00")
    good = create_destination(payout_client, seller)
    run = pb.CreatePayoutBatchRequest(
        payout_batch_id=unique_id("b"), run=pb.NewPayoutRun(seller_account=seller, currency="EUR")
    )
    before = {
        table: count_rows(marketplace, table, seller)
        for table in ("payout.payout", "payout.payout_destination", "payout.payout_schedule")
    }
    assert expect_error_reason(lambda: preview_payout(rival_client, seller)) == "NOT_FOUND"
    assert expect_error_reason(lambda: set_schedule(rival_client, seller)) == "NOT_FOUND"
    assert (
        expect_error_reason(
            lambda: rival_client.payout.GetPayoutSchedule(
                pb.GetPayoutScheduleRequest(seller_account=seller, currency="EUR")
            )
        )
        == "NOT_FOUND"
    )
    assert (
        expect_error_reason(lambda: register_destination(rival_client, seller)) == "ALREADY_EXISTS"
    )
    assert expect_error_reason(lambda: create_payout(rival_client, seller, "500.00")) == "NOT_FOUND"
    assert expect_error_reason(lambda: rival_client.payout.CreatePayoutBatch(run)) == "NOT_FOUND"
    assert expect_error_reason(lambda: create_paid_order(rival_client, seller)) == "ALREADY_EXISTS"
    for call, field in (
        (register_destination, "seller_account"),
        (create_paid_order, "payment_orders[0].seller_account"),
    ):
        with pytest.raises(
            TallystickError,
            match=re.escape(f"{field} is taken: the seller belongs to another owner, since"),
        ) as error:
            call(rival_client, seller)
        assert "RequestSellerAssignment" in str(error.value)  # how to fix it
    assert {table: count_rows(marketplace, table, seller) for table in before} == before
    created_payout = create_payout(payout_client, seller, "500.00")
    assert created_payout.payout_destination_id == good
    wait_for_state(payout_client, created_payout.payout_id, "PAID")


def test_a_batch_pays_no_other_owners_seller(
    checkout_client: Client, payout_client: Client, rival_client: Client
) -> None:
    """A batch line that names another owner's seller is rejected alone, with NOT_FOUND in the
    report; the other lines are paid.
    """
    foreign_seller, rival_seller = (
        create_sale(checkout_client, "50.00"),
        create_sale(rival_client, "50.00"),
    )
    create_destination(payout_client, foreign_seller)
    create_destination(rival_client, rival_seller)
    lines = [
        payout_pb2.NewPayout(
            payout_id=unique_id("p"), seller_account=seller, amount="1.00", currency="EUR"
        )
        for seller in (foreign_seller, rival_seller)
    ]
    batch = unique_id("b")
    rival_client.payout.CreatePayoutBatch(
        pb.CreatePayoutBatchRequest(payout_batch_id=batch, list=pb.PayoutList(payouts=lines))
    )

    def finished_batch() -> pb.GetPayoutBatchResponse | None:
        response = rival_client.payout.GetPayoutBatch(
            pb.GetPayoutBatchRequest(payout_batch_id=batch)
        )
        return (
            response if response.payout_batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE else None
        )

    report = eventually(finished_batch)
    assert report is not None
    items_by_seller = {line.seller_account: line for line in report.items}
    assert items_by_seller[foreign_seller].HasField("error")
    assert not items_by_seller[rival_seller].HasField("error")
    assert preview_payout(payout_client, foreign_seller).available == "50.00"
    assert (
        expect_error_reason(
            lambda: payout_client.payout.GetPayoutBatch(
                pb.GetPayoutBatchRequest(payout_batch_id=batch)
            )
        )
        == "NOT_FOUND"
    )


def test_of_two_owners_that_claim_a_seller_concurrently_one_succeeds(
    marketplace: ServedPlatform,
    checkout_client: Client,
    rival_client: Client,
    operator_client: Client,
) -> None:
    """Calls of two owners concurrently name a new seller in orders and destinations: it gets one
    owner, and the other owner's calls store nothing.
    """
    for _ in range(3):
        seller = unique_id("s")

        def call(client: Client, seller: str = seller) -> str:
            try:
                create_paid_order(client, seller)
            except TallystickError as error:
                return error.reason
            return ""

        with ThreadPoolExecutor(8) as pool:
            reasons = list(pool.map(call, [checkout_client, rival_client] * 4))
        owner = owner_of(operator_client, seller)
        winner = {"market": 0, "rival": 1}[owner]
        assert [reasons[winner::2], reasons[1 - winner :: 2]] == [[""] * 4, ["ALREADY_EXISTS"] * 4]
        assert count_rows(marketplace, "payment.payment_order", seller) == 4


def test_a_rejected_payment_claims_no_seller(
    checkout_client: Client, rival_client: Client, operator_client: Client
) -> None:
    """A payment that is rejected because of one seller claims none of its other sellers, and the
    error names the field.
    """
    foreign_seller, new, id_ = create_sale(checkout_client, "1.00"), unique_id("s"), unique_id("c")
    orders = [
        new_order(f"{id_}-{n}", "buyer-1", seller, "1.00", "EUR")
        for n, seller in enumerate((new, foreign_seller))
    ]
    with pytest.raises(TallystickError) as error:
        rival_client.create_payment(id_, orders, credit_card_info="tok_visa")
    assert error_reason(error) == "ALREADY_EXISTS"
    assert "payment_orders[1].seller_account" in str(error.value)
    assert not owner_of(operator_client, new)


@contextmanager
def block_claims(platform: ServedPlatform) -> Iterator[Callable[[int], bool]]:
    """Blocks claims of sellers after they have read that the sellers have no owner; reports whether
    the given number of transactions wait.
    """
    waiting_query = (
        "select count(*) from pg_locks where relation = 'wallet.seller'::regclass and not granted"
    )
    with (
        psycopg.connect(platform.databases.admin) as lock_connection,
        psycopg.connect(platform.databases.admin, autocommit=True) as query_connection,
    ):
        lock_connection.execute("lock table wallet.seller in share mode")
        yield lambda count: eventually(
            lambda: query_connection.execute(waiting_query).fetchone() == (count,)
        )


def test_of_two_claims_that_share_a_seller_one_succeeds(
    marketplace: ServedPlatform, operator_client: Client
) -> None:
    """Two processes concurrently claim groups of sellers with one seller in common: the second
    group gets none of its sellers.
    """
    names = [unique_id("s") for _ in range(3)]
    groups = {"market": names[:2], "rival": names[1:]}

    def claim(owner: str) -> dict[str, str]:
        claims = [
            wb.SellerClaim(seller_account=seller, owner=owner, group=1) for seller in groups[owner]
        ]
        with marketplace.client(token_of("platform")) as service:
            answer = service.wallet.BatchClaimSellers(wb.BatchClaimSellersRequest(claims=claims))
        return {seller.seller_account: seller.owner for seller in answer.sellers}

    with ThreadPoolExecutor(2) as pool:
        with block_claims(marketplace) as claims_wait:
            futures = {owner: pool.submit(claim, owner) for owner in groups}
            assert claims_wait(2)
        winner = owner_of(operator_client, names[1]) if futures["market"].result(60) else ""
        loser = ({"market", "rival"} - {winner}).pop()
        assert futures[winner].result(60) == dict.fromkeys(groups[winner], winner)
        assert futures[loser].result(60) == {names[1]: winner}
    assert [owner_of(operator_client, seller) for seller in sorted(names)] == [
        winner if seller in groups[winner] else "" for seller in sorted(names)
    ]


def test_of_two_payments_that_share_a_new_seller_the_rejected_one_claims_none(
    marketplace: ServedPlatform,
    checkout_client: Client,
    rival_client: Client,
    operator_client: Client,
) -> None:
    """Concurrent payments of two owners name the same new seller: one is stored, and the other
    payment's new sellers have no owner.
    """
    names = [unique_id("s") for _ in range(3)]

    def call(client: Client, sellers: list[str]) -> str:
        id_ = unique_id("c")
        try:
            client.create_payment(
                id_,
                [new_order(f"{id_}-{s}", "buyer-1", s, "1.00", "EUR") for s in sellers],
                credit_card_info="tok_visa",
            )
        except TallystickError as error:
            return error.reason
        return ""

    with ThreadPoolExecutor(2) as pool:
        with block_claims(marketplace) as claims_wait:
            reason_futures = []
            for client, sellers in ((checkout_client, names[:2]), (rival_client, names[1:])):
                reason_futures.append(pool.submit(call, client, sellers))
                assert claims_wait(len(reason_futures))
        assert sorted(future.result(60) for future in reason_futures) == ["", "ALREADY_EXISTS"]
    winner = owner_of(operator_client, names[1])
    assert [owner_of(operator_client, names[0]), owner_of(operator_client, names[2])] == (
        ["market", ""] if winner == "market" else ["", "rival"]
    )


@pytest.mark.parametrize("taken", ["its checkout", "another's checkout", "an order"])
def test_a_payment_with_a_reused_id_claims_no_seller(
    checkout_client: Client, rival_client: Client, operator_client: Client, taken: str
) -> None:
    """A payment whose checkout or order already exists with other values or another owner claims
    none of the new sellers it names.
    """
    known_payment_id, new, fresh = (
        create_paid_order(checkout_client, unique_id("s")),
        unique_id("s"),
        unique_id("c"),
    )
    client, id_, order = {
        "its checkout": (checkout_client, known_payment_id, f"{fresh}-1"),
        "another's checkout": (rival_client, known_payment_id, f"{fresh}-1"),
        "an order": (rival_client, fresh, f"{known_payment_id}-1"),
    }[taken]
    orders = [new_order(order, "buyer-1", new, "1.00", "EUR")]
    reason = "IDEMPOTENCY_KEY_REUSED" if taken == "its checkout" else "ALREADY_EXISTS"
    assert (
        expect_error_reason(lambda: client.create_payment(id_, orders, credit_card_info="tok_visa"))
        == reason
    )
    assert not owner_of(operator_client, new)


def test_teams_stream_only_events_of_their_resources(
    checkout_client: Client, payout_client: Client, rival_client: Client, operator_client: Client
) -> None:
    """A caller streams only the events of its owner's resources, with the same cursors as all
    callers; wallets and alerts are excluded.
    """
    seller, foreign_seller = (
        create_sale(checkout_client, "20.00"),
        create_sale(rival_client, "20.00"),
    )
    created_payout = create_payout(
        payout_client,
        seller,
        "1.00",
        payout_destination_id=create_destination(payout_client, seller),
    )
    wait_for_state(payout_client, created_payout.payout_id, "PAID")

    def stream(client: Client) -> list[event_pb2.Event]:
        return [
            response.event
            for response in client.event.StreamEvents(event_service_pb2.StreamEventsRequest())
        ]

    def is_published() -> bool:
        return {f"payouts/{created_payout.payout_id}", f"sellers/{seller}"} <= {
            event.aggregate_id for event in stream(checkout_client)
        }

    assert eventually(is_published)
    own_events = stream(payout_client)
    assert {event.owner for event in own_events} == {"market"}
    assert f"sellers/{foreign_seller}" not in {event.aggregate_id for event in own_events}
    everything = {event.cursor: event.aggregate_id for event in stream(operator_client)}
    assert all(everything[event.cursor] == event.aggregate_id for event in own_events)
    (rest,) = [
        [
            event
            for event in stream(rival_client)
            if event.aggregate_id == f"payouts/{created_payout.payout_id}"
        ]
    ]
    assert not rest
