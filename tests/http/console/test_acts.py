"""Acts: each is the public call with the person's own token, so the rules are the platform's."""

from __future__ import annotations

import re
from collections.abc import Callable

from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2
from tests.support.callers import token_of
from tests.support.console import Person, Work
from tests.support.platform import ServedPlatform

SignIn = Callable[[str], Person]


def test_a_payout_is_approved_by_a_second_person(
    platform: ServedPlatform, work: Work, sign_in: SignIn
) -> None:
    """Its creator reads why not, with what they wrote still there; another operator approves it, in
    their own name.
    """
    path = f"/console/payouts/{work.awaiting_payouts[0]}"
    rejected = sign_in("payer").act(f"{path}/approve", reason="I trust myself")
    assert rejected.status_code == 403
    assert "SECOND_APPROVER_REQUIRED, from payout.ApprovePayout" in rejected.text
    assert 'value="I trust myself"' in rejected.text
    bob = sign_in("bob")
    approved = bob.act(f"{path}/approve", reason="checked the invoice")
    assert approved.status_code == 303
    page = bob.get(approved.headers["Location"]).text
    assert "The payout is approved." in page
    assert "checked the invoice" in page
    assert "Approve the payout" not in page
    with platform.client(token_of("alice")) as client:
        request = payout_service_pb2.GetPayoutRequest(payout_id=work.awaiting_payouts[0])
        history = client.payout.GetPayout(request).history
    assert ("bob", "checked the invoice") in {(row.actor, row.reason) for row in history}


def test_a_payout_is_rejected(work: Work, alice: Person) -> None:
    """With its reason in the history; it is no longer among the approvals."""
    payout_id = work.awaiting_payouts[1]
    assert payout_id in alice.get("/console/approvals").text
    alice.act(f"/console/payouts/{payout_id}/reject", reason="wrong seller")
    assert "wrong seller" in alice.get(f"/console/payouts/{payout_id}").text
    assert payout_id not in alice.get("/console/approvals").text


def test_a_dead_letter_is_retried_and_closed(
    platform: ServedPlatform, work: Work, alice: Person
) -> None:
    """Closing needs a reason and evidence; the name of the operator is stored."""
    retried, closed = work.dead_letters
    path = "/console/dead-letters/payment"
    missing = alice.act(f"{path}/{closed}/close", reason="given up", evidence="")
    assert missing.status_code == 400
    assert "evidence" in missing.text
    assert 'value="given up"' in missing.text
    alice.act(f"{path}/{retried}/retry", reason="fixed at the provider")
    done = alice.act(f"{path}/{closed}/close", reason="given up", evidence="nothing in their list")
    assert "The dead letter is closed." in alice.get(done.headers["Location"]).text
    again = alice.act(f"{path}/{closed}/close", reason="another", evidence="e")
    assert again.status_code in {400, 409}
    assert "The platform rejected this." in again.text
    with platform.client(token_of("alice")) as client:
        request = operator_pb2.GetDeadLetterRequest(dead_letter_id=closed)
        dead_letter = client.payment.GetDeadLetter(request).dead_letter
    assert (dead_letter.operator, dead_letter.reason) == ("alice", "given up")
    assert dead_letter.evidence == "nothing in their list"


def test_an_unapplied_charge_is_acknowledged(work: Work, alice: Person) -> None:
    """It leaves the list, and is in the one of acknowledged charges with its reason."""
    charge_id = work.unapplied_charge
    act = f"/console/unapplied-charges/{charge_id}/acknowledge"
    failed = alice.act(act, reason="")
    assert failed.status_code == 400
    assert charge_id in failed.text
    done = alice.act(act, reason="returned by hand")
    page = alice.get(done.headers["Location"]).text
    assert "The unapplied charge is acknowledged." in page
    assert charge_id not in page
    acknowledged = alice.get("/console/unapplied-charges?acknowledged=true").text
    assert charge_id in acknowledged
    assert "returned by hand" in acknowledged


def test_a_break_is_worked_through(
    platform: ServedPlatform, work: Work, alice: Person, sign_in: SignIn
) -> None:
    """Assigned, commented on, resolved, rejected, resolved again and approved by two people."""
    break_id = work.breaks[-1]  # 500.00 EUR, above the limit of one person
    path = f"/console/breaks/{break_id}"
    bob = sign_in("bob")
    steps: list[tuple[Person, str, dict[str, str]]] = [
        (alice, "assign", {"assignee": "alice"}),
        (alice, "comment", {"comment": "asked the provider"}),
        (alice, "resolve", {"resolution": "RESOLUTION_WRITE_OFF", "reason": "lost"}),
        (bob, "reject-resolution", {"reason": "ask again"}),
        (alice, "resolve", {"resolution": "RESOLUTION_ADJUST", "reason": "they confirmed"}),
        (bob, "approve-resolution", {"reason": "agreed"}),
    ]
    for person, act, fields in steps:
        response = person.act(f"{path}/{act}", **fields)
        assert response.headers.get("Location", "").startswith(f"{path}?done="), response.text
    with platform.client(token_of("alice")) as client:
        request = reconciliation_service_pb2.GetBreakRequest(break_id=break_id)
        changes = client.reconciliation.GetBreak(request).reconciliation_break.changes
    assert [change.caller for change in changes][1:7] == [
        "alice",
        "alice",
        "alice",
        "bob",
        "alice",
        "bob",
    ]
    page = alice.get(path).text
    assert all(text in page for text in ("asked the provider", "ask again", "they confirmed"))


def test_what_a_person_has_not_seen_is_not_approved(
    work: Work, alice: Person, sign_in: SignIn
) -> None:
    """The form has the version of its page. A resolution that was proposed since is rejected with
    the platform's error.
    """
    path = f"/console/breaks/{work.breaks[-1]}"
    if "Reopen" in alice.get(path).text:
        alice.act(f"{path}/reopen", reason="once more")
        sign_in("bob").act(f"{path}/approve-resolution", reason="once more")
    alice.act(f"{path}/resolve", resolution="RESOLUTION_ADJUST", reason="first")
    bob = sign_in("bob")
    (version,) = set(re.findall(r'name="expected_version" value="(\d+)"', bob.get(path).text))
    alice.act(f"{path}/reject-resolution", reason="not so")
    alice.act(f"{path}/resolve", resolution="RESOLUTION_WRITE_OFF", reason="second")
    stale = bob.act(f"{path}/approve-resolution", reason="agreed", expected_version=version)
    assert stale.status_code == 409
    assert "expected_version" in stale.text
    alice.act(f"{path}/reject-resolution", reason="as it was")


def test_a_reopening_that_waits_can_be_approved(work: Work, alice: Person, sign_in: SignIn) -> None:
    """It is in a queue of its own, and a second person decides about it."""
    break_id = work.breaks[-1]
    path = f"/console/breaks/{break_id}"
    bob = sign_in("bob")
    alice.act(f"{path}/resolve", resolution="RESOLUTION_ADJUST", reason="sure")
    bob.act(f"{path}/approve-resolution", reason="agreed")
    alice.act(f"{path}/reopen", reason="a second look")
    assert break_id in bob.get("/console/breaks?state=AWAITING_REOPENING").text
    assert "Reopenings that await approval" in bob.get("/console").text
    done = bob.act(f"{path}/approve-resolution", reason="there is news")
    assert "What was proposed is approved." in bob.get(done.headers["Location"]).text
    assert "Assign" in bob.get(path).text


def test_nobody_approves_their_own_resolution(work: Work, alice: Person) -> None:
    """The platform's error is shown as text, and the break waits on."""
    path = f"/console/breaks/{work.breaks[-1]}"
    alice.act(f"{path}/resolve", resolution="RESOLUTION_ADJUST", reason="sure")
    response = alice.act(f"{path}/approve-resolution", reason="sure")
    assert response.status_code == 403
    assert "SECOND_APPROVER_REQUIRED" in response.text


def test_a_person_without_the_role_changes_nothing(work: Work, sign_in: SignIn) -> None:
    """An auditor reads a break; the platform rejects what they decide about it."""
    auditor = sign_in("auditor")
    path = f"/console/breaks/{work.breaks[0]}"
    assert auditor.get(path).status_code == 200
    response = auditor.act(f"{path}/comment", comment="by the auditor")
    assert response.status_code == 403
    assert "PERMISSION_DENIED, from reconciliation.CommentOnBreak" in response.text
    assert "by the auditor" not in auditor.get(path).text


def test_a_link_cannot_claim_an_act(work: Work, alice: Person, sign_in: SignIn) -> None:
    """What was done is said in the session that did it, on the page of it; nowhere else."""
    path = f"/console/breaks/{work.breaks[0]}"
    done = alice.act(f"{path}/comment", comment="for the link").headers["Location"]
    text = "The comment is added."
    assert text in alice.get(done).text
    assert text not in sign_in("bob").get(done).text
    assert text not in alice.get(done.replace(work.breaks[0], work.breaks[1])).text
    assert text not in alice.get(f"{path}?done=comment").text
