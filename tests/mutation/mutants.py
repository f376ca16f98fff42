"""Mutants: deliberate bugs, applied one at a time; the simulation or the tests must kill each."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

_CORE, _SERVER, _STORAGE = (
    "server/tallystick_core",
    "server/tallystick_server",
    "storage/tallystick_storage",
)


@dataclass(frozen=True)
class Mutant:
    """A change of one place: `old`, which occurs once in the file, becomes `new`. `tests` are run
    first; if there are none, or none kills the mutant, the simulation runs.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str = ""


MUTANTS = (
    # requests to the provider
    Mutant(
        "a retry uses a new key",
        f"{_SERVER}/payment/operations/charge.py",
        ("return ChargeRequest(\n        charge.provider_key,"),
        ('return ChargeRequest(\n        f"{charge.provider_key}-{charge.lease_token}",'),
    ),
    Mutant(
        "a timeout counts as a decline",
        f"{_SERVER}/providers/gateway.py",
        'outcome = Unknown("the provider did not answer in time")',
        "outcome = "
        '__import__("tallystick_core.provider.outcome").provider.outcome.Declined("PROVIDER_DECLINED")',
    ),
    Mutant(
        "a timeout counts as not sent",
        f"{_SERVER}/providers/gateway.py",
        'outcome = Unknown("the provider did not answer in time")',
        'outcome = NotSent("the provider did not answer in time")',
    ),
    Mutant(
        "a server error counts as a decline",
        f"{_SERVER}/providers/sandbox/charges.py",
        "case 400 if reply.code in REJECTION_CODES:\n            return "
        "Declined(FailureReason.PROVIDER_REJECTED, reply.code)",
        "case 400 | 500:\n            return Declined(FailureReason.PROVIDER_REJECTED, reply.code)",
        "tests/providers/test_http_client.py",
    ),
    Mutant(
        "a charge that is not found counts as never sent",
        f"{_SERVER}/providers/sandbox/client.py",
        "    if reply == CONNECTION_REFUSED:",
        "    if reply == CONNECTION_REFUSED or reply.status == 404:",
        "tests/providers/test_http_client.py tests/services/payment/charges",
    ),
    Mutant(
        "a charge is sent again after its key window",
        f"{_SERVER}/payment/operations/charge.py",
        "key_honored=charge.is_key_honored(key_window_seconds, lease_seconds),",
        "key_honored=True,",
        "tests/unit/operations/test_next_action.py::test_a_cancelled_or_expired_charge_is_not_sent",
    ),
    Mutant(
        "an unsent charge is dead-lettered after the key window",
        f"{_SERVER}/operations/operation.py",
        ("or (not self.maybe_sent and self.not_found_count > 0)"),
        "",
        "tests/services/payment/charges/test_retries.py::test_an_unsent_charge_is_sent_after_any_outage",
    ),
    Mutant(
        "maybe_sent is not stored",
        f"{_STORAGE}/operations.py",
        (
            "lease_token = op.lease_token + 1, maybe_sent = op.maybe_sent or op.is_leased,\n"
            "                is_leased = true,"
        ),
        ("lease_token = op.lease_token + 1, \n                is_leased = true,"),
        "tests/services/payment/charges",
    ),
    Mutant(
        "a charge that may have been sent fails for exhausted tries",
        f"{_CORE}/payment/charge.py",
        (
            "return (\n"
            "            NextAction.CANCEL\n"
            "            if maybe_sent or OrderStatus.PENDING in distinct_statuses\n"
            "            else NextAction.GIVE_UP"
        ),
        (
            "return (\n"
            "            NextAction.CANCEL\n"
            "            if  OrderStatus.PENDING in distinct_statuses\n"
            "            else NextAction.GIVE_UP"
        ),
    ),
    Mutant(
        "an expired charge is sent",
        f"{_SERVER}/payment/operations/charge.py",
        "    is_expired = now >= charge.expires_at and ",
        "    is_expired = now >= charge.expires_at + 10**9 and ",
        "tests/services/payment/charges/test_expiry.py",
    ),
    Mutant(
        "an expired charge is sent again if it was sent before",
        f"{_SERVER}/payment/operations/charge.py",
        "    is_expired = now >= charge.expires_at and ",
        "    is_expired = now >= charge.expires_at and not charge.maybe_sent and ",
        "tests/services/payment/charges/test_expiry.py",
    ),
    Mutant(
        "a charge that is not found is only looked up again",
        f"{_SERVER}/operations/reschedule.py",
        "            lookup_only=False,",
        "            lookup_only=operation.lookup_only,",
        "tests/services/payment/charges/test_retries.py::test_a_charge_unknown_to_the_provider_is_sent_again",
    ),
    Mutant(
        "lookups wait for the circuit of sends",
        f"{_SERVER}/operations/worker.py",
        "if has_separate_lookup and operation.maybe_sent and isinstance(outcome, NotCalled):",
        "if False:",
        "tests/services/payment/charges/test_circuit_breaker.py::test_lookups_continue_while_the_circuit_for_sends_is_open",
    ),
    Mutant(
        'the first "not found" is proof',
        f"{_CORE}/provider/outcome.py",
        (
            "return (\n"
            "            seconds_since_sent is not None\n"
            "            and seconds_since_sent >= self.min_seconds_since_sent\n"
            "            and responses >= self.min_responses"
        ),
        ("return (\n            seconds_since_sent is not None\n            "),
        "tests/unit/operations/test_next_action.py::test_not_found_is_proof_only_by_the_providers_rule",
    ),
    Mutant(
        "the pending reason never changes",
        f"{_CORE}/payment/charge_update.py",
        "if charge.pending is not None and not "
        "_is_news(charge.pending, followed, charge.has_page):",
        "if charge.pending is not None:",
        "tests/services/payment/charges/test_buyer_actions.py::test_a_pending_order_shows_its_current_pending_reason",
    ),
    Mutant(
        "a cancellation during a lookup waits for the next poll",
        f"{_STORAGE}/operations.py",
        "case when op.has_changed and r.delay_seconds is not null then",
        "case when false then",
        "tests/services/payment/charges/test_cancellation.py::test_a_cancellation_during_a_lookup_takes_effect_immediately",
    ),
    Mutant(
        "a charge that expires during dead-lettering waits for an operator",
        f"{_SERVER}/operations/reschedule.py",
        "expire_after_seconds=max(remaining_seconds, 0.0) if remaining_seconds < inf else None",
        "expire_after_seconds=remaining_seconds if 0 < remaining_seconds < inf else None",
        "tests/services/payment/charges/test_expiry.py::test_a_charge_that_expires_while_it_is_dead_lettered_fails",
    ),
    Mutant(
        "a provider's retry time is ignored",
        f"{_SERVER}/operations/reschedule.py",
        "max(_cap_delay(delay_seconds, operation.end_deadline - now), failed_step.retry_after)",
        "_cap_delay(delay_seconds, operation.end_deadline - now)",
        "tests/unit/operations/test_next_action.py",
    ),
    Mutant(
        "exhausted retries start again without end",
        f"{_SERVER}/operations/retry_policy.py",
        ("(\n            self.max_tries is not None and tries >= self.max_tries\n        )"),
        "False",
    ),
    Mutant(
        "sends and lookups share a circuit",
        f"{_SERVER}/providers/gateway.py",
        "breaker = self._breakers[operation.provider, circuit]",
        "breaker = self._breakers[operation.provider, Circuit.SENDS]",
        "tests/unit/providers/test_circuit_breaker.py",
    ),
    Mutant(
        "a cancelled probe keeps the circuit open",
        f"{_SERVER}/providers/gateway.py",
        "                    breaker.record_failure(loop.time(), operation.subject_id)\n        "
        "            raise\n",
        "                    raise\n",
        "tests/unit/providers/test_circuit_breaker.py",
    ),
    Mutant(
        "a new payment is never the probe",
        f"{_SERVER}/payment/admission.py",
        "return ChargeCapacity(max(self._max_queued_charges - queued_count, 0), allows_probe)",
        "return ChargeCapacity(max(self._max_queued_charges - queued_count, 0), allows_probe and "
        "not queued_count)",
        "tests/services/payment/charges/test_circuit_breaker.py::test_a_new_payment_is_the_probe_of_an_open_circuit",
    ),
    # handling of the provider's outcomes
    Mutant(
        "a charge of another amount is a success",
        f"{_CORE}/payment/charge.py",
        "if isinstance(outcome, Succeeded) and (outcome.amount, outcome.currency) != (amount, "
        "currency):",
        "if isinstance(outcome, Succeeded) and outcome.currency != currency:",
    ),
    Mutant(
        "unapplied charges are not recorded",
        f"{_SERVER}/payment/record_outcome.py",
        "        record_unapplied(connection, money)\n",
        "",
        "tests/services/payment/charges/test_provider_updates.py::test_a_decline_then_a_success_is_unapplied_money",
    ),
    Mutant(
        "an order that the risk check rejected belongs to its charge",
        f"{_STORAGE}/payment/charges.py",
        "(o.status <> 'FAILED' or o.attempt_count > 0)",
        "true",
        "tests/services/payment/charges/test_unapplied_charges.py::test_a_duplicate_charge_is_unapplied_despite_a_rejected_sibling",
    ),
    Mutant(
        "orders follow the lease holder's outcome instead of the recorded one",
        f"{_SERVER}/payment/record_outcome.py",
        "(stored and outcome_from_attempt(stored)) or charge.recorded_outcome,",
        "charge.recorded_outcome,",
        "tests/services/payment/charges/test_outcomes.py::test_orders_follow_the_first_recorded_outcome",
    ),
    # updates from any source
    Mutant(
        "an outcome that is applied twice counts twice",
        f"{_CORE}/payment/charge_update.py",
        "if outcome.reference in charge.unapplied or _belongs_to_orders(charge, outcome):",
        "if _belongs_to_orders(charge, outcome):",
        "tests/unit/payment/test_charge_update.py",
    ),
    Mutant(
        "a late outcome is dropped",
        f"{_CORE}/payment/charge_update.py",
        "    cause = _unapplied_cause(charge, outcome)\n",
        "    if charge.status in TERMINAL_STATUSES:\n        return effect\n"
        "    cause = _unapplied_cause(charge, outcome)\n",
        "tests/unit/payment/test_charge_update.py",
    ),
    Mutant(
        "an outcome is applied to another kind of operation",
        f"{_SERVER}/operations/worker.py",
        "self.kinds[kind].find(connection, operation_id, now)",
        "next(iter(self.kinds.values())).find(connection, operation_id, now)",
        "tests/services/payout/test_provider_updates.py::test_an_update_belongs_to_one_kind",
    ),
    Mutant(
        "an outcome is dropped if its charge has changed since it was loaded",
        f"{_SERVER}/payment/record_outcome.py",
        "        if missed:",
        "        if False:",
        "tests/services/payment/charges/test_provider_updates.py::test_an_outcome_counts_although_its_charge_has_changed_since_it_was_loaded",
    ),
    Mutant(
        "a charge without a provider slot counts as maybe sent",
        f"{_SERVER}/operations/reschedule.py",
        (
            "failed_step.retry_reason not in (\n"
            "        RetryReason.NOT_SENT,\n"
            "        *NOT_CALLED_REASONS,\n"
            "    )"
        ),
        "failed_step.retry_reason is not RetryReason.NOT_SENT",
        "tests/services/payment/charges/test_provider_slots.py::test_a_charge_without_a_provider_slot_was_never_sent",
    ),
    Mutant(
        "ids of unapplied charges may look like card numbers",
        f"{_CORE}/fingerprint.py",
        ".hex()[:32].translate(_HEX_TO_LETTERS)",
        ".hex()[:32]",
        "tests/unit/payment/test_payment_rules.py",
    ),
    Mutant(
        "unapplied charges are posted with debit and credit exchanged",
        f"{_CORE}/ledger/posting_rules.py",
        (
            'JournalLine(f"psp/{provider}/clearing", currency, -amount),\n'
            '        JournalLine(f"unapplied/{provider}", currency, amount)'
        ),
        'JournalLine(f"psp/{provider}/clearing", currency, amount), '
        'JournalLine(f"unapplied/{provider}", currency, - amount)',
    ),
    Mutant(
        "a late outcome leaves its dead letter open",
        f"{_SERVER}/operations/dead_letters.py",
        (
            "    if rows:\n"
            "        operation_store.requeue(connection, [key_of(row) for row in rows])\n"
        ),
        "",
        "tests/services/payment/charges/test_dead_letters.py::test_closing_asks_the_provider_first",
    ),
    Mutant(
        "of two outcomes in one batch the first is recorded",
        f"{_STORAGE}/operations.py",
        "or previous.outcome not in _FINAL_OUTCOMES",
        "or False",
        "tests/services/payment/charges/test_outcomes.py::test_of_two_outcomes_in_one_batch_the_conclusive_one_counts",
    ),
    Mutant(
        "a fee in the batch of its success is dropped",
        f"{_STORAGE}/operations.py",
        "or previous == _without_fee(result)",
        "or False",
        "tests/services/payment/charges/test_provider_fees.py::test_a_fee_reported_in_the_batch_of_its_success_is_stored",
    ),
    # leases and workers
    Mutant(
        "the lease token is not checked",
        f"{_SERVER}/operations/reschedule.py",
        "if open_tokens.get(step.operation.key) == step.operation.lease_token",
        "if step.operation.key in open_tokens",
        "tests/services/payment/charges/test_outcomes.py::test_a_process_that_lost_its_lease_fails_nothing",
    ),
    Mutant(
        "an outcome that cannot be applied is retried without limit",
        f"{_SERVER}/operations/failed_step.py",
        "return self.action in (NextAction.BOOK, NextAction.APPLY_RECORDED)",
        "return self.action is NextAction.BOOK",
        "tests/services/payment/charges/test_outcomes.py::test_an_outcome_that_cannot_be_applied_becomes_a_dead_letter",
    ),
    Mutant(
        "an outcome recorded without the lease waits for the next attempt",
        f"{_SERVER}/payment/record_outcome.py",
        "[charge.charge_id for charge in not_held if transitioned.changed(charge)]",
        "[]",
        "tests/services/payment/charges/test_outcomes.py::test_an_outcome_recorded_without_the_lease_makes_its_charge_due",
    ),
    Mutant(
        "a process that lost its lease reschedules",
        f"{_STORAGE}/operations.py",
        (
            "join operation op on op.kind = r.kind and op.operation_id = r.operation_id\n"
            "            and op.lease_token = r.lease_token\n"
            "            order by"
        ),
        (
            "join operation op on op.kind = r.kind and op.operation_id = r.operation_id\n"
            "            order by"
        ),
        "tests/services/payment/charges/test_outcomes.py::test_a_process_that_lost_its_lease_does_not_reschedule",
    ),
    Mutant(
        "a scan claims operations that another process leases",
        f"{_STORAGE}/operations.py",
        (
            "select kind, operation_id, is_leased from operation where provider = :provider\n"
            "            and ready_time <= (select clock())"
        ),
        (
            "select kind, operation_id, is_leased from operation where provider = :provider\n"
            "            and next_try_time <= (select clock())"
        ),
        "tests/services/payment/charges",
    ),
    Mutant(
        "a scan claims no operations of dead processes",
        f"{_STORAGE}/operations.py",
        "ready_time <= (select clock())\n        order by ready_time",
        "ready_time <= (select clock()) and not is_leased\n        order by ready_time",
    ),
    # COMMIT
    Mutant(
        "a lost COMMIT counts as committed",
        f"{_STORAGE}/database.py",
        "        return False\n\n\ndef _begin",
        "        return True\n\n\ndef _begin",
    ),
    Mutant(
        "a lost COMMIT counts as rolled back",
        f"{_STORAGE}/database.py",
        "elif self._is_committed(connection, self._marker_id):",
        "elif False:",
        "tests/storage/test_database.py",
    ),
    Mutant(
        "a serialization failure is not retried",
        f"{_STORAGE}/database.py",
        '_RETRYABLE_STATES = ("40", "53",',
        '_RETRYABLE_STATES = ("53",',
    ),
    # wallet and ledger
    Mutant(
        "the wallet is not credited",
        f"{_SERVER}/payment/booking.py",
        "self._call_for_all(orders, self._credit), ",
        "self._call_for_all([], self._credit), ",
        "tests/services/payment/test_create_payment.py",
    ),
    Mutant(
        "the flags are set before the ledger is posted",
        f"{_SERVER}/payment/booking.py",
        (
            "        credit_rejections, post_rejections = await asyncio.gather(\n"
            "            self._call_for_all(orders, self._credit), self._call_for_all(orders, "
            "self._post)\n"
            "        )\n"
            "        rejections = post_rejections | credit_rejections\n"
        ),
        (
            "        rejections = await self._call_for_all(orders, self._credit)\n"
            "        asyncio.ensure_future(self._call_for_all(orders, self._post))\n"
        ),
    ),
    Mutant(
        "each try of a credit has its own source id",
        f"{_SERVER}/payment/booking.py",
        'source_id=f"PAY_IN/{order.payment_order_id}",',
        'source_id=f"PAY_IN/{order.payment_order_id}-{charge.lease_token}",',
    ),
    Mutant(
        "each try of a posting has its own source id",
        f"{_SERVER}/payment/booking.py",
        "Kind.PAY_IN,\n                order.payment_order_id,",
        'Kind.PAY_IN, f"{order.payment_order_id}-{charge.lease_token}",',
    ),
    Mutant(
        "the wallet repeats a change",
        f"{_SERVER}/wallet/apply_instructions.py",
        "if entry is not None:",
        "if entry is not None and False:",
    ),
    Mutant(
        "the fee is credited to the seller too",
        f"{_SERVER}/payment/booking.py",
        "amount=format_amount(order.amount - order.platform_fee, charge.currency),",
        "amount=format_amount(order.amount, charge.currency),",
    ),
    Mutant(
        "a rate is rounded down",
        f"{_CORE}/money.py",
        "        return quotient + 1\n",
        "        return quotient\n",
    ),
    Mutant(
        "the hash chain starts again with each batch",
        f"{_SERVER}/ledger/post.py",
        "            outcomes = _chain_all(head, now,",
        '            outcomes = _chain_all(Head(head.sequence, b"\\0" * 32, head.post_time), now,',
    ),
    Mutant(
        "a hold is captured twice",
        f"{_CORE}/wallet/balances.py",
        "state = HOLD_TRANSITIONS.get((hold.state, instruction.kind))",
        "state = HOLD_TRANSITIONS.get((HoldState.OPEN, instruction.kind))",
        "tests/services/wallet/test_wallet_service.py tests/unit/wallet/test_wallet_rules.py",
    ),
    Mutant(
        "a debit exceeds the available amount",
        f"{_CORE}/wallet/balances.py",
        "if wallet.balances.available < amount:",
        "if wallet.balances.balance < amount - 10**9:",
        "tests/services/wallet/test_wallet_service.py tests/unit/wallet/test_wallet_rules.py",
    ),
    Mutant(
        "a pending sale is never released by its delay",
        f"{_SERVER}/wallet/scheduler.py",
        "rejections += await self._apply_due(EntryKind.RELEASE, store.list_releasable)",
        "rejections += []",
        "tests/services/wallet/test_wallet_service.py::test_a_sale_is_released_after_its_delay",
    ),
    Mutant(
        "a recorded delivery is not released later",
        f"{_SERVER}/payment/payments.py",
        "                self._credit_releases,\n",
        "",
        "tests/services/payment/test_create_payment.py::test_a_confirmed_delivery_makes_the_sellers_money_available",
    ),
    Mutant(
        "an available credit is released again",
        f"{_CORE}/wallet/balances.py",
        "return instruction.kind is EntryKind.RELEASE and credit is not None and not "
        "credit.is_pending",
        "return False",
        "tests/services/wallet/test_wallet_service.py::test_a_sale_is_released_by_its_source_id_once",
    ),
    Mutant(
        "a release includes other changes with the same source id",
        f"{_SERVER}/wallet/apply_instructions.py",
        "    if instruction.kind in _RESOLVED_KINDS:\n",
        "    if instruction.source_id in resolved_wallets:\n",
        "tests/services/wallet/test_wallet_service.py::test_a_release_and_a_debit_with_one_source_id_are_separate",
    ),
    Mutant(
        "a dead letter is closed without an answer of the provider",
        f"{_SERVER}/operations/dead_letter_commands.py",
        "        if isinstance(outcome, NotCalled):\n            retry_after",
        "        if isinstance(outcome, NotCalled) and outcome.retry_after:\n            "
        "retry_after",
        "tests/services/payment/charges/test_provider_slots.py::test_nothing_is_closed_without_a_provider_slot",
    ),
    # payouts
    Mutant(
        "each send of a payout has its own key",
        f"{_SERVER}/payout/operations/payout.py",
        ("return PayoutRequest(\n        payout.provider_key,"),
        ('return PayoutRequest(\n        f"{payout.provider_key}-{payout.lease_token}",'),
    ),
    Mutant(
        "an unsent payout is looked up without end after its key window",
        f"{_SERVER}/payout/operation.py",
        "            not_found_count=row.not_found_count,\n            seller_account",
        "            not_found_count=0,\n            seller_account",
        "tests/services/payout/test_payouts.py::test_an_unsent_payout_is_sent_after_any_outage",
    ),
    Mutant(
        "a returned payout is not credited",
        f"{_SERVER}/payout/booking.py",
        "[entry for entry in other_movements if entry.movement.seller_change > 0]",
        "[]",
    ),
    Mutant(
        "a payout paid after failure is not debited",
        f"{_CORE}/payout/reported_transfer.py",
        "        return OutcomeEffect((PayoutTrigger.UNMATCHED_TRANSFER,), (transfer,))\n    if "
        "transfer.match",
        "        return OutcomeEffect()\n    if transfer.match",
    ),
    Mutant(
        "the creator of a payout may approve it",
        f"{_CORE}/approval.py",
        "    if approver == creator:",
        "    if approver == creator and not creator:",
        "tests/services/payout/test_approvals.py::test_large_payouts_require_a_second_approver",
    ),
    Mutant(
        "a hold that was released first can still be placed",
        f"{_SERVER}/wallet/apply_instructions.py",
        "        if missing_ids:\n",
        "        if missing_ids and not missing_ids:\n",
        "tests/services/wallet/test_wallet_service.py::test_a_hold_that_was_released_first_is_never_placed",
    ),
    Mutant(
        "a payout is sent again after its key window",
        f"{_SERVER}/payout/operations/payout.py",
        (
            "and not payout.lookup_only\n"
            "        and payout.is_key_honored(key_window_seconds, lease_seconds)"
        ),
        ("and not payout.lookup_only\n        "),
        "tests/unit/operations/test_next_action.py::test_a_payout_is_sent_only_with_an_honored_key",
    ),
    Mutant(
        "a closed payout is booked only by the process that closed it",
        f"{_STORAGE}/operations.py",
        (
            "update operation set next_try_time = clock(),\n"
            "        lease_until = clock() + cast(:lease as interval),\n"
            "        lease_token = lease_token + 1, is_leased = true, retry_counts = '{}'\n"
            "    where kind = :kind and operation_id"
        ),
        (
            "update operation set lease_until = clock() + cast(:lease as interval), lease_token = "
            "lease_token + 1\n"
            "    where kind = :kind and operation_id"
        ),
        "tests/services/payout/test_dead_letters.py::test_a_closed_payout_is_booked_by_any_process",
    ),
    Mutant(
        "an open batch delays all others",
        f"{_SERVER}/payout/batch_generator.py",
        'self._last_open_batch_id = open_[-1].payout_batch_id if len(open_) == MAX_BATCHES else ""',
        'self._last_open_batch_id = ""',
        "tests/services/payout/test_batches.py::test_open_batches_do_not_delay_others",
    ),
    Mutant(
        "a payout of an ended destination waits for approval",
        f"{_SERVER}/payout/place_hold.py",
        "if snapshot.state in HELD_UNSENT_STATES and destination_state in "
        "TERMINAL_DESTINATION_STATES:",
        "if snapshot.state is PayoutState.READY and destination_state in "
        "TERMINAL_DESTINATION_STATES:",
        "tests/unit/operations/test_next_action.py::test_a_payout_of_an_ended_destination_is_cancelled",
    ),
    # ids and callers
    Mutant(
        "a request with another amount counts as a repeat",
        f"{_CORE}/payment/checkout.py",
        (
            "return (\n"
            "            self.payment_order_id,\n"
            "            self.buyer_account,\n"
            "            self.seller_account,\n"
            "            self.amount,\n"
            "            self.currency,\n"
            "            fee,\n"
            "        )"
        ),
        (
            "return (\n"
            "            self.payment_order_id,\n"
            "            self.buyer_account,\n"
            "            self.seller_account,\n"
            "            self.currency,\n"
            "            fee,\n"
            "        )"
        ),
    ),
    Mutant(
        "a request of another caller counts as a repeat",
        f"{_SERVER}/payment/existing_payments.py",
        '    if row.owner != request.owner:\n        return id_taken_error("checkout_id',
        '    if not row.owner:\n        return id_taken_error("checkout_id',
    ),
    Mutant(
        "every caller sees every payment",
        f"{_SERVER}/rpc/call.py",
        "if resource is None or not self.caller.can_see(owned_resource.owner):",
        "if resource is None or not owned_resource:",
    ),
    Mutant(
        "siblings of a rejected order are charged",
        f"{_CORE}/payment/checkout.py",
        "if checkout.partial_failure_policy is not PartialFailurePolicy.ALL_OR_NOTHING or not "
        "rejections:",
        "if checkout.partial_failure_policy is not PartialFailurePolicy.KEEP_SUCCEEDED or not "
        "rejections:",
    ),
    Mutant(
        "an order is charged before it is stored",
        f"{_SERVER}/payment/create_payment.py",
        "new_payments = [payment for payment in payments if payment.checkout_id in stored_ids]",
        (
            "new_payments = [payment for payment in payments if payment.checkout_id in "
            "stored_ids]\n"
            "        [self._start_operation(charge) for payment in new_payments for charge in "
            "payment.charges]"
        ),
    ),
    # alerts
    Mutant(
        "an acknowledged charge keeps its alert",
        f"{_STORAGE}/payment/alerts.py",
        (
            "as resource_name, cause as detail\n        from unapplied_charge where "
            "acknowledged_by = ''"
        ),
        ("as resource_name, cause as detail\n        from unapplied_charge where true"),
    ),
    # events
    Mutant(
        "the relay deletes events before it publishes them",
        f"{_SERVER}/outbox/relay.py",
        "        result, events_to_store = await self._publish_batch(batch)\n",
        "        await self._database.transact(lambda connection: batch.delete(connection))\n"
        "        result, events_to_store = await self._publish_batch(batch)\n",
    ),
    Mutant(
        "later events of an aggregate overtake a rejected one",
        f"{_SERVER}/outbox/relay.py",
        (
            "if event.aggregate_id not in blocked_aggregates\n"
            "                and event.aggregate_id not in result.rejection_details"
        ),
        ("if event.aggregate_id not in blocked_aggregates\n                "),
        "tests/services/event/test_relay.py::test_a_rejected_event_delays_only_its_aggregate",
    ),
    Mutant(
        "later events overtake those that wait",
        f"{_SERVER}/outbox/relay.py",
        (
            "merge_batches(rows),\n"
            "            delete,\n"
            "            has_more=bool(rows) and rows[-1].has_later,\n"
            "            rejected_aggregates=rejected_aggregates,\n"
            "        )"
        ),
        (
            "merge_batches(rows),\n"
            "            delete,\n"
            "            has_more=bool(rows) and rows[-1].has_later,\n"
            "        )"
        ),
        "tests/services/event/test_relay.py::test_events_wait_for_a_rejected_one_across_a_restart",
    ),
    Mutant(
        "a rejected event is dropped",
        f"{_SERVER}/outbox/relay.py",
        "            if events_to_store:\n                "
        "outbox.store_rejected_events(connection, result.rejection_details, events_to_store)\n",
        "",
        "tests/services/event/test_relay.py::test_a_rejected_event_delays_only_its_aggregate",
    ),
    Mutant(
        "the relay sends the ledger's events repeatedly if many are rejected",
        f"{_SERVER}/ledger/events.py",
        "if position.has_rejected_events:",
        "if position.has_rejected_events and not transactions:",
        "tests/services/event/test_relay.py::test_many_rejected_transactions_do_not_block_others",
    ),
    Mutant(
        "a rejected event is tried once",
        f"{_STORAGE}/outbox.py",
        (
            "select aggregate_id, next_try_time from rejected_aggregate\n"
            "        where next_try_time <= (select clock())"
        ),
        (
            "select aggregate_id, next_try_time from rejected_aggregate\n"
            "        where rejection_count = 0 and next_try_time <= (select clock())"
        ),
        "tests/services/event/test_relay.py::test_a_rejected_event_delays_only_its_aggregate",
    ),
    Mutant(
        "the oldest event of the ledger is searched among those of its alerts",
        f"{_STORAGE}/ledger/postings.py",
        "return event_alert_queries(max_event_delay_seconds, _OLDEST_EVENT)",
        "return event_alert_queries(max_event_delay_seconds)",
        "tests/services/event/test_relay.py::test_a_service_whose_calls_alone_are_rejected_raises_an_alert",
    ),
    Mutant(
        "the events of the ledger's alerts are not published",
        f"{_SERVER}/ledger/wiring.py",
        "FirstNonEmptySource(OutboxSource(database), LedgerEvents(database, handlers.recent))",
        "FirstNonEmptySource(LedgerEvents(database, handlers.recent))",
        "tests/services/event/test_relay.py::test_a_rejected_event_delays_only_its_aggregate",
    ),
    Mutant(
        "a repeated event gets a second number",
        f"{_STORAGE}/event/events.py",
        (
            "where e.aggregate_id = r.aggregate_id\n"
            "                and e.aggregate_version = r.aggregate_version offset 0) as "
            "is_published"
        ),
        (
            "where e.aggregate_id = r.aggregate_id\n"
            "                and e.aggregate_version = r.aggregate_version and false offset 0) as "
            "is_published"
        ),
    ),
    Mutant(
        "an ended destination stays a dead letter",
        f"{_SERVER}/payout/destination_verification.py",
        (
            "resolve(\n"
            "        connection,\n"
            "        {\n"
            "            OperationKey(KindName.DESTINATION_VERIFICATION, id_): (\n"
            "                actor or row.caller,\n"
            "                row.traceparent,\n"
            "            )\n"
            "            for id_, row in ended_rows.items()\n"
            "        },\n"
            "    )"
        ),
        "",
        "tests/services/payout/test_destinations.py::test_a_disabled_destination_ends_its_dead_letter",
    ),
    # ownership of sellers
    Mutant(
        "only some of a payment's new sellers are claimed",
        f"{_SERVER}/wallet/seller_ownership.py",
        "    if claimed_count == len(rows):",
        "    if claimed_count:",
        "tests/services/wallet/test_seller_ownership.py::test_of_two_claims_that_share_a_seller_one_succeeds",
    ),
    Mutant(
        "another owner's seller can be paid",
        f"{_SERVER}/payout/eligibility.py",
        'if not seller_owner or owner not in ("", seller_owner):',
        "if not seller_owner:",
    ),
    Mutant(
        "an order may name another owner's seller",
        f"{_SERVER}/payment/seller_owners.py",
        (
            "foreign_sellers = {\n"
            "            seller for seller in uncertain_sellers if owners.get(seller, owner) != "
            "owner\n"
            "        }"
        ),
        "foreign_sellers : set[str] = set()",
    ),
    Mutant(
        "a new destination has no cooldown",
        f"{_STORAGE}/payout/destinations.py",
        (
            "order by (d.state = 'VERIFIED' and not d.awaits_approval\n"
            "            and d.usable_time <= (select clock())) desc, d.create_time desc,"
        ),
        "order by  d.create_time desc,",
        "tests/services/wallet/test_payout_terms.py",
    ),
    # batches
    Mutant(
        "an invalid item fails its whole batch",
        f"{_SERVER}/operations/batcher.py",
        "            if len(items) == 1:\n                return [error]",
        "            if items:\n                return [error] * len(items)",
        "tests/unit/operations/test_batcher.py",
    ),
    Mutant(
        "an item that another service rejects fails its whole batch",
        f"{_SERVER}/operations/batcher.py",
        "if isinstance(error, ServiceCallRejected) and error.rejects_caller:\n                "
        "raise",
        "if isinstance(error, ServiceCallRejected):\n                raise",
        "tests/services/operations/test_dead_letters.py",
    ),
    Mutant(
        "booking retries are limited",
        f"{_SERVER}/operations/retry_policy.py",
        "return replace(policy, max_tries=None) if retry_reason in UNLIMITED_REASONS else policy",
        "return policy",
        "tests/services/operations/test_dead_letters.py",
    ),
    Mutant(
        "in a batch every repeat equals the first",
        f"{_SERVER}/operations/batcher.py",
        "            if fingerprint == keys[first][1]:\n",
        "            if fingerprint:\n",
        "tests/unit/operations/test_batcher.py",
    ),
    Mutant(
        "a rejected item delays its whole batch",
        f"{_SERVER}/operations/batcher.py",
        "            if len(items) == 1:\n                return [error]\n",
        "            return [error] * len(items)\n",
        "tests/unit/operations/test_batcher.py",
    ),
    # overload
    Mutant(
        "items are counted after the message is parsed",
        f"{_SERVER}/rpc/server.py",
        "    check_items(raw, method.request_descriptor)\n",
        "",
        "tests/rpc/test_validation.py::test_items_are_counted_before_the_message_is_parsed",
    ),
    Mutant(
        "waiting calls keep their slots",
        f"{_SERVER}/rpc/call.py",
        "        active.release(owner)\n",
        "        active.release(owner)\n        active.force_acquire(owner)\n",
        "tests/rpc/test_server.py::test_waiting_calls_release_their_slots",
    ),
    Mutant(
        "busy streams starve the event loop",
        f"{_SERVER}/rpc/server.py",
        "FairSemaphore(_MAX_STREAM_WRITES)",
        "FairSemaphore(limits.streams)",
        "tests/rpc/test_server.py::test_busy_streams_do_not_starve_the_event_loop",
    ),
    Mutant(
        "the share of slots is by caller instead of by owner",
        f"{_SERVER}/rpc/server.py",
        "owner, slots = call.caller.owner, method.slots.for_caller(call.caller)",
        "owner, slots = call.caller.name, method.slots.for_caller(call.caller)",
        "tests/rpc/test_owner_fairness.py::test_one_owner_never_has_all_slots_or_bytes",
    ),
    Mutant(
        "a closed dead letter is continued by its call, which may be cancelled",
        f"{_SERVER}/operations/dead_letter_commands.py",
        "            await self._worker.run_detached(commit_close)\n",
        "            await commit_close()\n",
        "tests/services/payout/test_interrupted_calls.py::test_a_cancelled_call_leaves_no_orphaned_lease",
    ),
    Mutant(
        "a decision about a payout is continued by its call, which may be cancelled",
        f"{_SERVER}/payout/approvals.py",
        "return await self._run_detached(commit_and_start, is_team_call=decision.by_team)",
        "return await commit_and_start()",
        "tests/services/payout/test_interrupted_calls.py::test_a_cancelled_call_leaves_no_orphaned_lease",
    ),
    Mutant(
        "an idle stream does not end at shutdown",
        f"{_SERVER}/rpc/stream_sender.py",
        ("await asyncio.wait(\n                (future, closing_task),\n                timeout"),
        ("await asyncio.wait(\n                (future, ),\n                timeout"),
        "tests/rpc/test_server.py::test_a_drain_ends_idle_streams",
    ),
    Mutant(
        "calls leave no time for work in progress at shutdown",
        f"{_SERVER}/app/serve.py",
        ("min(_MIN_WORKER_DRAIN_SECONDS, drain_timeout_seconds),\n            0.1,\n        )"),
        ("\n            0.1,\n        )"),
        "tests/app/test_shutdown.py::test_work_in_progress_has_its_own_time_at_shutdown",
    ),
    Mutant(
        "payments of abandoned calls are stored",
        f"{_SERVER}/payment/payments.py",
        "            drop_abandoned=True,\n            max_queued=MAX_QUEUED_CALLS,\n        )\n  "
        "      self._delivery_batcher",
        "            max_queued=MAX_QUEUED_CALLS,\n        )\n        self._delivery_batcher",
        "tests/rpc/test_overload.py::test_abandoned_calls_are_not_started",
    ),
    Mutant(
        "a charge that expires while it waits for a slot is sent",
        f"{_SERVER}/providers/gateway.py",
        "if action is NextAction.SEND and loop.time() >= operation.expires_at:",
        "if action is NextAction.SEND and loop.time() >= operation.expires_at + 3600:",
        "tests/services/payment/charges/test_provider_slots.py::test_a_charge_that_expires_while_it_waits_for_a_slot_is_not_sent",
    ),
    Mutant(
        "streams that catch up share one queue",
        f"{_SERVER}/rpc/streaming.py",
        "self._read_semaphore.permit(stream_filter.owner)",
        'self._read_semaphore.permit("")',
        "tests/rpc/test_owner_fairness.py::test_streams_that_catch_up_do_not_delay_other_owners",
    ),
    Mutant(
        "an event with a reused id is dropped",
        f"{_STORAGE}/event/events.py",
        "        if row.conflicting_body is not None:\n",
        "        if row.conflicting_body is not None and not row.aggregate_id:\n",
        "tests/services/event/test_event_service.py::test_an_event_with_a_reused_id_is_rejected",
    ),
    Mutant(
        "a call that always fails is the probe before others",
        f"{_SERVER}/providers/circuit_breaker.py",
        (
            "(\n"
            "            self._settings.reset_timeout_seconds if call_id in self._failed_call_ids "
            "else 0\n"
            "        )"
        ),
        "0",
        "tests/unit/providers/test_circuit_breaker.py::test_calls_that_failed_are_not_the_probe_before_others",
    ),
    # edits that bypass the service
    Mutant(
        "a row without a seal counts as valid",
        f"{_STORAGE}/verify/shared.py",
        "t.seal is distinct from sha256(",
        "t.seal <> sha256(",
        "tests/app/test_verify.py::test_a_corrupted_row_is_named",
    ),
    Mutant(
        "any resolve_by_time is accepted",
        f"{_STORAGE}/verify/payment.py",
        ("when o.resolve_by_time is distinct from l.resolve_by_time\n                then"),
        ("when (o.resolve_by_time is null) <> (l.resolve_by_time is null)\n                then"),
        "tests/app/test_verify.py::test_a_corrupted_row_is_named",
    ),
    Mutant(
        "any edit of a row renews its seal",
        f"{_STORAGE}/migrations/seals.py",
        ("for each row\n    when (session_user = '{service}') execute function seal();"),
        ("for each row\n     execute function seal();"),
        "tests/storage/test_constraints.py::test_changes_by_the_administrator_keep_the_seal",
    ),
    # the fallback of a charge
    Mutant(
        "a fallback follows an unknown outcome",
        f"{_CORE}/payment/routing.py",
        "return retry_reason is RetryReason.NOT_SENT or (",
        "return retry_reason in (RetryReason.NOT_SENT, RetryReason.NO_ANSWER) or (",
        "tests/unit/payment/test_routing.py",
    ),
    Mutant(
        "a fallback moves a charge that may have been sent",
        f"{_CORE}/payment/routing.py",
        "if maybe_sent or action is not NextAction.SEND:",
        "if action is not NextAction.SEND:",
        "tests/unit/payment/test_routing.py",
    ),
    Mutant(
        "a fallback ignores what another holder may have sent",
        f"{_STORAGE}/payment/fallbacks.py",
        "where not op.maybe_sent and not op.has_changed",
        "where not op.has_changed",
        "tests/services/payment/charges/test_fallback_fences.py::test_the_fallback_is_fenced",
    ),
    Mutant(
        "a fallback begins under a lease that was lost",
        f"{_STORAGE}/payment/fallbacks.py",
        "        and op.lease_token = r.lease_token\n    where",
        "    where",
        "tests/services/payment/charges/test_fallback_fences.py::test_the_fallback_is_fenced",
    ),
    Mutant(
        "a fallback replaces an attempt with an unknown outcome",
        f"{_STORAGE}/payment/fallbacks.py",
        "where a.end_time is null and a.outcome in ('', 'NOT_SENT')",
        "where a.end_time is null",
        "tests/services/payment/charges/test_fallback_fences.py::test_the_fallback_is_fenced",
    ),
    Mutant(
        "the money of a replaced attempt pays the order",
        f"{_SERVER}/payment/record_outcome.py",
        "is_replaced=stored is not None and stored.outcome == PaymentTrigger.NOT_SENT,",
        "is_replaced=False,",
        "tests/services/payment/charges/test_fallback_fences.py",
    ),
    # webhook events
    Mutant(
        "the dead letter of an event with a known success cannot be closed",
        f"{_SERVER}/operations/webhook_events.py",
        "return event and replace(event, recorded_outcome=None)",
        "return event",
        "tests/services/payment/charges/test_webhook_events.py::test_closing_the_dead_letter_of_an_event_looks_a_known_success_up",
    ),
    Mutant(
        "webhook events take the operations in flight of payments",
        f"{_SERVER}/operations/worker.py",
        "return self.in_flight_count < self._max_background",
        "return self.in_flight_count < self._max_in_flight",
        "tests/services/payment/charges/test_webhook_events.py::test_events_leave_half_of_the_operations_in_flight_for_payments",
    ),
    Mutant(
        "a webhook event about an unknown charge counts as an answer of its provider",
        f"{_SERVER}/operations/webhook_events.py",
        'return "" if self.subject is None else self.subject.operation_id',
        "return self.operation_id if self.subject is None else self.subject.operation_id",
        "tests/services/payment/charges/test_webhook_events.py::test_an_event_about_an_unknown_charge_does_not_touch_the_circuit",
    ),
    Mutant(
        "the answer to the lookup for a webhook event is not applied",
        f"{_SERVER}/operations/webhook_events.py",
        "                await self._subjects.record(event.subject, outcome.outcome)\n",
        "                pass\n",
        "tests/services/payment/charges/test_webhook_events.py",
    ),
    Mutant(
        "a webhook event is applied to a charge that its object does not echo",
        f"{_SERVER}/operations/webhook_events.py",
        "case _ if not is_outcome_of(outcome, subject.operation_id, subject.provider_key):",
        "case _ if False:",
        "tests/services/payment/charges/test_webhook_events.py",
    ),
    Mutant(
        "a webhook event shares a lookup that began before it came",
        f"{_SERVER}/operations/coalescer.py",
        "waiting = self._waiting.get(key)\n",
        "waiting = self._waiting.get(key) or self._running.get(key)\n",
        "tests/unit/operations/test_coalescer.py",
    ),
    Mutant(
        "a webhook is answered before its event is stored",
        f"{_SERVER}/http/webhooks.py",
        "                await self.store(event)\n",
        "                self.store(event).close()\n",
        "tests/http/test_webhooks.py",
    ),
    Mutant(
        "one webhook event that the service rejects holds up the others",
        f"{_SERVER}/http/webhooks.py",
        "return lambda events: bisect_on_error(send, events)",
        "return send",
        "tests/http/test_webhooks.py",
    ),
    Mutant(
        "a transfer is reversed while its payout may be in flight",
        f"{_SERVER}/providers/stripe/payouts.py",
        "payout = await self._find_payout(transfer, request)\n        if payout is None:\n"
        "            return await self._reverse(",
        "payout = None\n        if payout is None:\n            return await self._reverse(",
        "tests/providers/stripe/test_payouts.py",
    ),
    Mutant(
        "a lookup ends a charge that a request is confirming",
        f"{_SERVER}/providers/stripe/charges.py",
        "if outcome is None and (intent.has_failed or is_rejected):",
        "if outcome is None:",
        "tests/providers/stripe/test_failed_charges.py",
    ),
    Mutant(
        "a charge whose reference Stripe does not know is not found",
        f"{_SERVER}/providers/stripe/charges.py",
        "return to_unknown(current) if isinstance(current, Rejection) else current\n        query",
        "return NotFound() if isinstance(current, Rejection) else current\n        query",
        "tests/providers/stripe/test_charges.py",
    ),
    Mutant(
        "a page of other charges at Stripe proves that a charge is not found",
        f"{_SERVER}/providers/stripe/charges.py",
        "    require_last_page(answer.body)\n",
        "",
        "tests/providers/stripe/test_charges.py",
    ),
    Mutant(
        "a charge has the outcome of another one at Stripe",
        f"{_SERVER}/providers/stripe/charges.py",
        "if intent.key != request.key:",
        "if False:",
        "tests/providers/stripe/test_charges.py",
    ),
    Mutant(
        "a payout whose reference Stripe does not know is not found",
        f"{_SERVER}/providers/stripe/payouts.py",
        "return to_unknown(current) if isinstance(current, Rejection) else current\n        found",
        "return NotFound() if isinstance(current, Rejection) else current\n        found",
        "tests/providers/stripe/test_payout_lookups.py",
    ),
    Mutant(
        "a failed payout of Stripe without its events was never paid",
        f"{_SERVER}/providers/stripe/payouts.py",
        "if transfer.age_seconds > _EVENT_DAYS * 86_400:",
        "if False:",
        "tests/providers/stripe/test_failed_payouts.py",
    ),
    Mutant(
        "an expired charge that its provider reports as ended was cancelled by its caller",
        f"{_SERVER}/operations/worker.py",
        "await self.record(operation, with_cancel_reason(outcome, failure_reason))",
        "await self.record(operation, outcome)",
        "tests/services/payment/charges/test_provider_updates.py::test_a_reported_cancellation_of_an_expired_charge_is_an_expiry",
    ),
    Mutant(
        "a webhook signed in the future is accepted",
        f"{_SERVER}/providers/stripe/webhooks.py",
        "if abs(now.timestamp() - int(time)) > self._tolerance_seconds:",
        "if now.timestamp() - int(time) > self._tolerance_seconds:",
        "tests/providers/stripe",
    ),
    Mutant(
        "the holder of a lease keeps the charge as it loaded it",
        f"{_SERVER}/payment/record_outcome.py",
        "transitioned.add_known(\n            update.charge for update in updates if",
        "transitioned.add_known(\n            update.charge for update in () if",
        "tests/services/payment/charges/test_provider_updates.py",
    ),
    # the HTTP server
    Mutant(
        "any Idempotency-Key is accepted",
        f"{_SERVER}/http/binding.py",
        "if values.get(field) != key:",
        "if False:",
        "tests/http/test_json_calls.py::test_the_idempotency_key",
    ),
    Mutant(
        "a traceparent may have a card number",
        f"{_SERVER}/observability/tracing.py",
        " and not match[1].isdigit() and not is_card_number(match[2])",
        "",
        "tests/http/test_card_numbers.py",
    ),
    Mutant(
        "the last of two equal fields counts",
        f"{_SERVER}/http/json_reader.py",
        "if len(fields) != len(pairs):",
        "if False:",
        "tests/http/test_message_json.py",
    ),
    Mutant(
        "without authentication any host is served",
        f"{_SERVER}/http/transcoder.py",
        'if not _is_loopback_host(request.http.headers.get("Host", "")):',
        "if False:",
        "tests/http/test_json_calls.py",
    ),
    Mutant(
        "without authentication a web page of any host is served",
        f"{_SERVER}/http/transcoder.py",
        'if origin is not None and not _is_loopback_host(origin.partition("://")[2]):',
        "if False:",
        "tests/http/test_json_calls.py",
    ),
    # hosted pages
    Mutant(
        "a page fails before the provider has closed it",
        f"{_SERVER}/providers/stripe/hosted_pages.py",
        'if isinstance(current, CheckoutSession) and current.status != "open":',
        "if isinstance(current, CheckoutSession):\n            "
        "return Declined(FailureReason.PAGE_EXPIRED)\n        if False:",
        "tests/providers/stripe/test_checkout_sessions.py",
    ),
    Mutant(
        "a page that has expired is not closed at the provider",
        f"{_SERVER}/providers/stripe/hosted_pages.py",
        "        session = await self._find_or_register(request, page)\n        if (",
        "        session = await self._find_or_register(request, page)\n"
        '        if request: return Declined(FailureReason.PAGE_EXPIRED, "", request.reference)\n'
        "        if (",
    ),
    Mutant(
        "a page is registered under a new key",
        f"{_SERVER}/providers/stripe/hosted_pages.py",
        'self._create_params(request, page, amount), {"idempotency_key": key}',
        "self._create_params(request, page, amount), {}",
        "tests/providers/stripe/test_checkout_sessions.py",
    ),
    Mutant(
        "each try to close a page has the same key",
        f"{_SERVER}/providers/stripe/hosted_pages.py",
        'self._api.v1.checkout.sessions.expire_async(session.id, {"expand": [_INTENT]}),',
        'self._api.v1.checkout.sessions.expire_async(session.id, {"expand": [_INTENT]}, '
        '{"idempotency_key": request.key}),',
        "tests/providers/stripe/test_checkout_sessions.py",
    ),
    Mutant(
        "a stored server error keeps a page away",
        f"{_SERVER}/providers/stripe/hosted_pages.py",
        '_LOOKUP_SUFFIX = "-lookup"',
        '_LOOKUP_SUFFIX = ""',
        "tests/providers/stripe/test_checkout_sessions.py",
    ),
    Mutant(
        "a lookup after a lost answer registers a second page",
        f"{_SERVER}/providers/stripe/hosted_pages.py",
        "registered = await self._register(request, page, request.key)",
        "registered = Unknown('', RetryReason.SERVER_ERROR)",
        "tests/providers/stripe/test_checkout_sessions.py",
    ),
    Mutant(
        "an event about another object of a charge decides about it",
        f"{_SERVER}/operations/webhook_events.py",
        'if subject.provider_reference not in ("", reference) and not '
        "isinstance(outcome, Succeeded):",
        "if False:",
        "tests/services/payment/test_buyer_status.py",
    ),
    Mutant(
        "a page is sent to a provider that hosts none",
        f"{_SERVER}/payment/hosted_pages.py",
        "if request.page is None or provider in self._page_providers:",
        "if True:",
        "tests/services/payment/test_buyer_status.py",
    ),
    Mutant(
        "a page that is being closed is still offered",
        f"{_SERVER}/payment/convert.py",
        'if payment.HasField("hosted_page") and row.takes_payment:',
        'if payment.HasField("hosted_page"):',
        "tests/services/payment/test_buyer_status.py",
    ),
    Mutant(
        "every return asks the provider",
        f"{_SERVER}/payment/buyer_status.py",
        "if wait > 0:",
        "if False:",
        "tests/services/payment/test_buyer_status.py",
    ),
    Mutant(
        "a page of another charge is taken for the charge's own",
        f"{_SERVER}/providers/stripe/hosted_pages.py",
        "            or session.key != request.key\n        ):",
        "        ):",
        "tests/providers/stripe/test_checkout_sessions.py",
    ),
    Mutant(
        "a decline on an open page fails the payment",
        f"{_SERVER}/providers/stripe/checkout_session.py",
        'if session.status == "open":',
        'if session.status == "open" and (intent is None or not intent.has_failed):',
        "tests/providers/stripe/test_checkout_sessions.py",
    ),
    Mutant(
        "a replayed registration is not read again",
        f"{_SERVER}/providers/stripe/hosted_pages.py",
        "if not is_replayed:",
        "if True:",
        "tests/providers/stripe/test_checkout_sessions.py",
    ),
    Mutant(
        "a page of any origin is accepted",
        f"{_CORE}/payment/return_url.py",
        "if match is not None and _origin_of(match) in allowed_origins:",
        "if match is not None:",
        "tests/unit/payment/test_return_url.py",
    ),
    Mutant(
        "an expired page counts as an expired payment",
        f"{_SERVER}/payment/operations/charge.py",
        "return FailureReason.EXPIRED if charge.page is None else FailureReason.PAGE_EXPIRED",
        "return FailureReason.EXPIRED",
        "tests/services/payment/test_hosted_pages.py",
    ),
    Mutant(
        "a page waits for as long as any buyer action",
        f"{_SERVER}/payment/transitions.py",
        "if self.charge.page is not None and self.pending_reason == PendingReason.BUYER_ACTION:",
        "if False:",
        "tests/services/payment/test_hosted_pages.py",
    ),
    Mutant(
        "a revoked link is still valid",
        f"{_STORAGE}/payment/status_links.py",
        'IS_VALID = "l.revoke_time is null and ',
        'IS_VALID = "',
        "tests/services/payment/test_hosted_pages.py",
    ),
    Mutant(
        "a page has no part in the fingerprint of its payment",
        f"{_CORE}/payment/checkout.py",
        "*(self.page.values() if self.page else ()),",
        "",
        "tests/services/payment/test_hosted_pages.py",
    ),
    Mutant(
        "a buyer who returns sees what is stored",
        f"{_SERVER}/payment/handlers.py",
        "if not await self.payments.buyer_lookups.look_up(payment):",
        "if True:",
        "tests/services/payment/test_hosted_pages.py",
    ),
    Mutant(
        "an expired session is about nothing",
        f"{_SERVER}/providers/stripe/webhooks.py",
        'reference = read_id(object_, "payment_intent") or read_optional_text(object_, "id")',
        'reference = read_id(object_, "payment_intent")',
        "tests/providers/stripe/test_webhooks.py",
    ),
    # statement files with columns
    Mutant(
        "gross, fee and net of a Stripe row need not agree",
        f"{_SERVER}/reconciliation/formats/stripe_report.py",
        'if row.amount("gross", currency) - fee != net:',
        "if False:",
        "tests/reconciliation/test_stripe_report.py",
    ),
    Mutant(
        "the totals of a PayPal report are not compared",
        f"{_SERVER}/reconciliation/formats/paypal_stl.py",
        "if footer.totals[place] != sums[place]:",
        "if False:",
        "tests/reconciliation/test_paypal_stl.py",
    ),
    Mutant(
        "a debit of Adyen is positive",
        f"{_SERVER}/reconciliation/formats/adyen_settlement.py",
        "return credit - debit",
        "return credit + debit",
        "tests/reconciliation/test_adyen_settlement.py",
    ),
    Mutant(
        "a canonical file is used before it is checked",
        f"{_SERVER}/reconciliation/formats/canonical_csv.py",
        "    for _ in _items(file):\n        pass\n",
        "",
        "tests/reconciliation/test_canonical_csv.py",
    ),
    Mutant(
        "a formula is written as a formula",
        f"{_SERVER}/reconciliation/formats/canonical_csv.py",
        'return "\\\\" + text if text.startswith(("=", "+", "-", "@")) else text',
        "return text",
        "tests/reconciliation/test_canonical_csv.py",
    ),
    Mutant(
        "the rows of all currencies are one statement",
        f"{_SERVER}/reconciliation/formats/csv_table.py",
        "for row in table.rows() if group_of(row) == group)",
        "for row in table.rows())",
        "tests/reconciliation/test_stripe_report.py",
    ),
    # reconciliation
    Mutant(
        "the transaction of an order is not compared",
        "server/tallystick_core/reconciliation/bookings.py",
        "None if in_ledger is None else in_ledger.get(key, 0),",
        "None,",
        "tests/services/reconciliation/test_booking_checks.py",
    ),
    Mutant(
        "a hold that has ended counts as held",
        f"{_SERVER}/reconciliation/booking_checks.py",
        "    if any(entry.kind in _HOLD_ENDS for entry in entries):\n        return {}\n",
        "",
        "tests/services/reconciliation/test_booking_checks.py",
    ),
    Mutant(
        "a break of a check ends although the difference is there",
        f"{_SERVER}/reconciliation/booking_checks.py",
        "found = {item.key for item in compared.differences}\n",
        "found = set()\n",
        "tests/services/reconciliation/test_booking_checks.py",
    ),
    Mutant(
        "a check starts again at a cursor that is gone",
        f"{_SERVER}/reconciliation/booking_checks.py",
        "await self._store([], int(next_cursor))",
        "await self._store([], cursor)",
        "tests/services/reconciliation/test_booking_checks.py",
    ),
    Mutant(
        "a second report of a charge waits for the ledger",
        "server/tallystick_core/reconciliation/classify.py",
        "if line.is_charge_taken or (line.is_order_taken and not has_reference):",
        "if False:",
        "tests/services/reconciliation/test_second_reports.py",
    ),
    Mutant(
        "a lookup that found nothing is not made again",
        f"{_SERVER}/reconciliation/lookup_requests.py",
        'event_id=f"break-{row.break_id}-{day}"',
        'event_id=f"break-{row.break_id}"',
        "tests/services/reconciliation/test_lookups.py",
    ),
    Mutant(
        "closing balances are compared within a statement only",
        "server/tallystick_core/reconciliation/balances.py",
        "return explained - new.new_amount - nearest.last[2]",
        "return 0",
        "tests/services/reconciliation/test_balances.py",
    ),
    Mutant(
        "many lines that match nothing are the wrong file",
        f"{_SERVER}/reconciliation/reconcile.py",
        "if counts.unmatched_count > max(MAX_BREAKS, counts.line_count // 2):",
        "if counts.unmatched_count > MAX_BREAKS:",
        "tests/services/reconciliation/test_file_limits.py",
    ),
    Mutant(
        "a date in the future makes entries overdue",
        f"{_SERVER}/reconciliation/reconcile.py",
        "datetime.combine(min(day, today), time(), UTC)",
        "datetime.combine(day, time(), UTC)",
        "tests/services/reconciliation/test_file_limits.py",
    ),
    Mutant(
        "the file of a bank may have charges",
        f"{_SERVER}/reconciliation/packed_lines.py",
        "line_types_of_account(position.account).issuperset(fields.line_type)",
        "_LINE_TYPES.issuperset(fields.line_type)",
        "tests/services/reconciliation/test_lines.py",
    ),
    # decisions about breaks
    Mutant(
        "an amount that two entries have ends the break of a bank",
        f"{_STORAGE}/reconciliation/open_items.py",
        "where i.count = 1 and",
        "where i.count >= 1 and",
        "tests/services/reconciliation/test_bank_entries.py",
    ),
    Mutant(
        "what was booked meanwhile is adjusted",
        f"{_SERVER}/reconciliation/booked_entries.py",
        "    if items:\n",
        "    if False:\n",
        "tests/services/reconciliation/breaks/test_approvals.py",
    ),
    Mutant(
        "one person reopens any break",
        f"{_SERVER}/reconciliation/break_commands.py",
        "if row.resolution != Resolution.ACCEPT and self._needs_approval(row, sums):",
        "if False:",
        "tests/services/reconciliation/breaks/test_approvals.py",
    ),
    Mutant(
        "a file ends breaks that an operator has decided on",
        f"{_SERVER}/reconciliation/reconcile.py",
        " or any(row.state != BreakState.OPEN for row in rows)",
        "",
        "tests/services/reconciliation/test_concurrency.py",
    ),
    Mutant(
        "a failed settlement leaves its money in transit",
        f"{_SERVER}/reconciliation/reconcile.py",
        "classify_lines(rest, self._find_failed(rest), rules)",
        "classify_lines(rest, (), rules)",
        "tests/services/reconciliation/test_settlements.py",
    ),
    # explanations: what happens next, and who must act
    Mutant(
        "the provider must act where the buyer must",
        f"{_CORE}/payment/explanation_steps.py",
        "buyer_step = NextStep(\n        Actor.BUYER,",
        "buyer_step = NextStep(\n        Actor.PROVIDER,",
        "tests/unit/payment/test_explanation.py",
    ),
    Mutant(
        "the end of a wait for the buyer is hidden",
        f"{_CORE}/payment/explanation_steps.py",
        "    if order.resolve_by_time is None:",
        "    if True:",
        "tests/unit/payment/test_explanation.py",
    ),
    Mutant(
        "a rejected release needs no operator",
        f"{_CORE}/payment/explanation_steps.py",
        "    if not order.release_rejection:",
        "    if True:",
        "tests/unit/payment/test_explanation.py",
    ),
    Mutant(
        "an acknowledged unapplied charge still waits for an operator",
        f"{_CORE}/payment/explanation_steps.py",
        "    if unapplied.acknowledge_time is not None:",
        "    if False:",
        "tests/unit/payment/test_explanation.py",
    ),
    Mutant(
        "an open dead letter hides that an operator must act",
        f"{_CORE}/operations/explanation_sentences.py",
        "    if dead_letter is not None:",
        "    if False:",
        "tests/unit/payment/test_explanation.py tests/unit/payout/test_explanation.py",
    ),
    Mutant(
        "nobody must act although an operation waits",
        f"{_CORE}/operations/explanation.py",
        "            awaited or distinct,",
        "            distinct,",
        "tests/unit/payment/test_explanation.py",
    ),
    # traces and metrics
    Mutant(
        "a failed trace is dropped",
        f"{_SERVER}/observability/tail_sampling.py",
        "if span.status.status_code is StatusCode.ERROR:\n            return True",
        "if span.status.status_code is StatusCode.ERROR:\n            return False",
        "tests/unit/observability/test_tail_sampling.py",
    ),
    Mutant(
        "the decision of the ratio is inverted",
        f"{_SERVER}/observability/tail_sampling.py",
        "trace_id % _MAX_ID >= self._threshold",
        "trace_id % _MAX_ID < self._threshold",
        "tests/unit/observability/test_tail_sampling.py",
    ),
    Mutant(
        "a caller with a wrong token has its trace recorded",
        f"{_SERVER}/observability/tracing.py",
        "is_traced = is_authenticated and (",
        "is_traced = True and (",
        "tests/rpc/test_call_spans.py",
    ),
    Mutant(
        "a request by HTTP forces the recording of its trace",
        f"{_SERVER}/observability/tracing.py",
        "    if is_authenticated:\n        return context",
        "    if True:\n        return context",
        "tests/app/test_tracing.py::test_a_request_by_http_records_no_trace",
    ),
    Mutant(
        "invalid input counts as a failure in traces",
        f"{_SERVER}/observability/tracing.py",
        "    if not isinstance(error, ApiError) or error.reason in FAULTS:",
        "    if True:",
        "tests/rpc/test_call_spans.py",
    ),
    Mutant(
        "a span has the text of its error",
        f"{_SERVER}/observability/tracing.py",
        "    error_type = _error_type(error)\n    span",
        "    error_type = str(error)\n    span",
        "tests/rpc/test_call_spans.py",
    ),
    Mutant(
        "all attributes of other programs are stored",
        f"{_CORE}/monitoring/spans.py",
        "attributes.keys() & ALLOWED_ATTRIBUTES",
        "attributes.keys()",
        "tests/services/monitoring/test_traces.py::test_what_may_be_personal_is_not_stored",
    ),
    Mutant(
        "one trace too many is deleted",
        f"{_STORAGE}/monitoring/traces.py",
        "where o.spans_before < e.span_count",
        "where o.spans_before <= e.span_count",
        "tests/services/monitoring/test_traces.py::"
        "test_the_oldest_traces_are_deleted_above_the_number",
    ),
    Mutant(
        "samples are deleted after half their time",
        f"{_STORAGE}/monitoring/retention.py",
        "where s.record_time < (select clock()) - make_interval(secs => :max_age)",
        "where s.record_time < (select clock()) - make_interval(secs => :max_age / 2)",
        "tests/services/monitoring/test_retention.py::test_samples_are_kept_for_30_days",
    ),
    Mutant(
        "a reduced gauge loses its highest value",
        f"{_STORAGE}/monitoring/retention.py",
        "order by case when r.kind = 'GAUGE' then x.value end desc, x.record_time desc)",
        "order by x.record_time desc)",
        "tests/services/monitoring/test_retention.py::test_reduced_samples_have_the_same_history",
    ),
    Mutant(
        "always the same series are left out",
        f"{_SERVER}/app/metrics_recording.py",
        "sorted(oldest[:_MAX_SERIES]",
        "sorted(changed[:_MAX_SERIES]",
        "tests/app/test_metrics_recording.py::test_of_too_many_series_each_is_sent",
    ),
)


def fingerprint_of(mutant: Mutant) -> str:
    """A digest that changes when the mutant changes, so that its table row is stale."""
    return sha256(f"{mutant.file}\0{mutant.old}\0{mutant.new}".encode()).hexdigest()[:8]


def apply_mutant(mutant: Mutant, source: str) -> str:
    """The file with the mutant. Raises ValueError if the mutant is stale."""
    if (count := source.count(mutant.old)) != 1:
        raise ValueError(
            f"The mutant {mutant.name!r} is stale: its text occurs {count} times in {mutant.file}."
        )
    return source.replace(mutant.old, mutant.new)
