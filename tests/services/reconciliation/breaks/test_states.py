"""The states of breaks, and what leads from one to the next."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tallystick import Client, TallystickError
from tallystick.event.v1 import event_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_core.reconciliation.breaks import (
    BREAK_TRANSITIONS,
    STATES_WITH_PROPOSAL,
    BreakAction,
    BreakState,
)
from tests.services.reconciliation.breaks.support import big_break, find_break
from tests.support.break_operator import Operator, state_of
from tests.support.callers import client_of
from tests.support.errors import error_reason, expect_error_reason
from tests.support.platform import (
    ServedPlatform,
    eventually,
)
from tests.support.reconciliation import (
    Provider,
    breaks_of,
    charge,
    clearing,
    reconcile,
    wait_until_posted,
)


def bring_to(state: BreakState, ann: Operator, bob: Operator, break_id: str) -> None:
    """Brings an open break to a state, with the approvals that it needs."""
    if state is BreakState.OPEN:
        return
    proposed = ann.resolve(break_id, "WRITE_OFF", "proposed")
    if state is BreakState.AWAITING_APPROVAL:
        return
    if state_of(proposed) == BreakState.AWAITING_APPROVAL:
        bob.approve(break_id, "approved")
    if state is BreakState.AWAITING_REOPENING:
        ann.reopen(break_id, "proposed")


@pytest.mark.parametrize("state", BreakState)
@pytest.mark.parametrize(
    "action", [item for item in BreakAction if item not in ("FOUND", "RECLASSIFIED")]
)
def test_each_action_has_its_states(
    platform: ServedPlatform,
    client: Client,
    provider: Provider,
    ann: Operator,
    bob: Operator,
    state: BreakState,
    action: BreakAction,
) -> None:
    """An action leads to the next state of the table, or is rejected with INVALID_STATE and changes
    nothing.
    """
    is_proposal = action in (BreakAction.PROPOSED, BreakAction.REOPENING_PROPOSED)
    is_big = is_proposal or state in STATES_WITH_PROPOSAL
    break_id = big_break(client, provider) if is_big else find_break(client, provider, 9_00)
    bring_to(state, ann, bob, break_id)
    wait_until_posted(platform.databases)
    call: Callable[[], reconciliation_pb2.Break] = {
        BreakAction.ASSIGNED: lambda: bob.assign(break_id, "bob"),
        BreakAction.COMMENTED: lambda: bob.comment(break_id),
        BreakAction.PROPOSED: lambda: bob.resolve(break_id, "ADJUST"),
        BreakAction.RESOLVED: lambda: bob.resolve(break_id, "ACCEPT"),
        BreakAction.APPROVED: lambda: bob.approve(break_id),
        BreakAction.REJECTED: lambda: bob.reject(break_id),
        BreakAction.REOPENING_PROPOSED: lambda: bob.reopen(break_id),
        BreakAction.REOPENED: lambda: bob.reopen(break_id),
    }[action]
    before = ann.get(break_id)
    assert state_of(before) == state
    next_state = BREAK_TRANSITIONS.get((state, action))
    if next_state is None:
        with pytest.raises(TallystickError) as error:
            call()
        assert error_reason(error) == "INVALID_STATE"
        assert error.value.metadata["state"] == state
        assert ann.get(break_id) == before
        return
    changed = call()
    assert (state_of(changed), changed.version) == (next_state, before.version + 1)
    wait_until_posted(platform.databases)
    after = ann.get(break_id)
    assert (after.changes[-1].action, after.changes[-1].caller) == (action, "bob")
    assert after.changes[:-1] == before.changes
    assert call() == changed, "a repeat has no effect"
    assert ann.get(break_id) == after


def test_a_break_that_does_not_exist_is_not_found(ann: Operator) -> None:
    """Whatever is to be done about it."""
    for call in (
        lambda: ann.get("none"),
        lambda: ann.assign("none", "ann"),
        lambda: ann.comment("none"),
        lambda: ann.resolve("none", "ADJUST"),
        lambda: ann.approve("none"),
        lambda: ann.reject("none"),
        lambda: ann.reopen("none"),
        lambda: ann.match("none"),
    ):
        assert expect_error_reason(call) == "NOT_FOUND"


def test_a_break_is_assigned_to_an_operator_or_none(
    client: Client, provider: Provider, ann: Operator
) -> None:
    """It is listed by its assignee."""
    break_id = find_break(client, provider, 9_00)
    assert ann.assign(break_id, "carl").assignee == "carl"
    assert [item.break_id for item in breaks_of(client, assignee="carl")] == [break_id]
    assert ann.assign(break_id, "").assignee == ""
    assert breaks_of(client, assignee="carl") == []
    assert [change.action for change in ann.get(break_id).changes] == [
        "FOUND",
        "ASSIGNED",
        "ASSIGNED",
    ]


def test_a_comment_is_kept(
    client: Client, provider: Provider, ann: Operator, bob: Operator
) -> None:
    """Only a repeat of the last change is the same comment."""
    break_id = find_break(client, provider, 9_00)
    ann.comment(break_id, "asked the provider")
    ann.comment(break_id, "asked the provider")
    bob.comment(break_id, "asked the provider")
    ann.comment(break_id, "asked the provider")
    comments = [(change.caller, change.reason) for change in ann.get(break_id).changes[1:]]
    assert comments == [(name, "asked the provider") for name in ("ann", "bob", "ann")]
    assert expect_error_reason(ann.comment, break_id, " ") == "FIELD_REQUIRED"
    assert expect_error_reason(ann.comment, break_id, "x" * 256) == "FIELD_INVALID"
    card = "4111 1111 1111 1111"
    assert expect_error_reason(ann.comment, break_id, card) == "CARD_NUMBER_REJECTED"


def test_a_repeat_after_a_comment_has_no_effect(
    client: Client, provider: Provider, ann: Operator, bob: Operator
) -> None:
    """A caller whose answer was lost repeats the call; another operator may have been faster."""
    break_id = big_break(client, provider)
    ann.resolve(break_id, "ADJUST", "found it")
    bob.comment(break_id, "what is this?")
    assert state_of(ann.resolve(break_id, "ADJUST", "found it")) == "AWAITING_APPROVAL"
    bob.approve(break_id, "right")
    ann.comment(break_id, "thanks")
    ann.comment(break_id, "found it")
    assert state_of(ann.resolve(break_id, "ADJUST", "found it")) == "RESOLVED"
    assert state_of(bob.approve(break_id, "right")) == "RESOLVED"
    assert expect_error_reason(bob.resolve, break_id, "ADJUST", "found it") == "INVALID_STATE"
    assert expect_error_reason(ann.resolve, break_id, "ADJUST", "another reason") == "INVALID_STATE"
    assert expect_error_reason(ann.resolve, break_id, "WRITE_OFF", "found it") == "INVALID_STATE"
    bob.reopen(break_id, "not right")
    ann.comment(break_id, "why?")
    assert state_of(bob.reopen(break_id, "not right")) == "AWAITING_REOPENING"
    actions = [change.action for change in ann.get(break_id).changes]
    assert actions.count("REOPENING_PROPOSED") == 1


def test_a_comment_is_no_repeat_of_a_resolution(
    client: Client, provider: Provider, ann: Operator
) -> None:
    """The same words are not the same call."""
    break_id = find_break(client, provider, 9_00)
    ann.resolve(break_id, "ACCEPT", "first")
    ann.comment(break_id, "second")
    assert expect_error_reason(ann.resolve, break_id, "ACCEPT", "second") == "INVALID_STATE"


def test_changes_are_published(client: Client, provider: Provider, ann: Operator) -> None:
    """Each version of a break is one event, with the break and its author."""
    break_id = find_break(client, provider, 9_00)
    ann.comment(break_id)
    ann.resolve(break_id, "ADJUST")

    def published() -> list[event_pb2.Event]:
        events = list(client.events(aggregate_id=f"breaks/{break_id}"))
        return events if len(events) == 3 else []

    events = eventually(published)
    assert [event.aggregate_version for event in events] == [1, 2, 3]
    assert {event.type for event in events} == {event_pb2.EVENT_TYPE_BREAK_CHANGED}
    assert [event.caller for event in events] == ["tallystick", "ann", "ann"]
    assert [state_of(event.reconciliation_break) for event in events] == [
        "OPEN",
        "OPEN",
        "RESOLVED",
    ]
    listed = ann.get(break_id)
    last = events[-1].reconciliation_break
    assert (last.version, last.statement_file_id) == (3, listed.statement_file_id)
    assert (list(last.lines), list(last.changes)) == ([], [])


def test_an_auditor_only_reads(
    platform: ServedPlatform, client: Client, provider: Provider
) -> None:
    """Lists, breaks and the report, and no command."""
    break_id = find_break(client, provider, 9_00)
    for auditor_client in client_of(platform, "eve"):
        eve = Operator(auditor_client)
        assert eve.get(break_id).break_id == break_id
        assert clearing(auditor_client, provider.account).unexplained == "0.00"
        assert expect_error_reason(eve.comment, break_id) == "PERMISSION_DENIED"
        assert expect_error_reason(eve.resolve, break_id, "ACCEPT") == "PERMISSION_DENIED"


def test_breaks_are_listed_by_what_they_are(
    client: Client, provider: Provider, ann: Operator
) -> None:
    """By state, class, kind, account and file, newest first."""
    lines = [charge(1_00, "ch-8"), charge(-1_00, line_type="RESERVE"), charge(2_00, "ch-9")]
    file = reconcile(client, provider.account, lines).statement_file
    account = {"account": provider.account}
    found = breaks_of(client, **account)
    assert len(found) == 3
    ann.resolve(found[0].break_id, "ACCEPT")
    assert len(breaks_of(client, state=reconciliation_pb2.BREAK_STATE_OPEN, **account)) == 2
    finance = reconciliation_pb2.BREAK_CLASS_FINANCE
    (reserve,) = breaks_of(client, break_class=finance, **account)
    assert reserve.kind == reconciliation_pb2.BREAK_KIND_RESERVE
    assert breaks_of(client, kind=reserve.kind, **account) == [reserve]
    assert {
        item.break_id for item in breaks_of(client, statement_file_id=file.statement_file_id)
    } == {item.break_id for item in found}
    assert {item.statement_file_id for item in found} == {file.statement_file_id}
