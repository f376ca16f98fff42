"""The auditor of payouts: it derives the required state of every payout and wallet from the
requests, the responses and the provider's log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tallystick import AsyncClient
from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick_core.money import parse_amount
from tests.simulation.payout_load import FEES, WithdrawalResponses
from tests.support.payouts import state_name

_TERMINAL_STATES = {"PAID", "FAILED", "REJECTED", "CANCELLED", "RETURNED"}
_CLOSED_ACCOUNT_FAULTS = ("decline:no_account", "returned_closed")


@dataclass(frozen=True)
class TransferLogEntry:
    """A line of the payout provider's log."""

    payout_id: str
    generation: int
    state: str
    amount: int
    currency: str
    returned_amount: int | None
    reference: str

    @property
    def is_paid(self) -> bool:
        return self.state in ("PAID", "RETURNED")


class PayoutAuditor:
    """Reads the platform through its API when nothing is in progress; `fault_free`: no random fault
    was injected.
    """

    def __init__(
        self,
        operator: AsyncClient,
        responses: Mapping[str, WithdrawalResponses],
        transfer_log: Sequence[TransferLogEntry],
        *,
        fault_free: bool,
    ) -> None:
        self._operator = operator
        self._responses = responses
        self._faults = {
            response.withdrawal.destination_id: response.withdrawal.token.partition("_")[2]
            for response in responses.values()
        }
        self._fault_free = fault_free
        self._transfer_log: dict[str, list[TransferLogEntry]] = {}
        for row in transfer_log:
            self._transfer_log.setdefault(row.payout_id, []).append(row)
        self._dead_lettered: set[str] = set()
        self._closed_dead_letters: set[str] = set()
        self.balances: Counter[tuple[str, str]] = Counter()
        """The change of each wallet by payouts, which is negative."""
        self.held: Counter[tuple[str, str]] = Counter()
        self.accounts: Counter[tuple[str, str]] = Counter()
        self.versions: dict[str, int] = {}
        self.violations: list[str] = []

    async def audit(self) -> None:
        await self._read_dead_letters()
        request = payout_service_pb2.ListPayoutsRequest(page_size=200)
        payouts = {
            payout.payout_id: payout
            async for payout in self._operator.pages(
                self._operator.payout.ListPayouts, request, "payouts"
            )
        }
        for responses in self._responses.values():
            self.violations += responses.violations
            if responses.payouts and responses.withdrawal.payout_id not in payouts:
                self.violations.append(
                    f"payout {responses.withdrawal.payout_id} was acknowledged, but does not exist"
                )
        self.violations += [
            f"payout {id_} was paid, but does not exist"
            for id_ in self._transfer_log
            if id_ not in payouts
        ]
        for payout in payouts.values():
            await self._audit_payout(payout)
        destinations_request = payout_service_pb2.ListPayoutDestinationsRequest(page_size=200)
        async for destination in self._operator.pages(
            self._operator.payout.ListPayoutDestinations,
            destinations_request,
            "payout_destinations",
        ):
            self.versions[f"payoutDestinations/{destination.payout_destination_id}"] = (
                destination.version
            )

    async def _read_dead_letters(self) -> None:
        for state, subjects in (
            (operator_pb2.DEAD_LETTER_STATE_OPEN, self._dead_lettered),
            (operator_pb2.DEAD_LETTER_STATE_CLOSED, self._closed_dead_letters),
        ):
            request = operator_pb2.ListDeadLettersRequest(state=state)
            async for dead_letter in self._operator.pages(
                self._operator.payout.ListDeadLetters, request, "dead_letters"
            ):
                subjects.add(dead_letter.resource_name.removeprefix("payouts/"))

    async def _audit_payout(self, payout: payout_pb2.Payout) -> None:
        responses, name, currency = (
            self._responses.get(payout.payout_id),
            payout.payout_id,
            payout.currency,
        )
        self.versions[f"payouts/{name}"] = payout.version
        amount, fee = (
            parse_amount(payout.amount, currency),
            parse_amount(payout.fee, currency, min_amount=0),
        )
        if responses is not None:
            self._audit_values(responses, payout, amount)
            for reported_payout in responses.payouts:
                self._compare_response(reported_payout, payout)
        elif not payout.payout_batch_id.startswith("run-EUR-"):
            self.violations.append(f"payout {name} was requested by nobody")
        if fee not in {0, FEES.get(currency, 0)}:
            self.violations.append(f"payout {name} has the fee {payout.fee}")
        state = state_name(payout)
        rows = self._transfer_log.get(name, [])
        if not self._is_state_allowed(responses, payout, state, rows, amount - fee):
            self.violations.append(
                f"payout {name} is {state}({payout.failure_reason}) with fault "
                f"{self._fault(payout)}, log {rows}"
            )
        if state in _TERMINAL_STATES and not payout.ledger_updated:
            self.violations.append(f"payout {name} is {state}, and not booked")
        self._add_bookings(payout, state, rows, amount, fee)
        await self._audit_transfers(name, rows)

    def _fault(self, payout: payout_pb2.Payout) -> str:
        """What the token of its destination makes the provider do."""
        return self._faults.get(payout.payout_destination_id, "")

    def _audit_values(
        self, responses: WithdrawalResponses, payout: payout_pb2.Payout, amount: int
    ) -> None:
        withdrawal = responses.withdrawal
        stored = (
            payout.seller_account,
            payout.currency,
            payout.caller,
            payout.payout_destination_id,
        )
        if stored != (
            withdrawal.seller,
            withdrawal.currency,
            withdrawal.team,
            withdrawal.destination_id,
        ) or withdrawal.amount not in (None, amount):
            self.violations.append(f"payout {withdrawal.payout_id} is {stored}, {payout.amount}")

    def _is_state_allowed(
        self,
        responses: WithdrawalResponses | None,
        payout: payout_pb2.Payout,
        state: str,
        rows: Sequence[TransferLogEntry],
        net_amount: int,
    ) -> bool:
        """Whether the provider's log and the callers' requests allow the payout's state."""
        paid_rows = [row for row in rows if row.is_paid]
        if len(paid_rows) > 1 and self._fault(payout) != "paid_twice":
            return False
        first = paid_rows[0] if paid_rows else None
        match state:
            case "PAID":
                return first is not None and first.amount == net_amount and first.state == "PAID"
            case "RETURNED":
                return (
                    first is not None and first.amount == net_amount and first.state == "RETURNED"
                )
            case "REJECTED" | "CANCELLED":
                return not rows and self._is_end_allowed(responses, state)
            case "FAILED":
                reason = payout_pb2.PayoutFailureReason.Name(payout.failure_reason).removeprefix(
                    "PAYOUT_FAILURE_REASON_"
                )
                return self._is_failure_allowed(payout, reason, rows)
            case "AWAITING_APPROVAL":
                return not rows
            case _:
                return payout.payout_id in self._dead_lettered and first is None

    def _is_end_allowed(self, responses: WithdrawalResponses | None, state: str) -> bool:
        if state == "REJECTED":
            return responses is not None and not responses.withdrawal.is_approved
        return (
            responses is None
            or responses.cancelled
            or responses.disabled
            or self._faults[responses.withdrawal.destination_id] in _CLOSED_ACCOUNT_FAULTS
        )

    def _is_failure_allowed(
        self, payout: payout_pb2.Payout, reason: str, rows: Sequence[TransferLogEntry]
    ) -> bool:
        fault, states = self._fault(payout), {row.state for row in rows}
        match reason:
            case "INSUFFICIENT_FUNDS":
                return not rows
            case "DESTINATION_REJECTED":
                return fault == "decline:no_account" and states == {"DECLINED"}
            case "PROVIDER_DECLINED":
                return (fault == "paid_late" and states <= {"DECLINED", "PAID"}) or states <= {
                    "DECLINED",
                    "ERROR",
                } != set()
            case "PROVIDER_REJECTED":
                return fault == "amount_too_small" and not rows
            case "PROVIDER_MISMATCH":
                return fault == "other_amount" and states == {"PAID"}
            case "PROVIDER_UNREACHABLE":
                return not rows and (not self._fault_free or fault.startswith("unreachable"))
            case "CLOSED_BY_OPERATOR":
                return payout.payout_id in self._closed_dead_letters and (
                    fault == "paid_late" or not any(row.is_paid for row in rows)
                )
            case _:
                return False

    def _add_bookings(
        self,
        payout: payout_pb2.Payout,
        state: str,
        rows: Sequence[TransferLogEntry],
        amount: int,
        fee: int,
    ) -> None:
        """Checks what the wallet and the ledger must show for the payout."""
        key = (payout.seller_account, payout.currency)
        if state not in _TERMINAL_STATES:
            self.held[key] += amount
        for row in rows:
            if not row.is_paid:
                continue
            is_exact = row.generation == 1 and row.amount == amount - fee
            debited, fee_kept = (amount, fee) if is_exact else (row.amount, 0)
            returned_amount = row.returned_amount or 0
            self.balances[key] += returned_amount - debited
            self.accounts[f"sellers/{payout.seller_account}", payout.currency] += (
                returned_amount - debited
            )
            self.accounts["payouts/sandbox/clearing", payout.currency] += (
                row.amount - returned_amount
            )
            self.accounts["platform/fees", payout.currency] += fee_kept

    async def _audit_transfers(self, payout_id: str, rows: Sequence[TransferLogEntry]) -> None:
        """The platform knows exactly the transfers that the provider made, with their returned
        amounts.
        """
        payout_details = await self._operator.payout.GetPayout(
            payout_service_pb2.GetPayoutRequest(payout_id=payout_id)
        )
        actual = {
            transfer.provider_reference: (
                parse_amount(transfer.amount, transfer.currency),
                parse_amount(transfer.returned_amount, transfer.currency)
                if transfer.returned_amount
                else None,
            )
            for transfer in payout_details.transfers
        }
        expected = {row.reference: (row.amount, row.returned_amount) for row in rows if row.is_paid}
        if actual != expected:
            self.violations.append(
                f"the transfers of payout {payout_id} are {actual}, and must be {expected}"
            )

    def _compare_response(
        self, reported_payout: payout_pb2.Payout, payout: payout_pb2.Payout
    ) -> None:
        """The final parts of an answer never change, except that a paid payout may be returned."""
        reported_state, current_state = state_name(reported_payout), state_name(payout)
        if reported_payout.version > payout.version or (
            reported_state in _TERMINAL_STATES
            and current_state != reported_state
            and (reported_state, current_state) != ("PAID", "RETURNED")
        ):
            self.violations.append(
                f"payout {payout.payout_id} was reported as {reported_state} at "
                f"{reported_payout.version}, and is {current_state} at {payout.version}"
            )
        if (
            reported_payout.amount,
            reported_payout.fee,
            reported_payout.net_amount,
            reported_payout.seller_account,
        ) != (
            payout.amount,
            payout.fee,
            payout.net_amount,
            payout.seller_account,
        ):
            self.violations.append(f"payout {payout.payout_id} was reported as {reported_payout}")
