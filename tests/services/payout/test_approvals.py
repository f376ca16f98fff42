"""Decisions about payouts: who may see, approve, reject and cancel them."""

from __future__ import annotations

import json
import subprocess

from tallystick import Client
from tallystick.history.v1 import history_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.provider.outcome import RetryReason, Succeeded, Unknown
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.callers import token_of
from tests.support.errors import expect_error_reason
from tests.support.payout_operations import (
    approve_payout,
    cancel_payout,
    reject_payout,
    reused_field,
    wait_for_dead_letter,
)
from tests.support.payouts import (
    create_destination,
    create_payout,
    create_sale,
    get_payout,
    list_payouts,
    state_name,
    wait_for_state,
    wallet_amounts,
)
from tests.support.platform import ServedPlatform, eventually, run_command, unique_id


def test_large_payouts_require_a_second_approver(
    shop_client: Client, approver_client: Client, operator_client: Client
) -> None:
    """Above the threshold a payout waits, with its money held, for an approver other than its
    creator; the history records the approver and the reason.
    """
    seller = create_sale(approver_client, "300.00")
    create_destination(approver_client, seller)
    at_the_threshold = create_payout(approver_client, seller, "100.00")
    wait_for_state(approver_client, at_the_threshold.payout_id, "PAID")
    payout = create_payout(approver_client, seller, "100.01")
    assert state_name(payout) == "AWAITING_APPROVAL"
    assert wallet_amounts(operator_client, seller) == ("99.99", "100.01", "0.00")
    assert (
        expect_error_reason(approve_payout, approver_client, payout.payout_id)
        == "SECOND_APPROVER_REQUIRED"
    )
    assert expect_error_reason(approve_payout, shop_client, payout.payout_id) == "PERMISSION_DENIED"
    approve_payout(operator_client, payout.payout_id)
    assert approve_payout(operator_client, payout.payout_id).payout_id == payout.payout_id
    payout_response = wait_for_state(approver_client, payout.payout_id, "PAID")
    (approval,) = [
        move
        for move in payout_response.history
        if move.transition_reason == history_pb2.TRANSITION_REASON_APPROVED
    ]
    assert (approval.actor, approval.reason) == ("operator", "checked")
    assert (
        expect_error_reason(approve_payout, operator_client, payout.payout_id, "another reason")
        == "INVALID_STATE"
    )
    assert expect_error_reason(reject_payout, operator_client, payout.payout_id) == "INVALID_STATE"


def test_a_rejected_payout_releases_its_hold(
    approver_client: Client, operator_client: Client
) -> None:
    """A rejection by the second approver is final, is stored with its reason, and releases the
    hold; the payout cannot be approved afterwards.
    """
    seller = create_sale(approver_client, "200.00")
    create_destination(approver_client, seller)
    payout = create_payout(approver_client, seller)
    reject_payout(operator_client, payout.payout_id)
    payout_response = wait_for_state(approver_client, payout.payout_id, "REJECTED")
    assert [
        (m.actor, m.reason)
        for m in payout_response.history
        if m.transition_reason == history_pb2.TRANSITION_REASON_REJECTED
    ] == [("operator", "no")]
    assert wallet_amounts(operator_client, seller) == ("200.00", "0.00", "0.00")
    assert expect_error_reason(approve_payout, operator_client, payout.payout_id) == "INVALID_STATE"


def test_a_payout_is_cancelled_before_it_is_sent(
    shop_client: Client,
    other_client: Client,
    operator_client: Client,
    payout_provider: ScriptedPayoutProvider,
) -> None:
    """In AWAITING_APPROVAL the caller or an operator can cancel, and nothing is paid; repeats are
    replays. Once the payout may have been sent, cancelling is INVALID_STATE.
    """
    seller = create_sale(shop_client, "200.00")
    create_destination(shop_client, seller)
    payout = create_payout(shop_client, seller, "150.00")
    assert expect_error_reason(cancel_payout, other_client, payout.payout_id) == "NOT_FOUND"
    cancel_payout(shop_client, payout.payout_id)
    wait_for_state(shop_client, payout.payout_id, "CANCELLED")
    assert state_name(cancel_payout(shop_client, payout.payout_id)) == "CANCELLED"
    # The result is the same for every caller that may cancel it.
    assert state_name(cancel_payout(operator_client, payout.payout_id)) == "CANCELLED"
    assert reused_field(cancel_payout, shop_client, payout.payout_id, "another reason") == "reason"
    assert wallet_amounts(operator_client, seller) == ("200.00", "0.00", "0.00")
    assert payout.payout_id not in {
        request.payout_id for request in payout_provider.submitted_requests
    }
    created_payout = create_payout(shop_client, seller, "10.00")
    wait_for_state(shop_client, created_payout.payout_id, "PAID")
    assert (
        expect_error_reason(cancel_payout, shop_client, created_payout.payout_id) == "INVALID_STATE"
    )


def test_other_callers_see_and_change_nothing(shop_client: Client, other_client: Client) -> None:
    """S3: another caller's payout and destination are NOT_FOUND, and their ids are taken without
    revealing anything.
    """
    seller = create_sale(shop_client, "10.00")
    to = create_destination(shop_client, seller)
    payout = create_payout(shop_client, seller, "1.00")
    assert expect_error_reason(get_payout, other_client, payout.payout_id) == "NOT_FOUND"
    assert (
        expect_error_reason(
            lambda: create_payout(other_client, seller, "1.00", payout_id=payout.payout_id)
        )
        == "ALREADY_EXISTS"
    )
    assert (
        expect_error_reason(
            lambda: create_payout(other_client, seller, "1.00", payout_destination_id=to)
        )
        == "NOT_FOUND"
    )
    assert (
        expect_error_reason(
            other_client.payout.GetPayoutDestination,
            pb.GetPayoutDestinationRequest(payout_destination_id=to),
        )
        == "NOT_FOUND"
    )
    reused_request = pb.CreatePayoutDestinationRequest(
        payout_destination_id=to, seller_account=seller, currency="EUR", bank_account_token="t"
    )
    assert (
        expect_error_reason(other_client.payout.CreatePayoutDestination, reused_request)
        == "ALREADY_EXISTS"
    )
    assert not list_payouts(other_client, seller)
    assert [p.payout_id for p in list_payouts(shop_client, seller)] == [payout.payout_id]


def test_an_operator_works_from_the_command_line(
    shop_client: Client,
    operator_client: Client,
    approval_platform: ServedPlatform,
    payout_provider: ScriptedPayoutProvider,
) -> None:
    """`tallystick payouts`, `payout-batch` and `dead-letters --service payout` do what the calls
    do, with the operator's token; errors are one sentence.
    """
    environment = {
        "TALLYSTICK_TOKEN": token_of("operator"),
        "TALLYSTICK_SERVER__LISTEN": approval_platform.address,
    }

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, **environment)

    seller = create_sale(shop_client, "300.00")
    to = create_destination(shop_client, seller)
    payout = create_payout(shop_client, seller, "150.00")
    pending_lines = command(
        "payouts", "list", "--state", "AWAITING_APPROVAL", "--seller", seller, "--json"
    ).stdout.splitlines()
    assert [json.loads(line)["payout_id"] for line in pending_lines] == [payout.payout_id]
    none = command("payouts", "list", "--seller", "nobody")
    assert (none.returncode, none.stdout, none.stderr) == (
        0,
        "",
        "No payouts for the seller nobody.\n",
    )
    approved = command("payouts", "approve", payout.payout_id, "--reason", "seen", "--json")
    assert json.loads(approved.stdout)["payout_id"] == payout.payout_id, approved.stderr
    wait_for_state(shop_client, payout.payout_id, "PAID")
    payout_json = json.loads(command("payouts", "show", payout.payout_id, "--json").stdout)
    assert [
        (m["actor"], m["reason"])
        for m in payout_json["history"]
        if m["transition_reason"] == "TRANSITION_REASON_APPROVED"
    ] == [("operator", "seen")]
    rejected_command = command("payouts", "reject", payout.payout_id, "--reason", "late")
    assert (rejected_command.returncode, len(rejected_command.stderr.splitlines())) == (1, 1)
    assert "INVALID_STATE" in rejected_command.stderr
    batch_id = unique_id("b")
    run = pb.NewPayoutRun(seller_account="nobody", currency="EUR")
    operator_client.payout.CreatePayoutBatch(
        pb.CreatePayoutBatchRequest(payout_batch_id=batch_id, run=run)
    )
    states = [
        json.loads(line)["state"]
        for line in command("payout-batch", batch_id, "--follow", "--json").stdout.splitlines()
    ]
    assert states[-1] == "PAYOUT_BATCH_STATE_DONE"
    payout_provider.script[to].append(Unknown("malformed", RetryReason.REJECTED))
    stuck = create_payout(shop_client, seller, "1.00")
    dead_letter = wait_for_dead_letter(operator_client, f"payouts/{stuck.payout_id}")
    listed_ids = [
        json.loads(line)["dead_letter_id"]
        for line in command(
            "dead-letters", "list", "--service", "payout", "--json"
        ).stdout.splitlines()
    ]
    assert dead_letter.dead_letter_id in listed_ids
    subject = f"deadLetters/{dead_letter.dead_letter_id}"
    assert eventually(lambda: subject in command("alerts", "--service", "payout").stdout)
    for service in ("wallet", "ledger"):
        none = command("alerts", "--service", service)
        assert (none.returncode, none.stdout) == (0, "")
        assert none.stderr == f"No active alerts in the {service} service.\n"
    for token, expected_message in (
        ("", "Set TALLYSTICK_TOKEN."),
        ("ä", "TALLYSTICK_TOKEN must be visible ASCII characters."),
    ):
        environment["TALLYSTICK_TOKEN"] = token
        unknown = command("alerts")
        assert (unknown.returncode, len(unknown.stderr.splitlines())) == (1, 1)
        assert expected_message in unknown.stderr
    environment["TALLYSTICK_TOKEN"] = token_of("operator")
    command(
        "dead-letters",
        "retry",
        dead_letter.dead_letter_id,
        "--service",
        "payout",
        "--reason",
        "again",
    )
    wait_for_state(shop_client, stuck.payout_id, "PAID")
    reference = unique_id("tr")
    payout_provider.script[to].append(Succeeded(reference, 101, "EUR"))
    mismatch = wait_for_state(
        shop_client, create_payout(shop_client, seller, "1.00").payout_id, "FAILED"
    ).payout
    acknowledge_command = command(
        "payouts",
        "acknowledge",
        mismatch.payout_id,
        "--transfer",
        reference,
        "--reason",
        "seen",
        "--json",
    )
    assert json.loads(acknowledge_command.stdout)["payout_id"] == mismatch.payout_id, (
        acknowledge_command.stderr
    )
    assert [
        transfer.acknowledge_reason
        for transfer in get_payout(operator_client, mismatch.payout_id).transfers
    ] == ["seen"]
    empty_command = command(
        "payouts", "acknowledge", mismatch.payout_id, "--report", "1", "--reason", "seen"
    )
    assert (empty_command.returncode, len(empty_command.stderr.splitlines())) == (1, 1)
    assert "there is nothing to acknowledge" in empty_command.stderr
