"""The settings, by section. A section is a table of the TOML file; in the environment a setting is
`TALLYSTICK_` and its path in capitals, with two underscores between section and name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, Field, PlainValidator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tallystick_core.payment.state import ALERT_AFTER_SECONDS
from tallystick_core.payout.state import ALERT_AFTER_SECONDS as PAYOUT_ALERT_AFTER_SECONDS
from tallystick_server.app.configuration.providers import ProvidersSection
from tallystick_server.app.configuration.retry import PolicyByReason
from tallystick_server.app.configuration.routing import RoutingRules
from tallystick_server.app.configuration.values import (
    Address,
    AddressByService,
    AmountByCurrency,
    Authentication,
    CallerByToken,
    ConnectionsByService,
    CountrySet,
    Environment,
    FeeRateBySeller,
    IdSet,
    LogFormat,
    LogLevel,
    OptionalPort,
    OriginsByCaller,
    PublicUrl,
    SessionKey,
    UrlByService,
)
from tallystick_server.setting_types import (
    ByteCount,
    Count,
    FeeRate,
    Flag,
    Folder,
    Kind,
    OptionalFile,
    Seconds,
    Section,
    Share,
    Text,
    Url,
    WholeSeconds,
    number,
    table,
)

__all__ = ["DEFAULT_DESTINATION_COOLDOWN", "Settings"]

DEFAULT_DESTINATION_COOLDOWN = 259_200.0
"""The default of `payout.destination_cooldown` with authentication."""
_YEAR_SECONDS = 31_536_000

M = TypeVar("M", bound=BaseModel)


def _alert_seconds(defaults: Mapping[str, float]) -> PlainValidator:
    return PlainValidator(table(number(0, _YEAR_SECONDS, float, "seconds"), *defaults))


_SECONDS_BY_STATE = Kind("table: state to number", "seconds")
OrderAlertSeconds: TypeAlias = Annotated[
    Mapping[str, float], _alert_seconds(ALERT_AFTER_SECONDS), _SECONDS_BY_STATE
]
PayoutAlertSeconds: TypeAlias = Annotated[
    Mapping[str, float], _alert_seconds(PAYOUT_ALERT_AFTER_SECONDS), _SECONDS_BY_STATE
]


class ServerSection(Section):
    """The gRPC server of a process, and how many calls it takes at a time."""

    listen: Address = "127.0.0.1:7070"
    """Address on which `serve` listens: host:port or unix:path. Outside loopback it needs TLS, here
    or at a proxy.
    """
    certificate_file: OptionalFile = ""
    """PEM file with the server's certificate, followed by those of intermediate CAs; empty: plain
    text. A changed file is used without a restart. Unix sockets are always plain text.
    """
    key_file: OptionalFile = Field(default="", repr=False)
    """PEM file with the certificate's private key, which must not be encrypted."""
    tls_terminated_by_proxy: Flag = False
    """A proxy terminates TLS in front of this server, which may then listen in plain text outside
    loopback. Only the proxy may reach it.
    """
    reuse_port: Flag = False
    """Lets several processes of one service listen on the same port."""
    max_concurrent_calls: Count = Field(default=4000, ge=1, le=100_000)
    """Maximum concurrent calls of teams that change something or pay money out. Calls above this
    limit, or one of the limits below, are rejected with OVERLOADED.
    """
    max_concurrent_reads: Count = Field(default=2000, ge=1, le=100_000)
    """Maximum concurrent calls of teams that only read."""
    max_concurrent_platform_calls: Count = Field(default=2000, ge=1, le=100_000)
    """Maximum concurrent calls of operators and auditors, and separately of services."""
    max_waiting_calls: Count = Field(default=4000, ge=1, le=100_000)
    """Maximum calls that wait for a result. Above it CreatePayment, CancelPayment and CreatePayout
    return at once, as with WAIT_FOR_ACCEPTANCE.
    """
    max_concurrent_streams: Count = Field(default=2000, ge=1, le=100_000)
    """Maximum open streams of teams, separately of operators and auditors, and separately of
    services.
    """
    max_owner_share: Share = Field(default=0.5, ge=0.01, le=1)
    """The part of each of these limits, and of `max_message_bytes_in_flight`, that the callers of
    one owner can use while no others call. With 1 they can exclude others.
    """
    max_message_bytes_in_flight: ByteCount = Field(
        default=32 * 1024 * 1024, ge=16 * 1024 * 1024, le=1024 * 1024 * 1024
    )
    """Maximum total size of the requests in flight; requests of up to 4 KiB are not counted."""
    shutdown_grace_period: Seconds = Field(default=20.0, ge=0, le=600)
    """How long calls in flight may take to complete when the process stops. Operations in progress
    get what remains, and at least 5 seconds, or this period if it is shorter. A process therefore
    stops within this period plus 7 seconds.
    """


class HttpSection(Section):
    """The HTTP server: JSON over the calls of the services. It is part of `serve all`, or a process
    of its own, `serve http`.
    """

    listen: OptionalPort = "127.0.0.1:7080"
    """Address of the HTTP server: host:port; empty: `serve all` has none. Outside loopback it needs
    TLS, here or at a proxy.
    """
    certificate_file: OptionalFile = ""
    """As `server.certificate_file`. Both servers may have the same files."""
    key_file: OptionalFile = Field(default="", repr=False)
    """As `server.key_file`."""
    tls_terminated_by_proxy: Flag = False
    """As `server.tls_terminated_by_proxy`."""
    public_url: PublicUrl = ""
    """URL at which buyers reach this server, for the links to their status pages, such as
    https://pay.example; empty: `listen`, if that is a loopback address. Without a URL there are no
    status pages and no hosted pages.
    """
    max_connections: Count = Field(default=1000, ge=1, le=100_000)
    """Maximum open connections; further ones are closed at once."""
    max_body_bytes: ByteCount = Field(default=1024 * 1024, ge=64 * 1024, le=4 * 1024 * 1024)
    """Maximum size of the body of a request; larger ones are rejected with MESSAGE_TOO_LARGE."""
    max_body_bytes_in_flight: ByteCount = Field(
        default=32 * 1024 * 1024, ge=4 * 1024 * 1024, le=1024 * 1024 * 1024
    )
    """Maximum total size of the bodies in flight; above it requests are rejected with OVERLOADED.
    """
    header_timeout: Seconds = Field(default=30.0, ge=0.1, le=3600)
    """How long a connection may take to send the headers of a request. An idle connection is closed
    after this time too.
    """
    body_timeout: Seconds = Field(default=10.0, ge=0.1, le=600)
    """How long the body of a request may take to arrive."""
    webhook_catch_up_interval: Seconds = Field(default=3600.0, ge=1, le=_YEAR_SECONDS)
    """How often the events of providers are listed, in case some could not be delivered. They are
    listed at the start too.
    """
    webhook_catch_up_window: Seconds = Field(default=259_200.0, ge=0, le=2_592_000)
    """How far back the events are listed at the start."""


class ConsoleSection(Section):
    """The console: pages for people who operate the platform, at /console of the HTTP server. Each
    person signs in with their own token, and can do what its roles allow.
    """

    enabled: Flag = False
    """Serves the console. An HTTP server that buyers reach should not: run another `serve http` for
    operators.
    """
    session_key: SessionKey = Field(default="", repr=False)
    """Secret that seals the cookies of sessions: at least 32 characters; empty: a random one, so
    sessions end with the process. HTTP servers behind one address need the same.
    """
    session_lifetime: WholeSeconds = Field(default=28_800, ge=60, le=604_800)
    """How long a person stays signed in."""
    max_upload_bytes: ByteCount = Field(default=8 * 1024 * 1024, ge=64 * 1024, le=16 * 1024 * 1024)
    """Maximum size of a statement file that is uploaded; it counts in
    `http.max_body_bytes_in_flight`. `tallystick reconcile` has no limit.
    """


class DatabaseSection(Section):
    """PostgreSQL: how it is reached, and by how many connections."""

    url: Text = Field(default="", repr=False)
    """The administrator's URL, such as postgresql://user:password@host:5432/database; empty: the
    embedded PostgreSQL. `serve` needs only host and database, because each service logs in with its
    own role and generated password.
    """
    service_urls: UrlByService = Field(default={}, repr=False)
    """URL by service, where it differs from the administrator's URL with the generated role."""
    reader_urls: UrlByService = Field(default={}, repr=False)
    """URL by schema for `verify`, where it differs from the administrator's URL with the generated
    role.
    """
    connections: ConnectionsByService = Field(default={})
    """Database connections for changes, by service. By default 2 for ledger and 4 for each other
    service.
    """
    read_connections: ConnectionsByService = Field(default={})
    """Database connections for reads of callers, by service. By default 2 for each. The sum of all
    connections of all processes must be less than PostgreSQL's `max_connections`.
    """
    read_timeout: Seconds = Field(default=5.0, ge=0.1, le=60)
    """How long a query of a caller's read may take before it is rejected with QUERY_TOO_SLOW."""
    startup_timeout: Seconds = Field(default=60.0, ge=0, le=86_400)
    """How long a starting service waits for a database that accepts no connections. Until then its
    health is NOT_SERVING.
    """


class BreakerSection(Section):
    """The circuit breaker of each provider."""

    failure_threshold: Count = Field(default=20, ge=1, le=1_000_000)
    """Consecutive failures of different charges or payouts that open the circuit. Requests and
    lookups are counted separately.
    """
    reset_timeout: Seconds = Field(default=5.0, ge=0.01, le=60)
    """How long an open circuit waits before it sends a probe. It doubles after each failed probe of
    an operation that had not failed before.
    """
    max_reset_timeout: Seconds = Field(default=60.0, ge=0.01, le=3600)
    """The longest time between two probes."""


class WorkerSection(Section):
    """Background work: operations, alerts and the outbox relay."""

    lease_duration: Seconds = Field(default=60.0, ge=1, le=3600)
    """How long a process exclusively holds a charge or a payout. Must be more than 2 seconds longer
    than the `timeout` of each provider.
    """
    max_in_flight: Count = Field(default=8000, ge=10, le=1_000_000)
    """Maximum charges, and separately payouts and destinations, in flight in a process; more are
    rejected with OVERLOADED. Retried operations and webhook events start below half of it.
    """
    scan_interval: Seconds = Field(default=1.0, ge=0.01, le=3600)
    """Time between two scans for operations that are due."""
    monitor_interval: Seconds = Field(default=10.0, ge=0.01, le=3600)
    """Time between two checks of the conditions for alerts."""
    relay_interval: Seconds = Field(default=0.2, ge=0.01, le=3600)
    """Time between two scans for events to publish."""
    events_alert_after: Seconds = Field(default=300.0, ge=0, le=_YEAR_SECONDS)
    """How long an event may wait to be published before an alert is raised."""


class PaymentSection(Section):
    """PaymentService."""

    fee_rate: FeeRate = 0
    """The platform's fee as a part of the amount, such as "0.025"."""
    seller_fee_rates: FeeRateBySeller = Field(default={})
    """Fee rate by seller, which overrides `fee_rate`."""
    seller_owner_max_age: Seconds = Field(default=60.0, ge=0, le=3600)
    """How long the owner of a seller is cached: after that time an assignment to another owner has
    taken effect.
    """
    max_queued_charges: Count = Field(default=100_000, ge=0, le=10_000_000)
    """How many charges may wait for a failing provider before new payments are rejected with
    PROVIDER_UNAVAILABLE. One new payment is still accepted as a probe if none of the charges that
    wait is sent as one.
    """
    buyer_action_timeout: Seconds = Field(default=86_400.0, ge=0.01, le=_YEAR_SECONDS)
    """How long a buyer has to complete a required action. After that the charge is cancelled at the
    provider.
    """
    hosted_page_lifetime: Seconds = Field(default=82_800.0, ge=600, le=82_800)
    """How long a hosted page can be paid, if its caller does not say."""
    return_origins: OriginsByCaller = Field(default={})
    """Origins by caller to which hosted pages may send buyers back, such as shop =
    ["https://shop.example"]. A caller without an origin can request no hosted page. In the
    environment: shop=https://shop.example+https://shop2.example.
    """
    status_link_lifetime: Seconds = Field(default=2_592_000.0, ge=60, le=_YEAR_SECONDS)
    """How long the link to a buyer's status page is valid."""
    review_timeout: Seconds = Field(default=604_800.0, ge=0.01, le=_YEAR_SECONDS)
    """How long a provider has for a review before an alert is raised."""
    alert_after: OrderAlertSeconds = Field(default={})
    """How long an order may stay in a status before an alert is raised, by status. By default
    EXECUTING=600, PENDING=259200 and SUCCESS=600 (not yet booked).
    """


class PayoutSection(Section):
    """PayoutService."""

    approval_threshold: AmountByCurrency = Field(default={})
    """Amount by currency above which a payout requires a second approver, such as EUR = "10000.00".
    A currency without an amount requires none.
    """
    destination_cooldown: Seconds | None = Field(default=None, ge=0, le=_YEAR_SECONDS)
    """How long a new destination waits before it is used; until then the previous one is used. By
    default 259200 (three days), or 0 without authentication.
    """
    destination_approval_threshold: AmountByCurrency = Field(default={})
    """Available amount by currency above which a new destination of the seller requires a second
    approver, such as EUR = "1000.00". A currency without an amount requires none.
    """
    alert_after: PayoutAlertSeconds = Field(default={})
    """How long a payout may stay in a state before an alert is raised, by state. By default
    MOVING=600 (any other state, or not yet booked), AWAITING_APPROVAL=86400, SUBMITTED=86400,
    IN_TRANSIT=432000; VERIFYING=259200 for destinations; GENERATING=3600 for batches.
    """


class ReconciliationSection(Section):
    """ReconciliationService."""

    approval_threshold: AmountByCurrency = Field(default={})
    """Difference or fee by currency above which the resolution of a break, and its reopening,
    require a second approver, such as EUR = "100.00". A currency without an amount requires none.
    """
    posting_interval: Seconds = Field(default=5.0, ge=0.05, le=3600)
    """How often the ledger is read, and what reconciliation has decided is posted to it."""
    check_interval: Seconds = Field(default=3600.0, ge=0.05, le=86_400)
    """How often the ledger is compared with itself and with the wallets, and orders and payouts
    with what is booked for them, once their last change is older than this.
    """
    lookup_interval: Seconds = Field(default=60.0, ge=0.05, le=3600)
    """How often PaymentService and PayoutService are asked to look up what a statement has and the
    ledger lacks.
    """
    alert_breaks_after: Seconds = Field(default=604_800.0, ge=1, le=_YEAR_SECONDS)
    """How long a break may be open before an alert is raised."""
    alert_postings_after: Seconds = Field(default=600.0, ge=1, le=_YEAR_SECONDS)
    """How long the ledger may lack what reconciliation posts before an alert is raised."""
    alert_entries_after: Seconds = Field(default=1_209_600.0, ge=1, le=_YEAR_SECONDS)
    """How long payouts, and settlements in transit to a bank, may be in no statement before an
    alert is raised.
    """


class EventSection(Section):
    """EventService."""

    retention_days: Count = Field(default=0, ge=0, le=36_500)
    """Days after their publication for which events are kept; 0: forever. Consumers must read them
    within this time: an older cursor is rejected with CURSOR_EXPIRED.
    """


class RiskSection(Section):
    """The built-in risk check of orders."""

    amount_limits: AmountByCurrency = Field(default={})
    """Maximum amount of an order by currency, such as EUR = "5000.00"."""
    velocity_limit: Count = Field(default=0, ge=0, le=1_000_000)
    """Maximum orders of a buyer within `velocity_window`; 0: unlimited."""
    velocity_window: Seconds = Field(default=3600.0, ge=1, le=_YEAR_SECONDS)
    """The window of `velocity_limit`."""
    blocked_accounts: IdSet = frozenset()
    """Buyers and sellers whose orders are rejected."""
    blocked_countries: CountrySet = frozenset()
    """Countries of buyers (ISO 3166-1 alpha-2) whose orders are rejected."""


class TracingSection(Section):
    """OpenTelemetry traces."""

    otlp_endpoint: Url = Field(default="", repr=False)
    """Where spans are sent by OTLP over HTTP, such as http://127.0.0.1:4318; empty: nowhere."""
    ratio: Share = Field(default=0.01, ge=0, le=1)
    """The part of traces that is recorded. With `tail_sampling`: of those without an error and
    without a slow call.
    """
    store_spans: Flag = False
    """Spans are sent to MonitoringService too, which keeps the traces of the last hours. A process
    that runs without MonitoringService needs its address in `service_addresses`.
    """
    tail_sampling: Flag = False
    """Each process records all spans, and decides at the end of a trace whether it is kept: traces
    with an error or a slow call always are. It costs processor time.
    """
    slow_threshold: Seconds = Field(default=1.0, ge=0.001, le=600)
    """How long a call takes that is slow, for `tail_sampling`. Streams are not."""


class MetricsSection(Section):
    """OpenTelemetry metrics."""

    listen: OptionalPort = ""
    """Address on which Prometheus scrapes /metrics, such as 127.0.0.1:9464; empty: none. It has no
    authentication. Each process needs its own. By OTLP metrics are sent to `tracing.otlp_endpoint`,
    or to the collector in OTEL_EXPORTER_OTLP_ENDPOINT.
    """
    allow_remote: Flag = False
    """Allows a `listen` address outside loopback. The listener has no TLS and no authentication, so
    a firewall must let only Prometheus reach it.
    """


class MonitoringSection(Section):
    """MonitoringService: the history of metrics, and traces."""

    record_interval: Seconds = Field(default=10.0, ge=0, le=3600)
    """How often each process sends its metrics to MonitoringService; 0: never. A process that runs
    without MonitoringService needs its address in `service_addresses`.
    """
    max_series: Count = Field(default=10_000, ge=100, le=1_000_000)
    """Maximum series of metrics, over all processes. Further ones are not recorded. A series has up
    to 3,300 samples, of some 200 bytes in the database.
    """
    trace_retention: Seconds = Field(default=21_600.0, ge=60, le=_YEAR_SECONDS)
    """How long traces are kept."""
    max_spans: Count = Field(default=100_000, ge=2_000, le=100_000_000)
    """Maximum stored spans, over all traces. Above it the oldest traces are deleted."""
    max_span_bytes: ByteCount = Field(
        default=64 * 1024 * 1024, ge=1024 * 1024, le=64 * 1024 * 1024 * 1024
    )
    """Maximum size of the stored spans without their indexes. Above it the oldest traces are
    deleted.
    """


class LogsSection(Section):
    """The log of `serve`, on standard error."""

    level: LogLevel = "WARNING"
    """The least severe lines that are written. The steps of the process, from its start to its
    stop, always are.
    """
    format: LogFormat = "auto"
    """`json`: one object a line; `text`: for a person; `auto`: text at a terminal, else JSON."""


class Settings(BaseSettings):
    """Every setting. `Settings()` has the defaults; `load` reads the file and the environment.

    The repr leaves out passwords, tokens and URLs, which may have a password in them.
    """

    model_config = SettingsConfigDict(
        env_prefix="TALLYSTICK_",
        env_nested_delimiter="__",
        enable_decoding=False,
        validate_default=False,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    data_dir: Folder = Path(".data")
    """Directory of the embedded PostgreSQL and of generated passwords."""
    environment: Environment = "dev"
    """Name of the installation: part of every idempotency key sent to a provider, so that two
    installations never use the same key.
    """
    service_addresses: AddressByService = {}
    """Address by service, for services that run in another process. https://host:port is reached
    by TLS; host:port and unix:path in plain text, which is for loopback only.
    """
    service_ca_file: OptionalFile = ""
    """PEM file with the CA certificates that verify servers at https:// addresses, for calls
    between services and for operator commands; empty: the public CAs that gRPC knows.
    """
    service_tls_originated_by_proxy: Flag = False
    """A proxy, such as a sidecar, originates TLS for calls to `service_addresses`, which may then
    be plain text outside loopback.
    """
    authentication: Authentication = "none"
    """`none` for development, with a loopback address only, or `tokens`."""
    callers: CallerByToken = Field(default={}, repr=False)
    """The callers, each with name, roles and tokens, and the owner if several callers share one. In
    the environment: name:role+role:token or name@owner:role+role:token, separated by commas.
    """
    service_token: Text = Field(default="", repr=False)
    """The token that this process sends to other services."""
    payout_service: Text = ""
    """Name of the caller that WalletService accepts as PayoutService, which alone may use the holds
    of payouts; empty: the caller of `service_token`. Required for a WalletService without
    PayoutService in its process if several callers have the role `service`.
    """
    release_delay: WholeSeconds = Field(default=0, ge=0, le=_YEAR_SECONDS)
    """How long a sale stays pending unless it is released earlier, in wallets without their own
    policy.
    """
    server: ServerSection = ServerSection()
    http: HttpSection = HttpSection()
    console: ConsoleSection = ConsoleSection()
    database: DatabaseSection = DatabaseSection()
    providers: ProvidersSection = ProvidersSection()
    breaker: BreakerSection = BreakerSection()
    retry: PolicyByReason = {}
    """Retry policy by retry reason, for all providers, or as `provider.reason` for one. A policy
    is a table with strategy, initial_interval, backoff_coefficient or increment, max_interval and
    max_tries (0: unlimited), or a text such as exponential:2:300:12.
    """
    routing: RoutingRules = ()
    """The rules that choose the provider of a charge, in their order; none matches:
    `providers.payment`. A rule has a name, a provider, optionally a fallback, and any of the
    conditions currencies, countries, payment_method_types, min_amount, max_amount, sellers, callers
    and share (percent). In the environment: name=eu;currencies=EUR+CHF;provider=a;fallback=b, with
    commas between rules.
    """
    worker: WorkerSection = WorkerSection()
    payment: PaymentSection = PaymentSection()
    payout: PayoutSection = PayoutSection()
    event: EventSection = EventSection()
    reconciliation: ReconciliationSection = ReconciliationSection()
    risk: RiskSection = RiskSection()
    tracing: TracingSection = TracingSection()
    metrics: MetricsSection = MetricsSection()
    monitoring: MonitoringSection = MonitoringSection()
    logs: LogsSection = LogsSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only arguments: `load` alone reads the environment."""
        return (init_settings,)

    def replace(self, **values: Any) -> Settings:
        """A copy with other values, which are not validated. A name has two underscores between
        section and setting, as in the environment: replace(worker__scan_interval=0.1).
        """
        copy = self
        for name, value in values.items():
            copy = _with_value(copy, name.split("__"), value)
        return copy


def _with_value(model: M, path: list[str], value: Any) -> M:
    name, *rest = path
    if isinstance(model, ProvidersSection) and name in model.configured:
        provider = _with_value(model.configured[name], rest, value)
        return model.model_copy(update={"configured": {**model.configured, name: provider}})
    if name not in type(model).model_fields:
        raise TypeError(f"{type(model).__name__} has no setting {name}")
    if rest:
        value = _with_value(getattr(model, name), rest, value)
    return model.model_copy(update={name: value})
