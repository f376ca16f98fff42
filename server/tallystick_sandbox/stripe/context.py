"""One request in its transaction: what it reads, and what it will write at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from tallystick_core.money import apply_rate
from tallystick_sandbox.stripe import delivery_store, store
from tallystick_sandbox.stripe.errors import invalid, missing
from tallystick_sandbox.stripe.faults import Switches
from tallystick_sandbox.stripe.store import PLATFORM, StoredObject
from tallystick_storage.sql import Connection

API_VERSION = "2026-10-28.endive"
MAX_EXPANSION_DEPTH = 4


@dataclass(frozen=True, slots=True)
class StripeRules:
    """How the look-alike behaves. `fee_ppm` and `fee_fixed`: its fee of a charge, in parts per
    million and in minor units. Times are in seconds: `key_window_seconds` for idempotency keys,
    `search_lag_seconds` until a search finds an object, `funds_delay_seconds` until the money of a
    charge is available, `payout_seconds` and `report_seconds` until those are complete.
    `pays_out_at_once`: the answer to the creation of a payout shows it as paid, which Stripe's
    never does. `debit_seconds`: until a bank debit of a Checkout Session succeeds or fails.
    `files_url` and `checkout_url`: the servers that the URLs of files and of hosted pages name.
    """

    fee_ppm: int = 15_000
    fee_fixed: int = 25
    key_window_seconds: float = 86_400.0
    search_lag_seconds: float = 60.0
    funds_delay_seconds: float = 0.0
    payout_seconds: float = 0.0
    pays_out_at_once: bool = False
    report_seconds: float = 0.0
    debit_seconds: float = 86_400.0
    files_url: str = "https://files.stripe.com"
    checkout_url: str = "https://checkout.stripe.com"


Advance = Callable[["Context", StoredObject], None]


@dataclass(slots=True)
class Context:
    """One request. `seed` makes its ids, so that a repeated transaction makes the same ones.
    `request_id` and `key` are shown in its events.

    Objects, events and balance transactions are written together by `flush`. A request that fails
    before it writes nothing.
    """

    connection: Connection
    account: str
    seed: str
    rules: StripeRules
    advances: Mapping[str, Advance]
    switches: Switches
    endpoints: tuple[tuple[str, bool], ...] = ()
    """The name of each webhook endpoint, and whether it is for events of connected accounts."""
    request_id: str = ""
    key: str = ""
    _objects: dict[str, StoredObject] = field(default_factory=dict)
    _changed_ids: dict[str, None] = field(default_factory=dict)
    _balance_changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    _deliveries: list[dict[str, str]] = field(default_factory=list)
    _id_count: int = 0

    @property
    def now(self) -> datetime:
        return self.connection.begin_time

    @property
    def timestamp(self) -> int:
        """The present time, in Unix seconds."""
        return int(self.now.timestamp())

    def new_id(self, prefix: str) -> str:
        self._id_count += 1
        digest = sha256(f"{self.seed}/{self._id_count}".encode()).hexdigest()
        return f"{prefix}_{digest[:24]}"

    def find(self, id_: str) -> StoredObject | None:
        """An object, locked. One that is due advances first."""
        if id_ not in self._objects:
            item = store.find_object(self.connection, id_, lock=True)
            if item is None:
                return None
            self._objects[id_] = item
            if item.due_time is not None and item.due_time <= self.now:
                self.advances[item.type](self, item)
        return self._objects[id_]

    def load(self, type_: str, id_: str, *, param: str = "", account: str = "") -> StoredObject:
        """An object of a type and an account, by default the request's. `param`: the parameter that
        names it, "": the path does. Raises StripeFailure.
        """
        item = self.find(id_)
        if item is None or item.type != type_ or item.account != (account or self.account):
            raise missing(type_, id_, param=param or "id", status=400 if param else 404)
        return item

    def save(self, item: StoredObject) -> None:
        """Writes a new or a changed object at the end of the request."""
        self._objects[item.id] = item
        self._changed_ids[item.id] = None

    def create(
        self,
        prefix: str,
        type_: str,
        body: dict[str, Any],
        *,
        account: str = "",
        plan: dict[str, Any] | None = None,
        due_in_seconds: float | None = None,
    ) -> StoredObject:
        """A new object. `body` without id, object, created and livemode."""
        id_ = self.new_id(prefix)
        shared = {"id": id_, "object": type_, "created": self.timestamp, "livemode": False}
        item = StoredObject(id_, type_, account or self.account, {**shared, **body}, plan or {})
        self.schedule(item, due_in_seconds)
        self.save(item)
        return item

    def schedule(self, item: StoredObject, seconds: float | None) -> None:
        """The object advances by itself after this time; None: never."""
        item.due_time = None if seconds is None else self.now + timedelta(seconds=seconds)

    def emit(
        self, type_: str, item: StoredObject, previous: Mapping[str, Any] | None = None
    ) -> None:
        """Records an event with the present state of an object, and its deliveries."""
        is_connect = item.account != PLATFORM
        data: dict[str, Any] = {"object": deepcopy(item.body)}
        if previous is not None:
            data["previous_attributes"] = dict(previous)
        endpoints = [name for name, for_connect in self.endpoints if for_connect == is_connect]
        event = self.create(
            "evt",
            "event",
            {
                "api_version": API_VERSION,
                "data": data,
                "pending_webhooks": len(endpoints),
                "request": {
                    "id": self.request_id or None,
                    "idempotency_key": self.key or None,
                },
                "type": type_,
                **({"account": item.account} if is_connect else {}),
            },
            account=item.account,
        )
        self._deliveries += [{"event_id": event.id, "endpoint": name} for name in endpoints]

    def book(
        self,
        type_: str,
        amount: int,
        currency: str,
        source: str,
        *,
        account: str = "",
        fee: int = 0,
        delay_seconds: float = 0.0,
        reporting_category: str = "",
    ) -> StoredObject:
        """Records a balance transaction: `amount` minus `fee` is added to the balance of the
        account, and available `delay_seconds` later.
        """
        item = self.create(
            "txn",
            "balance_transaction",
            {
                "amount": amount,
                "available_on": int((self.now + timedelta(seconds=delay_seconds)).timestamp()),
                "balance_type": "payments",
                "currency": currency,
                "description": None,
                "exchange_rate": None,
                "fee": fee,
                "fee_details": _fee_details(fee, currency),
                "net": amount - fee,
                "reporting_category": reporting_category or type_,
                "source": source,
                "status": "pending" if delay_seconds else "available",
                "type": type_,
            },
            account=account,
            due_in_seconds=delay_seconds or None,
        )
        del item.body["livemode"]
        self._balance_changes[item.account, currency] += amount - fee
        return item

    def charge_fee(self, amount: int) -> int:
        """The fee of a charge, at most its amount."""
        return min(apply_rate(amount, self.rules.fee_ppm) + self.rules.fee_fixed, amount)

    def available(self, account: str, currency: str) -> int:
        """The available balance, locked until the end of the request."""
        store.lock_balance(self.connection, account, currency)
        balances = store.list_balances(self.connection, account, self.now)
        stored = sum(item.total - item.pending for item in balances if item.currency == currency)
        return stored + self._balance_changes[account, currency]

    def flush(self) -> None:
        """Writes everything."""
        if self._changed_ids:
            items = [self._objects[id_] for id_ in self._changed_ids]
            store.save_objects(self.connection, items)
        amounts = {key: amount for key, amount in self._balance_changes.items() if amount}
        if amounts:
            store.add_to_balances(self.connection, amounts)
        if self._deliveries:
            delivery_store.add_deliveries(self.connection, self._deliveries)

    def expand(self, body: dict[str, Any], paths: list[str]) -> dict[str, Any]:
        """The body with the objects that `paths` name, such as "latest_charge.balance_transaction",
        instead of their ids. Raises StripeFailure.
        """
        expanded = deepcopy(body)
        for path in paths:
            names = path.split(".")
            if len(names) > MAX_EXPANSION_DEPTH:
                raise invalid(
                    f"You cannot expand more than {MAX_EXPANSION_DEPTH} levels of a property.",
                    "expand",
                )
            self._expand(expanded, names, path)
        return expanded

    def _expand(self, node: Any, names: list[str], path: str) -> None:
        if isinstance(node, list):
            for item in node:
                self._expand(item, names, path)
            return
        if not isinstance(node, dict) or (names and names[0] not in node):
            raise invalid(f"This property cannot be expanded ({path[:100]}).", "expand")
        if not names:
            return
        value = node[names[0]]
        if value is None:
            return
        if isinstance(value, str):
            item = self.find(value)
            if item is None:
                raise invalid(f"This property cannot be expanded ({path[:100]}).", "expand")
            node[names[0]] = value = deepcopy(item.body)
        self._expand(value, names[1:], path)


def _fee_details(fee: int, currency: str) -> list[dict[str, Any]]:
    if not fee:
        return []
    return [
        {
            "amount": fee,
            "application": None,
            "currency": currency,
            "description": "Stripe processing fees",
            "type": "stripe_fee",
        }
    ]
