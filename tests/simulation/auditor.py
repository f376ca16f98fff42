"""The auditor derives the required state from the requests, the responses and the provider's log,
using only the rules, and compares it with the platform.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tallystick import AsyncClient, NotFoundError
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.money import parse_amount
from tallystick_sandbox.stripe.checkout_sessions import BuyerCard
from tests.simulation.cluster import FEE_RATE, TEAMS, seller_of
from tests.simulation.load import PaymentRequest, PaymentResponses
from tests.simulation.page_auditor import SessionLogEntry, audit_page
from tests.simulation.payout_auditor import PayoutAuditor

_FINAL_STATES = {
    payment_pb2.PAYMENT_STATE_PAID,
    payment_pb2.PAYMENT_STATE_PARTIALLY_PAID,
    payment_pb2.PAYMENT_STATE_FAILED,
}
_BLOCKED_SELLERS = frozenset(seller_of(team, "blocked") for team in TEAMS)
_DELAYED_FAILURE = (BuyerCard.DELAYED_FAILURE,)
_VERSIONED_PREFIXES = ("payments/", "paymentOrders/", "wallets/", "payouts/", "payoutDestinations/")


@dataclass(frozen=True)
class ChargeLogEntry:
    """A line of a provider's log."""

    provider: str
    charge_id: str
    state: str
    amount: int
    currency: str
    reference: str
    code: str


class Auditor:
    """Reads the platform through its API when nothing is in progress. `charge_log` is the
    provider's log. `fault_free`: no random fault was injected, so every amount that can be paid is
    paid. `is_key_short`: as in `audit_page`. `payout_auditor` audits the payouts. `violations` is
    filled while it reads.
    """

    def __init__(
        self,
        operator: AsyncClient,
        team_clients: Mapping[str, AsyncClient],
        responses: Mapping[str, PaymentResponses],
        charge_log: Sequence[ChargeLogEntry],
        session_log: Sequence[SessionLogEntry],
        payout_auditor: PayoutAuditor,
        *,
        fault_free: bool,
        is_key_short: bool,
    ) -> None:
        self._fault_free = fault_free
        self._is_key_short = is_key_short
        self._session_log = session_log
        self._payout_auditor = payout_auditor
        self._operator = operator
        self._team_clients = team_clients
        self._responses = responses
        self._charge_log: dict[str, list[ChargeLogEntry]] = {}
        for entry in charge_log:
            self._charge_log.setdefault(entry.charge_id, []).append(entry)
        self._balances: Counter[tuple[str, str]] = Counter()
        self._pending: Counter[tuple[str, str]] = Counter()
        self._accounts: Counter[tuple[str, str]] = Counter()
        self._unapplied_charges: dict[str, ChargeLogEntry] = {}
        self._versions: dict[str, int] = {}
        self._order_statuses: dict[str, int] = {}
        self._dead_lettered: set[str] = set()
        self._closed_dead_letters: set[str] = set()
        self.violations: list[str] = []

    async def audit(self) -> None:
        await self._read_dead_letters()
        for responses in self._responses.values():
            self.violations += responses.violations
            await self._audit_payment(responses)
        expected_charges = {
            payment_request.charge_id(index)
            for payment_request in (responses.request for responses in self._responses.values())
            for index in range(len(payment_request.amounts))
        }
        self.violations += [
            f"charge {charge} was requested by nobody"
            for charge in self._charge_log
            if charge not in expected_charges
        ]
        await self._payout_auditor.audit()
        self.violations += self._payout_auditor.violations
        self._versions |= self._payout_auditor.versions
        for account, balance_change in self._payout_auditor.accounts.items():
            self._accounts[account] += balance_change
        await self._compare_unapplied()
        await self._compare_wallets()
        await self._compare_ledger()
        await self._compare_events()

    async def _read_dead_letters(self) -> None:
        for state, subjects in (
            (operator_pb2.DEAD_LETTER_STATE_OPEN, self._dead_lettered),
            (operator_pb2.DEAD_LETTER_STATE_CLOSED, self._closed_dead_letters),
        ):
            request = operator_pb2.ListDeadLettersRequest(state=state)
            async for dead_letter in self._operator.pages(
                self._operator.payment.ListDeadLetters, request, "dead_letters"
            ):
                subjects.add(dead_letter.resource_name.removeprefix("charges/"))

    async def _audit_payment(self, responses: PaymentResponses) -> None:
        payment_request = responses.request
        try:
            payment = await self._team_clients[payment_request.team].get_payment(
                payment_request.checkout_id
            )
        except NotFoundError:
            if responses.payments:
                self.violations.append(
                    f"{payment_request.checkout_id} was acknowledged, but does not exist"
                )
            if any(
                payment_request.charge_id(index) in self._charge_log
                for index in range(len(payment_request.amounts))
            ):
                self.violations.append(
                    f"{payment_request.checkout_id} was charged, but does not exist"
                )
            return
        self._versions[f"payments/{payment_request.checkout_id}"] = (
            1 if payment.payment_state == payment_pb2.PAYMENT_STATE_OPEN else 2
        )  # created, final
        orders = {order.payment_order_id: order for order in payment.payment_orders}
        if orders.keys() != {
            payment_request.order_id(index) for index in range(len(payment_request.amounts))
        }:
            self.violations.append(f"{payment_request.checkout_id} has the orders {sorted(orders)}")
            return
        for index in range(len(payment_request.amounts)):
            self._audit_order(responses, index, orders[payment_request.order_id(index)])
        self._audit_charges(payment_request, orders)
        self._audit_state(payment_request, payment)
        if payment_request.buyer is not None:
            charge_id = payment_request.charge_id(0)
            sessions = [item for item in self._session_log if item.charge_id == charge_id]
            self.violations += audit_page(
                responses, payment, sessions, is_key_short=self._is_key_short
            )
        for reported_payment in responses.payments:
            self._compare_response(reported_payment, payment, orders)

    def _audit_order(
        self, responses: PaymentResponses, index: int, order: payment_pb2.PaymentOrder
    ) -> None:
        """One order: its values, and whether the provider's log and the caller's requests allow its
        status.
        """
        payment_request, name = responses.request, order.payment_order_id
        self._versions[f"paymentOrders/{name}"] = order.version
        self._order_statuses[f"paymentOrders/{name}"] = order.payment_order_status
        fee = _expected_fee(payment_request, index)
        stored = (
            order.seller_account,
            parse_amount(order.amount, payment_request.currency),
            order.currency,
            parse_amount(order.platform_fee or "0", payment_request.currency, min_amount=0),
        )
        if stored != (
            payment_request.sellers[index],
            payment_request.amounts[index],
            payment_request.currency,
            fee,
        ):
            self.violations.append(f"order {name} is {stored}")
        is_booked = order.wallet_updated and order.ledger_updated
        match order.payment_order_status:
            case payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS:
                if payment_request.sellers[index] in _BLOCKED_SELLERS or not self._correct_charges(
                    payment_request, order.charge_id
                ):
                    self.violations.append(f"order {name} is SUCCESS without a charge")
                if not is_booked:
                    self.violations.append(f"order {name} is SUCCESS and not booked")
                self._add_bookings(payment_request, index, fee, order)
                self._audit_delivery(responses, index, order, fee)
            case payment_pb2.PAYMENT_ORDER_STATUS_FAILED:
                reason = payment_pb2.FailureReason.Name(order.failure_reason).removeprefix(
                    "FAILURE_REASON_"
                )
                if not self._is_failure_allowed(responses, index, reason):
                    self.violations.append(
                        f"order {name} is FAILED({reason}) with token {payment_request.token}, "
                        f"log {self._charge_log.get(order.charge_id)}"
                    )
                if order.wallet_updated or order.ledger_updated:
                    self.violations.append(f"order {name} is FAILED and booked")
            case status:
                if order.charge_id not in self._dead_lettered or self._correct_charges(
                    payment_request, order.charge_id
                ):
                    self.violations.append(
                        f"order {name} stays in {payment_pb2.PaymentOrderStatus.Name(status)}, "
                        "and no operation is scheduled"
                    )

    def _audit_delivery(
        self, responses: PaymentResponses, index: int, order: payment_pb2.PaymentOrder, fee: int
    ) -> None:
        """Only delivered orders are available. Delivery is known unless the caller abandoned the
        call.
        """
        payment_request, is_delivered = responses.request, order.HasField("delivery_confirmed_time")
        if (order.payment_order_id in responses.delivered_order_ids and not is_delivered) or (
            is_delivered and index >= payment_request.delivery_count
        ):
            self.violations.append(
                f"order {order.payment_order_id} is {'' if is_delivered else 'not '}delivered"
            )
        if not is_delivered:
            self._pending[payment_request.sellers[index], payment_request.currency] += (
                payment_request.amounts[index] - fee
            )

    def _is_failure_allowed(self, responses: PaymentResponses, index: int, reason: str) -> bool:
        payment_request = responses.request
        charge_id = payment_request.charge_id(index)
        states = {entry.state for entry in self._charge_log.get(charge_id, ())}
        codes = {entry.code for entry in self._charge_log.get(charge_id, ())}
        if (
            self._fault_free
            and payment_request.token == "tok_visa"
            and payment_request.expires_in_seconds is None
            and not responses.cancelled
        ):
            return reason == self._risk_reason(payment_request, index)
        if risk_reason := self._risk_reason(payment_request, index):
            return reason == risk_reason
        match reason:
            case "PROVIDER_DECLINED" if payment_request.buyer is not None:
                return _DELAYED_FAILURE in payment_request.buyer.steps and states == {"PENDING"}
            case "PAGE_EXPIRED":
                return payment_request.buyer is not None and "SUCCEEDED" not in states
            case "PROVIDER_DECLINED":
                return bool(states & {"DECLINED", "ERROR"}) and "insufficient_funds" not in codes
            case "INSUFFICIENT_FUNDS":
                return states == {"DECLINED"} and codes == {"insufficient_funds"}
            case "PROVIDER_REJECTED":
                return payment_request.token == "tok_amount_too_small" and not states
            case "PROVIDER_MISMATCH":
                return payment_request.token == "tok_other_amount" and states == {"SUCCEEDED"}
            case "PROVIDER_UNREACHABLE":
                return not states and (
                    not self._fault_free or payment_request.token.startswith("tok_unreachable")
                )
            case "CALLER_CANCELLED":
                return responses.cancelled and "SUCCEEDED" not in states
            case "EXPIRED":
                return (
                    payment_request.expires_in_seconds is not None
                    or "action" in payment_request.token
                ) and "SUCCEEDED" not in states
            case "CLOSED_BY_OPERATOR":
                return charge_id in self._closed_dead_letters and "SUCCEEDED" not in states
            case _:
                return False

    def _risk_reason(self, payment_request: PaymentRequest, index: int) -> str:
        """The reason for which the risk check rejects an order, or ""."""
        if payment_request.sellers[index] in _BLOCKED_SELLERS:
            return "RISK_BLOCKED_ACCOUNT"
        return (
            "SIBLING_FAILED"
            if payment_request.all_or_nothing
            and not _BLOCKED_SELLERS.isdisjoint(payment_request.sellers)
            else ""
        )

    def _correct_charges(
        self, payment_request: PaymentRequest, charge_id: str
    ) -> list[ChargeLogEntry]:
        """The provider's charges with the expected amount."""
        amount_due = sum(
            amount
            for index, amount in enumerate(payment_request.amounts)
            if payment_request.charge_id(index) == charge_id
            and payment_request.sellers[index] not in _BLOCKED_SELLERS
        )
        return [
            entry
            for entry in self._charge_log.get(charge_id, ())
            if entry.state == "SUCCEEDED"
            and (entry.amount, entry.currency) == (amount_due, payment_request.currency)
        ]

    def _audit_charges(
        self, payment_request: PaymentRequest, orders: Mapping[str, payment_pb2.PaymentOrder]
    ) -> None:
        """Each charge belongs to a SUCCESS order or is unapplied, and was made once."""
        for charge_id in dict.fromkeys(
            payment_request.charge_id(index) for index in range(len(payment_request.amounts))
        ):
            succeeded_entries = [
                entry for entry in self._charge_log.get(charge_id, ()) if entry.state == "SUCCEEDED"
            ]
            if len(succeeded_entries) > 1:
                self.violations.append(
                    f"charge {charge_id} was made {len(succeeded_entries)} times"
                )
            statuses = {
                order.payment_order_status
                for order in orders.values()
                if order.charge_id == charge_id and order.seller_account not in _BLOCKED_SELLERS
            }
            if len(statuses) > 1:
                self.violations.append(
                    f"the orders of charge {charge_id} do not change state together"
                )
            applied = (
                self._correct_charges(payment_request, charge_id)[:1]
                if payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS in statuses
                else []
            )
            for entry in succeeded_entries:
                if entry not in applied:
                    self._unapplied_charges[entry.reference] = entry
                    clearing = f"psp/{entry.provider}/clearing"
                    self._accounts[clearing, entry.currency] -= entry.amount
                    self._accounts[f"unapplied/{entry.provider}", entry.currency] += entry.amount

    def _add_bookings(
        self, payment_request: PaymentRequest, index: int, fee: int, order: payment_pb2.PaymentOrder
    ) -> None:
        """The bookings of an order that was charged: at the provider in whose log its charge is."""
        providers = {
            entry.provider for entry in self._correct_charges(payment_request, order.charge_id)
        }
        if providers and order.provider not in providers:
            self.violations.append(
                f"order {order.payment_order_id} was charged by {sorted(providers)}, and names "
                f"{order.provider}"
            )
        amount, currency, seller = (
            payment_request.amounts[index],
            payment_request.currency,
            payment_request.sellers[index],
        )
        self._balances[seller, currency] += amount - fee
        self._accounts[f"psp/{order.provider}/clearing", currency] -= amount
        self._accounts[f"sellers/{seller}", currency] += amount - fee
        self._accounts["platform/fees", currency] += fee

    def _audit_state(self, payment_request: PaymentRequest, payment: payment_pb2.Payment) -> None:
        statuses = Counter(order.payment_order_status for order in payment.payment_orders)
        paid, failed = (
            statuses[payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS],
            statuses[payment_pb2.PAYMENT_ORDER_STATUS_FAILED],
        )
        if paid + failed < len(payment_request.amounts):
            expected_state = payment_pb2.PAYMENT_STATE_OPEN
        elif not failed:
            expected_state = payment_pb2.PAYMENT_STATE_PAID
        else:
            expected_state = (
                payment_pb2.PAYMENT_STATE_PARTIALLY_PAID
                if paid
                else payment_pb2.PAYMENT_STATE_FAILED
            )
        if payment.payment_state != expected_state or payment.is_payment_done != (
            expected_state == payment_pb2.PAYMENT_STATE_PAID
        ):
            self.violations.append(
                f"{payment_request.checkout_id} is "
                f"{payment_pb2.PaymentState.Name(payment.payment_state)}, done: "
                f"{payment.is_payment_done}"
            )

    def _compare_response(
        self,
        reported_payment: payment_pb2.Payment,
        payment: payment_pb2.Payment,
        orders: Mapping[str, payment_pb2.PaymentOrder],
    ) -> None:
        """The final parts of an answer never change."""
        if (
            reported_payment.payment_state in _FINAL_STATES
            and reported_payment.payment_state != payment.payment_state
        ):
            self.violations.append(
                f"{payment.checkout_id} was reported as "
                f"{payment_pb2.PaymentState.Name(reported_payment.payment_state)}"
            )
        if reported_payment.version > payment.version:
            self.violations.append(
                f"{payment.checkout_id} was reported with version "
                f"{reported_payment.version}, and has {payment.version}"
            )
        if reported_payment.is_payment_done and not payment.is_payment_done:
            self.violations.append(f"{payment.checkout_id} was reported as done, and is not")
        if (
            reported_payment.checkout_id != payment.checkout_id
            or {order.payment_order_id for order in reported_payment.payment_orders}
            != orders.keys()
        ):
            self.violations.append(
                f"{payment.checkout_id} was answered with {reported_payment.checkout_id} and "
                "other orders"
            )
            return
        for order in reported_payment.payment_orders:
            status, current_order = order.payment_order_status, orders[order.payment_order_id]
            is_final = status in (
                payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS,
                payment_pb2.PAYMENT_ORDER_STATUS_FAILED,
            )
            if order.version > current_order.version or (
                is_final
                and (status, order.failure_reason)
                != (current_order.payment_order_status, current_order.failure_reason)
            ):
                self.violations.append(
                    f"order {order.payment_order_id} was reported as "
                    f"{payment_pb2.PaymentOrderStatus.Name(status)}"
                )
            if _immutable_fields(order) != _immutable_fields(current_order) or (
                order.wallet_updated,
                order.ledger_updated,
            ) > (
                current_order.wallet_updated,
                current_order.ledger_updated,
            ):
                self.violations.append(f"order {order.payment_order_id} was reported as {order}")

    async def _compare_unapplied(self) -> None:
        actual = {}
        request = payment_service_pb2.ListUnappliedChargesRequest(acknowledged=True)
        async for charge in self._operator.pages(
            self._operator.payment.ListUnappliedCharges, request, "unapplied_charges"
        ):
            actual[charge.provider_reference] = (
                charge.charge_id,
                parse_amount(charge.amount, charge.currency),
                charge.currency,
            )
            if not charge.ledger_updated:
                self.violations.append(
                    f"unapplied charge {charge.unapplied_charge_id} is not booked"
                )
        expected = {
            reference: (charge.charge_id, charge.amount, charge.currency)
            for reference, charge in self._unapplied_charges.items()
        }
        if actual != expected:
            self.violations.append(f"the unapplied charges are {actual}, and must be {expected}")

    async def _compare_wallets(self) -> None:
        actual = {}
        request = wallet_service_pb2.ListWalletsRequest()
        async for wallet in self._operator.pages(
            self._operator.wallet.ListWallets, request, "wallets"
        ):
            key = (wallet.seller_account, wallet.currency)
            parts = (wallet.balance, wallet.pending, wallet.available, wallet.held, wallet.owed)
            actual[key] = tuple(_parse_signed_amount(part, wallet.currency) for part in parts)
            self._versions[f"wallets/{wallet.seller_account}/{wallet.currency}"] = wallet.version
        expected = {}
        for key, sales in self._balances.items():
            balance, pending, held = (
                sales + self._payout_auditor.balances[key],
                self._pending[key],
                self._payout_auditor.held[key],
            )
            available = balance - pending - held
            expected[key] = (balance, pending, max(available, 0), held, max(-available, 0))
        if actual != expected:
            self.violations.append(f"the wallets are {actual}, and must be {expected}")

    async def _compare_ledger(self) -> None:
        actual = {}
        request = ledger_service_pb2.GetTrialBalanceRequest()
        async for account in self._operator.pages(
            self._operator.ledger.GetTrialBalance, request, "lines"
        ):
            actual[account.account, account.currency] = _parse_signed_amount(
                account.balance, account.currency
            )
        actual = {account: balance for account, balance in actual.items() if balance}
        expected = {account: balance for account, balance in self._accounts.items() if balance}
        # the last statements have all payouts: they were paid from the provider's balance
        for account, currency in [*expected]:
            if account.startswith("payouts/"):
                paid = expected.pop((account, currency))
                clearing = (f"psp/{account.split('/')[1]}/clearing", currency)
                expected[clearing] = expected.get(clearing, 0) + paid
        expected = {account: balance for account, balance in expected.items() if balance}
        if actual != expected:
            self.violations.append(f"the ledger's balances are {actual}, and must be {expected}")

    async def _compare_events(self) -> None:
        """Every version of every resource is published once, in order; the last one published is
        the current one.
        """
        versions: dict[str, int] = defaultdict(int)
        statuses: dict[str, int] = {}
        cursor = 0
        async for event in self._operator.events():
            cursor += 1
            if event.cursor != cursor:
                self.violations.append(
                    f"event {event.event_id} has cursor {event.cursor}, not {cursor}"
                )
            if event.aggregate_version != versions[event.aggregate_id] + 1:
                self.violations.append(
                    f"{event.aggregate_id}: version {event.aggregate_version} is published after "
                    f"{versions[event.aggregate_id]}"
                )
            versions[event.aggregate_id] = event.aggregate_version
            statuses[event.aggregate_id] = event.payment_order.payment_order_status
        compared_versions = {
            aggregate: version
            for aggregate, version in versions.items()
            if aggregate.startswith(_VERSIONED_PREFIXES)
        }
        if compared_versions != self._versions:
            differences = {
                name: (compared_versions.get(name), self._versions.get(name))
                for name in compared_versions | self._versions
                if compared_versions.get(name) != self._versions.get(name)
            }
            self.violations.append(f"the published versions and the stored ones: {differences}")
        for aggregate, status in self._order_statuses.items():
            if statuses.get(aggregate) != status:
                self.violations.append(
                    f"{aggregate} was last published with status "
                    f"{statuses.get(aggregate)}, and has {status}"
                )


def _parse_signed_amount(text: str, currency: str) -> int:
    amount = parse_amount(text.removeprefix("-"), currency, min_amount=0)
    return -amount if text.startswith("-") else amount


def _immutable_fields(order: payment_pb2.PaymentOrder) -> tuple[str, ...]:
    """The fields of an order that never change."""
    return (
        order.checkout_id,
        order.charge_id,
        order.buyer_account,
        order.seller_account,
        order.amount,
        order.currency,
        order.platform_fee,
    )


def _expected_fee(payment_request: PaymentRequest, index: int) -> int:
    """The platform's fee: as given, or by the rate, rounded half to even; the seller gets at least
    one minor unit.
    """
    fixed_fee = payment_request.fees[index]
    return (
        fixed_fee
        if fixed_fee is not None
        else min(
            round(Fraction(payment_request.amounts[index] * FEE_RATE, 1_000_000)),
            payment_request.amounts[index] - 1,
        )
    )
