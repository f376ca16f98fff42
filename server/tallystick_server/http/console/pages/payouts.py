"""Payouts: their list, those that wait for an approval, and each with its story and its acts."""

from __future__ import annotations

from secrets import token_hex

from tallystick.payout.v1 import payout_pb2
from tallystick_server.http.console.acts import REASON, Act, ActPage
from tallystick_server.http.console.calls import Result, gather_results
from tallystick_server.http.console.values import Values
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
    """GET /console/payouts/{payout_id}: all of it, its story, and what can be decided."""
    payout_id = visit.variables["payout_id"]
    response = await visit.calls.call("payout.GetPayout", payout_id=payout_id)
    payout = response["payout"]
    story, destination = await gather_results(
        visit.calls.attempt("payout.ExplainPayout", id=payout_id),
        visit.calls.attempt(
            "payout.GetPayoutDestination", payout_destination_id=payout["payout_destination_id"]
        ),
    )
    names = _acts_for(payout, story)
    values = {
        "response": response,
        "story": story,
        "destination": destination,
        "acts": visit.allowed(act for act in PAYOUT_ACTS.acts if act.name in names),
        "acknowledge_acts": visit.allowed(REPORT_ACTS.acts),
        "hidden": {"request_id": token_hex(16)},  # so that a form that is sent twice retries once
        "unmatched": [item for item in response["transfers"] if _is_unmatched(item)],
    }
    return Page("payout.html", f"Payout {payout_id}", values)


_CANCELLABLE = ("CREATED", AWAITING_APPROVAL, "READY")


def _is_unmatched(transfer: Values) -> bool:
    """Whether a transfer or its return does not match the payout, and nobody has dealt with it."""
    paid = (transfer["amount"], transfer["currency"])
    returned = (transfer["returned_amount"], transfer["returned_currency"])
    is_as_requested = transfer["match"] == "EXACT" and returned in (paid, ("", ""))
    return not is_as_requested and not transfer["acknowledged_by"]


def _acts_for(payout: Values, story: Result) -> set[str]:
    """The names of the acts that the state of a payout allows."""
    state = payout["payout_state"]
    names = {"approve", "reject"} if state == AWAITING_APPROVAL else set()
    if state in _CANCELLABLE:
        names.add("cancel")
    is_complete = payout["wallet_updated"] and payout["ledger_updated"]
    steps = story.values["explanation"]["next_steps"] if story.error is None else ()
    if not (is_complete or state == AWAITING_APPROVAL):
        names |= {"retry" for step in steps if step["actor"] == "OPERATOR"}
    return names


_OWNERS_TOO = frozenset({"OPERATOR", "PAYOUTS"})
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
        Act(
            "retry",
            "Retry the payout",
            "payout.RetryPayout",
            (REASON,),
            "The payout is retried.",
            hint="Only a payout that is a dead letter can be retried.",
            hidden=("request_id",),
            roles=_OWNERS_TOO,
        ),
        Act(
            "cancel",
            "Cancel the payout",
            "payout.CancelPayout",
            (REASON,),
            "The payout is cancelled, and its money is available to the seller again.",
            is_grave=True,
            roles=_OWNERS_TOO,
        ),
    ),
)
_ACKNOWLEDGE = Act(
    "acknowledge",
    "Acknowledge",
    "payout.AcknowledgePayout",
    (REASON,),
    "It is acknowledged.",
    hint="Once you have dealt with it at the provider. The money stays booked as it is.",
)
REPORT_ACTS = ActPage(
    "payouts/{payout_id}/reports/{report_number}",
    show_payout,
    (_ACKNOWLEDGE,),
    page_path="payouts/{payout_id}",
)
TRANSFER_ACTS = ActPage(
    "payouts/{payout_id}/transfers/{provider_reference}",
    show_payout,
    (_ACKNOWLEDGE,),
    page_path="payouts/{payout_id}",
)
"""The acts on what a provider reported of a payout."""
