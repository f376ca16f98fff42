"""Access to sellers: owners, their sellers, their destinations, and the decisions of operators."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
import pytest

from tallystick import Client, ClientSettings, TallystickError, new_order
from tallystick.event.v1 import event_pb2, event_service_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick.wallet.v1 import wallet_pb2
from tallystick.wallet.v1 import wallet_service_pb2 as wb
from tallystick_core.access import Caller, Role
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.wallet.handlers import WalletHandlers
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.payouts import (
    create_destination,
    create_payout,
    create_sale,
    error_reason,
    wait_for_state,
)
from tests.support.platform import (
    FAST_RETRY,
    ServedPlatform,
    eventually,
    fresh_database,
    serve_platform,
    unique_id,
)

_ROLES = {
    "checkout": ("market", {Role.TEAM}),
    "money": ("market", {Role.PAYOUTS}),
    "rival": ("", {Role.TEAM, Role.PAYOUTS}),
    "chief": ("", {Role.OPERATOR}),
    "second": ("", {Role.OPERATOR}),
    "platform": ("", {Role.SERVICE}),
    "stranger": ("", {Role.SERVICE}),
}
TOKENS = {name: f"token-of-{name}-aaaaaaaa" for name in _ROLES}
CALLERS = {
    TOKENS[name]: Caller(name, frozenset(roles), owner) for name, (owner, roles) in _ROLES.items()
}
SETTINGS = Settings().replace(
    retry=FAST_RETRY,
    worker__sweep_interval=0.1,
    authentication="tokens",
    callers=CALLERS,
    service_token=TOKENS["platform"],
    payout__destination_cooldown=0,
    payment__seller_owner_max_age=0,
    payout__destination_approval_threshold={"EUR": 100_000},
)


@pytest.fixture(scope="module")
def marketplace(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedPlatform]:
    """All services, with a marketplace that has two callers, a competitor, and two operators."""
    folder: Path = tmp_path_factory.mktemp("market")
    with (
        fresh_database(admin_url, folder) as databases,
        serve_platform(
            databases,
            SETTINGS,
            dependencies=Dependencies(payout_providers={"sandbox": ScriptedPayoutProvider()}),
        ) as served_platform,
    ):
        yield served_platform


def _client(platform: ServedPlatform, name: str) -> Iterator[Client]:
    with platform.client(TOKENS[name]) as client:
        yield client


@pytest.fixture(scope="module")
def checkout_client(marketplace: ServedPlatform) -> Iterator[Client]:
    """Takes the marketplace's payments."""
    yield from _client(marketplace, "checkout")


@pytest.fixture(scope="module")
def payout_client(marketplace: ServedPlatform) -> Iterator[Client]:
    """Pays the marketplace's sellers."""
    yield from _client(marketplace, "money")


@pytest.fixture(scope="module")
def rival_client(marketplace: ServedPlatform) -> Iterator[Client]:
    """Another marketplace."""
    yield from _client(marketplace, "rival")


@pytest.fixture(scope="module")
def operator_client(marketplace: ServedPlatform) -> Iterator[Client]:
    yield from _client(marketplace, "chief")


@pytest.fixture(scope="module")
def second_operator_client(marketplace: ServedPlatform) -> Iterator[Client]:
    yield from _client(marketplace, "second")


def expect_error_reason(call: Callable[[], object]) -> str:
    with pytest.raises(TallystickError) as error:
        call()
    return error_reason(error)


def create_paid_order(client: Client, seller: str, amount: str = "10.00") -> str:
    """Creates a payment of one order and waits for it; returns its id."""
    checkout_id = unique_id("c")
    client.create_payment(
        checkout_id,
        [new_order(f"{checkout_id}-1", "buyer-1", seller, amount, "EUR")],
        credit_card_info="tok_visa",
    )
    return checkout_id


def preview_payout(client: Client, seller: str) -> pb.PreviewPayoutResponse:
    return client.payout.PreviewPayout(
        pb.PreviewPayoutRequest(seller_account=seller, currency="EUR")
    )


def register_destination(
    client: Client, seller: str, destination_id: str = ""
) -> payout_pb2.PayoutDestination:
    destination_id = destination_id or unique_id("d")
    request = pb.CreatePayoutDestinationRequest(
        payout_destination_id=destination_id,
        seller_account=seller,
        currency="EUR",
        bank_account_token=destination_id,
    )
    return client.payout.CreatePayoutDestination(request).payout_destination


def set_schedule(
    client: Client, seller: str, fee: str = "", minimum_amount: str = "", reserve: str = ""
) -> payout_pb2.PayoutSchedule:
    manual = payout_pb2.PAYOUT_INTERVAL_MANUAL
    request = pb.SetPayoutScheduleRequest(
        seller_account=seller,
        currency="EUR",
        interval=manual,
        fee=fee,
        minimum_amount=minimum_amount,
        reserve=reserve,
    )
    return client.payout.SetPayoutSchedule(request).payout_schedule


def owner_of(client: Client, seller: str) -> str:
    return client.wallet.GetSeller(wb.GetSellerRequest(seller_account=seller)).seller.owner


def count_rows(market: ServedPlatform, table: str, seller: str) -> int:
    """How many rows of a table name the seller."""
    with psycopg.connect(
        market.databases.reader(table.partition(".")[0]).replace("+psycopg", "")
    ) as connection:
        (count,) = connection.execute(
            f"select count(*) from {table} where seller_account = %s", [seller]
        ).fetchone() or (0,)
        return int(count)


def test_callers_of_one_owner_share_what_they_make(
    checkout_client: Client, payout_client: Client, operator_client: Client
) -> None:
    """A seller with a sale by one caller of an owner is paid by another, and each sees the other's
    resources; ids belong to the owner.
    """
    seller = create_sale(checkout_client, "20.00")
    assert owner_of(operator_client, seller) == "market"
    to = create_destination(payout_client, seller)
    created_payout = create_payout(payout_client, seller, "5.00", payout_destination_id=to)
    assert (created_payout.owner, created_payout.caller) == ("market", "money")
    wait_for_state(checkout_client, created_payout.payout_id, "PAID")
    assert [
        payout.payout_id
        for payout in checkout_client.pages(
            checkout_client.payout.ListPayouts, pb.ListPayoutsRequest(), "payouts"
        )
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


def test_another_owners_seller_cannot_be_touched(
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


def test_of_two_owners_that_claim_a_seller_at_once_one_wins(
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


def test_a_refused_order_claims_nobody(
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


def test_of_two_claims_that_share_a_seller_one_is_made(
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
        with marketplace.client(TOKENS["platform"]) as service:
            answer = service.wallet.BatchClaimSellers(wb.BatchClaimSellersRequest(claims=claims))
        return {seller.seller_account: seller.owner for seller in answer.sellers}

    with ThreadPoolExecutor(2) as pool:
        with block_claims(marketplace) as claims_wait:
            futures = {owner: pool.submit(claim, owner) for owner in groups}
            assert claims_wait(2)
        winner = owner_of(operator_client, names[1]) if futures["market"].result() else ""
        loser = ({"market", "rival"} - {winner}).pop()
        assert futures[winner].result() == dict.fromkeys(groups[winner], winner)
        assert futures[loser].result() == {names[1]: winner}
    assert [owner_of(operator_client, seller) for seller in sorted(names)] == [
        winner if seller in groups[winner] else "" for seller in sorted(names)
    ]


def test_of_two_payments_that_share_a_new_seller_the_refused_one_claims_nobody(
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
        assert sorted(future.result() for future in reason_futures) == ["", "ALREADY_EXISTS"]
    winner = owner_of(operator_client, names[1])
    assert [owner_of(operator_client, names[0]), owner_of(operator_client, names[2])] == (
        ["market", ""] if winner == "market" else ["", "rival"]
    )


@pytest.mark.parametrize("taken", ["its checkout", "another's checkout", "an order"])
def test_a_payment_that_is_refused_for_an_id_claims_nobody(
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


def request_assignment(
    operator_client: Client, seller: str, owner: str, assignment_id: str = ""
) -> wallet_pb2.SellerAssignment:
    request = wb.RequestSellerAssignmentRequest(
        seller_assignment_id=assignment_id or unique_id("a"),
        seller_account=seller,
        owner=owner,
        reason="sold",
    )
    return operator_client.wallet.RequestSellerAssignment(request).seller_assignment


def test_two_operators_assign_a_seller(
    checkout_client: Client,
    payout_client: Client,
    rival_client: Client,
    operator_client: Client,
    second_operator_client: Client,
) -> None:
    """A seller moves to another owner when a second operator approves it. Then the old owner's new
    orders are rejected, and it keeps its old resources.
    """
    seller = create_sale(checkout_client, "50.00")
    to, paid_checkout_id = (
        create_destination(payout_client, seller),
        create_paid_order(checkout_client, seller),
    )
    pending_assignment = request_assignment(operator_client, seller, "rival")
    assert (
        pending_assignment.state,
        pending_assignment.previous_owner,
        pending_assignment.requested_by,
    ) == (
        wallet_pb2.SELLER_ASSIGNMENT_STATE_REQUESTED,
        "market",
        "chief",
    )
    approve = wb.ApproveSellerAssignmentRequest(
        seller_assignment_id=pending_assignment.seller_assignment_id, reason="seen the contract"
    )
    assert (
        expect_error_reason(lambda: operator_client.wallet.ApproveSellerAssignment(approve))
        == "SECOND_APPROVER_REQUIRED"
    )
    assert (
        expect_error_reason(lambda: request_assignment(operator_client, seller, "third"))
        == "INVALID_STATE"
    )
    assert owner_of(operator_client, seller) == "market"
    for _ in range(2):
        assert (
            second_operator_client.wallet.ApproveSellerAssignment(approve).seller_assignment.state
            == wallet_pb2.SELLER_ASSIGNMENT_STATE_APPROVED
        )
    reject = wb.RejectSellerAssignmentRequest(
        seller_assignment_id=pending_assignment.seller_assignment_id, reason="no"
    )
    with pytest.raises(
        TallystickError, match="The assignment is APPROVED and cannot be rejected."
    ) as error:
        operator_client.wallet.RejectSellerAssignment(reject)
    assert (error_reason(error), error.value.metadata) == (
        "INVALID_STATE",
        {"state": "APPROVED", "verb": "REJECT"},
    )
    response = operator_client.wallet.GetSeller(wb.GetSellerRequest(seller_account=seller))
    assert (response.seller.owner, response.seller.version) == ("rival", 2)
    assert [
        (assignment.requested_by, assignment.decided_by) for assignment in response.assignments
    ] == [("chief", "second")]
    assert (
        expect_error_reason(lambda: create_paid_order(checkout_client, seller)) == "ALREADY_EXISTS"
    )
    assert expect_error_reason(lambda: create_payout(payout_client, seller, "1.00")) == "NOT_FOUND"
    assert (
        expect_error_reason(
            lambda: create_payout(rival_client, seller, "1.00", payout_destination_id=to)
        )
        == "NOT_FOUND"
    )  # the old owner's bank account
    assert checkout_client.get_payment(paid_checkout_id).checkout_id == paid_checkout_id
    assert checkout_client.create_payment(
        paid_checkout_id,
        [new_order(f"{paid_checkout_id}-1", "buyer-1", seller, "10.00", "EUR")],
        credit_card_info="tok_visa",
    ).is_payment_done
    new = create_destination(rival_client, seller)
    assert create_payout(rival_client, seller, "1.00").payout_destination_id == new
    create_paid_order(rival_client, seller)


def test_a_rejected_assignment_changes_nothing(
    checkout_client: Client, operator_client: Client
) -> None:
    """The operator who requested an assignment may withdraw it; the seller keeps its owner, and may
    be requested again.
    """
    seller = create_sale(checkout_client, "1.00")
    assignment = request_assignment(operator_client, seller, "rival")
    assert (
        request_assignment(operator_client, seller, "rival", assignment.seller_assignment_id)
        == assignment
    )
    with pytest.raises(TallystickError) as reused:
        request_assignment(operator_client, seller, "other", assignment.seller_assignment_id)
    assert (error_reason(reused), reused.value.metadata) == (
        "IDEMPOTENCY_KEY_REUSED",
        {"field": "owner"},
    )
    reject = wb.RejectSellerAssignmentRequest(
        seller_assignment_id=assignment.seller_assignment_id, reason="a mistake"
    )
    assert (
        operator_client.wallet.RejectSellerAssignment(reject).seller_assignment.state
        == wallet_pb2.SELLER_ASSIGNMENT_STATE_REJECTED
    )
    assert owner_of(operator_client, seller) == "market"
    request_assignment(operator_client, seller, "rival")


def test_an_assignment_of_a_seller_that_was_claimed_since_is_not_approved(
    checkout_client: Client, operator_client: Client, second_operator_client: Client
) -> None:
    """An assignment is approved only while the seller belongs to the owner that it shows. If the
    seller was claimed since, it keeps that owner, and may be requested again.
    """
    seller = unique_id("s")
    assignment = request_assignment(operator_client, seller, "rival")
    assert assignment.previous_owner == ""
    create_paid_order(checkout_client, seller)
    approve = wb.ApproveSellerAssignmentRequest(
        seller_assignment_id=assignment.seller_assignment_id, reason="it belongs to nobody"
    )
    with pytest.raises(
        TallystickError, match="belongs to market now; reject it, and ask for a new one"
    ) as error:
        second_operator_client.wallet.ApproveSellerAssignment(approve)
    assert error_reason(error) == "INVALID_STATE"
    assert owner_of(operator_client, seller) == "market"
    second_operator_client.wallet.RejectSellerAssignment(
        wb.RejectSellerAssignmentRequest(
            seller_assignment_id=assignment.seller_assignment_id, reason="claimed"
        )
    )
    anew = request_assignment(operator_client, seller, "rival")
    assert anew.previous_owner == "market"
    second_operator_client.wallet.ApproveSellerAssignment(
        wb.ApproveSellerAssignmentRequest(
            seller_assignment_id=anew.seller_assignment_id, reason="sold"
        )
    )
    assert owner_of(operator_client, seller) == "rival"


def test_terms_are_the_platforms_and_cut_offs_the_owners(
    checkout_client: Client, payout_client: Client, operator_client: Client
) -> None:
    """An owner sets when its seller is paid. Fee, minimum and reserve are rejected from it; the
    operators' values apply, also when they change later.
    """
    seller = create_sale(checkout_client, "50.00")
    for field in ("fee", "minimum_amount", "reserve"):
        assert (
            expect_error_reason(
                lambda field=field: set_schedule(payout_client, seller, **{field: "0.00"})  # type: ignore[misc]
            )
            == "PERMISSION_DENIED"
        )
    set_schedule(operator_client, "", fee="0.30")
    own_schedule = set_schedule(payout_client, seller)
    assert (own_schedule.fee, own_schedule.own_terms, own_schedule.caller) == (
        "0.30",
        False,
        "money",
    )
    set_schedule(operator_client, "", fee="0.50")
    assert preview_payout(payout_client, seller).fee == "0.50"
    assert set_schedule(operator_client, seller, fee="0.10", reserve="5.00").own_terms
    kept_schedule = set_schedule(payout_client, seller)
    assert (kept_schedule.fee, kept_schedule.reserve) == ("0.10", "5.00")
    set_schedule(operator_client, "")


def test_a_new_destination_waits_and_the_old_one_stays_in_use(
    scratch_database: DatabaseUrls,
) -> None:
    """Every destination has a cooldown, including the first one; until it ends the previous
    destination is used, also if the new one is invalid.
    """
    settings = SETTINGS.replace(
        payout__destination_cooldown=3600, payout__destination_approval_threshold={}
    )
    with ExitStack() as stack:
        platform = stack.enter_context(
            serve_platform(
                scratch_database,
                settings,
                dependencies=Dependencies(payout_providers={"sandbox": ScriptedPayoutProvider()}),
            )
        )
        checkout, money = (
            stack.enter_context(platform.client(TOKENS[name])) for name in ("checkout", "money")
        )
        seller = create_sale(checkout, "10.00")
        first = create_destination(money, seller)
        assert (
            expect_error_reason(lambda: create_payout(money, seller, "1.00"))
            == "DESTINATION_UNUSABLE"
        )
        assert [shortfall.blocker for shortfall in preview_payout(money, seller).shortfalls] == [
            payout_pb2.PAYOUT_BLOCKER_DESTINATION_COOLDOWN
        ]
        _advance_clock(scratch_database, hours=2)
        assert create_payout(money, seller, "1.00").payout_destination_id == first
        new = create_destination(money, seller)
        assert preview_payout(money, seller).payout_destination_id == first
        assert (
            expect_error_reason(
                lambda: create_payout(money, seller, "1.00", payout_destination_id=new)
            )
            == "DESTINATION_UNUSABLE"
        )
        assert create_payout(money, seller, "1.00").payout_destination_id == first
        _advance_clock(scratch_database, hours=4)
        assert create_payout(money, seller, "1.00").payout_destination_id == new


def _advance_clock(databases: DatabaseUrls, *, hours: int) -> None:
    """Sets the clock of PayoutService's database ahead."""
    with psycopg.connect(databases.admin, autocommit=True) as connection:
        connection.execute(
            "create or replace function payout.clock() returns timestamptz language sql volatile "
            f"as 'select clock_timestamp() + make_interval(hours => {hours})'"
        )


def test_much_money_needs_a_second_person_for_a_new_destination(
    checkout_client: Client, payout_client: Client, operator_client: Client
) -> None:
    """A destination that is created while the available amount is large needs an operator's
    approval before use; the previous one stays in use.
    """
    seller = create_sale(checkout_client, "900.00")
    first = create_destination(payout_client, seller)
    create_paid_order(checkout_client, seller, "200.00")
    new = create_destination(payout_client, seller)
    new_destination = payout_client.payout.GetPayoutDestination(
        pb.GetPayoutDestinationRequest(payout_destination_id=new)
    ).payout_destination
    assert new_destination.awaits_approval
    assert preview_payout(payout_client, seller).payout_destination_id == first
    assert (
        expect_error_reason(
            lambda: create_payout(payout_client, seller, "1.00", payout_destination_id=new)
        )
        == "DESTINATION_UNUSABLE"
    )
    approve = pb.ApprovePayoutDestinationRequest(
        payout_destination_id=new, reason="called the seller"
    )
    assert (
        expect_error_reason(lambda: payout_client.payout.ApprovePayoutDestination(approve))
        == "PERMISSION_DENIED"
    )
    for _ in range(2):
        assert (
            operator_client.payout.ApprovePayoutDestination(approve).payout_destination.approved_by
            == "chief"
        )
    assert create_payout(payout_client, seller, "1.00").payout_destination_id == new
    unasked = pb.ApprovePayoutDestinationRequest(payout_destination_id=first, reason="x")
    assert (
        expect_error_reason(lambda: operator_client.payout.ApprovePayoutDestination(unasked))
        == "INVALID_STATE"
    )


def test_teams_stream_the_events_of_their_own_resources(
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


def test_the_holds_of_payouts_are_for_payout_service_alone(
    marketplace: ServedPlatform, checkout_client: Client
) -> None:
    """Another service cannot place, capture or release a hold of a payout, whatever else its call
    contains; it can do so with its own holds.
    """
    seller, payout_id = create_sale(checkout_client, "10.00"), f"payouts/{unique_id('p')}"

    def hold(hold_id: str) -> wb.NewHold:
        purpose = (
            wallet_pb2.HOLD_PURPOSE_PAYOUT
            if hold_id == payout_id
            else wallet_pb2.HOLD_PURPOSE_DISPUTE
        )
        return wb.NewHold(
            hold_id=hold_id,
            seller_account=seller,
            currency="EUR",
            amount="1.00",
            purpose=purpose,
            caller="t",
        )

    own_hold_id = unique_id("h")
    with (
        marketplace.client(TOKENS["stranger"]) as stranger,
        marketplace.client(TOKENS["platform"]) as payouts,
    ):
        assert (
            not stranger.wallet.BatchPlaceHold(wb.BatchPlaceHoldRequest(holds=[hold(own_hold_id)]))
            .results[0]
            .HasField("error")
        )
        assert (
            not payouts.wallet.BatchPlaceHold(wb.BatchPlaceHoldRequest(holds=[hold(payout_id)]))
            .results[0]
            .HasField("error")
        )
        capture, release = (
            [wb.HoldCapture(hold_id=id_, amount="1.00") for id_ in (own_hold_id, payout_id)],
            [own_hold_id, payout_id],
        )
        for call, field in (
            (
                lambda: stranger.wallet.BatchPlaceHold(
                    wb.BatchPlaceHoldRequest(holds=[hold(unique_id("h")), hold(payout_id)])
                ),
                "holds[1].hold_id",
            ),
            (
                lambda: stranger.wallet.BatchCaptureHold(
                    wb.BatchCaptureHoldRequest(captures=capture)
                ),
                "captures[1].hold_id",
            ),
            (
                lambda: stranger.wallet.BatchReleaseHold(
                    wb.BatchReleaseHoldRequest(hold_ids=release)
                ),
                "hold_ids[1]",
            ),
        ):
            with pytest.raises(TallystickError) as error:
                call()
            assert (
                error_reason(error),
                [field_violation.field for field_violation in error.value.field_violations],
            ) == ("PERMISSION_DENIED", [field])
        for id_ in release:
            assert (
                stranger.wallet.GetHold(wb.GetHoldRequest(hold_id=id_)).hold.state
                == wallet_pb2.HOLD_STATE_OPEN
            )
        assert (
            not stranger.wallet.BatchReleaseHold(wb.BatchReleaseHoldRequest(hold_ids=[own_hold_id]))
            .results[0]
            .HasField("error")
        )
        assert (
            not payouts.wallet.BatchReleaseHold(wb.BatchReleaseHoldRequest(hold_ids=[payout_id]))
            .results[0]
            .HasField("error")
        )


def test_known_sellers_are_sold_for_while_the_wallet_is_away(
    scratch_database: DatabaseUrls,
) -> None:
    """During an outage of WalletService a payment for a cached seller is accepted; one for an
    unknown seller is rejected, and nothing is stored.
    """
    seller = unique_id("s")
    with (
        serve_platform(scratch_database, SETTINGS) as platform,
        platform.client(TOKENS["checkout"]) as checkout,
    ):
        create_paid_order(checkout, seller)
    nowhere = dict.fromkeys(("wallet", "ledger", "event"), "127.0.0.1:1")
    with ExitStack() as stack:
        platform = stack.enter_context(
            serve_platform(
                scratch_database, SETTINGS.replace(service_addresses=nowhere), names=("payment",)
            )
        )
        single_try_settings = {
            name: ClientSettings(token=TOKENS[name], attempts=1) for name in ("checkout", "rival")
        }
        checkout, rival = (
            stack.enter_context(Client(platform.address, settings=settings))
            for settings in single_try_settings.values()
        )
        id_ = unique_id("c")
        accepted = checkout.create_payment(
            id_,
            [new_order(f"{id_}-1", "buyer-1", seller, "1.00", "EUR")],
            credit_card_info="tok_visa",
            wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE,
        )
        assert accepted.checkout_id == id_
        assert (
            expect_error_reason(lambda: create_paid_order(rival, seller))
            == "DEPENDENCY_UNAVAILABLE"
        )
        assert (
            expect_error_reason(lambda: create_paid_order(checkout, unique_id("s")))
            == "DEPENDENCY_UNAVAILABLE"
        )


def test_a_known_seller_does_not_wait_for_an_unknown_one_while_the_wallet_hangs(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While WalletService hangs, concurrent payments of known sellers are accepted and one of an
    unknown seller waits. It is rejected after a bounded time, and nothing of it is stored.
    """
    original, hangs, claim_waits = WalletHandlers.BatchClaimSellers, Event(), Event()

    async def claim(self: WalletHandlers, request: Any, call: Any) -> Any:
        while hangs.is_set():
            claim_waits.set()
            await asyncio.sleep(0.01)
        return await original(self, request, call)

    monkeypatch.setattr(WalletHandlers, "BatchClaimSellers", claim)
    sellers = [unique_id("s") for _ in range(4)]
    settings = ClientSettings(token=TOKENS["checkout"], attempts=1)
    with (
        serve_platform(scratch_database, SETTINGS) as platform,
        Client(platform.address, settings=settings) as checkout,
        ThreadPoolExecutor(6) as pool,
    ):

        def accepted(seller: str) -> str:
            id_ = unique_id("c")
            order, wait_for = (
                new_order(f"{id_}-1", "buyer-1", seller, "1.00", "EUR"),
                payment_service_pb2.WAIT_FOR_ACCEPTANCE,
            )
            return checkout.create_payment(
                id_, [order], credit_card_info="tok_visa", wait_for=wait_for
            ).checkout_id

        for seller in sellers:
            accepted(seller)
        hangs.set()
        try:
            unknown = pool.submit(lambda: expect_error_reason(lambda: accepted(unique_id("s"))))
            assert claim_waits.wait(30)
            for claim_future in [pool.submit(accepted, seller) for seller in sellers]:
                assert claim_future.result(30)
            assert not unknown.done()
            assert unknown.result(30) == "DEPENDENCY_UNAVAILABLE"
        finally:
            hangs.clear()


def test_a_wallet_that_rejects_this_service_counts_as_away(scratch_database: DatabaseUrls) -> None:
    """If WalletService rejects PaymentService and PayoutService themselves, orders of known sellers
    are accepted; other calls get a retryable error, not INTERNAL.
    """
    seller = unique_id("s")
    rejected = SETTINGS.replace(service_token="a-token-that-nobody-knows")
    with ExitStack() as stack:
        full_platform = stack.enter_context(serve_platform(scratch_database, SETTINGS))
        checkout = stack.enter_context(full_platform.client(TOKENS["checkout"]))
        create_paid_order(checkout, seller)
        elsewhere = rejected.replace(
            service_addresses=dict.fromkeys(("wallet", "ledger", "event"), full_platform.address)
        )
        platform = stack.enter_context(
            serve_platform(scratch_database, elsewhere, names=("payment", "payout"))
        )
        single_try_settings = {
            name: ClientSettings(token=TOKENS[name], attempts=1) for name in ("checkout", "money")
        }
        checkout, money = (
            stack.enter_context(Client(platform.address, settings=settings))
            for settings in single_try_settings.values()
        )
        id_ = unique_id("c")
        order = new_order(f"{id_}-1", "buyer-1", seller, "1.00", "EUR")
        checkout.create_payment(
            id_,
            [order],
            credit_card_info="tok_visa",
            wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE,
        )
        for call in (
            lambda: create_paid_order(checkout, unique_id("s")),
            lambda: create_destination(money, seller),
            lambda: preview_payout(money, seller),
            lambda: money.create_payout(unique_id("p"), seller, "EUR", "1.00"),
        ):
            with pytest.raises(TallystickError) as error:
                call()
            assert (error_reason(error), error.value.retry_after) == ("DEPENDENCY_UNAVAILABLE", 1.0)
