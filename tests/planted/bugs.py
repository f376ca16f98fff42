"""Bugs that are planted on purpose, one at a time: whoever tests here must notice each of them."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

_CORE, _SERVER, _STORAGE = "server/tallystick_core", "server/tallystick_server", "storage/tallystick_storage"


@dataclass(frozen=True)
class Bug:
    """A change of one place: `old`, which stands once in the file, becomes `new`. `tests`: where it is looked for if no simulated world shows it."""

    name: str
    file: str
    old: str
    new: str
    tests: str = ""


BUGS = (
    # what is asked of the provider
    Bug(
        "a retry uses a new key",
        f"{_SERVER}/payment/charge.py",
        "return ChargeDemand(self.provider_key, ",
        'return ChargeDemand(f"{self.provider_key}-{self.lease_token}", ',
    ),
    Bug(
        "a time-out is taken for a decline",
        f"{_SERVER}/runtime/execute.py",
        'return Unknown("the provider did not answer in time")',
        'return __import__("tallystick_core.provider").provider.Declined("PROVIDER_DECLINED")',
    ),
    Bug(
        "a time-out is taken for not sent",
        f"{_SERVER}/runtime/execute.py",
        'return Unknown("the provider did not answer in time")',
        'return NotSent("the provider did not answer in time")',
    ),
    Bug(
        "a server error is taken for a decline",
        f"{_SERVER}/providers/sandbox.py",
        "case 400 if reply.code in _REFUSALS:\n            return Declined(FailureReason.PROVIDER_REFUSED, reply.code)",
        "case 400 | 500:\n            return Declined(FailureReason.PROVIDER_REFUSED, reply.code)",
    ),
    Bug(
        "a charge that is not found was never sent",
        f"{_SERVER}/providers/sandbox.py",
        "    if reply == UNREACHED:",
        "    if reply == UNREACHED or reply.status == 404:",
        "tests/test_providers.py tests/test_recovery.py",
    ),
    Bug(
        "a forgotten key is sent again",
        f"{_SERVER}/payment/charge.py",
        "key_honoured=self.key_honoured(key_window, lease),",
        "key_honoured=True,",
        "tests/test_recovery_rules.py -k not_wanted",
    ),
    Bug(
        "what was never sent waits for a person past the key's window",
        f"{_SERVER}/runtime/demand.py",
        " or (not self.maybe_sent and self.not_found > 0)",
        "",
        "tests/test_recovery.py -k never_sent_is_sent",
    ),
    Bug(
        "that it may have been sent is forgotten",
        f"{_STORAGE}/due.py",
        "lease_token = d.lease_token + 1, maybe_sent = d.maybe_sent or d.held, held = true,",
        "lease_token = d.lease_token + 1, held = true,",
        "tests/test_recovery.py",
    ),
    Bug(
        "a charge that may have been sent is given up",
        f"{_CORE}/payment.py",
        "return Step.CANCEL if maybe_sent or Status.PENDING in known else Step.GIVE_UP",
        "return Step.CANCEL if Status.PENDING in known else Step.GIVE_UP",
    ),
    Bug(
        "what has expired is sent all the same",
        f"{_SERVER}/payment/charge.py",
        "        expired = now >= self.expires_at and ",
        "        expired = now >= self.expires_at + 10**9 and ",
        "tests/test_recovery.py -k expire",
    ),
    Bug(
        "what has expired is sent again if it was sent before",
        f"{_SERVER}/payment/charge.py",
        "        expired = now >= self.expires_at and ",
        "        expired = now >= self.expires_at and not self.maybe_sent and ",
        "tests/test_recovery.py -k expired",
    ),
    Bug(
        "what is not found is only looked up again",
        f"{_SERVER}/runtime/postpone.py",
        "one.retry_after), looking=False)",
        "one.retry_after), looking=item.looking)",
        "tests/test_recovery.py -k does_not_know",
    ),
    Bug(
        "what may have been sent waits for the breaker of sends",
        f"{_SERVER}/runtime/flow.py",
        "if sends and item.maybe_sent and isinstance(outcome, HeldBack):",
        "if False:",
        "tests/test_recovery.py -k held_back",
    ),
    Bug(
        "a first not found is proof",
        f"{_CORE}/provider.py",
        "return since_sent is not None and since_sent >= self.seconds and times >= self.times",
        "return since_sent is not None",
        "tests/test_recovery_rules.py -k proof",
    ),
    Bug(
        "what a pending order waits for never changes",
        f"{_SERVER}/payment/record.py",
        "if status != order.status or (isinstance(outcome, Pending) and _waits_for_else(order, outcome)):",
        "if status != order.status:",
        "tests/test_recovery.py -k waits_for_now",
    ),
    Bug(
        "a cancellation during a look-up is put off",
        f"{_STORAGE}/due.py",
        "case when d.recheck and r.delay is not null then",
        "case when false then",
        "tests/test_recovery.py -k during_a_look_up",
    ),
    Bug(
        "a charge that expires while it is answered waits for an operator",
        f"{_SERVER}/runtime/postpone.py",
        "recheck_after=max(left, 0.0) if left < inf else None",
        "recheck_after=left if 0 < left < inf else None",
        "tests/test_recovery.py -k makes_a_dead_letter_of_it",
    ),
    Bug(
        "a Retry-After is not obeyed",
        f"{_SERVER}/runtime/postpone.py",
        "max(_in_time(delay, item.look_by - now), one.retry_after)",
        "_in_time(delay, item.look_by - now)",
        "tests/test_recovery_rules.py",
    ),
    Bug(
        "what is exhausted starts anew for ever",
        f"{_SERVER}/runtime/retry.py",
        "(self.tries is not None and tries >= self.tries)",
        "False",
    ),
    Bug(
        "sends and look-ups share a breaker",
        f"{_SERVER}/runtime/execute.py",
        "breaker = self._breakers[item.provider, item.circuit(step)]",
        "breaker = self._breakers[item.provider, Circuit.SENDS]",
        "tests/test_breaker.py",
    ),
    Bug(
        "a cancelled probe keeps the breaker open",
        f"{_SERVER}/runtime/execute.py",
        "                    breaker.failed(loop.time(), item.demand_id)\n                    raise",
        "                    raise",
        "tests/test_breaker.py",
    ),
    Bug(
        "nobody new is the probe of a provider",
        f"{_SERVER}/payment/storable.py",
        "return Room(max(self._depth - waiting, 0), probe)",
        "return Room(max(self._depth - waiting, 0), probe and not waiting)",
        "tests/test_recovery.py -k finds_out",
    ),
    # what is made of its answers
    Bug(
        "another amount than asked is a success",
        f"{_CORE}/payment.py",
        "if isinstance(outcome, Succeeded) and (outcome.amount, outcome.currency) != (amount, currency):",
        "if isinstance(outcome, Succeeded) and outcome.currency != currency:",
    ),
    Bug(
        "unapplied charges are not found",
        f"{_SERVER}/payment/record.py",
        "    find_unapplied(connection, ",
        "    find_unapplied(connection, [] and ",
    ),
    Bug(
        "a second charge is not found beside an order that risk refused",
        f"{_STORAGE}/payment/unapplied.py",
        " and o.charge_id = r.charge_id and o.attempt_count > 0)",
        " and o.charge_id = r.charge_id)",
        "tests/test_recovery.py -k refused_sibling",
    ),
    Bug(
        "orders follow what their holder heard, not what is on disk",
        f"{_SERVER}/payment/record.py",
        "    return item if outcome in (None, item.outcome) else replace(item, outcome=outcome)",
        "    return item",
        "tests/test_recovery.py -k on_disk_is_what_moves",
    ),
    Bug(
        "what found no room was sent, for all we know",
        f"{_SERVER}/runtime/postpone.py",
        "one.trouble not in (Trouble.NOT_SENT, Trouble.HELD_BACK)",
        "one.trouble is not Trouble.NOT_SENT",
        "tests/test_recovery.py -k no_room",
    ),
    Bug(
        "ids of unapplied charges may look like card numbers",
        f"{_CORE}/canonical.py",
        ".hex()[:32].translate(_LETTERS)",
        ".hex()[:32]",
        "tests/test_payment_rules.py",
    ),
    Bug(
        "unapplied charges are booked the wrong way round",
        f"{_CORE}/booking.py",
        'Line(f"psp/{provider}/clearing", currency, -amount), Line(f"unapplied/{provider}", currency, amount)',
        'Line(f"psp/{provider}/clearing", currency, amount), Line(f"unapplied/{provider}", currency, -amount)',
    ),
    Bug(
        "an answer that came late leaves its dead letter open",
        f"{_SERVER}/runtime/dead_letters.py",
        "    due.revive(connection, [known[row.subject].demand_id for row in resolved])",
        "    del resolved",
        "tests/test_recovery.py -k closing",
    ),
    Bug(
        "of two answers in one batch the first is written down",
        f"{_STORAGE}/due.py",
        "        if known is None or known.outcome not in _FINAL:",
        "        if known is None:",
        "tests/test_recovery.py -k two_answers",
    ),
    # who works on what
    Bug(
        "the fencing token is not checked",
        f"{_STORAGE}/payment/orders.py",
        "select d.lease_token = r.lease_token as ours from due d\n            where d.demand_id = r.charge_id and (d.lease_token = r.lease_token or r.cause = :answered) limit 1",
        "select true as ours from due d\n            where d.demand_id = r.charge_id limit 1",
        "tests/test_recovery.py -k closing_asks_the_provider",
    ),
    Bug(
        "an answer that cannot be applied is tried for ever",
        f"{_SERVER}/runtime/postpone.py",
        "return self.item.to_settle or self.step is Step.JUDGE",
        "return self.item.to_settle",
        "tests/test_recovery.py -k cannot_be_applied",
    ),
    Bug(
        "an answer without the lease waits for the next attempt",
        f"{_STORAGE}/payment/orders.py",
        "any (array(select charge_id from claimed where not ours except",
        "any (array(select charge_id from claimed where false except",
        "tests/test_recovery.py -k without_the_lease",
    ),
    Bug(
        "a lease is given back by who lost it",
        f"{_STORAGE}/due.py",
        "join due d on d.demand_id = r.demand_id and d.lease_token = r.lease_token order by d.demand_id for update of d)",
        "join due d on d.demand_id = r.demand_id order by d.demand_id for update of d)",
        "tests/test_recovery.py -k lost_a_lease",
    ),
    Bug(
        "the sweep takes what another process works on",
        f"{_STORAGE}/due.py",
        "select demand_id from due where provider = :provider and ready_time <= (select clock())",
        "select demand_id from due where provider = :provider and next_attempt_time <= (select clock())",
        "tests/test_recovery.py",
    ),
    Bug(
        "the sweep takes nothing that was left behind",
        f"{_STORAGE}/due.py",
        "ready_time <= (select clock())\n        order by ready_time",
        "ready_time <= (select clock()) and not held\n        order by ready_time",
    ),
    # COMMIT
    Bug(
        "a lost COMMIT is taken for made",
        f"{_STORAGE}/database.py",
        "        return False\n\n\ndef _insert_mark",
        "        return True\n\n\ndef _insert_mark",
    ),
    Bug(
        "a lost COMMIT is taken for not made",
        f"{_STORAGE}/database.py",
        "if self._results and self._is_committed(connection):",
        "if self._results and False:",
        "tests/test_database.py",
    ),
    Bug(
        "a serialization failure is not tried again",
        f"{_STORAGE}/database.py",
        '_AGAIN = ("40", "53",',
        '_AGAIN = ("53",',
    ),
    # wallet and ledger
    Bug(
        "the wallet is not credited",
        f"{_SERVER}/payment/settle.py",
        "refused = await self._each(orders, self._credit)",
        "refused = await self._each([], self._credit)",
    ),
    Bug(
        "the flags are set before the ledger is asked",
        f"{_SERVER}/payment/settle.py",
        "        refused |= await self._each([pair for pair in orders if pair[0].charge_id not in refused], self._post)\n"
        "        moves = [_settled(charge, order) for charge, order in orders if charge.charge_id not in refused]\n\n"
        "        moved = await self._database.transact(lambda connection: move_orders(connection, moves)) if moves else Moved()\n",
        "        moves = [_settled(charge, order) for charge, order in orders if charge.charge_id not in refused]\n\n"
        "        moved = await self._database.transact(lambda connection: move_orders(connection, moves)) if moves else Moved()\n"
        "        refused |= await self._each([pair for pair in orders if pair[0].charge_id not in refused], self._post)\n",
    ),
    Bug(
        "each try of a credit has a cause of its own",
        f"{_SERVER}/payment/settle.py",
        'cause=f"PAY_IN/{order.payment_order_id}",',
        'cause=f"PAY_IN/{order.payment_order_id}-{charge.lease_token}",',
    ),
    Bug(
        "each try of a posting has a cause of its own",
        f"{_SERVER}/payment/settle.py",
        "Kind.PAY_IN, order.payment_order_id, charge.caller, lines)",
        'Kind.PAY_IN, f"{order.payment_order_id}-{charge.lease_token}", charge.caller, lines)',
    ),
    Bug(
        "the wallet makes a change it has made before",
        f"{_SERVER}/wallet/change.py",
        "        if before is not None:\n            return True if",
        "        if before is not None and False:\n            return True if",
    ),
    Bug(
        "the fee is credited to the seller too",
        f"{_SERVER}/payment/settle.py",
        "amount=format_amount(order.amount - order.platform_fee, charge.currency),",
        "amount=format_amount(order.amount, charge.currency),",
    ),
    Bug(
        "a rate is rounded down",
        f"{_CORE}/money.py",
        "        return whole + 1\n",
        "        return whole\n",
    ),
    Bug(
        "the book's chain begins anew with each batch",
        f"{_SERVER}/ledger/post.py",
        "            outcome = _chain_all(head, now,",
        '            outcome = _chain_all(Head(head.sequence, b"\\0" * 32, head.post_time), now,',
    ),
    Bug(
        "a hold is captured twice",
        f"{_CORE}/wallet.py",
        "state = HOLD_MOVES.get((hold.state, ending.kind))",
        "state = HOLD_MOVES.get((HoldState.OPEN, ending.kind))",
        "tests/test_wallet_service.py tests/test_wallet_rules.py",
    ),
    Bug(
        "a debit takes what is not there",
        f"{_CORE}/wallet.py",
        "if wallet.balances.available < amount:",
        "if wallet.balances.balance < amount - 10**9:",
        "tests/test_wallet_service.py tests/test_wallet_rules.py",
    ),
    Bug(
        "a sale never becomes available by itself",
        f"{_SERVER}/wallet/sweep.py",
        "refused += await self._all(EntryKind.RELEASE, store.releasable)",
        "refused += []",
        "tests/test_wallet_service.py -k delay_is_over",
    ),
    Bug(
        "a delivery that was noted is not told to the wallet later",
        f"{_SERVER}/payment/flow.py",
        "            self._releases,\n",
        "",
        "tests/test_pay_in.py -k confirmed_delivery",
    ),
    Bug(
        "what was available at once is released too",
        f"{_CORE}/wallet.py",
        "return instruction.kind is EntryKind.RELEASE and credit is not None and not credit.pending",
        "return False",
        "tests/test_wallet_service.py -k by_its_cause",
    ),
    Bug(
        "a release takes along what has the same cause",
        f"{_SERVER}/wallet/change.py",
        "    if instruction.kind in _OWNED:\n",
        "    if instruction.cause in owners:\n",
        "tests/test_wallet_service.py -k own_wallet",
    ),
    Bug(
        "a dead letter is closed although nobody could ask the provider",
        f"{_SERVER}/runtime/operator.py",
        "        if isinstance(outcome, HeldBack):\n            wait",
        "        if isinstance(outcome, HeldBack) and outcome.seconds:\n            wait",
        "tests/test_recovery.py -k cannot_be_asked",
    ),
    # payouts
    Bug(
        "each sending of a payout has a key of its own",
        f"{_SERVER}/payout/payout.py",
        "return PayoutDemand(self.provider_key, ",
        'return PayoutDemand(f"{self.provider_key}-{self.lease_token}", ',
    ),
    Bug(
        "what a bank sends back is not credited",
        f"{_SERVER}/payout/settle.py",
        "[one for one in otherwise if one[1].seller_change > 0]",
        "[]",
    ),
    Bug(
        "what was paid after it failed is not taken from the seller",
        f"{_CORE}/transfer.py",
        "        return Verdict((Happening.STRAY,), (transfer,))\n    if transfer.fit",
        "        return Verdict()\n    if transfer.fit",
    ),
    Bug(
        "who made a payout approves it",
        f"{_CORE}/payout.py",
        "    if approver == creator:",
        "    if approver == creator and not creator:",
        "tests/test_payout_people.py -k two_people",
    ),
    Bug(
        "a hold that was released first can still be placed",
        f"{_SERVER}/wallet/change.py",
        "        if unknown:\n",
        "        if unknown and not unknown:\n",
        "tests/test_wallet_service.py -k released_first",
    ),
    Bug(
        "a payout whose key may be forgotten is sent again",
        f"{_SERVER}/payout/payout.py",
        "and not self.looking and self.key_honoured(key_window, lease)",
        "and not self.looking",
        "tests/test_recovery_rules.py -k surely_honoured",
    ),
    Bug(
        "a closed payout is settled only by the process that closed it",
        f"{_STORAGE}/due.py",
        "update due set next_attempt_time = clock(), lease_until = clock() + cast(:lease as interval), lease_token = lease_token + 1, held = true, tries = '{}'\n"
        "    where demand_id = :demand_id",
        "update due set lease_until = clock() + cast(:lease as interval), lease_token = lease_token + 1\n    where demand_id = :demand_id",
        "tests/test_payout_people.py -k whoever_comes",
    ),
    Bug(
        "one batch that stays open keeps all others waiting",
        f"{_SERVER}/payout/collect.py",
        'self._looked_at = open_[-1].payout_batch_id if len(open_) == _MOST_BATCHES else ""',
        'self._looked_at = ""',
        "tests/test_payout_batches.py -k stay_open",
    ),
    Bug(
        "a payout for a destination that ended waits for approval",
        f"{_SERVER}/payout/prepare.py",
        "if standing.state in UNSENT and destination in ENDED:",
        "if standing.state is PayoutState.READY and destination in ENDED:",
        "tests/test_recovery_rules.py -k destination_that_has_ended",
    ),
    # ids and callers
    Bug(
        "another amount under the same id is a repeat",
        f"{_CORE}/payment.py",
        "return (self.payment_order_id, self.buyer_account, self.seller_account, self.amount, self.currency, fee)",
        "return (self.payment_order_id, self.buyer_account, self.seller_account, self.currency, fee)",
    ),
    Bug(
        "another caller's id is a repeat",
        f"{_SERVER}/payment/accept.py",
        '    if row.owner != arrival.event.owner:\n        return id_taken("checkout_id',
        '    if not row.owner:\n        return id_taken("checkout_id',
    ),
    Bug(
        "everybody sees every payment",
        f"{_SERVER}/runtime/door.py",
        "if found is None or not self.caller.sees(owned.owner):",
        "if found is None or not owned:",
    ),
    Bug(
        "siblings of a refused order are charged",
        f"{_CORE}/payment.py",
        "if event.on_partial is not OnPartial.ALL_OR_NOTHING or not verdicts:",
        "if event.on_partial is not OnPartial.KEEP or not verdicts:",
    ),
    Bug(
        "an order is charged before it is on disk",
        f"{_SERVER}/payment/accept.py",
        "            stored = [one for one in judged if one.arrival.event.checkout_id in inserted]\n",
        "            stored = [one for one in judged if one.arrival.event.checkout_id in inserted]\n"
        "            [self._hand_on(charge) for one in stored for charge in one.charges]\n",
    ),
    # alerts
    Bug(
        "an acknowledged charge keeps its alert",
        f"{_STORAGE}/payment/orders.py",
        "as subject, cause as detail from unapplied_charge where acknowledged_by = ''",
        "as subject, cause as detail from unapplied_charge where true",
    ),
    # events
    Bug(
        "the relay forgets before it has published",
        f"{_SERVER}/runtime/relay.py",
        "        sent, apart = await self._send_found(found)\n",
        "        await self._database.transact(lambda connection: found.forget(connection))\n        sent, apart = await self._send_found(found)\n",
    ),
    Bug(
        "the events behind a refused one overtake it",
        f"{_SERVER}/runtime/relay.py",
        "if event.aggregate_id not in refused and event.aggregate_id not in sent.details]",
        "if event.aggregate_id not in refused]",
        "tests/test_relay.py -k refused_event_delays",
    ),
    Bug(
        "later events overtake those that wait",
        f"{_SERVER}/runtime/relay.py",
        "joined(rows), forget, more=len(rows) == _MOST_ROWS, refused=refused)",
        "joined(rows), forget, more=len(rows) == _MOST_ROWS)",
        "tests/test_relay.py -k restart",
    ),
    Bug(
        "a refused event is dropped",
        f"{_SERVER}/runtime/relay.py",
        "            if apart:\n                outbox.set_apart(connection, sent.details, apart)\n",
        "",
        "tests/test_relay.py -k refused_event_delays",
    ),
    Bug(
        "the ledger's events are sent again and again where many are refused",
        f"{_SERVER}/ledger/events.py",
        "if any_refused:",
        "if any_refused and not known:",
        "tests/test_relay.py -k hundreds",
    ),
    Bug(
        "a refused event is tried once",
        f"{_STORAGE}/outbox.py",
        "select aggregate_id, next_attempt_time from refused_aggregate where next_attempt_time <= (select clock())",
        "select aggregate_id, next_attempt_time from refused_aggregate where refusals = 0 and next_attempt_time <= (select clock())",
        "tests/test_relay.py -k refused_event_delays",
    ),
    Bug(
        "the oldest event of the ledger is looked for among those of its alerts",
        f"{_STORAGE}/ledger.py",
        "return of_events(events_wait, _OLDEST_EVENT)",
        "return of_events(events_wait)",
        "tests/test_relay.py -k calls_alone",
    ),
    Bug(
        "the events of the ledger's alerts are not published",
        f"{_SERVER}/process/wiring.py",
        "source = FirstOf(FromOutbox(database), LedgerEvents(database, handlers.recent))",
        "source = FirstOf(LedgerEvents(database, handlers.recent))",
        "tests/test_relay.py -k refused_event_delays",
    ),
    Bug(
        "an event that comes again is numbered again",
        f"{_STORAGE}/event.py",
        "where e.aggregate_id = r.aggregate_id and e.aggregate_version = r.aggregate_version offset 0) as known",
        "where e.aggregate_id = r.aggregate_id and e.aggregate_version = r.aggregate_version and false offset 0) as known",
    ),
    Bug(
        "a destination that has ended stays a dead letter",
        f"{_SERVER}/payout/destination.py",
        """    resolve(connection, {f"payoutDestinations/{id_}": (actor or row.caller, row.traceparent) for id_, row in ended.items()})
""",
        "",
        "tests/test_payout_people.py -k disabled_destination_ends_its_dead_letter",
    ),
    # whose sellers
    Bug(
        "of a payment's new sellers some are claimed",
        f"{_SERVER}/wallet/sellers.py",
        "        if len(rows) < len(new):",
        "        if not rows:",
        "tests/test_ownership.py -k two_claims_that_share",
    ),
    Bug(
        "another owner's seller is paid like one's own",
        f"{_SERVER}/payout/grounds.py",
        'if not found or owner not in ("", found):',
        "if not found:",
    ),
    Bug(
        "an order may name another owner's seller",
        f"{_SERVER}/payment/sellers.py",
        "others = {seller for seller in unsure if found.get(seller, owner) != owner}",
        "others: set[str] = set()",
    ),
    Bug(
        "a new destination is current at once",
        f"{_STORAGE}/payout/destination.py",
        "order by (d.state = 'VERIFIED' and not d.awaits_approval and d.usable_time <= (select clock())) desc, d.create_time desc,",
        "order by d.create_time desc,",
        "tests/test_ownership.py",
    ),
    # batches
    Bug(
        "one item's data breaks its whole batch",
        f"{_SERVER}/runtime/stage.py",
        "            if len(items) == 1:\n                return [error]",
        "            if items:\n                return [error] * len(items)",
        "tests/test_stage.py",
    ),
    Bug(
        "what another service refuses of one item is refused of its whole batch",
        f"{_SERVER}/runtime/stage.py",
        "if isinstance(error, PeerRefused) and error.rejects_caller:\n                raise",
        "if isinstance(error, PeerRefused):\n                raise",
        "tests/test_dead_letters.py",
    ),
    Bug(
        "what the platform owes to itself is tried so often and no more",
        f"{_SERVER}/runtime/retry.py",
        "return replace(policy, tries=None) if trouble in OWED else policy",
        "return policy",
        "tests/test_dead_letters.py",
    ),
    Bug(
        "in a batch every repeat is the same as the first",
        f"{_SERVER}/runtime/stage.py",
        "(same if print_ == leaders_print else other).append((index, leader))",
        "same.append((index, leader))",
        "tests/test_stage.py",
    ),
    Bug(
        "an item that is refused has its whole batch wait",
        f"{_SERVER}/runtime/stage.py",
        "            if len(items) == 1:\n                return [error]\n",
        "            return [error] * len(items)\n",
        "tests/test_stage.py",
    ),
    # what floods a process
    Bug(
        "a flood of items is built before it is counted",
        f"{_SERVER}/runtime/door.py",
        "    check_items(raw, method.shape)\n",
        "",
        "tests/test_bad_input.py -k counted",
    ),
    Bug(
        "a flood of waiting calls takes the slots of others",
        f"{_SERVER}/runtime/door.py",
        "        own.release(owner)\n",
        "        own.release(owner)\n        own.take(owner)\n",
        "tests/test_door.py -k take_no_slots",
    ),
    Bug(
        "a flood of events takes every turn of the loop",
        f"{_SERVER}/runtime/door.py",
        "FairSemaphore(_WRITERS)",
        "FairSemaphore(limits.streams)",
        "tests/test_door.py -k streams_that_send_at_once",
    ),
    Bug(
        "each caller has a share, however many an owner has",
        f"{_SERVER}/runtime/door.py",
        "owner, slots = call.caller.owner, method.slots.of(call.caller)",
        "owner, slots = call.caller.name, method.slots.of(call.caller)",
        "tests/test_owner_fairness.py -k one_owner_never",
    ),
    Bug(
        "a closed dead letter is handed over by the call, which may go away",
        f"{_SERVER}/runtime/operator.py",
        "            await self._flow.apart(hand_over)\n",
        "            await hand_over()\n",
        "tests/test_payout_people.py -k goes_away",
    ),
    Bug(
        "a decision about a payout is handed over by the call, which may go away",
        f"{_SERVER}/payout/decide.py",
        "return await self._apart(hand_over, of_team=decision.of_team)",
        "return await hand_over()",
        "tests/test_payout_people.py -k goes_away",
    ),
    Bug(
        "a stream that waits for a message does not notice a stop",
        f"{_SERVER}/runtime/door.py",
        "await asyncio.wait((step, closing), timeout",
        "await asyncio.wait((step,), timeout",
        "tests/test_door.py -k nothing_to_send",
    ),
    Bug(
        "calls leave work in progress no time at a stop",
        f"{_SERVER}/process/serve.py",
        "min(_WORKERS, patience), 0.1)",
        "0.1)",
        "tests/test_serve.py -k time_of_its_own",
    ),
    Bug(
        "payments are stored for callers who have gone",
        f"{_SERVER}/payment/flow.py",
        "            for_callers=True,\n            max_waiting=CALLERS_WAITING,\n        )\n        self._record",
        "            max_waiting=CALLERS_WAITING,\n        )\n        self._record",
        "tests/test_overload.py -k callers_have_left",
    ),
    Bug(
        "what expires in a queue is sent",
        f"{_SERVER}/runtime/execute.py",
        "if step is Step.SEND and loop.time() >= item.expires_at:",
        "if step is Step.SEND and loop.time() >= item.expires_at + 3600:",
        "tests/test_recovery.py -k expires_while_it_waits",
    ),
    Bug(
        "streams that are behind wait in one queue",
        f"{_SERVER}/runtime/follow.py",
        "self._catching_up.permit(wanted.owner)",
        'self._catching_up.permit("")',
        "tests/test_owner_fairness.py -k streams_behind",
    ),
    Bug(
        "an event with the id of another is dropped",
        f"{_STORAGE}/event.py",
        "        if row.differs:\n",
        "        if row.differs and not row.aggregate_id:\n",
        "tests/test_event_service.py -k id_of_another",
    ),
    Bug(
        "a call that fails for ever is the probe before others",
        f"{_SERVER}/runtime/breaker.py",
        "(self._settings.rest if call in self._failed else 0)",
        "0",
        "tests/test_breaker.py -k not_the_probe",
    ),
    # edits that go past the service
    Bug(
        "a row without a seal is taken for sound",
        f"{_STORAGE}/verification/shared.py",
        "t.seal is distinct from sha256(",
        "t.seal <> sha256(",
        "tests/test_verify.py -k S1",
    ),
    Bug(
        "any time will do for a buyer to act by",
        f"{_STORAGE}/verification/payment.py",
        "when o.resolve_by_time is distinct from l.resolve_by_time then",
        "when (o.resolve_by_time is null) <> (l.resolve_by_time is null) then",
        "tests/test_verify.py -k P4",
    ),
    Bug(
        "whoever edits a row seals it",
        f"{_STORAGE}/migrations/__init__.py",
        "for each row when (session_user = '{service}') execute function seal();",
        "for each row execute function seal();",
        "tests/test_constraints.py -k only_the_service_seals",
    ),
)


def mark(bug: Bug) -> str:
    """What tells whether a bug has changed since it was noticed."""
    return sha256(f"{bug.file}\0{bug.old}\0{bug.new}".encode()).hexdigest()[:8]


def planted(bug: Bug, source: str) -> str:
    """The file with the bug in it. Raises ValueError for one that has gone stale."""
    if source.count(bug.old) != 1:
        raise ValueError(f"the bug {bug.name!r} has gone stale: what it changes stands {source.count(bug.old)} times in {bug.file}")
    return source.replace(bug.old, bug.new)
