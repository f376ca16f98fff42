"""The auditor: from what was wished, what was told and what the provider logged it says what must be true, by the rules alone, and compares."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tallystick import AsyncClient, NotFoundError
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.recovery.v1 import recovery_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.money import parse_amount

from .cluster import FEE_RATE, TEAMS, seller_of
from .load import Told, Wish
from .payout_auditor import PayoutAuditor

_FINAL = {payment_pb2.PAYMENT_STATE_PAID, payment_pb2.PAYMENT_STATE_PARTIALLY_PAID, payment_pb2.PAYMENT_STATE_FAILED}
_BLOCKED = frozenset(seller_of(team, "blocked") for team in TEAMS)
_VERSIONED = ("payments/", "paymentOrders/", "wallets/", "payouts/", "payoutDestinations/")


@dataclass(frozen=True)
class Charged:
    """A line of the provider's log."""

    charge_id: str
    state: str
    amount: int
    currency: str
    reference: str
    code: str


class Auditor:
    """Reads the platform through its doors, once everything is quiet. `log`: the provider's; `quiet`: nothing went wrong by chance, so that what can
    be paid is paid; `bank`: audits the payouts; `violations` fills while it reads."""

    def __init__(
        self,
        operator: AsyncClient,
        teams: Mapping[str, AsyncClient],
        told: Mapping[str, Told],
        log: Sequence[Charged],
        bank: PayoutAuditor,
        *,
        quiet: bool,
    ) -> None:
        self._quiet = quiet
        self._bank = bank
        self._operator = operator
        self._teams = teams
        self._told = told
        self._log: dict[str, list[Charged]] = {}
        for charged in log:
            self._log.setdefault(charged.charge_id, []).append(charged)
        self._wallets: Counter[tuple[str, str]] = Counter()
        self._pending: Counter[tuple[str, str]] = Counter()
        self._accounts: Counter[tuple[str, str]] = Counter()
        self._unapplied: dict[str, Charged] = {}
        self._versions: dict[str, int] = {}
        self._statuses: dict[str, int] = {}
        self._set_aside: set[str] = set()
        self._closed: set[str] = set()
        self.violations: list[str] = []

    async def audit(self) -> None:
        await self._read_dead_letters()
        for told in self._told.values():
            self.violations += told.wrong
            await self._payment(told)
        wished = {wish.charge_id(place) for wish in (told.wish for told in self._told.values()) for place in range(len(wish.amounts))}
        self.violations += [f"charge {charge} was wished by nobody" for charge in self._log if charge not in wished]
        await self._bank.audit()
        self.violations += self._bank.violations
        self._versions |= self._bank.versions
        for account, moved in self._bank.accounts.items():
            self._accounts[account] += moved
        await self._compare_unapplied()
        await self._compare_wallets()
        await self._compare_ledger()
        await self._compare_events()

    async def _read_dead_letters(self) -> None:
        for state, found in (
            (recovery_pb2.DEAD_LETTER_STATE_OPEN, self._set_aside),
            (recovery_pb2.DEAD_LETTER_STATE_CLOSED, self._closed),
        ):
            request = payment_service_pb2.ListDeadLettersRequest(state=state)
            async for letter in self._operator.pages(self._operator.payment.ListDeadLetters, request, "dead_letters"):
                found.add(letter.subject.removeprefix("charges/"))

    async def _payment(self, told: Told) -> None:
        wish = told.wish
        try:
            payment = await self._teams[wish.team].get_payment(wish.checkout_id)
        except NotFoundError:
            if told.answers:
                self.violations.append(f"{wish.checkout_id} was acknowledged, and is not there")
            if any(wish.charge_id(place) in self._log for place in range(len(wish.amounts))):
                self.violations.append(f"{wish.checkout_id} was charged, and is not there")
            return
        self._versions[f"payments/{wish.checkout_id}"] = 1 if payment.payment_state == payment_pb2.PAYMENT_STATE_OPEN else 2  # created, closed
        orders = {order.payment_order_id: order for order in payment.payment_orders}
        if orders.keys() != {wish.order_id(place) for place in range(len(wish.amounts))}:
            self.violations.append(f"{wish.checkout_id} has the orders {sorted(orders)}")
            return
        for place in range(len(wish.amounts)):
            self._order(told, place, orders[wish.order_id(place)])
        self._charges(wish, orders)
        self._state(wish, payment)
        for answer in told.answers:
            self._compare_answer(answer, payment, orders)

    def _order(self, told: Told, place: int, order: payment_pb2.PaymentOrder) -> None:
        """One order: its values, and whether its status is what the provider's log and the caller's wishes allow."""
        wish, name = told.wish, order.payment_order_id
        self._versions[f"paymentOrders/{name}"] = order.version
        self._statuses[f"paymentOrders/{name}"] = order.payment_order_status
        fee = _fee(wish, place)
        stored = (
            order.seller_account,
            parse_amount(order.amount, wish.currency),
            order.currency,
            parse_amount(order.platform_fee or "0", wish.currency, least=0),
        )
        if stored != (wish.sellers[place], wish.amounts[place], wish.currency, fee):
            self.violations.append(f"order {name} is {stored}")
        settled = order.wallet_updated and order.ledger_updated
        match order.payment_order_status:
            case payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS:
                if wish.sellers[place] in _BLOCKED or not self._right(wish, order.charge_id):
                    self.violations.append(f"order {name} is SUCCESS without a charge")
                if not settled:
                    self.violations.append(f"order {name} is SUCCESS and not settled")
                self._book(wish, place, fee)
                self._delivery(told, place, order, fee)
            case payment_pb2.PAYMENT_ORDER_STATUS_FAILED:
                reason = payment_pb2.FailureReason.Name(order.failure_reason).removeprefix("FAILURE_REASON_")
                if not self._may_fail(told, place, reason):
                    self.violations.append(f"order {name} is FAILED({reason}) with token {wish.token}, log {self._log.get(order.charge_id)}")
                if order.wallet_updated or order.ledger_updated:
                    self.violations.append(f"order {name} is FAILED and settled")
            case status:
                if order.charge_id not in self._set_aside or self._right(wish, order.charge_id):
                    self.violations.append(f"order {name} rests in {payment_pb2.PaymentOrderStatus.Name(status)}, and nobody moves it on")

    def _delivery(self, told: Told, place: int, order: payment_pb2.PaymentOrder, fee: int) -> None:
        """What was delivered is available, and nothing else; whether it was is known but for calls whose answers nobody waited for."""
        wish, delivered = told.wish, order.HasField("delivery_confirmed_time")
        if (order.payment_order_id in told.delivered and not delivered) or (delivered and place >= wish.delivers):
            self.violations.append(f"order {order.payment_order_id} is {'' if delivered else 'not '}delivered")
        if not delivered:
            self._pending[wish.sellers[place], wish.currency] += wish.amounts[place] - fee

    def _may_fail(self, told: Told, place: int, reason: str) -> bool:
        wish = told.wish
        charge = wish.charge_id(place)
        states = {charged.state for charged in self._log.get(charge, ())}
        codes = {charged.code for charged in self._log.get(charge, ())}
        if self._quiet and wish.token == "tok_visa" and wish.expires_in is None and not told.cancelled:
            return reason == self._risk(wish, place)
        if risk := self._risk(wish, place):
            return reason == risk
        match reason:
            case "PROVIDER_DECLINED":
                return bool(states & {"DECLINED", "ERROR"}) and "insufficient_funds" not in codes
            case "INSUFFICIENT_FUNDS":
                return states == {"DECLINED"} and codes == {"insufficient_funds"}
            case "PROVIDER_REFUSED":
                return wish.token == "tok_refused" and not states
            case "PROVIDER_MISMATCH":
                return wish.token == "tok_other_amount" and states == {"SUCCEEDED"}
            case "PROVIDER_UNREACHABLE":
                return not states and (not self._quiet or wish.token.startswith("tok_unreachable"))
            case "CALLER_CANCELLED":
                return told.cancelled and "SUCCEEDED" not in states
            case "EXPIRED":
                return (wish.expires_in is not None or "action" in wish.token) and "SUCCEEDED" not in states
            case "CLOSED_BY_OPERATOR":
                return charge in self._closed and "SUCCEEDED" not in states
            case _:
                return False

    def _risk(self, wish: Wish, place: int) -> str:
        """Why risk refuses an order, "" if it does not."""
        if wish.sellers[place] in _BLOCKED:
            return "RISK_BLOCKED_ACCOUNT"
        return "SIBLING_FAILED" if wish.all_or_nothing and not _BLOCKED.isdisjoint(wish.sellers) else ""

    def _right(self, wish: Wish, charge: str) -> list[Charged]:
        """The provider's charges of just what was to be charged."""
        due = sum(amount for place, amount in enumerate(wish.amounts) if wish.charge_id(place) == charge and wish.sellers[place] not in _BLOCKED)
        return [one for one in self._log.get(charge, ()) if one.state == "SUCCEEDED" and (one.amount, one.currency) == (due, wish.currency)]

    def _charges(self, wish: Wish, orders: Mapping[str, payment_pb2.PaymentOrder]) -> None:
        """Each charge that was made is that of a SUCCESS order, or unapplied; and made once."""
        for charge in dict.fromkeys(wish.charge_id(place) for place in range(len(wish.amounts))):
            made = [one for one in self._log.get(charge, ()) if one.state == "SUCCEEDED"]
            if len(made) > 1:
                self.violations.append(f"charge {charge} was made {len(made)} times")
            statuses = {order.payment_order_status for order in orders.values() if order.charge_id == charge and order.seller_account not in _BLOCKED}
            if len(statuses) > 1:
                self.violations.append(f"the orders of charge {charge} do not move together")
            applied = self._right(wish, charge)[:1] if payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS in statuses else []
            for one in made:
                if one not in applied:
                    self._unapplied[one.reference] = one
                    self._accounts["psp/sandbox/clearing", one.currency] -= one.amount
                    self._accounts["unapplied/sandbox", one.currency] += one.amount

    def _book(self, wish: Wish, place: int, fee: int) -> None:
        amount, currency, seller = wish.amounts[place], wish.currency, wish.sellers[place]
        self._wallets[seller, currency] += amount - fee
        self._accounts["psp/sandbox/clearing", currency] -= amount
        self._accounts[f"sellers/{seller}", currency] += amount - fee
        self._accounts["platform/fees", currency] += fee

    def _state(self, wish: Wish, payment: payment_pb2.Payment) -> None:
        statuses = Counter(order.payment_order_status for order in payment.payment_orders)
        paid, failed = statuses[payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS], statuses[payment_pb2.PAYMENT_ORDER_STATUS_FAILED]
        if paid + failed < len(wish.amounts):
            must = payment_pb2.PAYMENT_STATE_OPEN
        elif not failed:
            must = payment_pb2.PAYMENT_STATE_PAID
        else:
            must = payment_pb2.PAYMENT_STATE_PARTIALLY_PAID if paid else payment_pb2.PAYMENT_STATE_FAILED
        if payment.payment_state != must or payment.is_payment_done != (must == payment_pb2.PAYMENT_STATE_PAID):
            self.violations.append(f"{wish.checkout_id} is {payment_pb2.PaymentState.Name(payment.payment_state)}, done: {payment.is_payment_done}")

    def _compare_answer(self, answer: payment_pb2.Payment, payment: payment_pb2.Payment, orders: Mapping[str, payment_pb2.PaymentOrder]) -> None:
        """What is final in an answer stands for ever."""
        if answer.payment_state in _FINAL and answer.payment_state != payment.payment_state:
            self.violations.append(f"{payment.checkout_id} was told to be {payment_pb2.PaymentState.Name(answer.payment_state)}")
        if answer.version > payment.version:
            self.violations.append(f"{payment.checkout_id} was told to have version {answer.version}, and has {payment.version}")
        if answer.is_payment_done and not payment.is_payment_done:
            self.violations.append(f"{payment.checkout_id} was told to be done, and is not")
        if answer.checkout_id != payment.checkout_id or {order.payment_order_id for order in answer.payment_orders} != orders.keys():
            self.violations.append(f"{payment.checkout_id} was answered with {answer.checkout_id} and other orders")
            return
        for order in answer.payment_orders:
            status, now = order.payment_order_status, orders[order.payment_order_id]
            final = status in (payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS, payment_pb2.PAYMENT_ORDER_STATUS_FAILED)
            if order.version > now.version or (final and (status, order.failure_reason) != (now.payment_order_status, now.failure_reason)):
                self.violations.append(f"order {order.payment_order_id} was told to be {payment_pb2.PaymentOrderStatus.Name(status)}")
            if _lasting(order) != _lasting(now) or (order.wallet_updated, order.ledger_updated) > (now.wallet_updated, now.ledger_updated):
                self.violations.append(f"order {order.payment_order_id} was told to be {order}")

    async def _compare_unapplied(self) -> None:
        found = {}
        request = payment_service_pb2.ListUnappliedChargesRequest(acknowledged=True)
        async for one in self._operator.pages(self._operator.payment.ListUnappliedCharges, request, "unapplied_charges"):
            found[one.provider_reference] = (one.charge_id, parse_amount(one.amount, one.currency), one.currency)
            if not one.ledger_updated:
                self.violations.append(f"unapplied charge {one.unapplied_charge_id} is not booked")
        must = {reference: (one.charge_id, one.amount, one.currency) for reference, one in self._unapplied.items()}
        if found != must:
            self.violations.append(f"the unapplied charges are {found}, and must be {must}")

    async def _compare_wallets(self) -> None:
        found = {}
        request = wallet_service_pb2.ListWalletsRequest()
        async for wallet in self._operator.pages(self._operator.wallet.ListWallets, request, "wallets"):
            key = (wallet.seller_account, wallet.currency)
            parts = (wallet.balance, wallet.pending, wallet.available, wallet.held, wallet.owed)
            found[key] = tuple(_signed(part, wallet.currency) for part in parts)
            self._versions[f"wallets/{wallet.seller_account}/{wallet.currency}"] = wallet.version
        must = {}
        for key, sold in self._wallets.items():
            balance, pending, held = sold + self._bank.balances[key], self._pending[key], self._bank.held[key]
            free = balance - pending - held
            must[key] = (balance, pending, max(free, 0), held, max(-free, 0))
        if found != must:
            self.violations.append(f"the wallets are {found}, and must be {must}")

    async def _compare_ledger(self) -> None:
        found = {}
        request = ledger_service_pb2.GetTrialBalanceRequest()
        async for account in self._operator.pages(self._operator.ledger.GetTrialBalance, request, "lines"):
            found[account.account, account.currency] = _signed(account.balance, account.currency)
        found = {account: balance for account, balance in found.items() if balance}
        must = {account: balance for account, balance in self._accounts.items() if balance}
        if found != must:
            self.violations.append(f"the ledger's balances are {found}, and must be {must}")

    async def _compare_events(self) -> None:
        """Every version of everything is told once, in order; the last one told is the present one."""
        told: dict[str, int] = defaultdict(int)
        statuses: dict[str, int] = {}
        cursor = 0
        async for event in self._operator.events():
            cursor += 1
            if event.cursor != cursor:
                self.violations.append(f"event {event.event_id} has cursor {event.cursor}, not {cursor}")
            if event.aggregate_version != told[event.aggregate_id] + 1:
                self.violations.append(f"{event.aggregate_id}: version {event.aggregate_version} is told after {told[event.aggregate_id]}")
            told[event.aggregate_id] = event.aggregate_version
            statuses[event.aggregate_id] = event.payment_order.payment_order_status
        known = {aggregate: version for aggregate, version in told.items() if aggregate.startswith(_VERSIONED)}
        if known != self._versions:
            differing = {
                name: (known.get(name), self._versions.get(name)) for name in known | self._versions if known.get(name) != self._versions.get(name)
            }
            self.violations.append(f"the versions told and those that are: {differing}")
        for aggregate, status in self._statuses.items():
            if statuses.get(aggregate) != status:
                self.violations.append(f"{aggregate} was last told with status {statuses.get(aggregate)}, and has {status}")


def _signed(text: str, currency: str) -> int:
    amount = parse_amount(text.removeprefix("-"), currency, least=0)
    return -amount if text.startswith("-") else amount


def _lasting(order: payment_pb2.PaymentOrder) -> tuple[str, ...]:
    """What never changes of an order."""
    return (order.checkout_id, order.charge_id, order.buyer_account, order.seller_account, order.amount, order.currency, order.platform_fee)


def _fee(wish: Wish, place: int) -> int:
    """What the platform keeps: as given, or the rate, rounded half to even; the seller gets at least one minor unit."""
    given = wish.fees[place]
    return given if given is not None else min(round(Fraction(wish.amounts[place] * FEE_RATE, 1_000_000)), wish.amounts[place] - 1)
