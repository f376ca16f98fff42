"""Assignments: operators move a seller to another owner."""

from __future__ import annotations

import pytest

from tallystick import Client, TallystickError, new_order
from tallystick.wallet.v1 import wallet_pb2
from tallystick.wallet.v1 import wallet_service_pb2 as wb
from tests.support.errors import error_reason, expect_error_reason
from tests.support.marketplace import create_paid_order, owner_of
from tests.support.payouts import create_destination, create_payout, create_sale
from tests.support.platform import unique_id


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
        "operator",
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
    ] == [("operator", "second-operator")]
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
        TallystickError, match="belongs to market now. Reject it and request a new one"
    ) as error:
        second_operator_client.wallet.ApproveSellerAssignment(approve)
    assert error_reason(error) == "INVALID_STATE"
    assert owner_of(operator_client, seller) == "market"
    second_operator_client.wallet.RejectSellerAssignment(
        wb.RejectSellerAssignmentRequest(
            seller_assignment_id=assignment.seller_assignment_id, reason="claimed"
        )
    )
    second_assignment = request_assignment(operator_client, seller, "rival")
    assert second_assignment.previous_owner == "market"
    second_operator_client.wallet.ApproveSellerAssignment(
        wb.ApproveSellerAssignmentRequest(
            seller_assignment_id=second_assignment.seller_assignment_id, reason="sold"
        )
    )
    assert owner_of(operator_client, seller) == "rival"
