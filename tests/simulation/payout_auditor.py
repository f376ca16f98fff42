"""The auditor of payouts: what was wished, what was told and what the bank logged say where every payout must be, and what each seller has left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tallystick import AsyncClient
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.recovery.v1 import recovery_pb2
from tallystick_core.money import parse_amount

from .payout_load import FEES, PaidOut

_AT_REST = {"PAID", "FAILED", "REJECTED", "CANCELLED", "RETURNED"}
_UNSENT = {"REJECTED", "CANCELLED"}
_ACCOUNT = ("ba_decline:no_account", "ba_returned_closed")


@dataclass(frozen=True)
class Transferred:
    """A line of the bank's log."""

    payout_id: str
    generation: int
    state: str
    amount: int
    currency: str
    returned: int | None
    reference: str

    @property
    def paid(self) -> bool:
        return self.state in ("PAID", "RETURNED")


class PayoutAuditor:
    """Reads the platform through its doors, once everything is quiet; `quiet`: nothing went wrong by chance."""

    def __init__(self, operator: AsyncClient, told: Mapping[str, PaidOut], log: Sequence[Transferred], *, quiet: bool) -> None:
        self._operator = operator
        self._told = told
        self._tokens = {one.wish.destination_id: one.wish.token for one in told.values()}
        self._quiet = quiet
        self._log: dict[str, list[Transferred]] = {}
        for row in log:
            self._log.setdefault(row.payout_id, []).append(row)
        self._set_aside: set[str] = set()
        self._closed: set[str] = set()
        self.balances: Counter[tuple[str, str]] = Counter()
        """What payouts took from each wallet, below zero."""
        self.held: Counter[tuple[str, str]] = Counter()
        self.accounts: Counter[tuple[str, str]] = Counter()
        self.versions: dict[str, int] = {}
        self.violations: list[str] = []

    async def audit(self) -> None:
        await self._read_dead_letters()
        request = payout_service_pb2.ListPayoutsRequest(page_size=200)
        known = {payout.payout_id: payout async for payout in self._operator.pages(self._operator.payout.ListPayouts, request, "payouts")}
        for told in self._told.values():
            self.violations += told.wrong
            if told.answers and told.wish.payout_id not in known:
                self.violations.append(f"payout {told.wish.payout_id} was acknowledged, and is not there")
        self.violations += [f"payout {id_} was paid, and is not there" for id_ in self._log if id_ not in known]
        for payout in known.values():
            await self._payout(payout)
        destinations = payout_service_pb2.ListPayoutDestinationsRequest(page_size=200)
        async for one in self._operator.pages(self._operator.payout.ListPayoutDestinations, destinations, "payout_destinations"):
            self.versions[f"payoutDestinations/{one.payout_destination_id}"] = one.version

    async def _read_dead_letters(self) -> None:
        for state, found in ((recovery_pb2.DEAD_LETTER_STATE_OPEN, self._set_aside), (recovery_pb2.DEAD_LETTER_STATE_CLOSED, self._closed)):
            request = payout_service_pb2.ListDeadLettersRequest(state=state)
            async for letter in self._operator.pages(self._operator.payout.ListDeadLetters, request, "dead_letters"):
                found.add(letter.subject.removeprefix("payouts/"))

    async def _payout(self, payout: payout_pb2.Payout) -> None:
        told, name, currency = self._told.get(payout.payout_id), payout.payout_id, payout.currency
        self.versions[f"payouts/{name}"] = payout.version
        amount, fee = parse_amount(payout.amount, currency), parse_amount(payout.fee, currency, least=0)
        if told is not None:
            self._values(told, payout, amount)
            for answer in told.answers:
                self._compare_answer(answer, payout)
        elif not payout.payout_batch_id.startswith("run-EUR-"):
            self.violations.append(f"payout {name} was wished by nobody")
        if fee not in {0, FEES.get(currency, 0)}:
            self.violations.append(f"payout {name} has the fee {payout.fee}")
        state = _state(payout)
        rows = self._log.get(name, [])
        if not self._may_be(told, payout, state, rows, amount - fee):
            self.violations.append(f"payout {name} is {state}({payout.failure_reason}) with token {self._token(payout)}, log {rows}")
        if state in _AT_REST and not payout.ledger_updated:
            self.violations.append(f"payout {name} is {state}, and not settled")
        self._money(payout, state, rows, amount, fee)
        await self._transfers(name, rows)

    def _token(self, payout: payout_pb2.Payout) -> str:
        return self._tokens.get(payout.payout_destination_id, "")

    def _values(self, told: PaidOut, payout: payout_pb2.Payout, amount: int) -> None:
        wish = told.wish
        stored = (payout.seller_account, payout.currency, payout.caller, payout.payout_destination_id)
        if stored != (wish.seller, wish.currency, wish.team, wish.destination_id) or wish.amount not in (None, amount):
            self.violations.append(f"payout {wish.payout_id} is {stored}, {payout.amount}")

    def _may_be(self, told: PaidOut | None, payout: payout_pb2.Payout, state: str, rows: Sequence[Transferred], net: int) -> bool:
        """Whether a payout may be in this state, by the bank's log and what people wanted."""
        made = [row for row in rows if row.paid]
        if len(made) > 1 and self._token(payout) != "ba_twice":
            return False
        first = made[0] if made else None
        match state:
            case "PAID":
                return first is not None and first.amount == net and first.state == "PAID"
            case "RETURNED":
                return first is not None and first.amount == net and first.state == "RETURNED"
            case "REJECTED" | "CANCELLED":
                return not rows and self._may_end(told, state)
            case "FAILED":
                reason = payout_pb2.PayoutFailureReason.Name(payout.failure_reason).removeprefix("PAYOUT_FAILURE_REASON_")
                return self._may_fail(payout, reason, rows)
            case "AWAITING_APPROVAL":
                return not rows
            case _:
                return payout.payout_id in self._set_aside and first is None

    def _may_end(self, told: PaidOut | None, state: str) -> bool:
        if state == "REJECTED":
            return told is not None and not told.wish.approves
        return told is None or told.cancelled or told.disabled or told.wish.token in _ACCOUNT

    def _may_fail(self, payout: payout_pb2.Payout, reason: str, rows: Sequence[Transferred]) -> bool:
        token, states = self._token(payout), {row.state for row in rows}
        match reason:
            case "INSUFFICIENT_FUNDS":
                return not rows
            case "DESTINATION_REFUSED":
                return token == "ba_decline:no_account" and states == {"DECLINED"}
            case "PROVIDER_DECLINED":
                return (token == "ba_paid_late" and states <= {"DECLINED", "PAID"}) or states <= {"DECLINED", "ERROR"} != set()
            case "PROVIDER_REFUSED":
                return token == "ba_refused" and not rows
            case "PROVIDER_MISMATCH":
                return token == "ba_other_amount" and states == {"PAID"}
            case "PROVIDER_UNREACHABLE":
                return not rows and (not self._quiet or token.startswith("ba_unreachable"))
            case "CLOSED_BY_OPERATOR":
                return payout.payout_id in self._closed and (token == "ba_paid_late" or not any(row.paid for row in rows))
            case _:
                return False

    def _money(self, payout: payout_pb2.Payout, state: str, rows: Sequence[Transferred], amount: int, fee: int) -> None:
        """What the wallet and the ledger must show of it."""
        key = (payout.seller_account, payout.currency)
        if state not in _AT_REST:
            self.held[key] += amount
        for row in rows:
            if not row.paid:
                continue
            asked = row.generation == 1 and row.amount == amount - fee
            taken, kept = (amount, fee) if asked else (row.amount, 0)
            back = row.returned or 0
            self.balances[key] += back - taken
            self.accounts[f"sellers/{payout.seller_account}", payout.currency] += back - taken
            self.accounts["payouts/sandbox/clearing", payout.currency] += row.amount - back
            self.accounts["platform/fees", payout.currency] += kept

    async def _transfers(self, payout_id: str, rows: Sequence[Transferred]) -> None:
        """Every transfer that the bank made is known, with what came back, and none else."""
        story = await self._operator.payout.GetPayout(payout_service_pb2.GetPayoutRequest(payout_id=payout_id))
        known = {
            one.provider_reference: (
                parse_amount(one.amount, one.currency),
                parse_amount(one.returned_amount, one.currency) if one.returned_amount else None,
            )
            for one in story.transfers
        }
        made = {row.reference: (row.amount, row.returned) for row in rows if row.paid}
        if known != made:
            self.violations.append(f"the transfers of payout {payout_id} are {known}, and must be {made}")

    def _compare_answer(self, answer: payout_pb2.Payout, payout: payout_pb2.Payout) -> None:
        """What is final in an answer stands for ever, but that what was paid may come back."""
        before, now = _state(answer), _state(payout)
        if answer.version > payout.version or (before in _AT_REST and now != before and (before, now) != ("PAID", "RETURNED")):
            self.violations.append(f"payout {payout.payout_id} was told to be {before} at {answer.version}, and is {now} at {payout.version}")
        if (answer.amount, answer.fee, answer.net_amount, answer.seller_account) != (
            payout.amount,
            payout.fee,
            payout.net_amount,
            payout.seller_account,
        ):
            self.violations.append(f"payout {payout.payout_id} was told to be {answer}")


def _state(payout: payout_pb2.Payout) -> str:
    return payout_pb2.PayoutState.Name(payout.payout_state).removeprefix("PAYOUT_STATE_")
