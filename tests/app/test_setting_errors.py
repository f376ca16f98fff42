"""Wrong settings: each is named in one sentence, and no secret is shown."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from tallystick_core.access import Caller, Role
from tallystick_server.app.configuration import Settings, load
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.migrate import parse_url
from tallystick_server.app.database.roles import Passwords
from tallystick_server.app.errors import StartupError

BAD_SETTINGS = [
    (
        {"TALLYSTICK_SERVER__LISTEN": "0.0.0.0:7070"},
        "TALLYSTICK_SERVER__LISTEN must be a loopback address",
    ),
    (
        {"TALLYSTICK_HTTP__LISTEN": "0.0.0.0:7080"},
        "TALLYSTICK_HTTP__LISTEN must be a loopback address",
    ),
    ({"TALLYSTICK_HTTP__LISTEN": "unix:x"}, "TALLYSTICK_HTTP__LISTEN must be host:port"),
    (
        {"TALLYSTICK_METRICS__LISTEN": "0.0.0.0:9464"},
        "TALLYSTICK_METRICS__LISTEN must be a loopback address while metrics.allow_remote is false",
    ),
    (
        {"TALLYSTICK_SERVICE_ADDRESSES": "wallet=wallet.internal:7072"},
        "TALLYSTICK_SERVICE_ADDRESSES: wallet must begin with https:// or be a loopback address",
    ),
    (
        {"TALLYSTICK_SERVICE_ADDRESSES": "wallet=http://127.0.0.1:7072"},
        "TALLYSTICK_SERVICE_ADDRESSES: wallet must be host:port, https://host:port or unix:path",
    ),
    (
        {"TALLYSTICK_SERVER__CERTIFICATE_FILE": "server.pem"},
        "server.key_file (TALLYSTICK_SERVER__KEY_FILE) must be set while server.certificate_file",
    ),
    (
        {"TALLYSTICK_SERVER__KEY_FILE": "server.key"},
        "server.certificate_file (TALLYSTICK_SERVER__CERTIFICATE_FILE) must be set while "
        "server.key_file",
    ),
    ({"TALLYSTICK_SERVER__LISTEN": "nowhere"}, "TALLYSTICK_SERVER__LISTEN must be host:port"),
    (
        {"TALLYSTICK_SERVER__LISTEN": "127.0.0.1:65536"},
        "TALLYSTICK_SERVER__LISTEN must be host:port",
    ),
    (
        {"TALLYSTICK_DATABASE__CONNECTIONS": "payment=5,ledger"},
        "TALLYSTICK_DATABASE__CONNECTIONS must look like key=value",
    ),
    (
        {"TALLYSTICK_PAYMENT__SELLER_FEE_RATES": "0.5"},
        "TALLYSTICK_PAYMENT__SELLER_FEE_RATES must look like key=value",
    ),
    (
        {"TALLYSTICK_RECONCILIATION__POSTING_INTERVAL": "0"},
        "TALLYSTICK_RECONCILIATION__POSTING_INTERVAL must be a number of seconds from 0.05 to "
        "3,600",
    ),
    (
        {"TALLYSTICK_RECONCILIATION__APPROVAL_THRESHOLD": "EUR=1.005"},
        "TALLYSTICK_RECONCILIATION__APPROVAL_THRESHOLD",
    ),
    (
        {"TALLYSTICK_RECONCILIATION__ALERT_BREAKS_AFTER": "soon"},
        "TALLYSTICK_RECONCILIATION__ALERT_BREAKS_AFTER must be a number of seconds from 1 to",
    ),
    (
        {"TALLYSTICK_RISK__BLOCKED_COUNTRIES": "Britain"},
        "TALLYSTICK_RISK__BLOCKED_COUNTRIES must have only valid items: each must be two capital",
    ),
    (
        {"TALLYSTICK_AUTHENTICATION": "hope"},
        "TALLYSTICK_AUTHENTICATION must be one of none, tokens",
    ),
    (
        {"TALLYSTICK_AUTHENTICATION": "tokens"},
        "callers (TALLYSTICK_CALLERS) must have at least one caller",
    ),
    (
        {"TALLYSTICK_AUTHENTICATION": "tokens", "TALLYSTICK_CALLERS": "a:team:0123456789abcdef"},
        "service_token (TALLYSTICK_SERVICE_TOKEN) must be a token",
    ),
    (
        {
            "TALLYSTICK_AUTHENTICATION": "tokens",
            "TALLYSTICK_CALLERS": "a:service:0123456789abcdef",
            "TALLYSTICK_SERVICE_TOKEN": "0123456789abcdef",
            "TALLYSTICK_PAYOUT_SERVICE": "b",
        },
        "TALLYSTICK_PAYOUT_SERVICE must be the name of a caller",
    ),
    (
        {"TALLYSTICK_CALLERS": "a:admin:0123456789abcdef"},
        "TALLYSTICK_CALLERS: [1] must have a name and an owner that are ids",
    ),
    (
        {"TALLYSTICK_CALLERS": "a:team:short"},
        "TALLYSTICK_CALLERS: [1] must have tokens of at least 16 characters",
    ),
    (
        {"TALLYSTICK_WORKER__LEASE_DURATION": "ten"},
        "TALLYSTICK_WORKER__LEASE_DURATION must be a number of seconds from 1 to 3,600",
    ),
    (
        {"TALLYSTICK_RELEASE_DELAY": "-1"},
        "TALLYSTICK_RELEASE_DELAY must be a whole number of seconds from 0 to 31,536,000",
    ),
    (
        {"TALLYSTICK_WORKER__LEASE_DURATION": "10"},
        "TALLYSTICK_WORKER__LEASE_DURATION must be more than 2 seconds longer",
    ),
    (
        {"TALLYSTICK_PROVIDERS__KEY_WINDOW": "60"},
        "TALLYSTICK_PROVIDERS__KEY_WINDOW must be longer than worker.lease_duration",
    ),
    (
        {"TALLYSTICK_RETRY": "circuit_open=cancel"},
        "TALLYSTICK_RETRY: circuit_open must be the policy of a known retry reason: not_sent",
    ),
    (
        {"TALLYSTICK_RETRY": "stripes.throttled=cancel"},
        "TALLYSTICK_RETRY: stripes.throttled must be a policy of a configured provider: sandbox",
    ),
    ({"TALLYSTICK_PAYMENT__FEE_RATE": "1.5"}, "TALLYSTICK_PAYMENT__FEE_RATE must be a decimal"),
    (
        {"TALLYSTICK_RISK__AMOUNT_LIMITS": "EUR=1.005"},
        "TALLYSTICK_RISK__AMOUNT_LIMITS: EUR must be an amount",
    ),
    (
        {"TALLYSTICK_SERVER__MAX_CONCURRENT_CALLS": "0"},
        "TALLYSTICK_SERVER__MAX_CONCURRENT_CALLS must be a whole number",
    ),
    (
        {"TALLYSTICK_DATABASE__CONNECTIONS": "nobody=3"},
        "TALLYSTICK_DATABASE__CONNECTIONS must have only the keys payment",
    ),
    ({"TALLYSTICK_ENVIRONMENT": "Prod!"}, "TALLYSTICK_ENVIRONMENT must be"),
    (
        {"TALLYSTICK_TRACING__OTLP_ENDPOINT": "localhost"},
        "TALLYSTICK_TRACING__OTLP_ENDPOINT must be a URL",
    ),
    (
        {"TALLYSTICK_METRICS__LISTEN": "9464"},
        "TALLYSTICK_METRICS__LISTEN must be host:port or empty",
    ),
    (
        {"TALLYSTICK_METRICS__LISTEN": "unix:/run/metrics"},
        "TALLYSTICK_METRICS__LISTEN must be host:port or empty",
    ),
    (
        {"TALLYSTICK_METRICS__LISTEN": "127.0.0.1:65536"},
        "TALLYSTICK_METRICS__LISTEN must be host:port or empty",
    ),
    (
        {"TALLYSTICK_TRACING__OTLP_ENDPOINT": "http://host:port"},
        "TALLYSTICK_TRACING__OTLP_ENDPOINT must be a URL",
    ),
    (
        {"TALLYSTICK_PROVIDERS__SANDBOX__URL": "http://"},
        "TALLYSTICK_PROVIDERS__SANDBOX__URL must be a URL",
    ),
    (
        {"TALLYSTICK_PROVIDERS__SANDBOX__URL": "http://host?key=x"},
        "TALLYSTICK_PROVIDERS__SANDBOX__URL must be a URL",
    ),
]


@pytest.mark.parametrize(
    ("environment", "expected"), BAD_SETTINGS, ids=[expected for _, expected in BAD_SETTINGS]
)
def test_each_invalid_setting_is_named(environment: dict[str, str], expected: str) -> None:
    """The configuration is checked at the start, and each error names its setting and the expected
    value.
    """
    with pytest.raises(StartupError, match=".") as failure:
        load(environment)
    assert expected in str(failure.value)


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    """A TOML file has the same settings by name; the environment overrides it; an unknown name is
    rejected.
    """
    path = tmp_path / "tallystick.toml"
    path.write_text(
        'release_delay = 60\nworker.lease_duration = 90\npayment.fee_rate = "0.025"\n'
        '[risk]\nblocked_accounts = ["x"]\namount_limits.EUR = "100.00"\n'
        '[[callers]]\nname = "shop"\nroles = ["team"]\ntokens = ["0123456789abcdef"]\n'
    )
    settings = load({"TALLYSTICK_RELEASE_DELAY": "5"}, str(path))
    assert (settings.worker.lease_duration, settings.release_delay) == (90, 5)
    assert settings.payment.fee_rate == 25_000
    assert settings.risk.amount_limits == {"EUR": 10_000}
    assert settings.callers["0123456789abcdef"].name == "shop"
    path.write_text('[[callers]]\nname = "shop"\nroles = ["team"]\ntokens = "0123456789abcdef"\n')
    with pytest.raises(
        StartupError, match=r"tallystick\.toml: callers\[1\] must have a list of tokens"
    ):
        load({}, str(path))
    path.write_text("leese = 1")
    with pytest.raises(StartupError, match="leese is not a setting. Did you mean worker.lease"):
        load({}, str(path))
    path.write_text("release_delay = ")
    with pytest.raises(StartupError, match="is not valid TOML"):
        load({}, str(path))
    with pytest.raises(StartupError, match="cannot be read"):
        load({}, str(tmp_path / "none.toml"))


SERVICE_LINKS = {
    "TALLYSTICK_PORT": "tcp://10.0.0.1:7070",
    "TALLYSTICK_PORT_7070_TCP": "tcp://10.0.0.1:7070",
    "TALLYSTICK_PORT_7070_TCP_ADDR": "10.0.0.1",
    "TALLYSTICK_PORT_7070_TCP_PORT": "7070",
    "TALLYSTICK_PORT_7070_TCP_PROTO": "tcp",
    "TALLYSTICK_SERVICE_HOST": "10.0.0.1",
    "TALLYSTICK_SERVICE_PORT": "7070",
    "TALLYSTICK_SERVICE_PORT_GRPC": "7070",
    "TALLYSTICK_LEDGER_SERVICE_HOST": "10.0.0.2",
    "TALLYSTICK_LEDGER_PORT_7071_TCP": "tcp://10.0.0.2:7071",
}
"""The variables that Kubernetes sets in every container if there are Services called tallystick and
tallystick-ledger.
"""


def test_settings_do_not_show_secrets() -> None:
    """The repr of the settings, and of the resulting database URLs, contains no token and no
    database URL, which may contain a password.
    """
    url = "postgresql://us:secret-one@host/tallystick"
    urls, of_readers = (
        {"payment": url.replace("one", "two")},
        {"ledger": url.replace("one", "three")},
    )
    callers = {"secret-four-of-shop": Caller("shop", frozenset({Role.TEAM}))}
    settings = Settings().replace(
        database__url=url,
        database__service_urls=urls,
        database__reader_urls=of_readers,
        callers=callers,
        service_token="secret-five",
        environment="shown",
        providers__sandbox__url="http://us:secret-six@host",
        tracing__otlp_endpoint="http://host/secret-seven",
    )
    assert "secret" not in repr(settings)
    assert "environment='shown'" in repr(settings)
    assert "secret" not in repr(
        DatabaseUrls(url, Passwords(Path("passwords.json")), urls, of_readers)
    )


SECRETS_IN_WRONG_PLACES = [
    {"TALLYSTICK_DATABASE__SERVICE_URLS": "postgresql://us:secret@host/db?sslmode=require"},
    {"TALLYSTICK_DATABASE__SERVICE_URLS": "payment=postgresql://us:one,secret=two@host/db"},
    {"TALLYSTICK_DATABASE__READER_URLS": "postgresql://us:secret@host/db"},
    {"TALLYSTICK_PROVIDERS__SANDBOX__URL": "us:secret@host"},
    {"TALLYSTICK_PROVIDERS__SANDBOX__URL": "http://us:sec@secret@host"},
    {"TALLYSTICK_TRACING__OTLP_ENDPOINT": "http://us:secret@host:many"},
    {"TALLYSTICK_TRACING__OTLP_ENDPOINT": "http://host/?token=secret"},
    {"TALLYSTICK_CALLERS": "0123456789-secret:team:shop"},
    {"TALLYSTICK_CALLERS": "shop:0123456789-secret:team"},
    {"TALLYSTICK_CALLERS": "secret"},
    {
        "TALLYSTICK_AUTHENTICATION": "tokens",
        "TALLYSTICK_CALLERS": "a:team:0123456789abcdef",
        "TALLYSTICK_SERVICE_TOKEN": "secret",
    },
]


@pytest.mark.parametrize("environment", SECRETS_IN_WRONG_PLACES, ids=",".join)
def test_an_error_shows_no_secret(environment: dict[str, str]) -> None:
    """An error in a setting that may hold a password or a token never shows its value, even if a
    value is where a name belongs.
    """
    with pytest.raises(StartupError) as failure:
        load(environment)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://us:pass@secret@host/tallystick", "%40"),
        ("postgresql://us:a@b/secret@host:5432/db", "%40"),
        ("postgresql:///us:secret@host/db", "%40"),
        ("postgresql://us:a@b?x=secret@host/db", "%40"),
        ("postgresql://us:a@b:secret@host/db", "cannot be parsed"),
        ("postgresql://us:secret", "cannot be parsed"),
    ],
)
def test_a_password_that_is_not_encoded_is_not_shown(url: str, expected: str) -> None:
    """A database URL is rejected if a part of its password would be parsed as host, port, database
    or options, and no traceback shows it.
    """
    with pytest.raises(StartupError, match=expected) as failure:
        parse_url(url)
    assert "secret" not in "".join(traceback.format_exception(failure.value))


def test_variables_of_kubernetes_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """Next to a Kubernetes Service of its own name a command starts, and ignores the variables that
    Kubernetes sets.
    """
    assert load(SERVICE_LINKS) == load({})
    assert caplog.records == []
