"""Holds of payouts belong to PayoutService."""

from __future__ import annotations

import pytest

from tallystick import Client, TallystickError
from tallystick.wallet.v1 import wallet_pb2
from tallystick.wallet.v1 import wallet_service_pb2 as wb
from tests.support.callers import token_of
from tests.support.errors import error_reason
from tests.support.payouts import create_sale
from tests.support.platform import ServedPlatform, unique_id


def test_only_payout_service_changes_holds_of_payouts(
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
        marketplace.client(token_of("other-service")) as stranger,
        marketplace.client(token_of("platform")) as payouts,
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
