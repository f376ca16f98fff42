"""Serves one request after the other, without sockets."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import format_datetime
from hashlib import sha256
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID, uuid4

import orjson

from tallystick_core.errors import ApiError
from tallystick_sandbox.rules import Behavior, Fault, format_request_id
from tallystick_sandbox.stripe import accounts, checkout_sessions, errors, faults, store
from tallystick_sandbox.stripe.checkout_sessions import BuyerCard, CheckoutState
from tallystick_sandbox.stripe.context import API_VERSION, Context, StripeRules
from tallystick_sandbox.stripe.errors import StripeFailure
from tallystick_sandbox.stripe.faults import FaultCounts, HttpAnswer, Switches
from tallystick_sandbox.stripe.form import MAX_BODY_BYTES, Form, parse_form
from tallystick_sandbox.stripe.parameters import Parameters
from tallystick_sandbox.stripe.routes import ADVANCES, Route, find_route
from tallystick_sandbox.stripe.store import PLATFORM
from tallystick_sandbox.stripe.tokens import account_behavior, payment_method_behavior
from tallystick_sandbox.stripe.webhooks import Send, WebhookDeliverer, WebhookEndpoint
from tallystick_storage.database import Database, prune_commit_markers
from tallystick_storage.sql import Connection

_NO_FAULT = Behavior(Fault.NONE)
_MAX_KEY_LENGTH = 255
_TEST_KEYS = ("sk_test_", "rk_test_")
_MAX_DUE = 100


@dataclass(frozen=True, slots=True)
class _Request:
    """An authenticated request with its route."""

    id: str
    account: str
    key: str
    route: Route
    ids: list[str]
    path: str
    form: Form

    @property
    def fingerprint(self) -> bytes:
        """Equal for requests with the same path and parameters."""
        return sha256(orjson.dumps([self.path, self.form], option=orjson.OPT_SORT_KEYS)).digest()


class StripeSandbox:
    """The look-alike. `new_id` makes the ids of requests, and all others follow from them."""

    def __init__(
        self,
        database: Database,
        rules: StripeRules | None = None,
        *,
        endpoints: Sequence[WebhookEndpoint] = (),
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        self._database = database
        self._rules = rules or StripeRules()
        self._endpoints = tuple(endpoints)
        self._new_id = new_id
        self._keys_in_flight: set[tuple[str, str]] = set()
        self._fault_counts = FaultCounts()
        self.switches = Switches()

    async def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> HttpAnswer:
        """Serves a request. `path` with its query. Never raises for a bad request."""
        request_id = format_request_id(self._new_id())
        lower = {name.lower(): value for name, value in headers.items()}
        try:
            answer = await self._serve(method, path, lower, body, request_id)
        except StripeFailure as failure:
            answer = _error_answer(failure)
        except ApiError:  # the database is unavailable, as the log shows
            answer = _error_answer(errors.server_error())
        shared = {"Request-Id": request_id, "Stripe-Version": API_VERSION}
        if key := lower.get("idempotency-key"):
            shared["Idempotency-Key"] = key
        return answer._replace(headers={**shared, **answer.headers})

    async def _serve(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, request_id: str
    ) -> HttpAnswer:
        _authenticate(headers.get("authorization", ""))
        request = _parse(method, path, headers, body, request_id)
        if not request.key:
            return await self._with_faults(request)
        key = (request.account, request.key)
        if key in self._keys_in_flight:
            raise errors.key_in_use()
        self._keys_in_flight.add(key)
        try:
            return await self._with_faults(request)
        finally:
            self._keys_in_flight.discard(key)

    async def _with_faults(self, request: _Request) -> HttpAnswer:
        behavior = _behavior_of(request) if request.route.method == "POST" else _NO_FAULT
        if behavior.delay_seconds:
            await asyncio.sleep(behavior.delay_seconds)
        counted = f"{request.account}/{request.path}/{request.key or request.id}"
        fault = self.switches.take_fault(request.path)
        if fault is Fault.NONE and self._fault_counts.applies(counted, behavior):
            fault = behavior.fault
        if fault in faults.BEFORE:
            return faults.answer_before(fault)
        answer = await self._execute(request)
        return faults.answer_after(fault, answer) if fault in faults.AFTER else answer

    async def _execute(self, request: _Request) -> HttpAnswer:
        def answer_request(connection: Connection) -> HttpAnswer:
            if request.key:
                stored = store.claim_key(
                    connection,
                    request.account,
                    request.key,
                    request.fingerprint,
                    request.id,
                    self._rules.key_window_seconds,
                )
                if stored is not None:
                    return _replay(request, stored)
            answer = self._run_handler(connection, request)
            if request.key:
                store.store_answer(
                    connection, request.account, request.key, answer.status, answer.body.decode()
                )
            return answer

        def answer_with_date(connection: Connection) -> HttpAnswer:
            answer = answer_request(connection)
            date = format_datetime(connection.begin_time, usegmt=True)
            return answer._replace(headers={**answer.headers, "Date": date})

        is_repeatable = bool(request.key) or request.route.method == "GET"
        return await self._database.transact(answer_with_date, idempotent=is_repeatable)

    def _run_handler(self, connection: Connection, request: _Request) -> HttpAnswer:
        context = self._context(
            connection, request.account, request.id, request_id=request.id, key=request.key
        )
        parameters = Parameters(request.form)
        try:
            accounts.check_access(context)
            body = request.route.handler(context, parameters, *request.ids)
            if isinstance(body, dict):
                body = context.expand(body, parameters.expansions())
            answer = _json_answer(200, body)
        except StripeFailure as failure:
            if not failure.is_kept:
                raise
            answer = _error_answer(failure)
        context.flush()
        return answer

    def _context(
        self,
        connection: Connection,
        account: str,
        seed: str,
        *,
        request_id: str = "",
        key: str = "",
    ) -> Context:
        return Context(
            connection,
            account,
            seed,
            self._rules,
            ADVANCES,
            self.switches,
            tuple((endpoint.name, endpoint.is_connect) for endpoint in self._endpoints),
            request_id,
            key,
        )

    async def show_checkout(self, session_id: str) -> CheckoutState:
        """The present state of a Checkout Session. Raises StripeFailure if there is none."""
        return await self._act(lambda context: checkout_sessions.show(context, session_id))

    async def submit_checkout(self, session_id: str, card: BuyerCard) -> CheckoutState:
        """The buyer of a Checkout Session pays with a test card, see `checkout_sessions.submit`."""
        return await self._act(lambda context: checkout_sessions.submit(context, session_id, card))

    async def authenticate_checkout(self, session_id: str, *, passes: bool) -> CheckoutState:
        """The buyer passes or fails an authentication, see `checkout_sessions.authenticate`."""
        return await self._act(
            lambda context: checkout_sessions.authenticate(context, session_id, passes=passes)
        )

    async def _act(self, action: Callable[[Context], CheckoutState]) -> CheckoutState:
        """What a buyer does on the page of a session, in one transaction."""
        seed = f"buyer_{self._new_id().hex}"

        def act(connection: Connection) -> CheckoutState:
            context = self._context(connection, PLATFORM, seed)
            state = action(context)
            context.flush()
            return state

        return await self._database.transact(act)

    async def advance_due(self) -> int:
        """Advances up to 100 objects whose time has come. Returns their number."""
        if not await self._database.load(store.has_due_objects):
            return 0
        seed = f"due_{self._new_id().hex}"

        def advance(connection: Connection) -> int:
            context = self._context(connection, PLATFORM, seed)
            ids = store.list_due_ids(connection, _MAX_DUE)
            for id_ in ids:
                context.find(id_)
            context.flush()
            return len(ids)

        return await self._database.transact(advance)

    def deliverer(self, send: Send) -> WebhookDeliverer:
        """Delivers the events to the endpoints by `send`."""
        return WebhookDeliverer(self._database, self._endpoints, self.switches, send)

    async def prune_keys(self) -> None:
        """Deletes expired idempotency keys, and commit markers that nothing needs any more."""

        def prune(connection: Connection) -> None:
            store.prune_keys(connection, self._rules.key_window_seconds)
            prune_commit_markers(connection)

        await self._database.transact(prune, idempotent=True)


def _authenticate(authorization: str) -> None:
    """Accepts any test key, as a bearer token or as the user of Basic. Raises StripeFailure."""
    scheme, _, value = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            key = value.strip()
        case "basic":
            key = _basic_user(value)
        case _:
            raise errors.unauthorized(
                "You did not provide an API key. You need to provide your API key in the "
                "Authorization header, using Bearer auth (e.g. 'Authorization: Bearer "
                "YOUR_SECRET_KEY')."
            )
    if not key.startswith(_TEST_KEYS):
        raise errors.unauthorized("Invalid API Key provided: the look-alike takes test keys only.")


def _basic_user(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _parse(
    method: str, path: str, headers: Mapping[str, str], body: bytes, request_id: str
) -> _Request:
    parts = urlsplit(path)
    route, ids = find_route(method, parts.path)
    if len(body) > MAX_BODY_BYTES:
        raise errors.StripeFailure(
            413,
            "invalid_request_error",
            "",
            f"The body must have at most {MAX_BODY_BYTES} bytes.",
        )
    try:
        text = body.decode() if method == "POST" else parts.query
    except UnicodeDecodeError:
        raise errors.invalid("The body must be UTF-8.") from None
    key = headers.get("idempotency-key", "") if method == "POST" else ""
    if len(key) > _MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise errors.invalid(
            f"Idempotency-Key must have at most {_MAX_KEY_LENGTH} printable ASCII characters."
        )
    account = headers.get("stripe-account", "") or PLATFORM
    if not account.isascii() or not account.isprintable():
        raise errors.account_invalid(ascii(account))
    if any(len(id_) > 255 or "\0" in id_ for id_ in ids):
        raise errors.unknown_path(method, parts.path)
    return _Request(
        request_id,
        account,
        key,
        route,
        ids,
        unquote(parts.path),
        parse_form(text),
    )


def _behavior_of(request: _Request) -> Behavior:
    """What the payment method, the destination or the account of a request asks for. A payout to a
    seller is a transfer and a payout: a fault that replaces the answer after the effect is one of
    the payout, any other one is one of the transfer.
    """
    method, destination = request.form.get("payment_method"), request.form.get("destination")
    if isinstance(method, str):
        return payment_method_behavior(method) or _NO_FAULT
    is_transfer = request.path == "/v1/transfers" and isinstance(destination, str)
    if not is_transfer and request.path != "/v1/payouts":
        return _NO_FAULT
    behavior = account_behavior(str(destination) if is_transfer else request.account) or _NO_FAULT
    return behavior if is_transfer != (behavior.fault in faults.AFTER) else _NO_FAULT


def _replay(request: _Request, stored: store.StoredAnswer) -> HttpAnswer:
    """The first answer of a key. Raises StripeFailure if the parameters differ."""
    if stored.fingerprint != request.fingerprint:
        raise errors.key_mismatch(request.key)
    headers = {
        "Content-Type": "application/json",
        "Idempotent-Replayed": "true",
        "Original-Request": stored.request_id,
    }
    return HttpAnswer(stored.status, headers, stored.body.encode())


def _json_answer(status: int, body: Any) -> HttpAnswer:
    if isinstance(body, bytes):  # a file
        return HttpAnswer(status, {"Content-Type": "text/csv"}, body)
    return HttpAnswer(status, {"Content-Type": "application/json"}, orjson.dumps(body))


def _error_answer(failure: StripeFailure) -> HttpAnswer:
    answer = _json_answer(failure.status, failure.body)
    headers = {**answer.headers, "Stripe-Should-Retry": str(failure.is_retryable).lower()}
    if failure.status == 429:
        headers["Retry-After"] = f"{faults.RETRY_AFTER_SECONDS:g}"
    return answer._replace(headers=headers)
