"""Bugs that are planted on purpose, one at a time; the simulation or the tests must detect each of
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

_CORE, _SERVER, _STORAGE = (
    "server/tallystick_core",
    "server/tallystick_server",
    "storage/tallystick_storage",
)


@dataclass(frozen=True)
class PlantedBug:
    """A change of one place: `old`, which occurs once in the file, becomes `new`. `tests` are run
    first; if there are none, or none detects the bug, the simulation runs.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str = ""


BUGS = (
    # requests to the provider
    PlantedBug(
        "a retry uses a new key",
        f"{_SERVER}/payment/charge.py",
        ("return ChargeRequest(\n            self.provider_key,"),
        ('return ChargeRequest(\n            f"{self.provider_key}-{self.lease_token}",'),
    ),
    PlantedBug(
        "a time-out is taken for a decline",
        f"{_SERVER}/providers/gateway.py",
        'return Unknown("the provider did not answer in time")',
        "return "
        '__import__("tallystick_core.provider.outcome").provider.outcome.Declined("PROVIDER_DECLINED")',
    ),
    PlantedBug(
        "a time-out is taken for not sent",
        f"{_SERVER}/providers/gateway.py",
        'return Unknown("the provider did not answer in time")',
        'return NotSent("the provider did not answer in time")',
    ),
    PlantedBug(
        "a server error is taken for a decline",
        f"{_SERVER}/providers/sandbox/provider.py",
        "case 400 if reply.code in _REJECTION_CODES:\n            return "
        "Declined(FailureReason.PROVIDER_REJECTED, reply.code)",
        "case 400 | 500:\n            return Declined(FailureReason.PROVIDER_REJECTED, reply.code)",
    ),
    PlantedBug(
        "a charge that is not found was never sent",
        f"{_SERVER}/providers/sandbox/provider.py",
        "    if reply == CONNECTION_REFUSED:",
        "    if reply == CONNECTION_REFUSED or reply.status == 404:",
        "tests/providers/test_http_client.py tests/services/payment/charges",
    ),
    PlantedBug(
        "a forgotten key is sent again",
        f"{_SERVER}/payment/charge.py",
        "key_honored=self.is_key_honored(key_window_seconds, lease_seconds),",
        "key_honored=True,",
        "tests/unit/operations/test_next_action.py -k not_wanted",
    ),
    PlantedBug(
        "what was never sent waits for a person past the key's window",
        f"{_SERVER}/operations/operation.py",
        ("or (\n            not self.maybe_sent and self.not_found_count > 0\n        )"),
        "",
        "tests/services/payment/charges/test_retries.py -k never_sent_is_sent",
    ),
    PlantedBug(
        "that it may have been sent is forgotten",
        f"{_STORAGE}/operations.py",
        (
            "lease_token = op.lease_token + 1, maybe_sent = op.maybe_sent or op.is_leased,\n"
            "                is_leased = true,"
        ),
        ("lease_token = op.lease_token + 1, \n                is_leased = true,"),
        "tests/services/payment/charges",
    ),
    PlantedBug(
        "a charge that may have been sent is given up",
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
    PlantedBug(
        "what has expired is sent all the same",
        f"{_SERVER}/payment/charge.py",
        "        is_expired = now >= self.expires_at and ",
        "        is_expired = now >= self.expires_at + 10**9 and ",
        "tests/services/payment/charges -k expire",
    ),
    PlantedBug(
        "what has expired is sent again if it was sent before",
        f"{_SERVER}/payment/charge.py",
        "        is_expired = now >= self.expires_at and ",
        "        is_expired = now >= self.expires_at and not self.maybe_sent and ",
        "tests/services/payment/charges/test_expiry.py -k expired",
    ),
    PlantedBug(
        "what is not found is only looked up again",
        f"{_SERVER}/operations/reschedule.py",
        "            lookup_only=False,",
        "            lookup_only=operation.lookup_only,",
        "tests/services/payment/charges -k does_not_know",
    ),
    PlantedBug(
        "what may have been sent waits for the breaker of sends",
        f"{_SERVER}/operations/worker.py",
        "if has_separate_lookup and operation.maybe_sent and isinstance(outcome, CircuitOpen):",
        "if False:",
        "tests/services/payment/charges/test_circuit_breaker.py -k found_out",
    ),
    PlantedBug(
        "a first not found is proof",
        f"{_CORE}/provider/outcome.py",
        (
            "return (\n"
            "            seconds_since_sent is not None\n"
            "            and seconds_since_sent >= self.min_seconds_since_sent\n"
            "            and responses >= self.min_responses"
        ),
        ("return (\n            seconds_since_sent is not None\n            "),
        "tests/unit/operations/test_next_action.py -k proof",
    ),
    PlantedBug(
        "what a pending order waits for never changes",
        f"{_SERVER}/payment/record_outcome.py",
        (
            "if status != order.status or (\n"
            "            isinstance(outcome, Pending) and _has_pending_change(order, outcome)\n"
            "        ):"
        ),
        "if status != order.status :",
        "tests/services/payment/charges/test_buyer_actions.py -k waits_for_now",
    ),
    PlantedBug(
        "a cancellation during a look-up is put off",
        f"{_STORAGE}/operations.py",
        "case when op.has_changed and r.delay_seconds is not null then",
        "case when false then",
        "tests/services/payment/charges/test_cancellation.py -k during_a_look_up",
    ),
    PlantedBug(
        "a charge that expires while it is answered waits for an operator",
        f"{_SERVER}/operations/reschedule.py",
        "expire_after_seconds=max(remaining_seconds, 0.0) if remaining_seconds < inf else None",
        "expire_after_seconds=remaining_seconds if 0 < remaining_seconds < inf else None",
        "tests/services/payment/charges/test_expiry.py -k makes_a_dead_letter_of_it",
    ),
    PlantedBug(
        "a Retry-After is not obeyed",
        f"{_SERVER}/operations/reschedule.py",
        "max(_cap_delay(delay, operation.next_poll_deadline - now), failed_step.retry_after)",
        "_cap_delay(delay, operation.next_poll_deadline - now)",
        "tests/unit/operations/test_next_action.py",
    ),
    PlantedBug(
        "what is exhausted starts anew for ever",
        f"{_SERVER}/operations/retry_policy.py",
        (
            "(\n"
            "            self.max_attempts is not None and attempts >= self.max_attempts\n"
            "        )"
        ),
        "False",
    ),
    PlantedBug(
        "sends and look-ups share a breaker",
        f"{_SERVER}/providers/gateway.py",
        "breaker = self._breakers[operation.provider, operation.circuit(action)]",
        "breaker = self._breakers[operation.provider, Circuit.SENDS]",
        "tests/unit/providers/test_circuit_breaker.py",
    ),
    PlantedBug(
        "a cancelled probe keeps the breaker open",
        f"{_SERVER}/providers/gateway.py",
        "                    breaker.record_failure(loop.time(), operation.operation_id)\n        "
        "            raise\n",
        "                    raise\n",
        "tests/unit/providers/test_circuit_breaker.py",
    ),
    PlantedBug(
        "nobody new is the probe of a provider",
        f"{_SERVER}/payment/admission.py",
        "return ChargeCapacity(max(self._max_queued_charges - queued_count, 0), allows_probe)",
        "return ChargeCapacity(max(self._max_queued_charges - queued_count, 0), allows_probe and "
        "not queued_count)",
        "tests/services/payment/charges/test_circuit_breaker.py -k finds_out",
    ),
    # handling of the provider's outcomes
    PlantedBug(
        "another amount than asked is a success",
        f"{_CORE}/payment/charge.py",
        "if isinstance(outcome, Succeeded) and (outcome.amount, outcome.currency) != (amount, "
        "currency):",
        "if isinstance(outcome, Succeeded) and outcome.currency != currency:",
    ),
    PlantedBug(
        "unapplied charges are not found",
        f"{_SERVER}/payment/record_outcome.py",
        ("record_unapplied(\n        connection,"),
        ("record_unapplied(\n        connection,[] and"),
    ),
    PlantedBug(
        "a second charge is not found beside an order that risk refused",
        f"{_STORAGE}/payment/unapplied_charges.py",
        ("and o.charge_id = r.charge_id\n                and o.attempt_count > 0)"),
        ("and o.charge_id = r.charge_id\n                )"),
        "tests/services/payment/charges/test_unapplied_charges.py -k refused_sibling",
    ),
    PlantedBug(
        "orders follow what their holder heard, not what is on disk",
        f"{_SERVER}/payment/record_outcome.py",
        "    return item if outcome in (None, item.outcome) else replace(item, outcome=outcome)",
        "    return item",
        "tests/services/payment/charges/test_outcomes.py -k on_disk_is_what_moves",
    ),
    PlantedBug(
        "what found no room was sent, for all we know",
        f"{_SERVER}/operations/reschedule.py",
        (
            "failed_step.retry_reason not in (\n"
            "        RetryReason.NOT_SENT,\n"
            "        RetryReason.CIRCUIT_OPEN,\n"
            "    )"
        ),
        "failed_step.retry_reason is not RetryReason.NOT_SENT",
        "tests/services/payment/charges/test_provider_slots.py -k no_room",
    ),
    PlantedBug(
        "ids of unapplied charges may look like card numbers",
        f"{_CORE}/fingerprint.py",
        ".hex()[:32].translate(_HEX_TO_LETTERS)",
        ".hex()[:32]",
        "tests/unit/payment/test_payment_rules.py",
    ),
    PlantedBug(
        "unapplied charges are booked the wrong way round",
        f"{_CORE}/ledger/posting_rules.py",
        (
            'JournalLine(f"psp/{provider}/clearing", currency, -amount),\n'
            '        JournalLine(f"unapplied/{provider}", currency, amount)'
        ),
        'JournalLine(f"psp/{provider}/clearing", currency, amount), '
        'JournalLine(f"unapplied/{provider}", currency, - amount)',
    ),
    PlantedBug(
        "an answer that came late leaves its dead letter open",
        f"{_SERVER}/operations/dead_letters.py",
        (
            "operation_store.requeue(\n"
            "        connection, [by_resource_name[row.resource_name].operation_id for row in "
            "rows]\n"
            "    )"
        ),
        "del rows",
        "tests/services/payment/charges/test_dead_letters.py -k closing",
    ),
    PlantedBug(
        "of two answers in one batch the first is written down",
        f"{_STORAGE}/operations.py",
        "        if previous is None or previous.outcome not in _FINAL_OUTCOMES:",
        "        if previous is None:",
        "tests/services/payment/charges/test_outcomes.py -k two_answers",
    ),
    # leases and workers
    PlantedBug(
        "the fencing token is not checked",
        f"{_STORAGE}/payment/orders.py",
        (
            "select op.lease_token = r.lease_token as holds_lease from operation op\n"
            "            where op.operation_id = r.charge_id\n"
            "                and (op.lease_token = r.lease_token or r.transition_reason = "
            ":outcome_reason)\n"
            "                    limit 1"
        ),
        (
            "select true as holds_lease from operation op\n"
            "            where op.operation_id = r.charge_id\n"
            "                    limit 1"
        ),
        "tests/services/payment/charges/test_dead_letters.py -k closing_asks_the_provider",
    ),
    PlantedBug(
        "an answer that cannot be applied is tried for ever",
        f"{_SERVER}/operations/failed_step.py",
        "return self.operation.needs_booking or self.action is NextAction.APPLY_RECORDED",
        "return self.operation.needs_booking",
        "tests/services/payment/charges/test_outcomes.py -k cannot_be_applied",
    ),
    PlantedBug(
        "an answer without the lease waits for the next attempt",
        f"{_STORAGE}/payment/orders.py",
        ("any (array(select charge_id from claimed where not holds_lease\n            except"),
        ("any (array(select charge_id from claimed where false\n            except"),
        "tests/services/payment/charges/test_outcomes.py -k without_the_lease",
    ),
    PlantedBug(
        "a lease is given back by who lost it",
        f"{_STORAGE}/operations.py",
        (
            "join operation op on op.operation_id = r.operation_id and op.lease_token = "
            "r.lease_token\n"
            "            order by op.operation_id for update of op)"
        ),
        (
            "join operation op on op.operation_id = r.operation_id \n"
            "            order by op.operation_id for update of op)"
        ),
        "tests/services/payment/charges/test_outcomes.py -k lost_a_lease",
    ),
    PlantedBug(
        "the sweep takes what another process works on",
        f"{_STORAGE}/operations.py",
        (
            "select operation_id from operation where provider = :provider\n"
            "            and ready_time <= (select clock())"
        ),
        (
            "select operation_id from operation where provider = :provider\n"
            "            and next_attempt_time <= (select clock())"
        ),
        "tests/services/payment/charges",
    ),
    PlantedBug(
        "the sweep takes nothing that was left behind",
        f"{_STORAGE}/operations.py",
        "ready_time <= (select clock())\n        order by ready_time",
        "ready_time <= (select clock()) and not is_leased\n        order by ready_time",
    ),
    # COMMIT
    PlantedBug(
        "a lost COMMIT is taken for made",
        f"{_STORAGE}/database.py",
        "        return False\n\n\ndef _insert_commit_marker",
        "        return True\n\n\ndef _insert_commit_marker",
    ),
    PlantedBug(
        "a lost COMMIT is taken for not made",
        f"{_STORAGE}/database.py",
        "if self._results and self._is_committed(connection):",
        "if self._results and False:",
        "tests/storage/test_database.py",
    ),
    PlantedBug(
        "a serialization failure is not tried again",
        f"{_STORAGE}/database.py",
        '_RETRYABLE_STATES = ("40", "53",',
        '_RETRYABLE_STATES = ("53",',
    ),
    # wallet and ledger
    PlantedBug(
        "the wallet is not credited",
        f"{_SERVER}/payment/booking.py",
        "rejections = await self._call_for_all(orders, self._credit)",
        "rejections = await self._call_for_all([], self._credit)",
    ),
    PlantedBug(
        "the flags are set before the ledger is asked",
        f"{_SERVER}/payment/booking.py",
        (
            "rejections |= await self._call_for_all(\n"
            "            [pair for pair in orders if pair[0].charge_id not in rejections], "
            "self._post\n"
            "        )\n"
            "        transitions = [\n"
            "            _booked_transition(charge, order)\n"
            "            for charge, order in orders\n"
            "            if charge.charge_id not in rejections\n"
            "        ]\n"
            "\n"
            "        result = (\n"
            "            await self._database.transact(\n"
            "                lambda connection: transition_orders(connection, transitions)\n"
            "            )\n"
            "            if transitions\n"
            "            else TransitionResult()\n"
            "        )\n"
        ),
        (
            "transitions = [_booked_transition(charge, order) for charge, order in orders if "
            "charge.charge_id not in rejections]\n"
            "\n"
            "        result = await self._database.transact(lambda connection: "
            "transition_orders(connection, transitions)) if transitions else TransitionResult()\n"
            "        rejections |= await self._call_for_all([pair for pair in orders if "
            "pair[0].charge_id not in rejections], self._post)\n"
        ),
    ),
    PlantedBug(
        "each try of a credit has a source id of its own",
        f"{_SERVER}/payment/booking.py",
        'source_id=f"PAY_IN/{order.payment_order_id}",',
        'source_id=f"PAY_IN/{order.payment_order_id}-{charge.lease_token}",',
    ),
    PlantedBug(
        "each try of a posting has a source id of its own",
        f"{_SERVER}/payment/booking.py",
        "Kind.PAY_IN, order.payment_order_id, charge.caller, lines)",
        'Kind.PAY_IN, f"{order.payment_order_id}-{charge.lease_token}", charge.caller, lines)',
    ),
    PlantedBug(
        "the wallet makes a change it has made before",
        f"{_SERVER}/wallet/apply_instructions.py",
        ("if entry is not None:\n            return (\n                True\n                if"),
        (
            "if entry is not None and False:\n"
            "            return (\n"
            "                True\n"
            "                if"
        ),
    ),
    PlantedBug(
        "the fee is credited to the seller too",
        f"{_SERVER}/payment/booking.py",
        "amount=format_amount(order.amount - order.platform_fee, charge.currency),",
        "amount=format_amount(order.amount, charge.currency),",
    ),
    PlantedBug(
        "a rate is rounded down",
        f"{_CORE}/money.py",
        "        return quotient + 1\n",
        "        return quotient\n",
    ),
    PlantedBug(
        "the book's chain begins anew with each batch",
        f"{_SERVER}/ledger/post.py",
        "            outcomes = _chain_all(head, now,",
        '            outcomes = _chain_all(Head(head.sequence, b"\\0" * 32, head.post_time), now,',
    ),
    PlantedBug(
        "a hold is captured twice",
        f"{_CORE}/wallet/balances.py",
        "state = HOLD_TRANSITIONS.get((hold.state, instruction.kind))",
        "state = HOLD_TRANSITIONS.get((HoldState.OPEN, instruction.kind))",
        "tests/services/wallet/test_wallet_service.py tests/unit/wallet/test_wallet_rules.py",
    ),
    PlantedBug(
        "a debit takes what is not there",
        f"{_CORE}/wallet/balances.py",
        "if wallet.balances.available < amount:",
        "if wallet.balances.balance < amount - 10**9:",
        "tests/services/wallet/test_wallet_service.py tests/unit/wallet/test_wallet_rules.py",
    ),
    PlantedBug(
        "a sale never becomes available by itself",
        f"{_SERVER}/wallet/scheduler.py",
        "rejections += await self._apply_due(EntryKind.RELEASE, store.list_releasable)",
        "rejections += []",
        "tests/services/wallet/test_wallet_service.py -k delay_is_over",
    ),
    PlantedBug(
        "a delivery that was noted is not told to the wallet later",
        f"{_SERVER}/payment/worker.py",
        "            self._releases,\n",
        "",
        "tests/services/payment/test_create_payment.py -k confirmed_delivery",
    ),
    PlantedBug(
        "what was available at once is released too",
        f"{_CORE}/wallet/balances.py",
        "return instruction.kind is EntryKind.RELEASE and credit is not None and not "
        "credit.pending",
        "return False",
        "tests/services/wallet/test_wallet_service.py -k by_its_source_id",
    ),
    PlantedBug(
        "a release takes along what has the same source id",
        f"{_SERVER}/wallet/apply_instructions.py",
        "    if instruction.kind in _RESOLVED_KINDS:\n",
        "    if instruction.source_id in resolved_wallets:\n",
        "tests/services/wallet/test_wallet_service.py -k own_wallet",
    ),
    PlantedBug(
        "a dead letter is closed although nobody could ask the provider",
        f"{_SERVER}/operations/dead_letter_commands.py",
        "        if isinstance(outcome, CircuitOpen):\n            retry_after",
        "        if isinstance(outcome, CircuitOpen) and outcome.retry_after:\n            "
        "retry_after",
        "tests/services/payment/charges/test_provider_slots.py -k cannot_be_asked",
    ),
    # payouts
    PlantedBug(
        "each sending of a payout has a key of its own",
        f"{_SERVER}/payout/operation.py",
        ("return PayoutRequest(\n            self.provider_key,"),
        ('return PayoutRequest(\n            f"{self.provider_key}-{self.lease_token}",'),
    ),
    PlantedBug(
        "what a bank sends back is not credited",
        f"{_SERVER}/payout/booking.py",
        "[entry for entry in other_movements if entry[1].seller_change > 0]",
        "[]",
    ),
    PlantedBug(
        "what was paid after it failed is not taken from the seller",
        f"{_CORE}/payout/reported_transfer.py",
        "        return OutcomeEffect((PayoutTrigger.UNMATCHED_TRANSFER,), (transfer,))\n    if "
        "transfer.match",
        "        return OutcomeEffect()\n    if transfer.match",
    ),
    PlantedBug(
        "who made a payout approves it",
        f"{_CORE}/payout/approval.py",
        "    if approver == creator:",
        "    if approver == creator and not creator:",
        "tests/services/payout/test_approvals.py -k two_people",
    ),
    PlantedBug(
        "a hold that was released first can still be placed",
        f"{_SERVER}/wallet/apply_instructions.py",
        "        if missing_ids:\n",
        "        if missing_ids and not missing_ids:\n",
        "tests/services/wallet/test_wallet_service.py -k released_first",
    ),
    PlantedBug(
        "a payout whose key may be forgotten is sent again",
        f"{_SERVER}/payout/operation.py",
        (
            "and not self.lookup_only\n"
            "            and self.is_key_honored(key_window_seconds, lease_seconds)"
        ),
        ("and not self.lookup_only\n            "),
        "tests/unit/operations/test_next_action.py -k surely_honoured",
    ),
    PlantedBug(
        "a closed payout is settled only by the process that closed it",
        f"{_STORAGE}/operations.py",
        (
            "update operation set next_attempt_time = clock(),\n"
            "        lease_until = clock() + cast(:lease as interval),\n"
            "        lease_token = lease_token + 1, is_leased = true, retry_counts = '{}'\n"
            "    where operation_id = :operation_id"
        ),
        (
            "update operation set lease_until = clock() + cast(:lease as interval), lease_token = "
            "lease_token + 1\n"
            "    where operation_id = :operation_id"
        ),
        "tests/services/payout/test_dead_letters.py -k whoever_comes",
    ),
    PlantedBug(
        "one batch that stays open keeps all others waiting",
        f"{_SERVER}/payout/batch_generator.py",
        "self._last_open_batch_id = open_[-1].payout_batch_id if len(open_) == _MAX_BATCHES else "
        '""',
        'self._last_open_batch_id = ""',
        "tests/services/payout/test_batches.py -k stay_open",
    ),
    PlantedBug(
        "a payout for a destination that ended waits for approval",
        f"{_SERVER}/payout/place_hold.py",
        "if snapshot.state in NOT_SENT and destination_state in TERMINAL_DESTINATION_STATES:",
        "if snapshot.state is PayoutState.READY and destination_state in "
        "TERMINAL_DESTINATION_STATES:",
        "tests/unit/operations/test_next_action.py -k destination_that_has_ended",
    ),
    # ids and callers
    PlantedBug(
        "another amount under the same id is a repeat",
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
    PlantedBug(
        "another caller's id is a repeat",
        f"{_SERVER}/payment/create_payment.py",
        '    if row.owner != command.request.owner:\n        return id_taken_error("checkout_id',
        '    if not row.owner:\n        return id_taken_error("checkout_id',
    ),
    PlantedBug(
        "everybody sees every payment",
        f"{_SERVER}/rpc/call.py",
        "if resource is None or not self.caller.can_see(owned_resource.owner):",
        "if resource is None or not owned_resource:",
    ),
    PlantedBug(
        "siblings of a refused order are charged",
        f"{_CORE}/payment/checkout.py",
        "if checkout.partial_failure_policy is not PartialFailurePolicy.ALL_OR_NOTHING or not "
        "rejections:",
        "if checkout.partial_failure_policy is not PartialFailurePolicy.KEEP_SUCCEEDED or not "
        "rejections:",
    ),
    PlantedBug(
        "an order is charged before it is on disk",
        f"{_SERVER}/payment/create_payment.py",
        (
            "new_payments = [\n"
            "                payment for payment in payments if "
            "payment.command.request.checkout_id in rows\n"
            "            ]"
        ),
        (
            "new_payments = [\n"
            "                payment for payment in payments if "
            "payment.command.request.checkout_id in rows\n"
            "            ]\n"
            "            [self._start_operation(charge) for payment in new_payments for charge in "
            "payment.charges]"
        ),
    ),
    # alerts
    PlantedBug(
        "an acknowledged charge keeps its alert",
        f"{_STORAGE}/payment/alerts.py",
        (
            "as resource_name, cause as detail\n        from unapplied_charge where "
            "acknowledged_by = ''"
        ),
        ("as resource_name, cause as detail\n        from unapplied_charge where true"),
    ),
    # events
    PlantedBug(
        "the relay forgets before it has published",
        f"{_SERVER}/outbox/relay.py",
        "        result, events_to_store = await self._publish_batch(batch)\n",
        "        await self._database.transact(lambda connection: batch.delete(connection))\n"
        "        result, events_to_store = await self._publish_batch(batch)\n",
    ),
    PlantedBug(
        "the events behind a refused one overtake it",
        f"{_SERVER}/outbox/relay.py",
        (
            "if event.aggregate_id not in blocked_aggregates\n"
            "                and event.aggregate_id not in result.rejection_details"
        ),
        ("if event.aggregate_id not in blocked_aggregates\n                "),
        "tests/services/event/test_relay.py -k refused_event_delays",
    ),
    PlantedBug(
        "later events overtake those that wait",
        f"{_SERVER}/outbox/relay.py",
        (
            "merge_batches(rows),\n"
            "            delete,\n"
            "            has_more=len(rows) == _MAX_ROWS,\n"
            "            rejected_aggregates=rejected_aggregates,\n"
            "        )"
        ),
        (
            "merge_batches(rows),\n"
            "            delete,\n"
            "            has_more=len(rows) == _MAX_ROWS,\n"
            "        )"
        ),
        "tests/services/event/test_relay.py -k restart",
    ),
    PlantedBug(
        "a refused event is dropped",
        f"{_SERVER}/outbox/relay.py",
        "            if events_to_store:\n                "
        "outbox.store_rejected_events(connection, result.rejection_details, events_to_store)\n",
        "",
        "tests/services/event/test_relay.py -k refused_event_delays",
    ),
    PlantedBug(
        "the ledger's events are sent again and again where many are refused",
        f"{_SERVER}/ledger/events.py",
        "if has_rejected_events:",
        "if has_rejected_events and not transactions:",
        "tests/services/event/test_relay.py -k hundreds",
    ),
    PlantedBug(
        "a refused event is tried once",
        f"{_STORAGE}/outbox.py",
        (
            "select aggregate_id, next_attempt_time from rejected_aggregate\n"
            "        where next_attempt_time <= (select clock())"
        ),
        (
            "select aggregate_id, next_attempt_time from rejected_aggregate\n"
            "        where rejection_count = 0 and next_attempt_time <= (select clock())"
        ),
        "tests/services/event/test_relay.py -k refused_event_delays",
    ),
    PlantedBug(
        "the oldest event of the ledger is looked for among those of its alerts",
        f"{_STORAGE}/ledger/postings.py",
        "return event_alert_queries(max_event_delay_seconds, _OLDEST_EVENT)",
        "return event_alert_queries(max_event_delay_seconds)",
        "tests/services/event/test_relay.py -k calls_alone",
    ),
    PlantedBug(
        "the events of the ledger's alerts are not published",
        f"{_SERVER}/app/wiring.py",
        (
            "source = FirstNonEmptySource(\n"
            "            OutboxSource(database), LedgerEvents(database, handlers.recent)\n"
            "        )"
        ),
        (
            "source = FirstNonEmptySource(\n"
            "             LedgerEvents(database, handlers.recent)\n"
            "        )"
        ),
        "tests/services/event/test_relay.py -k refused_event_delays",
    ),
    PlantedBug(
        "an event that comes again is numbered again",
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
    PlantedBug(
        "a destination that has ended stays a dead letter",
        f"{_SERVER}/payout/destination_verification.py",
        (
            "resolve(\n"
            "        connection,\n"
            "        {\n"
            '            f"payoutDestinations/{id_}": (actor or row.caller, row.traceparent)\n'
            "            for id_, row in ended_rows.items()\n"
            "        },\n"
            "    )"
        ),
        "",
        "tests/services/payout/test_destinations.py -k disabled_destination_ends_its_dead_letter",
    ),
    # ownership of sellers
    PlantedBug(
        "of a payment's new sellers some are claimed",
        f"{_SERVER}/wallet/seller_ownership.py",
        "        if len(rows) < len(new):",
        "        if not rows:",
        "tests/services/wallet/test_seller_ownership.py -k two_claims_that_share",
    ),
    PlantedBug(
        "another owner's seller is paid like one's own",
        f"{_SERVER}/payout/eligibility.py",
        'if not seller_owner or owner not in ("", seller_owner):',
        "if not seller_owner:",
    ),
    PlantedBug(
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
    PlantedBug(
        "a new destination is current at once",
        f"{_STORAGE}/payout/destinations.py",
        (
            "order by (d.state = 'VERIFIED' and not d.awaits_approval\n"
            "            and d.usable_time <= (select clock())) desc, d.create_time desc,"
        ),
        "order by  d.create_time desc,",
        "tests/services/wallet/test_payout_terms.py",
    ),
    # batches
    PlantedBug(
        "one item's data breaks its whole batch",
        f"{_SERVER}/operations/batcher.py",
        "            if len(items) == 1:\n                return [error]",
        "            if items:\n                return [error] * len(items)",
        "tests/unit/operations/test_batcher.py",
    ),
    PlantedBug(
        "what another service refuses of one item is refused of its whole batch",
        f"{_SERVER}/operations/batcher.py",
        "if isinstance(error, ServiceCallRejected) and error.rejects_caller:\n                "
        "raise",
        "if isinstance(error, ServiceCallRejected):\n                raise",
        "tests/services/operations/test_dead_letters.py",
    ),
    PlantedBug(
        "what the platform owes to itself is tried so often and no more",
        f"{_SERVER}/operations/retry_policy.py",
        "return replace(policy, max_attempts=None) if retry_reason in UNLIMITED_REASONS else "
        "policy",
        "return policy",
        "tests/services/operations/test_dead_letters.py",
    ),
    PlantedBug(
        "in a batch every repeat is the same as the first",
        f"{_SERVER}/operations/batcher.py",
        (
            "(duplicates if fingerprint == leader_fingerprint else conflicts).append(\n"
            "                    (index, leader)\n"
            "                )"
        ),
        ("duplicates.append(\n                    (index, leader)\n                )"),
        "tests/unit/operations/test_batcher.py",
    ),
    PlantedBug(
        "an item that is refused has its whole batch wait",
        f"{_SERVER}/operations/batcher.py",
        "            if len(items) == 1:\n                return [error]\n",
        "            return [error] * len(items)\n",
        "tests/unit/operations/test_batcher.py",
    ),
    # overload
    PlantedBug(
        "a flood of items is built before it is counted",
        f"{_SERVER}/rpc/server.py",
        "    check_items(raw, method.request_descriptor)\n",
        "",
        "tests/rpc/test_validation.py -k counted",
    ),
    PlantedBug(
        "a flood of waiting calls takes the slots of others",
        f"{_SERVER}/rpc/call.py",
        "        active.release(owner)\n",
        "        active.release(owner)\n        active.force_acquire(owner)\n",
        "tests/rpc/test_server.py -k take_no_slots",
    ),
    PlantedBug(
        "a flood of events takes every turn of the loop",
        f"{_SERVER}/rpc/server.py",
        "FairSemaphore(_MAX_STREAM_WRITES)",
        "FairSemaphore(limits.streams)",
        "tests/rpc/test_server.py -k streams_that_send_at_once",
    ),
    PlantedBug(
        "each caller has a share, however many an owner has",
        f"{_SERVER}/rpc/server.py",
        "owner, slots = call.caller.owner, method.slots.for_caller(call.caller)",
        "owner, slots = call.caller.name, method.slots.for_caller(call.caller)",
        "tests/rpc/test_owner_fairness.py -k one_owner_never",
    ),
    PlantedBug(
        "a closed dead letter is handed over by the call, which may go away",
        f"{_SERVER}/operations/dead_letter_commands.py",
        "            await self._worker.run_detached(commit_close)\n",
        "            await commit_close()\n",
        "tests/services/payout/test_interrupted_calls.py -k goes_away",
    ),
    PlantedBug(
        "a decision about a payout is handed over by the call, which may go away",
        f"{_SERVER}/payout/approvals.py",
        "return await self._run_detached(commit_and_start, is_team_call=decision.by_team)",
        "return await commit_and_start()",
        "tests/services/payout/test_interrupted_calls.py -k goes_away",
    ),
    PlantedBug(
        "a stream that waits for a message does not notice a stop",
        f"{_SERVER}/rpc/stream_sender.py",
        ("await asyncio.wait(\n                (future, closing_task),\n                timeout"),
        ("await asyncio.wait(\n                (future, ),\n                timeout"),
        "tests/rpc/test_server.py -k nothing_to_send",
    ),
    PlantedBug(
        "calls leave work in progress no time at a stop",
        f"{_SERVER}/app/serve.py",
        ("min(_MIN_WORKER_DRAIN_SECONDS, drain_timeout_seconds),\n            0.1,\n        )"),
        ("\n            0.1,\n        )"),
        "tests/app/test_shutdown.py -k time_of_its_own",
    ),
    PlantedBug(
        "payments are stored for callers who have gone",
        f"{_SERVER}/payment/worker.py",
        "            drop_abandoned=True,\n            max_queued=MAX_QUEUED_CALLS,\n        )\n  "
        "      self._record_batcher",
        "            max_queued=MAX_QUEUED_CALLS,\n        )\n        self._record_batcher",
        "tests/rpc/test_overload.py -k callers_have_left",
    ),
    PlantedBug(
        "what expires in a queue is sent",
        f"{_SERVER}/providers/gateway.py",
        "if action is NextAction.SEND and loop.time() >= operation.expires_at:",
        "if action is NextAction.SEND and loop.time() >= operation.expires_at + 3600:",
        "tests/services/payment/charges/test_provider_slots.py -k expires_while_it_waits",
    ),
    PlantedBug(
        "streams that are behind wait in one queue",
        f"{_SERVER}/rpc/streaming.py",
        "self._read_semaphore.permit(stream_filter.owner)",
        'self._read_semaphore.permit("")',
        "tests/rpc/test_owner_fairness.py -k streams_behind",
    ),
    PlantedBug(
        "an event with the id of another is dropped",
        f"{_STORAGE}/event/events.py",
        "        if row.is_conflicting:\n",
        "        if row.is_conflicting and not row.aggregate_id:\n",
        "tests/services/event/test_event_service.py -k id_of_another",
    ),
    PlantedBug(
        "a call that fails for ever is the probe before others",
        f"{_SERVER}/providers/circuit_breaker.py",
        (
            "(\n"
            "            self._settings.reset_timeout_seconds if call_id in self._failed_call_ids "
            "else 0\n"
            "        )"
        ),
        "0",
        "tests/unit/providers/test_circuit_breaker.py -k not_the_probe",
    ),
    # edits that bypass the service
    PlantedBug(
        "a row without a seal is taken for sound",
        f"{_STORAGE}/verify/shared.py",
        "t.seal is distinct from sha256(",
        "t.seal <> sha256(",
        "tests/app/test_verify.py -k S1",
    ),
    PlantedBug(
        "any time will do for a buyer to act by",
        f"{_STORAGE}/verify/payment.py",
        ("when o.resolve_by_time is distinct from l.resolve_by_time\n                then"),
        ("when (o.resolve_by_time is null) <> (l.resolve_by_time is null)\n                then"),
        "tests/app/test_verify.py -k P4",
    ),
    PlantedBug(
        "whoever edits a row seals it",
        f"{_STORAGE}/migrations/__init__.py",
        ("for each row\n    when (session_user = '{service}') execute function seal();"),
        ("for each row\n     execute function seal();"),
        "tests/storage/test_constraints.py -k only_the_service_seals",
    ),
)


def fingerprint_of(bug: PlantedBug) -> str:
    """A digest that changes when the bug changes, so that its table row is stale."""
    return sha256(f"{bug.file}\0{bug.old}\0{bug.new}".encode()).hexdigest()[:8]


def apply_bug(bug: PlantedBug, source: str) -> str:
    """The file with the bug in it. Raises ValueError if the bug is stale."""
    if source.count(bug.old) != 1:
        raise ValueError(
            f"the bug {bug.name!r} has gone stale: what it changes stands {source.count(bug.old)} "
            f"times in {bug.file}"
        )
    return source.replace(bug.old, bug.new)
