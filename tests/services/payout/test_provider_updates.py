"""`apply_provider_update`: what a provider says about a payout, whatever its source and order."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest

from tallystick import Client
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.operations.kind import KindName
from tallystick_core.provider.outcome import (
    Declined,
    PayoutFailure,
    PayoutOutcome,
    Pending,
    PendingReason,
    ProviderOutcome,
    Returned,
    Submitted,
    Succeeded,
    Unknown,
    Verified,
)
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_server.verify.run import verify
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.payouts import (
    create_destination,
    create_payout,
    create_sale,
    get_payout,
    state_name,
    wait_for_state,
    wait_until_booked,
    wallet_amounts,
)
from tests.support.platform import ServedPlatform, eventually, payout_worker_of, unique_id

DECLINED = Declined(PayoutFailure.PROVIDER_DECLINED, "no")


def apply(
    platform: ServedPlatform, kind: KindName, operation_id: str, *outcomes: ProviderOutcome
) -> None:
    """Applies outcomes one after the other, as webhooks would."""
    for outcome in outcomes:
        platform.run_in_loop(
            payout_worker_of(platform).apply_provider_update, kind, operation_id, outcome
        )


def submitted_payout(
    client: Client, provider: ScriptedPayoutProvider, seller: str
) -> payout_pb2.Payout:
    """A payout that the provider has accepted, and about which its lookups report nothing new."""
    payout_id = unique_id("p")
    provider.script[payout_id].extend([Submitted(f"tr-{payout_id}")] * 1000)
    create_payout(client, seller, payout_id=payout_id)
    return wait_for_state(client, payout_id, "SUBMITTED").payout


def paid(payout_id: str) -> Succeeded:
    return Succeeded(f"tr-{payout_id}", 1000, "EUR")


def returned(payout_id: str) -> Returned:
    return Returned(f"tr-{payout_id}", 1000, "EUR")


def history_length(client: Client, payout_id: str) -> int:
    return len(get_payout(client, payout_id).history)


@pytest.mark.parametrize(
    "names", [["paid"], ["paid", "paid"], ["paid", "returned"], ["returned", "paid"]]
)
def test_updates_in_any_order_have_one_end(
    payout_client: Client,
    payout_platform: ServedPlatform,
    payout_provider: ScriptedPayoutProvider,
    names: Sequence[str],
) -> None:
    """Outcomes that arrive by updates, in any order and repeatedly, while the operation is
    scheduled or leased, are booked once.
    """
    seller = create_sale(payout_client, "10.00")
    create_destination(payout_client, seller)
    payout_id = submitted_payout(payout_client, payout_provider, seller).payout_id
    outcome_of: dict[str, PayoutOutcome] = {
        "paid": paid(payout_id),
        "returned": returned(payout_id),
    }
    apply(
        payout_platform,
        KindName.PAYOUT,
        payout_id,
        *(outcome_of[name] for name in [*names, *names]),
    )
    is_returned = "returned" in names
    wait_until_booked(payout_client, payout_id, "10.00", "10.00" if is_returned else "0.00")
    payout = get_payout(payout_client, payout_id).payout
    assert state_name(payout) == ("RETURNED" if is_returned else "PAID")
    assert wallet_amounts(payout_client, seller) == (
        ("10.00", "0.00", "0.00") if is_returned else ("0.00", "0.00", "0.00")
    )


def test_a_late_success_counts_while_another_process_holds_the_lease(
    payout_client: Client,
    payout_platform: ServedPlatform,
    payout_provider: ScriptedPayoutProvider,
) -> None:
    """A success that comes after the lease has moved on is stored at once, and booked as soon as
    the lease ends.
    """
    seller = create_sale(payout_client, "10.00")
    create_destination(payout_client, seller)
    payout_id = submitted_payout(payout_client, payout_provider, seller).payout_id
    with psycopg.connect(payout_platform.databases.admin, autocommit=True) as admin:
        lease = (
            "update payout.operation set lease_until = now() + interval '%s seconds', lease_token "
            "= lease_token + 1, is_leased = true where operation_id = %s"
        )
        assert eventually(
            lambda: (
                admin.execute(
                    "select from payout.operation where operation_id = %s and not is_leased",
                    (payout_id,),
                ).fetchone()
                is not None
            )
        )
        admin.execute(lease, (100, payout_id))
        apply(payout_platform, KindName.PAYOUT, payout_id, paid(payout_id))
        assert state_name(get_payout(payout_client, payout_id).payout) == "PAID"
        assert not get_payout(payout_client, payout_id).payout.ledger_updated
        admin.execute(lease, (0, payout_id))
    wait_until_booked(payout_client, payout_id, "10.00")


@pytest.mark.parametrize("response", [Unknown("lost"), Submitted("tr-early"), DECLINED])
def test_an_update_before_the_response_counts_once(
    payout_client: Client,
    payout_platform: ServedPlatform,
    payout_provider: ScriptedPayoutProvider,
    monkeypatch: pytest.MonkeyPatch,
    response: PayoutOutcome,
) -> None:
    """The provider's update arrives before its response: the payout is PAID and booked once,
    whatever the response is. A response that contradicts it is reported to an operator.
    """
    seller = create_sale(payout_client, "10.00")
    create_destination(payout_client, seller)
    worker = payout_worker_of(payout_platform)

    async def submit(requests: Sequence[PayoutRequest]) -> Sequence[PayoutOutcome]:
        for request in requests:
            await worker.apply_provider_update(
                KindName.PAYOUT, request.payout_id, paid(request.payout_id)
            )
        return [response] * len(requests)

    monkeypatch.setattr(payout_provider, "submit", submit)
    payout_id = create_payout(payout_client, seller).payout_id
    payout_provider.silent_payout_ids.add(payout_id)
    wait_until_booked(payout_client, payout_id, "10.00")
    assert state_name(get_payout(payout_client, payout_id).payout) == "PAID"
    reports = get_payout(payout_client, payout_id).conflicting_reports
    assert len(reports) == (1 if response is DECLINED else 0)
    assert wallet_amounts(payout_client, seller) == ("0.00", "0.00", "0.00")
    assert verify(payout_platform.databases).passed


@pytest.mark.parametrize("is_paid_first", [True, False])
def test_contradictory_updates_book_the_money_once(
    payout_client: Client,
    payout_platform: ServedPlatform,
    payout_provider: ScriptedPayoutProvider,
    is_paid_first: bool,
) -> None:
    """Whichever of two contradictory final outcomes comes first decides about the state. The money
    is debited once all the same, and an operator sees the contradiction.
    """
    seller = create_sale(payout_client, "10.00")
    create_destination(payout_client, seller)
    payout_id = submitted_payout(payout_client, payout_provider, seller).payout_id
    payout_provider.silent_payout_ids.add(payout_id)
    outcomes: list[PayoutOutcome] = [paid(payout_id), DECLINED]
    if not is_paid_first:
        outcomes.reverse()
    apply(payout_platform, KindName.PAYOUT, payout_id, *outcomes, *outcomes)
    wait_until_booked(payout_client, payout_id, "10.00")
    response = get_payout(payout_client, payout_id)
    assert state_name(response.payout) == ("PAID" if is_paid_first else "FAILED")
    assert wallet_amounts(payout_client, seller) == ("0.00", "0.00", "0.00")
    assert len(response.conflicting_reports) == (1 if is_paid_first else 0)
    (transfer,) = response.transfers
    assert transfer.match == (
        payout_pb2.TRANSFER_MATCH_EXACT
        if is_paid_first
        else payout_pb2.TRANSFER_MATCH_AFTER_FAILURE
    )


def test_an_update_belongs_to_one_kind(
    payout_client: Client,
    payout_platform: ServedPlatform,
    payout_provider: ScriptedPayoutProvider,
) -> None:
    """A payout and a destination may have the same id: an update of one never touches the other."""
    seller, shared_id = create_sale(payout_client, "10.00"), unique_id("x")
    payout_provider.verifications[shared_id].extend([Pending(PendingReason.PROVIDER_REVIEW)] * 1000)
    create_destination(payout_client, seller)
    payout_client.payout.CreatePayoutDestination(
        pb.CreatePayoutDestinationRequest(
            payout_destination_id=shared_id,
            seller_account=seller,
            currency="EUR",
            bank_account_token=shared_id,
        )
    )
    payout_provider.script[shared_id].extend([Submitted("tr-shared")] * 1000)
    create_payout(payout_client, seller, payout_id=shared_id)
    before = history_length(
        payout_client, wait_for_state(payout_client, shared_id, "SUBMITTED").payout.payout_id
    )
    apply(payout_platform, KindName.DESTINATION_VERIFICATION, shared_id, Verified(), Verified())
    get = pb.GetPayoutDestinationRequest(payout_destination_id=shared_id)
    destination = payout_client.payout.GetPayoutDestination(get).payout_destination
    assert destination.state == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED
    assert history_length(payout_client, shared_id) == before
    apply(payout_platform, KindName.PAYOUT, shared_id, DECLINED)
    wait_for_state(payout_client, shared_id, "FAILED")
    destination = payout_client.payout.GetPayoutDestination(get).payout_destination
    assert destination.state == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED


def test_an_update_of_an_unknown_payout_is_not_found(payout_platform: ServedPlatform) -> None:
    """Nothing is stored about a payout or a destination that does not exist."""
    for kind in (KindName.PAYOUT, KindName.DESTINATION_VERIFICATION):
        with pytest.raises(ApiError) as error:
            apply(payout_platform, kind, "nothing", DECLINED)
        assert error.value.reason is ErrorReason.NOT_FOUND
