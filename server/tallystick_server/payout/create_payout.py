"""Payout creation: stores new payouts, or finds existing ones, in one transaction for each batch.

It decides the amount, the fee, the reserve that stays in the wallet, and the destination.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from tallystick_core.errors import ApiError, ErrorReason, id_taken_error, key_reused_error
from tallystick_core.payout.quote import WalletBalance, quote_amount
from tallystick_core.payout.request import NewPayout, first_difference
from tallystick_server.observability.tracing import SpanContext
from tallystick_server.operations.batcher import deduplicate_by_key
from tallystick_server.outbox.events import record_events
from tallystick_server.payout import events
from tallystick_server.payout.eligibility import PayoutContext, readiness_of, require_seller_owner
from tallystick_server.payout.operation import PayoutOperation, build_operation
from tallystick_storage.database import Database
from tallystick_storage.payout import payouts as store
from tallystick_storage.sql import Connection


@dataclass(frozen=True, slots=True)
class CreatePayoutCommand:
    """A requested payout. `balance` None: still to be read from the wallet."""

    payout: NewPayout
    traceparent: str
    context: SpanContext
    balance: WalletBalance | None = None
    payout_batch_id: str = ""

    @property
    def wallet_key(self) -> tuple[str, str]:
        return self.payout.seller_account, self.payout.currency


@dataclass(frozen=True, slots=True)
class CreatePayoutResult:
    """The payout is stored durably. `replayed`: it was stored before."""

    replayed: bool


CreatePayoutOutcome = CreatePayoutResult | ApiError


@dataclass(slots=True)
class PayoutCreationPlan:
    """The payouts to store, and the results known already: errors and existing payouts. Keyed by
    payout id.
    """

    results: dict[str, CreatePayoutOutcome] = field(default_factory=dict)
    to_create: dict[str, tuple[CreatePayoutCommand, store.NewPayoutRow, str]] = field(
        default_factory=dict
    )
    """With the token of the bank account."""

    def excluding(self, payout_ids: AbstractSet[str]) -> PayoutCreationPlan:
        """The same plan without some payouts, which are not stored after all."""
        results = {id_: result for id_, result in self.results.items() if id_ not in payout_ids}
        return PayoutCreationPlan(
            results, {id_: entry for id_, entry in self.to_create.items() if id_ not in payout_ids}
        )


@dataclass(slots=True)
class CreatedPayouts:
    """The payouts that a transaction stored, and the results of all that were planned."""

    results: dict[str, CreatePayoutOutcome] = field(default_factory=dict)
    operations: list[PayoutOperation] = field(default_factory=list)


class PayoutCreator:
    """Stores payouts. Starts each stored payout, leased to this process.

    `read_balances`: reads wallet balances by (seller, currency). `resolve_owners`: returns the
    owners of sellers. `reject_amount`: the rule by which a provider rejects an amount, see
    `PayoutProvider`.
    """

    def __init__(
        self,
        database: Database,
        read_balances: Callable[
            [Sequence[tuple[str, str]]], Awaitable[Mapping[tuple[str, str], WalletBalance]]
        ],
        resolve_owners: Callable[[Sequence[str]], Awaitable[Mapping[str, str]]],
        environment: str,
        lease_seconds: float,
        start_operation: Callable[[PayoutOperation], None],
        reject_amount: Callable[[str, int, str], str | None],
    ) -> None:
        self._database = database
        self._read_balances = read_balances
        self._resolve_owners = resolve_owners
        self._environment = environment
        self._lease_seconds = lease_seconds
        self._start_operation = start_operation
        self._reject_amount = reject_amount

    async def run(
        self, commands: Sequence[CreatePayoutCommand]
    ) -> Sequence[CreatePayoutResult | Exception]:
        """Returns one result for each command: stored, IDEMPOTENCY_KEY_REUSED, ALREADY_EXISTS, or
        why it cannot be paid.
        """
        return await deduplicate_by_key(
            commands,
            lambda command: (command.payout.payout_id, command.payout.fingerprint()),
            self._create,
        )

    async def _create(
        self, commands: Sequence[CreatePayoutCommand]
    ) -> Sequence[CreatePayoutResult | Exception]:
        plan = await self.plan_creation(commands)
        results = dict(plan.results)
        if plan.to_create:
            lease_deadline = self.lease_deadline()
            created_payouts = await self._database.transact(
                lambda connection: self.insert(connection, plan, lease_deadline)
            )
            results |= created_payouts.results
            self.start_operations(created_payouts.operations)
        return [results[command.payout.payout_id] for command in commands]

    def lease_deadline(self) -> float:
        """The loop time at which a lease that begins now ends."""
        return asyncio.get_running_loop().time() + self._lease_seconds

    def start_operations(self, operations: Sequence[PayoutOperation]) -> None:
        """Starts the operations of stored payouts, after the commit."""
        for operation in operations:
            self._start_operation(operation)

    async def plan_creation(self, commands: Sequence[CreatePayoutCommand]) -> PayoutCreationPlan:
        """Decides requested payouts by the current data. Only the hold guarantees the funds."""
        ids = sorted(command.payout.payout_id for command in commands)
        existing_rows = await self._database.load(
            lambda connection: store.find_existing(connection, ids)
        )
        plan = PayoutCreationPlan()
        for command in commands:
            row = existing_rows.get(command.payout.payout_id)
            if row is not None:
                plan.results[row.payout_id] = _replay_or_conflict(command.payout, row)
        new_commands = [
            command for command in commands if command.payout.payout_id not in existing_rows
        ]
        if new_commands:
            await self._plan_new(plan, new_commands)
        return plan

    async def _plan_new(
        self, plan: PayoutCreationPlan, commands: Sequence[CreatePayoutCommand]
    ) -> None:
        """Plans payouts with new ids. Payouts without an amount take what the others leave."""
        missing_keys = sorted(
            {command.wallet_key for command in commands if command.balance is None}
        )
        balances = await self._read_balances(missing_keys) if missing_keys else {}
        owners = await self._resolve_owners(
            sorted({command.payout.seller_account for command in commands})
        )
        keys = sorted({command.wallet_key for command in commands})
        destination_ids = sorted(
            {command.payout.payout_destination_id for command in commands} - {""}
        )
        payout_context = await self._database.load(
            lambda connection: PayoutContext.read(connection, keys, owners, destination_ids)
        )
        allocated_amounts: Counter[tuple[str, str]] = Counter()
        for command in sorted(commands, key=lambda command: command.payout.amount is None):
            balance = command.balance or balances.get(command.wallet_key, WalletBalance())
            if command.payout.amount is None:
                balance = balance.with_hold(allocated_amounts[command.wallet_key])
            allocated_amounts[command.wallet_key] += self._plan_payout(
                plan, command, balance, payout_context, owners
            )

    def _plan_payout(
        self,
        plan: PayoutCreationPlan,
        command: CreatePayoutCommand,
        balance: WalletBalance,
        payout_context: PayoutContext,
        owners: Mapping[str, str],
    ) -> int:
        """Plans a payout; returns the amount that it takes from its wallet."""
        payout = command.payout
        terms = payout_context.terms(command.wallet_key)
        try:
            owner = require_seller_owner(payout.seller_account, payout.owner, owners)
            destination = payout_context.find_destination(payout, owner)
            amount = quote_amount(payout.amount, balance, terms, readiness_of(destination))
            if destination is not None:
                self._check_amount(destination.provider, amount - terms.fee, payout.currency)
        except ApiError as error:
            plan.results[payout.payout_id] = error
            return 0
        if destination is None:
            raise TypeError("quote_amount must reject a payout without a destination")
        new = store.NewPayoutRow(
            payout_id=payout.payout_id,
            caller=payout.caller,
            owner=owner,
            fingerprint=payout.fingerprint().hex(),
            requested_amount=payout.amount,
            requested_destination=payout.payout_destination_id,
            seller_account=payout.seller_account,
            amount=amount,
            fee=terms.fee,
            reserve=terms.reserve,
            currency=payout.currency,
            payout_destination_id=destination.payout_destination_id,
            payout_batch_id=command.payout_batch_id,
            provider=destination.provider,
            traceparent=command.traceparent,
        )
        plan.to_create[payout.payout_id] = (command, new, destination.bank_account_token)
        return amount

    def _check_amount(self, provider: str, net_amount: int, currency: str) -> None:
        """Raises AMOUNT_OUT_OF_RANGE if the provider never pays out the amount."""
        rule = self._reject_amount(provider, net_amount, currency)
        if rule is not None:
            raise ApiError(
                ErrorReason.AMOUNT_OUT_OF_RANGE,
                f"amount without the fee {rule}.",
                field="amount",
            )

    def insert(
        self, connection: Connection, plan: PayoutCreationPlan, lease_deadline: float
    ) -> CreatedPayouts:
        """Stores new payouts in the surrounding transaction.

        `lease_deadline`: the loop time at which the lease ends.
        """
        rows = store.insert(
            connection, [new for _, new, _ in plan.to_create.values()], self._lease_seconds
        )
        created_payouts = CreatedPayouts()
        with record_events(connection, rows.values()) as publish_request:
            for payout_id, row in rows.items():
                command, new, bank_account_token = plan.to_create[payout_id]
                operation = build_operation(
                    new, row, bank_account_token, self._environment, lease_deadline, command.context
                )
                events.add_payout_changed(publish_request, operation.message, new.traceparent)
                created_payouts.operations.append(operation)
                created_payouts.results[payout_id] = CreatePayoutResult(replayed=False)
        concurrent_ids = sorted(plan.to_create.keys() - rows.keys())
        # Another process stored them after the read; the next statement sees them.
        if concurrent_ids:
            for payout_id, stored in store.find_existing(connection, concurrent_ids).items():
                created_payouts.results[payout_id] = _replay_or_conflict(
                    plan.to_create[payout_id][0].payout, stored
                )
        return created_payouts


def _replay_or_conflict(requested: NewPayout, row: store.RequestedPayoutRow) -> CreatePayoutOutcome:
    """The result for an existing id: the payout, or the conflict."""
    if requested.owner not in ("", row.owner):
        return id_taken_error("payout_id")
    if row.fingerprint == requested.fingerprint():
        return CreatePayoutResult(replayed=True)
    stored = NewPayout(
        row.payout_id,
        row.caller,
        row.owner,
        row.seller_account,
        row.requested_amount,
        row.currency,
        row.requested_destination,
    )
    return key_reused_error(first_difference(requested, stored))
