"""Configuration: a TOML file, and the environment over it. Everything is checked at the start; each
error names its setting.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tallystick_core.access import Caller, Role
from tallystick_core.errors import ApiError
from tallystick_core.money import parse_amount, parse_currency
from tallystick_core.payment.state import ALERT_AFTER_SECONDS
from tallystick_core.payout.state import ALERT_AFTER_SECONDS as PAYOUT_ALERT_AFTER
from tallystick_core.provider.outcome import RetryReason
from tallystick_core.validation import parse_country, parse_id
from tallystick_server.app.errors import StartupError
from tallystick_server.operations.retry_policy import (
    DEFAULT_POLICIES,
    POLICY_FORMAT,
    UNLIMITED_REASONS,
    RetryPolicy,
    parse_policy,
)
from tallystick_server.providers.gateway import LEASE_MARGIN_SECONDS

log = logging.getLogger(__name__)

SERVICES = ("payment", "ledger", "wallet", "payout", "event")
"""The services that can be served alone."""
DEFAULT_DESTINATION_COOLDOWN = 259_200.0
"""Seconds that a new destination waits where callers are told apart, unless it is set."""


@dataclass(frozen=True)
class Settings:
    """Every setting, parsed. In the environment a setting is TALLYSTICK_ and its name in capitals;
    in the file, its name.

    Its repr leaves out what holds passwords and tokens, or may, as every URL does: a traceback or a
    log may show it. No error shows their values.
    """

    data: Path = Path(".data")
    """Where the embedded PostgreSQL and generated passwords live."""
    database_url: str = field(default="", repr=False)
    """The administrator's; empty: the embedded PostgreSQL. For `serve` host and database are
    enough, such as postgresql://host:5432/database: each service logs in by its own role, with the
    generated password.
    """
    environment: str = "dev"
    """Part of every key that a provider gets, so that two installations never share one."""
    listen: str = "127.0.0.1:7070"
    """Where `serve` listens."""
    reuse_port: bool = False
    """Lets several processes of one service share the address."""
    address: Mapping[str, str] = field(default_factory=dict)
    """Service to the address where the others reach it, when it runs in a process of its own."""
    service_database_url: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Service to its own database URL, where it is not the administrator's with the
    generated role.
    """
    reader_database_url: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Schema to the database URL that `verify` reads it by, where it is not the administrator's
    with the generated role.
    """
    authentication: str = "none"
    """none (development, loopback only) or tokens."""
    callers: Mapping[str, Caller] = field(default_factory=dict, repr=False)
    """Bearer token to caller."""
    service_token: str = field(default="", repr=False)
    """What this process sends to other services."""
    payout_service: str = ""
    """The caller that WalletService takes for PayoutService, which alone may use the holds of
    payouts; empty: that of service_token. It must be set for a WalletService without PayoutService
    in its process if several callers have the role service.
    """
    most_calls: int = 4000
    """The most calls of teams that change something, also those that move money out, in flight at a
    time; more are refused with OVERLOADED, as are those above the next limits.
    """
    most_reads: int = 2000
    """The most calls of teams that only read in flight at a time."""
    most_platform_calls: int = 2000
    """The most calls of operators and auditors, and as many of services, in flight at a time."""
    most_waiting: int = 4000
    """The most calls that wait for a result at a time; above it CreatePayment, CancelPayment and
    CreatePayout answer at once, as with ACCEPTANCE.
    """
    most_streams: int = 2000
    """The most open streams of teams, as many of operators and auditors, and as many of
    services.
    """
    caller_share: float = 0.5
    """The part of each of these, and of message_bytes, that the callers of one owner may have while
    no others call; 1: they may keep others out.
    """
    message_bytes: int = 32 * 1024 * 1024
    """The most bytes of requests in flight at a time, those of up to 4 KiB not counted; more are
    refused with OVERLOADED.
    """
    connections: Mapping[str, int] = field(default_factory=dict)
    """Service to its database connections for work: 2 for ledger, 4 for each other."""
    read_connections: Mapping[str, int] = field(default_factory=dict)
    """Service to its database connections for callers' reads: 2 for each. The sum over all
    processes must stay below PostgreSQL's max_connections.
    """
    database_patience: float = 60.0
    """Seconds that a starting service waits for a database that takes no connections; its health is
    NOT_SERVING meanwhile.
    """
    read_timeout: float = 5.0
    """Seconds that one query of a caller's read may take before it is refused with
    QUERY_TOO_SLOW.
    """
    provider: str = "sandbox"
    """Who charges the buyers."""
    payout_provider: str = "sandbox"
    """Who pays the sellers."""
    payout_approve_above: Mapping[str, int] = field(default_factory=dict)
    """Currency to the amount above which a payout needs a second person, such as EUR=10000.00;
    without one, none does.
    """
    payout_waiting_period: float | None = None
    """Seconds that a new destination waits before it is used, while the one before it is used.
    Unset: three days, or 0 without authentication.
    """
    destination_approve_above: Mapping[str, int] = field(default_factory=dict)
    """Currency to the available money above which a seller's new destination needs a second person,
    such as EUR=1000.00; without one, none does.
    """
    seller_check_interval: float = 60.0
    """Seconds after which PaymentService asks again whom a seller belongs to: by then an assignment
    to another owner has taken effect.
    """
    payout_alert_after: Mapping[str, float] = field(default_factory=dict)
    """State to the seconds after which a payout that rests in it raises an alert, over MOVING=600
    (any other state, or not settled), AWAITING_APPROVAL=86400,SUBMITTED=86400,IN_TRANSIT=432000,
    and VERIFYING=259200 for destinations, COLLECTING=3600 for batches.
    """
    sandbox_url: str = field(default="", repr=False)
    """Empty: the sandbox runs in the process."""
    sandbox_latency: float = 0.0
    """Seconds that every answer of the sandbox takes."""
    provider_timeout: float = 30.0
    """Seconds after which a call to the provider has the outcome UNKNOWN."""
    breaker_failures: int = 20
    """Different charges, or payouts, that fail in a row, after which a provider is left alone for a
    while; sends and look-ups are counted apart.
    """
    breaker_rest: float = 5.0
    """Seconds for which it is left alone at first; twice as long after each probe that fails and
    had not failed before.
    """
    breaker_longest_rest: float = 60.0
    """Seconds for which it is left alone at most."""
    waiting_depth: int = 100_000
    """How many charges may wait for a provider that fails, before new payments are refused with
    PROVIDER_UNAVAILABLE. If none of them is sent as the probe of an open breaker, one new payment
    is accepted all the same.
    """
    provider_calls: int = 2000
    """The most calls to one provider at a time."""
    in_flight: int = 8000
    """The most charges, or payouts and destinations, in flight in one process; more get OVERLOADED.
    What is due again takes half at most.
    """
    lease: float = 60.0
    """Seconds for which a process has a charge or a payout to itself; longer than a provider's call
    and the recording of its answer.
    """
    provider_key_window: float = 86_400.0
    """Seconds for which the provider honours an idempotency key; after that a charge or a payout is
    looked up, never sent again.
    """
    provider_not_found_after: float = 60.0
    """Seconds after a charge may last have been sent: from then on it proves something that the
    sandbox does not know it.
    """
    provider_not_found_times: int = 2
    """How often it has to say so."""
    retry: Mapping[tuple[str, RetryReason], RetryPolicy] = field(default_factory=dict)
    """Trouble, or provider.trouble, to the policy by which it is tried again, such as
    no_answer=exponential:2:300:12; 0 tries: no bound.
    """
    pending_action: float = 86_400.0
    """Seconds a buyer has for what an order waits for; after that it is cancelled at the
    provider.
    """
    pending_review: float = 604_800.0
    """Seconds a provider has for a review; after that an alert is raised."""
    alert_after: Mapping[str, float] = field(default_factory=dict)
    """Status to the seconds after which an order that rests in it raises an alert, over
    EXECUTING=600,PENDING=259200,SUCCESS=600 (not settled).
    """
    events_alert_after: float = 300.0
    """Seconds after which an event that waits to be published raises an alert: EventService is
    away, or does not accept the calls.
    """
    monitor_interval: float = 10.0
    """Seconds between two looks for what a person should know of."""
    sweep_interval: float = 1.0
    """Seconds between two looks for work that is due."""
    relay_interval: float = 0.2
    """Seconds between two looks for changes that are to be published."""
    fee_rate: int = 0
    """Parts per million; written as a decimal such as "0.025"."""
    seller_fee_rates: Mapping[str, int] = field(default_factory=dict)
    """Seller to rate, over fee_rate."""
    release_delay: int = 0
    """Seconds a sale stays pending unless it is released before, in wallets without a policy of
    their own.
    """
    risk_amount_limits: Mapping[str, int] = field(default_factory=dict)
    """Currency to the largest amount of one order, such as EUR=5000.00."""
    risk_velocity_limit: int = 0
    """Orders of one buyer within the window; 0: no limit."""
    risk_velocity_window: float = 3600.0
    """Seconds."""
    risk_blocked_accounts: frozenset[str] = frozenset()
    """Buyers and sellers whose orders are refused."""
    risk_blocked_countries: frozenset[str] = frozenset()
    """Buyers' countries (ISO 3166-1) whose orders are refused."""
    otlp_endpoint: str = field(default="", repr=False)
    """Where spans are sent by OTLP over HTTP, such as http://127.0.0.1:4318; empty: nowhere."""
    trace_ratio: float = 0.01
    """The part of traces that is recorded when an endpoint is given."""
    drain: float = 20.0
    """Seconds that calls in flight get to end when the process is stopped. Charges and payouts
    under way get what is left of them, and at least 5 s (`drain`, if that is shorter): so a process
    takes up to 7 s longer than this to stop.
    """


class _InvalidValue(Exception):
    """A value that cannot be; says what would be right."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _InvalidValue("must be text")
    return value


def _one_of(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise _InvalidValue(f"must be one of {', '.join(choices)}")
        return str(value)

    return parse


def _matching(pattern: str, description: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if not re.fullmatch(pattern, _text(value), re.ASCII):
            raise _InvalidValue(f"must be {description}")
        return str(value)

    return parse


def _url(value: Any) -> str:
    """Empty, or where a path is added to."""
    text = _text(value)
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if text and not (
        is_valid
        and re.fullmatch(r"[!-~]+", text)
        and text.count("@") < 2
        and not parts.query
        and not parts.fragment
    ):
        raise _InvalidValue(
            "must be a URL that begins with http:// or https://, without a query; in a password @ "
            ": / ? # are written as %40 and so on"
        )
    return text


def _number(
    min_value: float, max_value: float, kind: type = float, unit: str = ""
) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        try:
            number = kind(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError):
            number = None
        if (
            number is None
            or not min_value <= number <= max_value
            or (kind is int and isinstance(value, float))
        ):
            raise _InvalidValue(
                f"must be a {'whole ' if kind is int else ''}number{unit} from {min_value:,.10g} "
                f"to {max_value:,.10g}"
            )
        return number

    return parse


def _seconds(min_value: float, max_value: float, kind: type = float) -> Callable[[Any], Any]:
    return _number(min_value, max_value, kind, " of seconds")


def _rate(value: Any) -> int:
    if not re.fullmatch(r"0(\.[0-9]{1,6})?", str(value), re.ASCII):
        raise _InvalidValue('must be a decimal from 0 to 0.999999 such as "0.025"')
    return int((str(value).partition(".")[2] + "000000")[:6])


def _table(
    parse: Callable[[Any], Any], parse_key: Callable[[str], str] = str
) -> Callable[[Any], dict[str, Any]]:
    """A table; in the environment "key=value,key=value"."""

    def parse_table(value: Any) -> dict[str, Any]:
        if isinstance(value, str):
            pairs = [pair.split("=", 1) for pair in value.split(",") if pair]
            if any(len(pair) != 2 for pair in pairs):
                raise _InvalidValue("must look like key=value,key=value")
            value = dict(pairs)
        if not isinstance(value, dict):
            raise _InvalidValue("must be a table")
        return {parse_key(key): parse(item) for key, item in value.items()}

    return parse_table


def _boolean(value: Any) -> bool:
    boolean_by_text = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, bool):
        return value
    if str(value).lower() not in boolean_by_text:
        raise _InvalidValue("must be true or false")
    return boolean_by_text[str(value).lower()]


def _set(parse: Callable[[str, str], str]) -> Callable[[Any], frozenset[str]]:
    """A list; in the environment with commas between."""

    def parse_set(value: Any) -> frozenset[str]:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise _InvalidValue("must be a list of texts")
        try:
            return frozenset(parse(item.strip(), "each") for item in items if item.strip())
        except ApiError as error:
            raise _InvalidValue(f"holds what it cannot: {error.message.rstrip('.')}") from None

    return parse_set


def _service(name: str) -> str:
    if name not in (*SERVICES, "sandbox"):
        # which is not shown: it may be a part of a URL
        raise _InvalidValue(f"has a key that is none of {', '.join(SERVICES)}")
    return name


def _amount_by_currency(value: Any) -> dict[str, int]:
    texts = _table(str)(value)
    try:
        return {
            parse_currency(currency): parse_amount(amount, currency)
            for currency, amount in texts.items()
        }
    except ApiError as error:
        raise _InvalidValue(f"must give an amount for each currency: {error.message}") from None


def _callers(value: Any) -> dict[str, Caller]:
    """A list of tables with name, roles, tokens and, for callers that share one, owner; in the
    environment "name:role+role:token" or "name@owner:role+role:token" for each, with commas
    between.
    """
    if isinstance(value, str):
        parts = [entry.split(":", 2) for entry in value.split(",") if entry]
        if any(len(part) != 3 for part in parts):
            raise _InvalidValue("must look like name:role+role:token,…")
        caller_fields = [(*name.partition("@")[::2], roles, token) for name, roles, token in parts]
        value = [
            {"name": name, "roles": roles.split("+"), "tokens": [token], "owner": owner or name}
            for name, owner, roles, token in caller_fields
        ]
    callers: dict[str, Caller] = {}
    for number, entry in enumerate(value if isinstance(value, list) else [None], 1):
        if not isinstance(entry, dict) or set(entry) - {"owner"} != {"name", "roles", "tokens"}:
            raise _InvalidValue(
                "must be a list of tables with name, roles and tokens, and where callers share "
                "one, owner"
            )
        try:
            name = parse_id(entry["name"], "name")
            caller = Caller(
                name,
                frozenset(Role(role) for role in entry["roles"]),
                parse_id(entry.get("owner", name), "owner"),
            )
        except (ApiError, ValueError, TypeError):
            # what stands there is not shown: it may be a token in the wrong place
            role_names = ", ".join(Role)
            raise _InvalidValue(
                f"must give caller number {number} a name and an owner that are ids, and roles "
                f"among {role_names}"
            ) from None
        if not isinstance(entry["tokens"], list):
            raise _InvalidValue(f"must give caller number {number} a list of tokens")
        for token in entry["tokens"]:
            if not isinstance(token, str) or len(token) < 16 or token in callers:
                raise _InvalidValue(
                    f"gives caller number {number} a token that is shorter than 16 characters or "
                    "stands twice"
                )
            callers[token] = caller
    return callers


def _policies(value: Any) -> dict[tuple[str, RetryReason], RetryPolicy]:
    parsed = {}
    for key, text in _table(_text)(value).items():
        provider, _, retry_reason = key.rpartition(".")
        if retry_reason.upper() not in DEFAULT_POLICIES:
            raise _InvalidValue(
                f"names no trouble by {key}; there are {', '.join(DEFAULT_POLICIES).lower()}"
            )
        if provider not in ("", *_PROVIDERS):
            raise _InvalidValue(f"names no provider by {key}; there are {', '.join(_PROVIDERS)}")
        try:
            parsed[provider, RetryReason(retry_reason.upper())] = parse_policy(text)
        except ValueError:
            raise _InvalidValue(f"must give {key} as {POLICY_FORMAT}") from None
        if (
            RetryReason(retry_reason.upper()) in UNLIMITED_REASONS
            and parsed[provider, RetryReason(retry_reason.upper())].max_attempts is not None
        ):
            raise _InvalidValue(
                f"must give {key} 0 tries, which is without end: the wallet and the ledger are "
                "the platform's own"
            )
    return parsed


_PROVIDERS = ("sandbox",)
_PORT = "6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}"
_ADDRESS = _matching(rf"[A-Za-z0-9.\-\[\]:]+:({_PORT})|unix:.+", "host:port or unix:path")
# where the settings are, what scripts/setup runs, and an operator's own
_NON_SETTING_NAMES = frozenset({"config", "python", "token"})
_SERVICE_LINK = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)",
    re.ASCII,
)
"""The variables that Kubernetes and Docker set for a service called tallystick, or tallystick-…,
after "TALLYSTICK_".
"""
_PARSERS: dict[str, Callable[[Any], Any]] = {
    "data": lambda value: Path(_text(value)),
    "database_url": _text,
    "environment": _matching(r"[a-z0-9]{1,16}", "1 to 16 of a-z 0-9"),
    "listen": _ADDRESS,
    "reuse_port": _boolean,
    "address": _table(_ADDRESS, _service),
    "service_database_url": _table(_text, _service),
    "reader_database_url": _table(_text, _service),
    "authentication": _one_of("none", "tokens"),
    "callers": _callers,
    "service_token": _text,
    "payout_service": _text,
    "most_calls": _number(1, 100_000, int),
    "most_reads": _number(1, 100_000, int),
    "most_platform_calls": _number(1, 100_000, int),
    "most_waiting": _number(1, 100_000, int),
    "most_streams": _number(1, 100_000, int),
    "caller_share": _number(0.01, 1),
    "message_bytes": _number(16 * 1024 * 1024, 1024 * 1024 * 1024, int),
    "connections": _table(_number(1, 100, int), _service),
    "read_connections": _table(_number(1, 100, int), _service),
    "read_timeout": _seconds(0.1, 60),
    "database_patience": _seconds(0, 86_400),
    "provider": _one_of(*_PROVIDERS),
    "payout_provider": _one_of(*_PROVIDERS),
    "payout_approve_above": _amount_by_currency,
    "payout_waiting_period": _seconds(0, 31_536_000),
    "destination_approve_above": _amount_by_currency,
    "seller_check_interval": _seconds(0, 3600),
    "payout_alert_after": _table(_seconds(0, 31_536_000), _one_of(*PAYOUT_ALERT_AFTER)),
    "sandbox_url": _url,
    "sandbox_latency": _seconds(0, 60),
    "provider_timeout": _seconds(0.1, 600),
    "breaker_failures": _number(1, 1_000_000, int),
    "breaker_rest": _seconds(0.01, 60),
    "breaker_longest_rest": _seconds(0.01, 3600),
    "waiting_depth": _number(0, 10_000_000, int),
    "provider_calls": _number(1, 100_000, int),
    "in_flight": _number(10, 1_000_000, int),
    "lease": _seconds(1, 3600),
    "provider_key_window": _seconds(1, 31_536_000),
    "provider_not_found_after": _seconds(0, 31_536_000),
    "provider_not_found_times": _number(1, 1000, int),
    "retry": _policies,
    "pending_action": _seconds(0.01, 31_536_000),
    "pending_review": _seconds(0.01, 31_536_000),
    "alert_after": _table(_seconds(0, 31_536_000), _one_of(*ALERT_AFTER_SECONDS)),
    "events_alert_after": _seconds(0, 31_536_000),
    "monitor_interval": _seconds(0.01, 3600),
    "sweep_interval": _seconds(0.01, 3600),
    "relay_interval": _seconds(0.01, 3600),
    "fee_rate": _rate,
    "seller_fee_rates": _table(_rate),
    "release_delay": _seconds(0, 31_536_000, int),
    "risk_amount_limits": _amount_by_currency,
    "risk_velocity_limit": _number(0, 1_000_000, int),
    "risk_velocity_window": _seconds(1, 31_536_000),
    "risk_blocked_accounts": _set(parse_id),
    "risk_blocked_countries": _set(parse_country),
    "otlp_endpoint": _url,
    "trace_ratio": _number(0, 1),
    "drain": _seconds(0, 600),
}


def load(environment: Mapping[str, str] | None = None, path: str | None = None) -> Settings:
    """The settings. Raises Failure that names what is wrong."""
    environment = os.environ if environment is None else environment
    path = path or environment.get("TALLYSTICK_CONFIG")
    raw = _read_toml(path) if path else {}
    setting_names = {f.name for f in fields(Settings)}
    for name in sorted(raw.keys() - setting_names):
        raise StartupError(f"{path}: there is no setting '{name}'.")
    for variable in sorted(environment):
        name = variable.removeprefix("TALLYSTICK_")
        if (
            variable.startswith("TALLYSTICK_")
            and name.lower() not in setting_names | _NON_SETTING_NAMES
            and _SERVICE_LINK.fullmatch(name) is None
        ):
            log.warning("%s in the environment is not a setting; it is ignored.", variable)
    values = {name: _parse_setting(name, value, f"{path}: {name}") for name, value in raw.items()}
    for name in setting_names:
        variable = f"TALLYSTICK_{name.upper()}"
        if variable in environment:
            values[name] = _parse_setting(name, environment[variable], variable)
    settings = Settings(**values)
    _check_combinations(settings)
    return settings


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise StartupError(f"The configuration {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise StartupError(f"The configuration {path} is no TOML: {error}.") from None


def _parse_setting(name: str, value: Any, location: str) -> Any:
    try:
        return _PARSERS[name](value)
    except _InvalidValue as error:
        raise StartupError(f"{location} {str(error).rstrip('.')}.") from None


def _check_combinations(settings: Settings) -> None:
    """What no setting can tell alone."""
    if settings.authentication == "none" and not is_loopback(settings.listen):
        raise StartupError(
            "listen (TALLYSTICK_LISTEN) must be a loopback address while authentication is none."
        )
    if settings.authentication == "tokens":
        if not settings.callers:
            raise StartupError(
                "callers (TALLYSTICK_CALLERS) must name at least one caller while authentication "
                "is tokens."
            )
        service_caller = settings.callers.get(settings.service_token)
        if service_caller is None or Role.SERVICE not in service_caller.roles:
            raise StartupError(
                "service_token (TALLYSTICK_SERVICE_TOKEN) must be a token of a caller with the "
                "role service."
            )
        services = {
            caller.name for caller in settings.callers.values() if Role.SERVICE in caller.roles
        }
        if settings.payout_service and settings.payout_service not in services:
            raise StartupError(
                "payout_service (TALLYSTICK_PAYOUT_SERVICE) must be the name of a caller with the "
                "role service, or empty."
            )
    if settings.provider_timeout + LEASE_MARGIN_SECONDS >= settings.lease:
        raise StartupError(
            f"lease (TALLYSTICK_LEASE) must be more than {LEASE_MARGIN_SECONDS:g} seconds longer "
            "than provider_timeout."
        )
    # what is sent must be recorded before its key is forgotten
    if settings.provider_key_window <= settings.lease:
        raise StartupError(
            "provider_key_window (TALLYSTICK_PROVIDER_KEY_WINDOW) must be longer than lease."
        )


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
