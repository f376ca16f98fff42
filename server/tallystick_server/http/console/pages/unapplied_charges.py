"""Unapplied charges: money of buyers that belongs to no order."""

from __future__ import annotations

from tallystick_server.http.console.acts import REASON, Act, ActPage
from tallystick_server.http.console.visit import Answer, Page, Visit


async def list_unapplied_charges(visit: Visit) -> Answer:
    """GET /console/unapplied-charges: newest first, each with its decision."""
    acknowledged = visit.query.get("acknowledged") == "true"
    response = await visit.calls.call(
        "payment.ListUnappliedCharges", acknowledged=acknowledged, **visit.list_fields()
    )
    values = {"response": response, "acts": visit.allowed(UNAPPLIED_ACTS.acts)}
    return Page("unapplied_charges.html", "Unapplied charges", values)


UNAPPLIED_ACTS = ActPage(
    "unapplied-charges/{unapplied_charge_id}",
    list_unapplied_charges,
    (
        Act(
            "acknowledge",
            "Acknowledge",
            "payment.AcknowledgeUnappliedCharge",
            (REASON,),
            "The unapplied charge is acknowledged.",
        ),
    ),
    page_path="unapplied-charges",
)
