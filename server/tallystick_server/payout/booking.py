"""Payout booking: ends the hold of a final payout, and posts its transfers to wallet and ledger.

Every step is idempotent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from tallystick.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from tallystick.wallet.v1 import wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.money import format_amount
from tallystick_core.payout.reported_transfer import (
    MoneyMovement,
    TransferMatch,
    money_movements,
)
from tallystick_core.payout.request import format_payout_hold_id
from tallystick_core.payout.snapshot import PayoutTransition
from tallystick_core.payout.state import (
    HOLD_CAPTURED,
    POLLED_AFTER_COMPLETION,
    PayoutTransitionReason,
    PayoutTrigger,
)
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.operations.failed_step import BookingRejected
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.payout.operation import PayoutOperation
from tallystick_server.payout.snapshot import transfer_of
from tallystick_server.payout.transitions import PayoutChange, transition_payouts
from tallystick_server.rpc.batch import errors_by_key
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.postings import add_posting
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_server.rpc.timestamps import to_timestamp
from tallystick_storage.database import Database
from tallystick_storage.payout import transfers


class _OfPayout(Protocol):
    @property
    def payout_id(self) -> str: ...


T = TypeVar("T", bound=_OfPayout)


@dataclass(frozen=True, slots=True)
class _PayoutMovement:
    """A money movement of a payout, with the provider's reference of its transfer, and when the
    transfer or its return was reported.
    """

    payout: PayoutOperation
    movement: MoneyMovement
    external_reference: str
    effective_time: datetime

    @property
    def payout_id(self) -> str:
        return self.payout.payout_id


class PayoutBooking:
    """Books payouts.

    A payout is booked only after wallet and ledger have both confirmed, and if it has no new
    version.
    """

    def __init__(
        self,
        database: Database,
        service_client: ServiceClient,
        wallet_address: str,
        ledger_address: str,
        retry_policies: RetryPolicies,
    ) -> None:
        self._database = database
        self._service_client = service_client
        self._wallet = service_client.stub(
            wallet_service_pb2_grpc.WalletServiceStub, wallet_address
        )
        self._ledger = service_client.stub(
            ledger_service_pb2_grpc.LedgerServiceStub, ledger_address
        )
        self._retry_policies = retry_policies

    async def run(
        self, payouts: Sequence[PayoutOperation]
    ) -> Sequence[PayoutOperation | Exception]:
        """Returns each payout after booking, BookingRejected, or CONFLICT if the payout changed
        concurrently.

        Raises DEPENDENCY_UNAVAILABLE for the whole batch.
        """
        return await bisect_on_error(self._book, payouts)

    async def _book(
        self, payouts: Sequence[PayoutOperation]
    ) -> Sequence[PayoutOperation | Exception]:
        ids = sorted(payout.payout_id for payout in payouts)
        transfer_rows = await self._database.load(
            lambda connection: transfers.load_transfers(connection, ids)
        )
        captured_movements, other_movements = _movements_of(payouts, transfer_rows)
        captured = [payout for payout in payouts if payout.state in HOLD_CAPTURED]
        released = [payout for payout in payouts if payout.state not in HOLD_CAPTURED]
        debits = [entry for entry in other_movements if entry.movement.seller_change < 0]
        credits_ = [entry for entry in other_movements if entry.movement.seller_change > 0]
        rejections: dict[str, BookingRejected] = {}
        await self._send_in_chunks(self._capture, captured, rejections)
        # Before the debits: they use released money, and only the rest becomes owed.
        await self._send_in_chunks(self._release, released, rejections)
        await self._send_in_chunks(self._debit, debits, rejections)
        await self._send_in_chunks(self._credit, credits_, rejections)
        await self._send_in_chunks(self.post, captured_movements + other_movements, rejections)
        changes = [
            self._booking_change(payout) for payout in payouts if payout.payout_id not in rejections
        ]

        booked_payouts = (
            await self._database.transact(
                lambda connection: transition_payouts(connection, changes)
            )
            if changes
            else {}
        )
        return [
            rejections.get(payout.payout_id)
            or booked_payouts.get(payout.payout_id)
            or _concurrent_update_error()
            for payout in payouts
        ]

    def _booking_change(self, payout: PayoutOperation) -> PayoutChange:
        """The transition to booked, with the first poll of the provider.

        A paid transfer may be returned, and a payout that failed after sending may have been paid
        after all.
        """
        needs_polling = (
            payout.state in POLLED_AFTER_COMPLETION and payout.snapshot.attempt_count > 0
        )
        poll_after_seconds = (
            self._retry_policies.policy_for(
                payout.provider, RetryReason.POST_COMPLETION_POLL
            ).delay_seconds(1, payout.operation_id)
            if needs_polling
            else None
        )
        return PayoutChange(
            payout,
            (
                PayoutTransition(
                    payout.snapshot.apply(PayoutTrigger.BOOKED), PayoutTransitionReason.BOOKED
                ),
            ),
            poll_after_seconds=poll_after_seconds,
        )

    async def _send_in_chunks(
        self,
        send: Callable[[Sequence[T]], Awaitable[Sequence[Any]]],
        entries: Sequence[T],
        rejections: dict[str, BookingRejected],
    ) -> None:
        """Sends the items of payouts that are not rejected yet, and adds new rejections."""
        eligible_entries = [entry for entry in entries if entry.payout_id not in rejections]
        for start in range(0, len(eligible_entries), MAX_ITEMS):
            chunk = eligible_entries[start : start + MAX_ITEMS]
            for id_, error in errors_by_key(
                [entry.payout_id for entry in chunk], await send(chunk)
            ).items():
                rejections[id_] = BookingRejected(f"payout {id_}: {error.message}")

    async def _capture(self, payouts: Sequence[PayoutOperation]) -> Sequence[Any]:
        captures = [
            wallet_service_pb2.HoldCapture(
                hold_id=format_payout_hold_id(payout.payout_id),
                amount=format_amount(payout.amount, payout.currency),
            )
            for payout in payouts
        ]
        return list(
            (
                await self._service_client.call(
                    self._wallet.BatchCaptureHold,
                    wallet_service_pb2.BatchCaptureHoldRequest(captures=captures),
                )
            ).results
        )

    async def _release(self, payouts: Sequence[PayoutOperation]) -> Sequence[Any]:
        request = wallet_service_pb2.BatchReleaseHoldRequest(
            hold_ids=[format_payout_hold_id(payout.payout_id) for payout in payouts]
        )
        return list(
            (await self._service_client.call(self._wallet.BatchReleaseHold, request)).results
        )

    async def _debit(self, movements: Sequence[_PayoutMovement]) -> Sequence[Any]:
        debits = [
            wallet_service_pb2.Debit(**_wallet_instruction(entry), allow_owed=True)
            for entry in movements
        ]
        request = wallet_service_pb2.BatchDebitRequest(debits=debits, outcome_only=True)
        return list((await self._service_client.call(self._wallet.BatchDebit, request)).results)

    async def _credit(self, movements: Sequence[_PayoutMovement]) -> Sequence[Any]:
        credits_ = [wallet_service_pb2.Credit(**_wallet_instruction(entry)) for entry in movements]
        request = wallet_service_pb2.BatchCreditRequest(credits=credits_, outcome_only=True)
        return list((await self._service_client.call(self._wallet.BatchCredit, request)).results)

    async def post(self, movements: Sequence[_PayoutMovement]) -> Sequence[Any]:
        request = ledger_service_pb2.BatchPostRequest(outcome_only=True)
        for entry in movements:
            movement = entry.movement
            add_posting(
                request,
                movement.kind,
                movement.source_id,
                entry.payout.caller,
                movement.lines,
                entry.external_reference,
                to_timestamp(entry.effective_time),
            )
        return list((await self._service_client.call(self._ledger.BatchPost, request)).results)


def _concurrent_update_error() -> ApiError:
    return ApiError(
        ErrorReason.CONFLICT, "The payout changed concurrently; it will be booked again."
    )


def _movements_of(
    payouts: Sequence[PayoutOperation],
    transfers_by_payout: Mapping[str, Sequence[transfers.TransferRow]],
) -> tuple[list[_PayoutMovement], list[_PayoutMovement]]:
    """All money movements of the payouts: those that capture the hold, and the others."""
    captured_movements: list[_PayoutMovement] = []
    other_movements: list[_PayoutMovement] = []
    for payout in payouts:
        for row in transfers_by_payout.get(payout.payout_id, ()):
            transfer = transfer_of(row)
            outgoing, *returns = money_movements(
                payout.payout_id,
                payout.provider,
                payout.seller_account,
                payout.amount,
                payout.fee,
                transfer,
            )
            paid = _PayoutMovement(payout, outgoing, transfer.reference, row.create_time)
            if transfer.match is TransferMatch.EXACT:
                captured_movements.append(paid)
            else:
                other_movements.append(paid)
            return_time = row.return_time or row.create_time  # only a returned transfer has one
            other_movements += [
                _PayoutMovement(payout, movement, transfer.reference, return_time)
                for movement in returns
            ]
    return captured_movements, other_movements


def _wallet_instruction(entry: _PayoutMovement) -> dict[str, Any]:
    payout, movement = entry.payout, entry.movement
    return {
        "source_id": f"{movement.kind}/{movement.source_id}",
        "caller": payout.caller,
        "seller_account": payout.seller_account,
        "amount": format_amount(abs(movement.seller_change), payout.currency),
        "currency": payout.currency,
    }
