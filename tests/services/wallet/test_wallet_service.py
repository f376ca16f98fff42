"""WalletService through the SDK."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick import Client, InvalidArgumentError, NotFoundError, TallystickError
from tallystick.wallet.v1 import wallet_pb2
from tallystick.wallet.v1 import wallet_service_pb2 as pb
from tallystick_core.wallet.instructions import Instruction
from tallystick_core.wallet.state import EntryKind
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.operations.periodic import Periodic
from tallystick_server.wallet.apply_instructions import (
    InstructionRequest,
    InstructionResult,
    WalletInstructions,
)
from tests.support.errors import from_status
from tests.support.platform import (
    ServedPlatform,
    backup_database,
    database_of,
    eventually,
    is_replayed,
    serve_platform,
    unique_id,
)


def credit_wallet(
    client: Client, seller: str, amount: str, source_id: str = "", **values: object
) -> pb.WalletResult:
    item = pb.Credit(
        source_id=source_id or f"PAY_IN/{unique_id()}",
        caller="t",
        seller_account=seller,
        amount=amount,
        currency="EUR",
        **values,  # type: ignore[arg-type]
    )
    return client.wallet.BatchCredit(pb.BatchCreditRequest(credits=[item])).results[0]


def place_hold(
    client: Client, seller: str, hold_id: str, amount: str, **values: object
) -> pb.HoldResult:
    fields = {"purpose": wallet_pb2.HOLD_PURPOSE_RESERVE, **values}
    item = pb.NewHold(
        hold_id=hold_id,
        caller="t",
        seller_account=seller,
        amount=amount,
        currency="EUR",
        **fields,  # type: ignore[arg-type]
    )
    return client.wallet.BatchPlaceHold(pb.BatchPlaceHoldRequest(holds=[item])).results[0]


def wallet_amounts(client: Client, seller: str) -> tuple[str, ...]:
    wallet = client.wallet.GetWallet(
        pb.GetWalletRequest(seller_account=seller, currency="EUR")
    ).wallet
    return wallet.pending, wallet.available, wallet.held, wallet.owed


def error_reason(result: pb.WalletResult | pb.HoldResult) -> str:
    return from_status(result.error).reason


def test_a_repeated_credit_is_applied_once(client: Client) -> None:
    """The same source id with the same values credits once; with other values it is rejected."""
    seller, source_id = unique_id("s"), f"PAY_IN/{unique_id()}"
    assert not credit_wallet(client, seller, "5.00", source_id).replayed
    repeated_credit = credit_wallet(client, seller, "5.0", source_id)
    assert repeated_credit.replayed
    assert repeated_credit.wallet.available == "5.00"
    assert (
        error_reason(credit_wallet(client, seller, "6.00", source_id)) == "IDEMPOTENCY_KEY_REUSED"
    )
    assert (
        error_reason(credit_wallet(client, unique_id("s"), "5.00", source_id))
        == "IDEMPOTENCY_KEY_REUSED"
    )
    assert wallet_amounts(client, seller) == ("0.00", "5.00", "0.00", "0.00")


def test_a_reused_key_names_the_differing_field(client: Client) -> None:
    """IDEMPOTENCY_KEY_REUSED: the metadata names the first field in which a credit, a debit, a hold
    or a capture differs from the stored one.
    """
    seller, source_id, hold_id = unique_id("s"), f"PAY_IN/{unique_id()}", unique_id("h")
    credit_wallet(client, seller, "50.00", source_id)
    place_hold(client, seller, hold_id, "6.00")

    def debit(amount: str, **values: object) -> pb.WalletResult:
        item = pb.Debit(
            source_id=source_id,
            caller="t",
            seller_account=seller,
            amount=amount,
            currency="EUR",
            **values,  # type: ignore[arg-type]
        )
        return client.wallet.BatchDebit(pb.BatchDebitRequest(debits=[item])).results[0]

    def capture(amount: str) -> pb.HoldResult:
        return client.wallet.BatchCaptureHold(
            pb.BatchCaptureHoldRequest(captures=[pb.HoldCapture(hold_id=hold_id, amount=amount)])
        ).results[0]

    debit("1.00")
    later = Timestamp(seconds=4_000_000_000)
    reused: list[tuple[pb.WalletResult | pb.HoldResult, str]] = [
        (credit_wallet(client, unique_id("s"), "50.00", source_id), "seller_account"),
        (credit_wallet(client, seller, "6.00", source_id), "amount"),
        (credit_wallet(client, seller, "50.00", source_id, pending=True), "pending"),
        (debit("2.00"), "amount"),
        (debit("1.00", allow_owed=True), "allow_owed"),
        (place_hold(client, seller, hold_id, "5.00"), "amount"),
        (
            place_hold(client, seller, hold_id, "6.00", purpose=wallet_pb2.HOLD_PURPOSE_DISPUTE),
            "purpose",
        ),
        (place_hold(client, seller, hold_id, "6.00", expire_time=later), "expire_time"),
        (
            place_hold(client, seller, hold_id, "6.00", minimum_remaining="1.00"),
            "minimum_remaining",
        ),
    ]
    capture("2.00")
    reused.append((capture("3.00"), "amount"))
    assert [error_reason(result) for result, _ in reused] == ["IDEMPOTENCY_KEY_REUSED"] * len(
        reused
    )
    assert [from_status(result.error).metadata["field"] for result, _ in reused] == [
        field for _, field in reused
    ]


def test_outcome_only_results_contain_no_resource(client: Client) -> None:
    """outcome_only: results mark rejected and repeated items and contain no wallet; a concurrent
    request for the wallet of the same change gets it.
    """
    seller, source_id = unique_id("s"), f"PAY_IN/{unique_id()}"
    values = {"caller": "t", "seller_account": seller, "currency": "EUR"}
    credits_ = [
        pb.Credit(source_id=source_id, amount="5.00", **values),  # type: ignore[arg-type]
        pb.Credit(source_id=f"PAY_IN/{unique_id()}", amount="-1", **values),  # type: ignore[arg-type]
    ]
    with ThreadPoolExecutor(8) as callers:
        futures = [
            callers.submit(
                client.wallet.BatchCredit,
                pb.BatchCreditRequest(credits=credits_, outcome_only=bool(n % 2)),
            )
            for n in range(16)
        ]
        results = [call.result(30).results for call in futures]
    assert [first.wallet.available for first, _ in results] == [
        "5.00" if n % 2 == 0 else "" for n in range(16)
    ]
    assert sorted(first.replayed for first, _ in results) == [False] + [True] * 15
    assert {error_reason(second) for _, second in results} == {"AMOUNT_OUT_OF_RANGE"}
    debit = pb.Debit(source_id=f"REFUND/{unique_id()}", amount="2.00", **values)  # type: ignore[arg-type]
    (result,) = client.wallet.BatchDebit(
        pb.BatchDebitRequest(debits=[debit], outcome_only=True)
    ).results
    assert result == pb.WalletResult()
    assert wallet_amounts(client, seller) == ("0.00", "3.00", "0.00", "0.00")


def test_holds_are_captured_in_part_released_and_end_once(client: Client) -> None:
    """A partial capture releases the remainder; an ended hold is HOLD_ENDED, a capture above the
    hold HOLD_EXCEEDED.
    """
    seller, first, second = unique_id("s"), unique_id("h"), unique_id("h")
    credit_wallet(client, seller, "10.00")
    assert place_hold(client, seller, first, "6.00").hold.state == wallet_pb2.HOLD_STATE_OPEN
    assert place_hold(client, seller, first, "6.00").replayed
    assert error_reason(place_hold(client, seller, first, "5.00")) == "IDEMPOTENCY_KEY_REUSED"
    assert error_reason(place_hold(client, seller, unique_id("h"), "5.00")) == "INSUFFICIENT_FUNDS"
    assert place_hold(client, seller, second, "4.00").hold.amount == "4.00"

    def capture(hold_id: str, amount: str) -> pb.HoldResult:
        return client.wallet.BatchCaptureHold(
            pb.BatchCaptureHoldRequest(captures=[pb.HoldCapture(hold_id=hold_id, amount=amount)])
        ).results[0]

    def release(hold_id: str) -> pb.HoldResult:
        return client.wallet.BatchReleaseHold(
            pb.BatchReleaseHoldRequest(hold_ids=[hold_id])
        ).results[0]

    assert error_reason(capture(first, "6.01")) == "HOLD_EXCEEDED"
    assert capture(first, "2.50").hold.captured_amount == "2.50"
    assert capture(first, "2.50").replayed
    assert error_reason(release(first)) == "HOLD_ENDED"
    assert release(second).hold.state == wallet_pb2.HOLD_STATE_RELEASED
    assert error_reason(capture(second, "1.00")) == "HOLD_ENDED"
    assert wallet_amounts(client, seller) == ("0.00", "7.50", "0.00", "0.00")
    hold_pages = client.pages(
        client.wallet.ListHolds, pb.ListHoldsRequest(seller_account=seller, page_size=1), "holds"
    )
    assert {h.hold_id for h in hold_pages} == {first, second}
    assert (
        client.wallet.GetHold(pb.GetHoldRequest(hold_id=first)).hold.state
        == wallet_pb2.HOLD_STATE_CAPTURED
    )


def test_a_hold_that_was_released_first_is_never_placed(client: Client) -> None:
    """Releasing a hold that does not exist reserves its id permanently: a late placement is
    HOLD_ENDED, a capture is NOT_FOUND, and there is no hold.
    """
    seller, hold_id = unique_id("s"), unique_id("h")
    credit_wallet(client, seller, "5.00")
    request = pb.BatchReleaseHoldRequest(hold_ids=[hold_id, hold_id])
    assert [
        result.WhichOneof("result") for result in client.wallet.BatchReleaseHold(request).results
    ] == [None, None]
    assert error_reason(place_hold(client, seller, hold_id, "5.00")) == "HOLD_ENDED"
    capture = pb.BatchCaptureHoldRequest(captures=[pb.HoldCapture(hold_id=hold_id, amount="1.00")])
    assert error_reason(client.wallet.BatchCaptureHold(capture).results[0]) == "NOT_FOUND"
    assert not list(
        client.pages(client.wallet.ListHolds, pb.ListHoldsRequest(seller_account=seller), "holds")
    )
    assert wallet_amounts(client, seller) == ("0.00", "5.00", "0.00", "0.00")


def test_concurrent_place_and_release_leave_nothing_held(client: Client) -> None:
    """In either order, a released hold holds nothing: it ended as RELEASED, or was never placed."""
    seller = unique_id("s")
    credit_wallet(client, seller, "5.00")
    with ThreadPoolExecutor(2) as pool:
        for _ in range(60):
            hold_id = unique_id("h")
            placed = pool.submit(place_hold, client, seller, hold_id, "5.00")
            release_future = pool.submit(
                client.wallet.BatchReleaseHold, pb.BatchReleaseHoldRequest(hold_ids=[hold_id])
            )
            assert release_future.result(10).results[0].WhichOneof("result") != "error"
            placement = placed.result(10)
            assert placement.WhichOneof("result") == "hold" or error_reason(placement) in {
                "HOLD_ENDED",
                "INTERNAL",
            }
            assert wallet_amounts(client, seller) == ("0.00", "5.00", "0.00", "0.00")


def test_a_hold_leaves_the_required_amount_available(client: Client) -> None:
    """A hold that would leave less than the required available amount is rejected, as is a required
    amount in an invalid form.
    """
    seller, hold_id = unique_id("s"), unique_id("h")
    credit_wallet(client, seller, "10.00")
    assert (
        error_reason(place_hold(client, seller, unique_id("h"), "7.00", minimum_remaining="3.01"))
        == "INSUFFICIENT_FUNDS"
    )
    assert (
        error_reason(place_hold(client, seller, unique_id("h"), "7.00", minimum_remaining="3.001"))
        == "AMOUNT_PRECISION"
    )
    assert (
        place_hold(client, seller, hold_id, "7.00", minimum_remaining="3.00").hold.state
        == wallet_pb2.HOLD_STATE_OPEN
    )
    assert (
        error_reason(place_hold(client, seller, hold_id, "7.00", minimum_remaining="2.00"))
        == "IDEMPOTENCY_KEY_REUSED"
    )
    assert wallet_amounts(client, seller) == ("0.00", "3.00", "7.00", "0.00")


def test_only_holds_of_payouts_have_ids_of_payouts(client: Client) -> None:
    """Ids of the form payouts/{payout_id} are only for the purpose PAYOUT, and that purpose accepts
    no others: FIELD_INVALID names hold_id, and nothing is held.
    """
    seller, hold_id = unique_id("s"), unique_id("p")
    credit_wallet(client, seller, "5.00")
    payout = wallet_pb2.HOLD_PURPOSE_PAYOUT
    error_results = [
        place_hold(client, seller, hold_id, "1.00", purpose=payout),
        place_hold(client, seller, f"payouts/{hold_id}", "1.00"),
        place_hold(client, seller, f"payouts/payouts/{hold_id}", "1.00", purpose=payout),
        place_hold(client, seller, "payouts/", "1.00", purpose=payout),
    ]
    assert [
        (error_reason(result), from_status(result.error).field_violations[0].field)
        for result in error_results
    ] == [
        ("FIELD_INVALID", "holds[0].hold_id"),
        ("FIELD_INVALID", "holds[0].hold_id"),
        ("FIELD_INVALID", "holds[0].hold_id"),
        ("FIELD_REQUIRED", "holds[0].hold_id"),
    ]
    assert wallet_amounts(client, seller) == ("0.00", "5.00", "0.00", "0.00")


def test_a_hold_expires_by_itself(client: Client) -> None:
    """An expired hold returns its money; a payout's hold never expires."""
    seller, hold_id = unique_id("s"), unique_id("h")
    credit_wallet(client, seller, "3.00")
    soon = Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(milliseconds=100))
    assert (
        error_reason(
            place_hold(
                client,
                seller,
                f"payouts/{unique_id('p')}",
                "1.00",
                purpose=wallet_pb2.HOLD_PURPOSE_PAYOUT,
                expire_time=soon,
            )
        )
        == "FIELD_INVALID"
    )
    soon.FromDatetime(datetime.now(UTC) + timedelta(seconds=1))
    hold = place_hold(client, seller, hold_id, "3.00", expire_time=soon).hold
    assert hold.state == wallet_pb2.HOLD_STATE_OPEN
    assert eventually(
        lambda: (
            client.wallet.GetHold(pb.GetHoldRequest(hold_id=hold_id)).hold.state
            != wallet_pb2.HOLD_STATE_OPEN
        )
    )
    assert wallet_amounts(client, seller) == ("0.00", "3.00", "0.00", "0.00")
    kinds = [
        e.kind
        for e in client.wallet.ListWalletEntries(
            pb.ListWalletEntriesRequest(seller_account=seller, currency="EUR")
        ).entries
    ]
    assert kinds[0] == wallet_pb2.WALLET_ENTRY_KIND_HOLD_EXPIRED


def test_a_hold_is_not_captured_after_its_expire_time(scratch_database: DatabaseUrls) -> None:
    """From expire_time on every attempt to end a hold is HOLD_ENDED, by the database's clock, even
    if the expiry job does not run.
    """
    with serve_platform(scratch_database) as platform, platform.client() as client:
        platform.run_in_loop(_stop_periodic, platform)
        credit_wallet(client, "s-1", "5.00")
        yesterday, soon = Timestamp(), Timestamp()
        yesterday.FromDatetime(datetime.now(UTC) - timedelta(days=1))
        hold_result = place_hold(client, "s-1", "h-0", "1.00", expire_time=yesterday)
        assert error_reason(hold_result) == "FIELD_INVALID"
        soon.FromDatetime(datetime.now(UTC) + timedelta(seconds=1))
        assert (
            place_hold(client, "s-1", "h-1", "1.00", expire_time=soon).hold.state
            == wallet_pb2.HOLD_STATE_OPEN
        )
        assert eventually(lambda: datetime.now(UTC) > soon.ToDatetime(UTC))
        capture = pb.BatchCaptureHoldRequest(
            captures=[pb.HoldCapture(hold_id="h-1", amount="1.00")]
        )
        assert error_reason(client.wallet.BatchCaptureHold(capture).results[0]) == "HOLD_ENDED"
        assert (
            error_reason(
                client.wallet.BatchReleaseHold(
                    pb.BatchReleaseHoldRequest(hold_ids=["h-1"])
                ).results[0]
            )
            == "HOLD_ENDED"
        )
        assert place_hold(client, "s-1", "h-1", "1.00", expire_time=soon).replayed
        assert wallet_amounts(client, "s-1") == ("0.00", "4.00", "1.00", "0.00")


async def _stop_periodic(platform: ServedPlatform) -> None:
    """Stops the periodic jobs of WalletService."""
    for task in platform.server.service("wallet").running:
        if isinstance(task, Periodic):
            await task.stop()


def test_an_unconditional_debit_opens_a_missing_wallet(client: Client) -> None:
    """An unconditional debit posts for a seller without a wallet in its currency: the wallet is
    opened with an owed amount. A conditional debit is still NOT_FOUND or without funds.
    """
    seller = unique_id("s")
    item = pb.Debit(
        source_id=f"CHARGEBACK/{unique_id()}",
        caller="t",
        seller_account=seller,
        amount="3.00",
        currency="EUR",
        allow_owed=True,
    )
    dollars = pb.Credit(
        source_id=f"PAY_IN/{unique_id()}",
        caller="t",
        seller_account=seller,
        amount="9.00",
        currency="USD",
    )
    client.wallet.BatchCredit(pb.BatchCreditRequest(credits=[dollars]))
    first, repeated_request = (
        client.wallet.BatchDebit(pb.BatchDebitRequest(debits=[item])).results[0] for _ in range(2)
    )
    assert (first.wallet.owed, first.wallet.balance, repeated_request.replayed) == (
        "3.00",
        "-3.00",
        True,
    )
    debit = pb.Debit(
        source_id=f"REFUND/{unique_id()}",
        caller="t",
        seller_account=unique_id("s"),
        amount="1.00",
        currency="EUR",
    )
    assert (
        error_reason(client.wallet.BatchDebit(pb.BatchDebitRequest(debits=[debit])).results[0])
        == "INSUFFICIENT_FUNDS"
    )


def test_a_wallet_lost_in_a_restore_is_opened_again(
    admin_url: str, scratch_database: DatabaseUrls
) -> None:
    """A process that has cached a wallet can still credit it after the database was restored to a
    time before the wallet existed.
    """
    with serve_platform(scratch_database) as platform, platform.client() as client:
        credit_wallet(client, "zoe", "1.00")
        restore = backup_database(admin_url, scratch_database)
        credit_wallet(client, "anna", "2.00")
        restore()
        assert eventually(lambda: _try_credit(client, "anna", "5.00"))
        assert wallet_amounts(client, "anna") == ("0.00", "5.00", "0.00", "0.00")


def _try_credit(client: Client, seller: str, amount: str) -> bool:
    try:
        return (
            credit_wallet(client, seller, amount, "PAY_IN/after").WhichOneof("result") == "wallet"
        )
    except TallystickError:
        return False


def test_only_conditional_debits_require_funds(client: Client) -> None:
    """A conditional debit without funds is rejected; an unconditional one posts, and the missing
    amount becomes owed.
    """
    seller = unique_id("s")
    credit_wallet(client, seller, "1.00")

    def debit(amount: str, *, allow_owed: bool) -> pb.WalletResult:
        item = pb.Debit(
            source_id=f"CHARGEBACK/{unique_id()}",
            caller="t",
            seller_account=seller,
            amount=amount,
            currency="EUR",
            allow_owed=allow_owed,
        )
        return client.wallet.BatchDebit(pb.BatchDebitRequest(debits=[item])).results[0]

    assert error_reason(debit("1.01", allow_owed=False)) == "INSUFFICIENT_FUNDS"
    assert debit("1.50", allow_owed=True).wallet.owed == "0.50"
    credit_wallet(client, seller, "2.00")
    assert wallet_amounts(client, seller) == ("0.00", "1.50", "0.00", "0.00")


def test_of_fifty_holds_of_the_whole_balance_one_is_placed(client: Client) -> None:
    """W2 under concurrency: of fifty concurrent holds of the whole balance exactly one is
    placed.
    """
    seller = unique_id("s")
    credit_wallet(client, seller, "10.00")
    with ThreadPoolExecutor(50) as pool:
        results = list(
            pool.map(lambda _: place_hold(client, seller, unique_id("h"), "10.00"), range(50))
        )
    assert sum(result.WhichOneof("result") == "hold" for result in results) == 1
    assert wallet_amounts(client, seller) == ("0.00", "0.00", "10.00", "0.00")


def test_a_credit_that_cannot_be_released_delays_no_other(scratch_database: DatabaseUrls) -> None:
    """A pending credit that the job cannot release is logged on every run, and later credits are
    still released.
    """
    with (
        serve_platform(scratch_database, Settings().replace(release_delay=1)) as platform,
        platform.client() as client,
    ):
        with psycopg.connect(scratch_database.admin) as connection:
            connection.execute("set session_replication_role = replica")  # no triggers
            credit_wallet(client, "s-1", "1.00", pending=True)
            connection.execute(
                "insert into wallet.pending_credit values ('PAY_IN/none', 's-1', 'EUR', 1, "
                "'2000-01-01')"
            )
        assert eventually(lambda: wallet_amounts(client, "s-1") == ("0.00", "1.00", "0.00", "0.00"))


def test_a_policy_delays_sales_and_freezes(client: Client) -> None:
    """With a release delay a sale stays pending, other credits do not; a frozen wallet rejects
    holds and still accepts credits.
    """
    seller = unique_id("s")
    request = pb.SetWalletPolicyRequest(
        seller_account=seller, currency="EUR", frozen=True, release_delay=Duration(seconds=60)
    )
    assert [is_replayed(client.wallet.SetWalletPolicy, request) for _ in range(2)] == [False, True]
    wallet = client.wallet.SetWalletPolicy(request).wallet
    assert (wallet.frozen, wallet.release_delay.seconds) == (True, 60)
    credit_wallet(client, seller, "2.00", pending=True)
    credit_wallet(client, seller, "1.00")
    assert wallet_amounts(client, seller) == ("2.00", "1.00", "0.00", "0.00")
    assert error_reason(place_hold(client, seller, unique_id("h"), "1.00")) == "INVALID_STATE"
    with pytest.raises(TallystickError) as error:
        client.wallet.SetWalletPolicy(
            pb.SetWalletPolicyRequest(
                seller_account=seller, currency="EUR", release_delay=Duration(seconds=-1)
            )
        )
    assert error.value.reason == "FIELD_INVALID"


def test_unset_policy_fields_keep_their_values(scratch_database: DatabaseUrls) -> None:
    """Freezing a wallet keeps its release delay, or the default if none was set, and a new delay
    keeps it frozen; an empty policy is rejected.
    """

    def set_(seller: str, **values: Any) -> tuple[bool, int, int]:
        wallet = client.wallet.SetWalletPolicy(
            pb.SetWalletPolicyRequest(seller_account=seller, currency="EUR", **values)
        ).wallet
        return wallet.frozen, wallet.release_delay.seconds, wallet.policy_version

    with (
        serve_platform(scratch_database, Settings().replace(release_delay=600)) as platform,
        platform.client() as client,
    ):
        assert set_("s-1", frozen=True) == (True, 600, 1)
        assert set_("s-1", release_delay=Duration(seconds=3600)) == (True, 3600, 2)
        assert set_("s-1", frozen=False, expected_version=2) == (False, 3600, 3)
        # This already applies.
        assert set_("s-1", frozen=False, expected_version=1) == (False, 3600, 3)
        assert set_("s-1", release_delay=Duration()) == (False, 0, 4)
        assert set_("s-1", frozen=True) == (True, 0, 5)
        with pytest.raises(TallystickError) as error:
            set_("s-1")
        assert (error.value.reason, error.value.field_violations[0].field) == (
            "FIELD_REQUIRED",
            "frozen",
        )


def test_a_policy_update_with_an_outdated_version_is_rejected(client: Client) -> None:
    """A policy update with an outdated version is rejected with the current version, and nothing is
    stored; a repeat changes nothing.
    """
    seller = unique_id("s")

    def policy(frozen: bool, version: int) -> pb.SetWalletPolicyRequest:
        return pb.SetWalletPolicyRequest(
            seller_account=seller, currency="EUR", frozen=frozen, expected_version=version
        )

    def expect_conflict(frozen: bool, version: int) -> TallystickError:
        with pytest.raises(TallystickError) as error:
            client.wallet.SetWalletPolicy(policy(frozen, version))
        return error.value

    missing = expect_conflict(True, 3)
    assert (missing.reason, missing.metadata["version"], type(missing).__name__) == (
        "VERSION_MISMATCH",
        "0",
        "AbortedError",
    )
    with pytest.raises(TallystickError, match="NOT_FOUND"):
        client.wallet.GetWallet(pb.GetWalletRequest(seller_account=seller, currency="EUR"))
    assert client.wallet.SetWalletPolicy(policy(True, 0)).wallet.policy_version == 1
    assert is_replayed(client.wallet.SetWalletPolicy, policy(True, 0))
    assert expect_conflict(False, 0).metadata["version"] == "1"
    assert client.wallet.GetWallet(
        pb.GetWalletRequest(seller_account=seller, currency="EUR")
    ).wallet.frozen
    assert client.wallet.SetWalletPolicy(policy(False, 1)).wallet.policy_version == 2
    assert expect_conflict(True, -1).reason == "FIELD_INVALID"


def release_credits(client: Client, *source_ids: str) -> list[pb.WalletResult]:
    releases = [pb.Release(source_id=source_id, caller="t") for source_id in source_ids]
    return list(client.wallet.BatchRelease(pb.BatchReleaseRequest(releases=releases)).results)


def test_a_sale_is_released_by_its_source_id_once(client: Client) -> None:
    """A release makes exactly its own credit available, once. A credit that was immediately
    available needs none. Another source id is NOT_FOUND, and an invalid one is named.
    """
    seller = unique_id("s")
    delayed = pb.SetWalletPolicyRequest(
        seller_account=seller, currency="EUR", release_delay=Duration(seconds=3600)
    )
    client.wallet.SetWalletPolicy(delayed)
    first, second, at_once = (f"PAY_IN/{unique_id()}" for _ in range(3))
    credit_wallet(client, seller, "2.00", first, pending=True)
    credit_wallet(client, seller, "3.00", second, pending=True)
    credit_wallet(client, seller, "1.00", at_once)
    assert wallet_amounts(client, seller) == ("5.00", "1.00", "0.00", "0.00")
    results = release_credits(client, first, at_once, f"PAY_IN/{unique_id()}", "PAY_IN", first)
    assert [result.replayed for result in results] == [False, True, False, False, True]
    assert [error_reason(result) for result in results[2:4]] == ["NOT_FOUND", "FIELD_INVALID"]
    assert results[0].wallet.available == "3.00"
    assert wallet_amounts(client, seller) == ("3.00", "3.00", "0.00", "0.00")
    assert release_credits(client, first)[0].replayed
    with ThreadPoolExecutor(20) as pool:
        repeated_results = list(pool.map(lambda _: release_credits(client, second)[0], range(20)))
    assert sorted(result.replayed for result in repeated_results) == [False] + [True] * 19
    assert wallet_amounts(client, seller) == ("0.00", "6.00", "0.00", "0.00")


def test_a_release_and_a_debit_with_one_source_id_are_separate(platform: ServedPlatform) -> None:
    """In one batch, a release and a debit with the same source id each change their own wallet, in
    any order.
    """
    source_id, own_seller, other_seller = (
        f"ADJUSTMENT/{unique_id()}",
        unique_id("s"),
        unique_id("s"),
    )
    with platform.client() as client:
        client.wallet.SetWalletPolicy(
            pb.SetWalletPolicyRequest(
                seller_account=own_seller, currency="EUR", release_delay=Duration(seconds=3600)
            )
        )
        credit_wallet(client, own_seller, "5.00", source_id, pending=True)
        credit_wallet(client, other_seller, "3.00")

        async def change() -> None:
            release = InstructionRequest(Instruction(EntryKind.RELEASE, source_id, "t"), "")
            debit = InstructionRequest(
                Instruction(EntryKind.DEBIT, source_id, "t", other_seller, "EUR", 200), ""
            )
            for result in await WalletInstructions(database_of(platform, "wallet"), 0).apply_groups(
                [[release, debit]]
            ):
                assert isinstance(result, list)
                assert [
                    wallet_change.replayed
                    for wallet_change in result
                    if isinstance(wallet_change, InstructionResult)
                ] == [False, False]

        platform.run_in_loop(change)
        assert (wallet_amounts(client, own_seller), wallet_amounts(client, other_seller)) == (
            ("0.00", "5.00", "0.00", "0.00"),
            ("0.00", "1.00", "0.00", "0.00"),
        )


def test_a_sale_is_released_after_its_delay(client: Client) -> None:
    """An unreleased credit becomes available after the release delay that applied when it was
    credited, and first repays the owed amount.
    """
    seller = unique_id("s")
    client.wallet.SetWalletPolicy(
        pb.SetWalletPolicyRequest(
            seller_account=seller, currency="EUR", release_delay=Duration(seconds=1)
        )
    )
    source_id, later = (f"PAY_IN/{unique_id()}" for _ in range(2))
    credit_wallet(client, seller, "2.00", source_id, pending=True)
    client.wallet.SetWalletPolicy(
        pb.SetWalletPolicyRequest(
            seller_account=seller, currency="EUR", release_delay=Duration(seconds=3600)
        )
    )
    credit_wallet(client, seller, "5.00", later, pending=True)
    debit = pb.Debit(
        source_id=f"CHARGEBACK/{unique_id()}",
        caller="t",
        seller_account=seller,
        amount="0.50",
        currency="EUR",
        allow_owed=True,
    )
    client.wallet.BatchDebit(pb.BatchDebitRequest(debits=[debit]))
    assert wallet_amounts(client, seller) == ("7.00", "0.00", "0.00", "0.50")
    assert eventually(lambda: wallet_amounts(client, seller) == ("5.00", "1.50", "0.00", "0.00"))
    assert release_credits(client, source_id)[0].replayed
    assert not release_credits(client, later)[0].replayed
    entries = client.wallet.ListWalletEntries(
        pb.ListWalletEntriesRequest(seller_account=seller, currency="EUR")
    ).entries
    assert [entry.kind for entry in entries[:2]] == [wallet_pb2.WALLET_ENTRY_KIND_RELEASE] * 2


def test_the_entries_of_one_source_are_listed(client: Client) -> None:
    """By the source id of a movement or a hold, in one wallet only; a token of the list is bound to
    it, and another text is rejected.
    """
    seller, hold_id = unique_id("s"), unique_id("h")
    credit_wallet(client, seller, "5.00")
    place_hold(client, seller, hold_id, "2.00")

    def list_entries(source_id: str, wallet: str = seller) -> list[int]:
        request = pb.ListWalletEntriesRequest(
            seller_account=wallet, currency="EUR", source_id=source_id
        )
        return [entry.number for entry in client.wallet.ListWalletEntries(request).entries]

    everything = pb.ListWalletEntriesRequest(seller_account=seller, currency="EUR")
    held, credited = client.wallet.ListWalletEntries(everything).entries
    assert list_entries(credited.source_id) == [credited.number]
    assert list_entries(hold_id) == [held.number]
    assert list_entries(credited.source_id, unique_id("s")) == []
    with pytest.raises(InvalidArgumentError, match="source_id must be"):
        list_entries("PAY IN/1")
    everything.page_size = 1
    token = client.wallet.ListWalletEntries(everything).next_page_token
    with pytest.raises(InvalidArgumentError):
        client.wallet.ListWalletEntries(
            pb.ListWalletEntriesRequest(
                seller_account=seller, currency="EUR", source_id=hold_id, page_token=token
            )
        )


def test_the_entries_of_several_sources_are_listed(client: Client) -> None:
    """In the wallets of all sellers, newest first; an invalid source is named."""
    first, second, hold_id = unique_id("s"), unique_id("s"), unique_id("h")
    for seller in (first, second):
        credit_wallet(client, seller, "5.00")
    place_hold(client, first, hold_id, "2.00")

    def entries_of(seller: str) -> list[wallet_pb2.WalletEntry]:
        request = pb.ListWalletEntriesRequest(seller_account=seller, currency="EUR")
        return list(client.wallet.ListWalletEntries(request).entries)

    (held, credited), (other,) = entries_of(first), entries_of(second)

    def list_entries(*source_ids: str, page_size: int = 0) -> list[wallet_pb2.WalletEntry]:
        request = pb.ListEntriesOfSourcesRequest(source_ids=source_ids, page_size=page_size)
        return list(client.wallet.ListEntriesOfSources(request).entries)

    assert list_entries(credited.source_id, hold_id, other.source_id) == [held, other, credited]
    assert list_entries(credited.source_id, hold_id, page_size=1) == [held]
    assert list_entries("PAY_IN/none") == []
    with pytest.raises(InvalidArgumentError, match=r"source_ids\[1\] must be"):
        list_entries(hold_id, "PAY IN/1")
    with pytest.raises(InvalidArgumentError, match="source_ids must have at least one item"):
        list_entries()


def test_entries_and_wallets_are_listed(client: Client) -> None:
    """Every entry is listed once, newest first, with the balances after it; a wallet that does not
    exist is NOT_FOUND.
    """
    seller = unique_id("s")
    for amount in ("1.00", "2.00", "3.00"):
        credit_wallet(client, seller, amount)
    request = pb.ListWalletEntriesRequest(seller_account=seller, currency="EUR", page_size=2)
    items = list(client.pages(client.wallet.ListWalletEntries, request, "entries"))
    assert [(e.number, e.amount, e.available_after) for e in items] == [
        (3, "3.00", "6.00"),
        (2, "2.00", "3.00"),
        (1, "1.00", "1.00"),
    ]
    assert [
        w.seller_account
        for w in client.wallet.ListWallets(pb.ListWalletsRequest(seller_account=seller)).wallets
    ] == [seller]
    with pytest.raises(NotFoundError):
        client.wallet.GetWallet(pb.GetWalletRequest(seller_account=unique_id("s"), currency="EUR"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"source_id": "x"}, "source_id"),
        ({"source_id": "NOPE/1"}, "source_id"),
        ({"source_id": ""}, "source_id"),
        ({"amount": "0"}, "amount"),
        ({"seller_account": "a b"}, "seller_account"),
        ({"caller": ""}, "caller"),
    ],
)
def test_invalid_items_are_rejected_individually(
    client: Client, changes: dict[str, str], field: str
) -> None:
    """An invalid item has the path of its field; the valid item of the same batch is applied."""
    seller = unique_id("s")
    good = {
        "source_id": f"PAY_IN/{unique_id()}",
        "caller": "t",
        "seller_account": seller,
        "amount": "1.00",
        "currency": "EUR",
    }
    results = client.wallet.BatchCredit(
        pb.BatchCreditRequest(credits=[pb.Credit(**{**good, **changes}), pb.Credit(**good)])  # type: ignore[arg-type]
    ).results
    assert from_status(results[0].error).field_violations[0].field == f"credits[0].{field}"
    assert results[1].wallet.available == "1.00"
