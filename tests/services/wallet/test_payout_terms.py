"""Terms and destinations: what an owner decides, and what the platform decides."""

from __future__ import annotations

from contextlib import ExitStack

import psycopg

from tallystick import Client
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.callers import token_of
from tests.support.errors import expect_error_reason
from tests.support.marketplace import (
    SETTINGS,
    create_paid_order,
    preview_payout,
    set_schedule,
)
from tests.support.payouts import create_destination, create_payout, create_sale
from tests.support.platform import serve_platform


def test_owners_set_cut_offs_and_operators_set_terms(
    checkout_client: Client, payout_client: Client, operator_client: Client
) -> None:
    """An owner sets when its seller is paid. Fee, minimum and reserve are rejected from it; the
    operators' values apply, also when they change later.
    """
    seller = create_sale(checkout_client, "50.00")
    for field in ("fee", "minimum_amount", "reserve"):
        assert (
            expect_error_reason(
                lambda field=field: set_schedule(payout_client, seller, **{field: "0.00"})
            )
            == "PERMISSION_DENIED"
        )
    set_schedule(operator_client, "", fee="0.30")
    own_schedule = set_schedule(payout_client, seller)
    assert (own_schedule.fee, own_schedule.own_terms, own_schedule.caller) == (
        "0.30",
        False,
        "payouts",
    )
    set_schedule(operator_client, "", fee="0.50")
    assert preview_payout(payout_client, seller).fee == "0.50"
    assert set_schedule(operator_client, seller, fee="0.10", reserve="5.00").own_terms
    kept_schedule = set_schedule(payout_client, seller)
    assert (kept_schedule.fee, kept_schedule.reserve) == ("0.10", "5.00")
    set_schedule(operator_client, "")


def test_the_previous_destination_is_used_during_the_cooldown(
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
        checkout, payouts_client = (
            stack.enter_context(platform.client(token_of(name))) for name in ("checkout", "payouts")
        )
        seller = create_sale(checkout, "10.00")
        first = create_destination(payouts_client, seller)
        assert (
            expect_error_reason(lambda: create_payout(payouts_client, seller, "1.00"))
            == "DESTINATION_UNUSABLE"
        )
        assert [
            shortfall.blocker for shortfall in preview_payout(payouts_client, seller).shortfalls
        ] == [payout_pb2.PAYOUT_BLOCKER_DESTINATION_COOLDOWN]
        _advance_clock(scratch_database, hours=2)
        assert create_payout(payouts_client, seller, "1.00").payout_destination_id == first
        new = create_destination(payouts_client, seller)
        assert preview_payout(payouts_client, seller).payout_destination_id == first
        assert (
            expect_error_reason(
                lambda: create_payout(payouts_client, seller, "1.00", payout_destination_id=new)
            )
            == "DESTINATION_UNUSABLE"
        )
        assert create_payout(payouts_client, seller, "1.00").payout_destination_id == first
        _advance_clock(scratch_database, hours=4)
        assert create_payout(payouts_client, seller, "1.00").payout_destination_id == new


def _advance_clock(databases: DatabaseUrls, *, hours: int) -> None:
    """Sets the clock of PayoutService's database ahead."""
    with psycopg.connect(databases.admin, autocommit=True) as connection:
        connection.execute(
            "create or replace function payout.clock() returns timestamptz language sql volatile "
            f"as 'select clock_timestamp() + make_interval(hours => {hours})'"
        )


def test_a_new_destination_for_a_large_amount_requires_approval(
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
            == "operator"
        )
    assert create_payout(payout_client, seller, "1.00").payout_destination_id == new
    unneeded_approval = pb.ApprovePayoutDestinationRequest(payout_destination_id=first, reason="x")
    assert (
        expect_error_reason(
            lambda: operator_client.payout.ApprovePayoutDestination(unneeded_approval)
        )
        == "INVALID_STATE"
    )
