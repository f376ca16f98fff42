"""Payout destinations: each with the decision about it."""

from __future__ import annotations

from tallystick_server.http.console.acts import REASON, Act, ActPage
from tallystick_server.http.console.values import Values
from tallystick_server.http.console.visit import Answer, Page, Visit


async def show_destination(visit: Visit) -> Answer:
    """GET /console/destinations/{payout_destination_id}: all of it, and what can be decided."""
    destination_id = visit.variables["payout_destination_id"]
    response = await visit.calls.call(
        "payout.GetPayoutDestination", payout_destination_id=destination_id
    )
    destination = response["payout_destination"]
    names = _acts_for(destination)
    acts = visit.allowed(act for act in DESTINATION_ACTS.acts if act.name in names)
    values = {"destination": destination, "acts": acts}
    return Page("destination.html", f"Destination {destination_id}", values)


def _acts_for(destination: Values) -> set[str]:
    """The names of the acts that a destination allows."""
    if destination["state"] in ("UNUSABLE", "DISABLED"):
        return set()
    return {"approve", "disable"} if destination["awaits_approval"] else {"disable"}


DESTINATION_ACTS = ActPage(
    "destinations/{payout_destination_id}",
    show_destination,
    (
        Act(
            "approve",
            "Approve the destination",
            "payout.ApprovePayoutDestination",
            (REASON,),
            "The destination is approved.",
            hint="Once its owner has confirmed it to you.",
        ),
        Act(
            "disable",
            "Disable the destination",
            "payout.DisablePayoutDestination",
            (REASON,),
            "The destination is disabled.",
            is_grave=True,
            hint="Cancels its payouts that were not sent. One that awaits approval is rejected so.",
            roles=frozenset({"OPERATOR", "PAYOUTS"}),
        ),
    ),
)
