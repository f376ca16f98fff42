"""Calls whose caller goes away, and changes while reads hang."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psycopg
import pytest

from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2_grpc
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.provider.outcome import RetryReason, Unknown
from tallystick_server.app.configuration import Settings
from tallystick_server.app.wiring import Dependencies
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.payout_operations import RETRY, wait_for_dead_letter
from tests.support.payouts import (
    create_destination,
    create_payout,
    create_sale,
    wait_for_state,
    wallet_amounts,
)
from tests.support.platform import (
    WAITING_FOR_LOCK_QUERY,
    ServedPlatform,
    eventually,
    fresh_database,
    serve_platform,
    unique_id,
)


def cancel_while_locked(
    platform: ServedPlatform, method: str, request: object, *lock_statements: str
) -> None:
    """Calls a method, and cancels the call while its transaction waits for a lock that these
    statements hold; then that transaction continues.
    """
    with (
        psycopg.connect(platform.databases.admin) as blocker,
        psycopg.connect(platform.databases.admin, autocommit=True) as admin,
    ):
        for statement in lock_statements:
            blocker.execute(statement)
        with grpc.insecure_channel(platform.address) as channel:
            call = getattr(payout_service_pb2_grpc.PayoutServiceStub(channel), method).future(
                request, timeout=30
            )
            assert eventually(lambda: admin.execute(WAITING_FOR_LOCK_QUERY).fetchone() != (0,))
            call.cancel()
            # The server has no call in progress any more.
            assert eventually(lambda: not platform.server.rpc_server.call_count)


def test_a_change_returns_while_reads_hang(
    admin_url: str, tmp_path: Path, payout_provider: ScriptedPayoutProvider
) -> None:
    """A call returns the result of its change even if a hanging read uses every read connection: a
    change never fails as a slow read.
    """
    settings = Settings().replace(
        retry=RETRY,
        database__read_connections={"payout": 1},
        database__read_timeout=60,
        worker__monitor_interval=3600,
        payout__destination_cooldown=0,
    )
    dependencies = Dependencies(payout_providers={"sandbox": payout_provider})
    with (
        fresh_database(admin_url, tmp_path) as databases,
        serve_platform(databases, settings, dependencies=dependencies) as platform,
        platform.client() as client,
        ThreadPoolExecutor(8) as readers,
    ):
        seller = create_sale(client, "20.00")
        create_destination(client, seller)
        earlier = create_payout(client, seller, "1.00").payout_id
        schedule = pb.SetPayoutScheduleRequest(
            seller_account=seller,
            currency="EUR",
            interval=payout_pb2.PAYOUT_INTERVAL_DAILY,
            cut_off="12:00",
            time_zone="UTC",
        )
        run = pb.NewPayoutRun(seller_account=seller, currency="EUR")
        with (
            psycopg.connect(databases.admin) as admin,
            psycopg.connect(databases.admin, autocommit=True) as look,
        ):
            admin.execute("lock table payout.conflicting_report in access exclusive mode")
            hanging = [
                readers.submit(
                    client.payout.GetPayout, pb.GetPayoutRequest(payout_id=earlier), timeout=60
                )
                for _ in range(8)
            ]
            assert eventually(lambda: look.execute(WAITING_FOR_LOCK_QUERY).fetchone() != (0,))
            client.payout.SetPayoutSchedule(schedule, timeout=10)
            created_payout = client.payout.CreatePayout(
                pb.CreatePayoutRequest(
                    payout_id=unique_id("p"), seller_account=seller, amount="1.00", currency="EUR"
                ),
                timeout=10,
            )
            assert created_payout.payout.payout_state != payout_pb2.PAYOUT_STATE_UNSPECIFIED
            client.payout.CreatePayoutBatch(
                pb.CreatePayoutBatchRequest(payout_batch_id=unique_id("b"), run=run), timeout=10
            )
            assert not all(read.done() for read in hanging)
            admin.rollback()
            assert all(read.result(60).payout.payout_id == earlier for read in hanging)


@pytest.mark.parametrize("call", ["CloseDeadLetter", "CancelPayout", "CreatePayoutDestination"])
def test_a_cancelled_call_leaves_no_orphaned_lease(
    admin_url: str, tmp_path: Path, payout_provider: ScriptedPayoutProvider, call: str
) -> None:
    """A call that is cancelled while its change is being committed leaves no orphaned lease: the
    follow-up work of the change runs without a scan.
    """
    settings = Settings().replace(
        retry=RETRY,
        worker__scan_interval=3600,
        payout__approval_threshold={"EUR": 10_000},
        payout__destination_cooldown=0,
    )
    dependencies = Dependencies(payout_providers={"sandbox": payout_provider})
    with (
        fresh_database(admin_url, tmp_path) as databases,
        serve_platform(databases, settings, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        seller = create_sale(client, "200.00")
        if call == "CreatePayoutDestination":
            to = unique_id("d")
            new = pb.CreatePayoutDestinationRequest(
                payout_destination_id=to,
                seller_account=seller,
                currency="EUR",
                bank_account_token=to,
            )
            cancel_while_locked(
                platform, call, new, "lock table payout.payout_destination in share mode"
            )
            verified = pb.ListPayoutDestinationsRequest(
                state=payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED
            )
            assert eventually(
                lambda: client.payout.ListPayoutDestinations(verified).payout_destinations
            )
            return
        to = create_destination(client, seller)
        if call == "CloseDeadLetter":
            payout_provider.script[to].append(Unknown("malformed", RetryReason.REJECTED))
            payout_id = create_payout(client, seller, "5.00", timeout=1).payout_id
            dead_letter = wait_for_dead_letter(client, f"payouts/{payout_id}").dead_letter_id
            request: object = operator_pb2.CloseDeadLetterRequest(
                dead_letter_id=dead_letter, reason="asked them", evidence="ticket 7"
            )
        else:
            payout_id = create_payout(client, seller, "150.00").payout_id
            request = pb.CancelPayoutRequest(payout_id=payout_id, reason="no more")
        cancel_while_locked(
            platform,
            call,
            request,
            f"select from payout.operation where operation_id = '{payout_id}' for update",
        )
        wait_for_state(client, payout_id, "FAILED" if call == "CloseDeadLetter" else "CANCELLED")
        assert wallet_amounts(client, seller) == ("200.00", "0.00", "0.00")
