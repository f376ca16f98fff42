"""Payout schedules: who sets them, and concurrent updates."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tallystick import Client, TallystickError
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tests.support.errors import expect_error_reason
from tests.support.payouts import create_sale
from tests.support.platform import is_replayed, unique_id


def test_only_operators_set_the_default_schedule(
    shop_client: Client, operator_client: Client
) -> None:
    """A team sets and runs its sellers' schedules; only an operator sets the default, which applies
    to all sellers.
    """
    manual = payout_pb2.PAYOUT_INTERVAL_MANUAL
    assert (
        expect_error_reason(
            shop_client.payout.SetPayoutSchedule,
            pb.SetPayoutScheduleRequest(currency="SEK", interval=manual),
        )
        == "PERMISSION_DENIED"
    )
    run = pb.CreatePayoutBatchRequest(
        payout_batch_id=unique_id("b"), run=pb.NewPayoutRun(currency="SEK")
    )
    assert expect_error_reason(shop_client.payout.CreatePayoutBatch, run) == "PERMISSION_DENIED"
    operator_client.payout.SetPayoutSchedule(
        pb.SetPayoutScheduleRequest(currency="SEK", interval=manual, fee="1.00")
    )
    own_seller = create_sale(shop_client, "1.00")
    current_schedule = shop_client.payout.GetPayoutSchedule(
        pb.GetPayoutScheduleRequest(seller_account=own_seller, currency="SEK")
    ).payout_schedule
    assert (
        current_schedule.seller_account,
        current_schedule.fee,
        current_schedule.version,
        current_schedule.caller,
    ) == ("", "1.00", 1, "operator")


def test_a_schedule_update_with_an_outdated_version_is_rejected(
    operator_client: Client,
) -> None:
    """A schedule update with an outdated version is rejected with the current version, also if two
    are concurrent; a repeat changes nothing.
    """
    manual = payout_pb2.PAYOUT_INTERVAL_MANUAL

    def schedule(fee: str, version: int) -> pb.SetPayoutScheduleRequest:
        return pb.SetPayoutScheduleRequest(
            currency="NOK", interval=manual, fee=fee, expected_version=version
        )

    def outcome(fee: str, version: int) -> str:
        try:
            return str(
                operator_client.payout.SetPayoutSchedule(
                    schedule(fee, version)
                ).payout_schedule.version
            )
        except TallystickError as error:
            return f"{error.reason} {error.metadata.get('version')}"

    assert outcome("1.00", 2) == "VERSION_MISMATCH 0"
    with ThreadPoolExecutor(8) as pool:
        outcomes = sorted(pool.map(lambda number: outcome(f"{number}.00", 0), range(1, 9)))
    assert outcomes == ["1", *["VERSION_MISMATCH 1"] * 7]
    current_schedule = operator_client.payout.GetPayoutSchedule(
        pb.GetPayoutScheduleRequest(currency="NOK")
    ).payout_schedule
    assert is_replayed(operator_client.payout.SetPayoutSchedule, schedule(current_schedule.fee, 0))
    assert outcome("9.00", 1) == "2"
    assert outcome("10.00", 1) == "VERSION_MISMATCH 2"
    assert outcome("10.00", -1) == "FIELD_INVALID None"
