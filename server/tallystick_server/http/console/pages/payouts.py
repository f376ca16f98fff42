"""Payouts: their list, those that wait for an approval, and each with its story."""

from __future__ import annotations

from tallystick.payout.v1 import payout_pb2
from tallystick_server.http.console.acts import REASON, Act, ActPage
from tallystick_server.http.console.calls import gather_results
from tallystick_server.http.console.visit import Answer, Page, Visit

AWAITING_APPROVAL = "AWAITING_APPROVAL"


async def list_payouts(visit: Visit) -> Answer:
    """GET /console/payouts: newest first, by state or seller."""
    state = visit.query.get("state", "")
    response = await visit.calls.call(
        "payout.ListPayouts",
        payout_state=f"PAYOUT_STATE_{state}" if state else "",
        seller_account=visit.query.get("seller", ""),
        **visit.list_fields(),
    )
    states = [
        value.name.removeprefix("PAYOUT_STATE_")
        for value in payout_pb2.PayoutState.DESCRIPTOR.values
        if value.number
    ]
    return Page("payouts.html", "Payouts", {"response": response, "states": states})


async def list_approvals(visit: Visit) -> Answer:
    """GET /console/approvals: the payouts that wait for a second person."""
    response = await visit.calls.call(
        "payout.ListPayouts",
        payout_state=f"PAYOUT_STATE_{AWAITING_APPROVAL}",
        **visit.list_fields(),
    )
    return Page("approvals.html", "Payouts that await approval", {"response": response})


async def show_payout(visit: Visit) -> Answer:
    """GET /console/payouts/{payout_id}: all of it, its story, and the decision about it."""
    payout_id = visit.variables["payout_id"]
    response = await visit.calls.call("payout.GetPayout", payout_id=payout_id)
    payout = response["payout"]
    story, destination = await gather_results(
        visit.calls.attempt("payout.ExplainPayout", id=payout_id),
        visit.calls.attempt(
            "payout.GetPayoutDestination", payout_destination_id=payout["payout_destination_id"]
        ),
    )
    awaits_approval = payout["payout_state"] == AWAITING_APPROVAL
    values = {
        "response": response,
        "story": story,
        "destination": destination,
        "acts": PAYOUT_ACTS.acts if awaits_approval else (),
    }
    return Page("payout.html", f"Payout {payout_id}", values)


PAYOUT_ACTS = ActPage(
    "payouts/{payout_id}",
    show_payout,
    (
        Act(
            "approve",
            "Approve the payout",
            "payout.ApprovePayout",
            (REASON,),
            "The payout is approved.",
        ),
        Act(
            "reject",
            "Reject the payout",
            "payout.RejectPayout",
            (REASON,),
            "The payout is rejected, and its money is available to the seller again.",
            is_grave=True,
        ),
    ),
)
