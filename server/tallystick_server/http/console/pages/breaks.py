"""Breaks: differences that reconciliation found, and the decisions about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_server.http.console.acts import REASON, Act, ActPage, Input
from tallystick_server.http.console.visit import Answer, Page, Visit


async def list_breaks(visit: Visit) -> Answer:
    """GET /console/breaks: newest first, by state, class, kind, account and assignee."""
    return await show_list(visit)


async def show_list(visit: Visit, selected: Sequence[str] = ()) -> Page:
    """The list that the query chooses. `selected`: the breaks whose boxes are checked."""
    query = visit.query
    state = query.get("state", "OPEN")
    response = await visit.calls.call(
        "reconciliation.ListBreaks",
        state=f"BREAK_STATE_{state}" if state != "ALL" else "",
        break_class=_enum_value("BREAK_CLASS", query.get("class", "")),
        kind=_enum_value("BREAK_KIND", query.get("kind", "")),
        account=query.get("account", ""),
        assignee=query.get("assignee", ""),
        statement_file_id=query.get("file", ""),
        **visit.list_fields(),
    )
    values = {
        "response": response,
        "state": state,
        "kinds": _KINDS,
        "acts": visit.allowed((MATCH,)) if state == "OPEN" else (),
        "selected": selected,
    }
    return Page("breaks.html", "Breaks", values)


_KINDS = [
    value.name.removeprefix("BREAK_KIND_")
    for value in reconciliation_pb2.BreakKind.DESCRIPTOR.values
    if value.number
]


def _enum_value(prefix: str, name: str) -> str:
    return f"{prefix}_{name}" if name else ""


async def show_break(visit: Visit) -> Answer:
    """GET /console/breaks/{break_id}: its lines, entries and history, and what can be decided."""
    break_id = visit.variables["break_id"]
    response = await visit.calls.call("reconciliation.GetBreak", break_id=break_id)
    found = response["reconciliation_break"]
    names = _ACTS_BY_STATE.get(found["state"], ())
    acts = visit.allowed(act for act in BREAK_ACTS.acts if act.name in names)
    return Page("break.html", f"Break {break_id}", {"found": found, "acts": acts})


MATCH = Act(
    "match",
    "Match the selected",
    "reconciliation.MatchBreaks",
    (REASON,),
    "The breaks are matched with each other.",
    hint="Their lines and entries, of one account and currency, must agree together.",
)
"""Resolves breaks that explain each other."""
_ACTS_BY_STATE: Mapping[str, tuple[str, ...]] = {
    "OPEN": ("assign", "comment", "resolve"),
    "AWAITING_APPROVAL": ("comment", "approve-resolution", "reject-resolution"),
    "AWAITING_REOPENING": ("comment", "approve-resolution", "reject-resolution"),
    "RESOLVED": ("comment", "reopen"),
}
BREAK_ACTS = ActPage(
    "breaks/{break_id}",
    show_break,
    (
        Act(
            "assign",
            "Assign",
            "reconciliation.AssignBreak",
            (
                Input(
                    "assignee",
                    "Assignee",
                    "The name of the caller who deals with it; empty: nobody.",
                    is_required=False,
                ),
            ),
            "The assignee is changed.",
        ),
        Act(
            "comment",
            "Comment",
            "reconciliation.CommentOnBreak",
            (Input("comment", "Comment", "What you found out. Up to 255 characters."),),
            "The comment is added.",
        ),
        Act(
            "resolve",
            "Resolve",
            "reconciliation.ResolveBreak",
            (
                Input(
                    "resolution",
                    "Resolution",
                    choices={
                        "RESOLUTION_ACCEPT": "accept (nothing is posted)",
                        "RESOLUTION_ADJUST": "adjust the ledger",
                        "RESOLUTION_WRITE_OFF": "write off as a loss",
                    },
                ),
                REASON,
            ),
            "The resolution is recorded.",
            is_grave=True,
            hint="Above a limit of the platform, a second person must approve it.",
        ),
        Act(
            "approve-resolution",
            "Approve what is proposed",
            "reconciliation.ApproveBreakResolution",
            (REASON,),
            "What was proposed is approved.",
            hidden=("expected_version",),
        ),
        Act(
            "reject-resolution",
            "Reject what is proposed",
            "reconciliation.RejectBreakResolution",
            (REASON,),
            "What was proposed is rejected.",
            is_grave=True,
            hidden=("expected_version",),
        ),
        Act(
            "reopen",
            "Reopen",
            "reconciliation.ReopenBreak",
            (REASON,),
            "The reopening is recorded.",
            is_grave=True,
        ),
    ),
)
