"""The settings: sections, sources, errors and their descriptions."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import (
    SettingDescription,
    Settings,
    describe_settings,
    load,
)
from tallystick_server.app.errors import StartupError
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.providers.sandbox.settings import SandboxSettings
from tallystick_server.providers.stripe.settings import StripeSettings


@pytest.fixture
def toml_file(tmp_path: Path) -> Path:
    return tmp_path / "tallystick.toml"


def sandbox_of(settings: Settings, name: str = "sandbox") -> SandboxSettings:
    """The settings of a configured sandbox."""
    sandbox = settings.providers.configured[name]
    assert isinstance(sandbox, SandboxSettings)
    return sandbox


def load_error(environment: dict[str, str], path: Path | None = None) -> list[str]:
    """The lines of the error for the rejected settings."""
    with pytest.raises(StartupError) as failure:
        load(environment, str(path) if path else None)
    return str(failure.value).splitlines()


REQUIRED = {"TALLYSTICK_PROVIDERS__STRIPE__API_KEY": "sk_test_of_the_tests"}
"""Settings without a default, which a section needs."""


def required_with(setting: SettingDescription) -> dict[str, str]:
    """What must be set with a setting: the certificate with its key, the key with it, and what its
    section requires.
    """
    pair = ("CERTIFICATE_FILE", "KEY_FILE")
    section, _, name = setting.variable.rpartition("__")
    required = {
        variable: value
        for variable, value in REQUIRED.items()
        if variable.rpartition("__")[0] == section and variable != setting.variable
    }
    return required | ({f"{section}__{other}": "-" for other in pair} if name in pair else {})


def test_each_setting_is_read_from_both_sources(toml_file: Path) -> None:
    """Every setting is read by its TOML path and by its variable: a wrong value is rejected under
    that name.
    """
    for setting in describe_settings():
        required = {k: v for k, v in required_with(setting).items() if k in REQUIRED}
        toml_file.write_text(f"{setting.path} = [[1]]\n")
        (line,) = load_error(required, toml_file)
        assert line.startswith(f"{toml_file}: {setting.path}"), setting
        if setting.allowed in ("text", "a path"):
            settings: Any = load({**required_with(setting), setting.variable: "=?"})
            assert str(reduce(getattr, setting.path.split("."), settings)) == "=?", setting
        else:
            (line,) = load_error({**required, setting.variable: "=?"})
            assert line.startswith(setting.variable), setting


def test_each_described_default_is_the_default(toml_file: Path) -> None:
    """The defaults of the descriptions, written into a file, are the defaults."""
    toml_file.write_text(
        "".join(
            f"{item.path} = {item.default}\n"
            for item in describe_settings()
            if item.default and item.variable not in REQUIRED
        )
    )
    stripe = StripeSettings(api_key=REQUIRED["TALLYSTICK_PROVIDERS__STRIPE__API_KEY"])
    expected = Settings().replace(
        providers__configured={**Settings().providers.configured, "stripe": stripe}
    )
    assert load(REQUIRED, str(toml_file)) == expected


def test_each_setting_is_described() -> None:
    """Every setting has a description that is a sentence, and the description of a duration says
    so.
    """
    settings = describe_settings()
    assert len({setting.path for setting in settings}) == len(settings) > 60
    for setting in settings:
        assert setting.description.endswith("."), setting
        assert setting.type, setting
        if setting.path.endswith(("_timeout", "_interval", "_after", "_window", "_delay")):
            assert setting.unit == "seconds", setting


def test_the_environment_overrides_single_settings_of_a_section(toml_file: Path) -> None:
    """A variable overrides its own setting only; the rest of the section stays as in the file."""
    toml_file.write_text("[providers]\ntimeout = 3\n[providers.sandbox]\nlatency = 1\n")
    settings = load({"TALLYSTICK_PROVIDERS__TIMEOUT": "4"}, str(toml_file))
    assert (settings.providers.timeout, sandbox_of(settings).latency) == (4, 1)


def test_all_errors_are_reported_together(toml_file: Path) -> None:
    """Each wrong setting has a line of its own, with the name that the user wrote."""
    toml_file.write_text(
        'release_delay = true\nleese = 1\nworker = 5\n[payout]\nalert_after = {MOVING = "x"}\n'
        "[breaker]\nfailures = 3\nreset_timeout = 0\n"
    )
    lines = load_error(
        {"TALLYSTICK_TRACING__RATIO": "2", "TALLYSTICK_SERVER_LISEN": "x"}, toml_file
    )
    assert lines[0] == "The configuration has 8 errors:"
    assert sorted(lines[1:]) == sorted(
        [
            "TALLYSTICK_SERVER_LISEN is not a setting. Did you mean TALLYSTICK_SERVER__LISTEN?",
            "TALLYSTICK_TRACING__RATIO must be a number from 0 to 1.",
            f"{toml_file}: breaker.failures is not a setting. Did you mean "
            "breaker.failure_threshold?",
            f"{toml_file}: breaker.reset_timeout must be a number of seconds from 0.01 to 60.",
            f"{toml_file}: leese is not a setting. Did you mean worker.lease_duration?",
            f"{toml_file}: payout.alert_after.MOVING must be a number of seconds from 0 to "
            "31,536,000.",
            f"{toml_file}: release_delay must be a whole number of seconds from 0 to 31,536,000.",
            f"{toml_file}: worker must be a table.",
        ]
    )


def test_rules_between_settings_name_each_setting() -> None:
    """Every broken rule has a line; a setting with its default is named by path and variable."""
    lines = load_error(
        {"TALLYSTICK_AUTHENTICATION": "tokens", "TALLYSTICK_PROVIDERS__TIMEOUT": "60"}
    )
    assert lines[1:] == [
        "callers (TALLYSTICK_CALLERS) must have at least one caller while authentication is "
        "tokens.",
        "service_token (TALLYSTICK_SERVICE_TOKEN) must be a token of a caller with the role "
        "service.",
        "worker.lease_duration (TALLYSTICK_WORKER__LEASE_DURATION) must be more than 2 seconds "
        "longer than providers.timeout.",
    ]


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("TALLYSTICK_DATABASE_URL", "TALLYSTICK_DATABASE__URL"),
        ("TALLYSTICK_SERVER_LISTEN", "TALLYSTICK_SERVER__LISTEN"),
        ("TALLYSTICK_LEASE", "TALLYSTICK_WORKER__LEASE_DURATION"),
        ("TALLYSTICK_WORKER__SCAN_INTERVALL", "TALLYSTICK_WORKER__SCAN_INTERVAL"),
        ("TALLYSTICK_Release_Delay", "TALLYSTICK_RELEASE_DELAY"),
        ("TALLYSTICK_RETRY__NO_ANSWER", "TALLYSTICK_RETRY"),
    ],
)
def test_an_unknown_variable_is_an_error(variable: str, nearest: str) -> None:
    """A variable that is not a setting is rejected, with the nearest name and without its value."""
    (line,) = load_error({variable: "secret"})
    assert line == f"{variable} is not a setting. Did you mean {nearest}?"


def test_the_key_of_sessions_cannot_be_guessed() -> None:
    """A short one is rejected without being shown; an empty one is a random one."""
    (line,) = load_error({"TALLYSTICK_CONSOLE__SESSION_KEY": "a-short-secret"})
    assert line == "TALLYSTICK_CONSOLE__SESSION_KEY must have at least 32 characters, or be empty."
    assert load({"TALLYSTICK_CONSOLE__SESSION_KEY": ""}).console.session_key == ""
    assert load({"TALLYSTICK_CONSOLE__SESSION_KEY": "k" * 32}).console.session_key == "k" * 32


def test_settings_cannot_be_changed() -> None:
    """Neither a setting nor a section of loaded settings can be assigned to."""
    settings: Any = load({})
    with pytest.raises(ValidationError):
        settings.environment = "prod"
    with pytest.raises(ValidationError):
        settings.payout.destination_cooldown = 0
    assert settings.replace(payout__destination_cooldown=1).payout.destination_cooldown == 1
    assert settings == load({})
    with pytest.raises(TypeError, match="no setting destination_cool"):
        settings.replace(payout__destination_cool=1)


def test_settings_made_in_code_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Settings()` has the defaults regardless of the environment; only `load` reads it."""
    monkeypatch.setenv("TALLYSTICK_RELEASE_DELAY", "5")
    assert Settings().release_delay == 0
    assert load().release_delay == 5


def test_retry_policies_as_tables(toml_file: Path) -> None:
    """A policy is a table or a text, for all providers or for one."""
    toml_file.write_text("""
        [retry]
        throttled = "fixed:5:0"
        "sandbox.not_sent" = "cancel"
        [retry.no_answer]
        strategy = "exponential"
        initial_interval = 2
        backoff_coefficient = 3
        max_interval = 300
        max_tries = 12
        [retry.sandbox.server_error]
        strategy = "incremental"
        initial_interval = 1
        increment = 10
        max_interval = 60
        max_tries = 0
    """)
    retry = load({}, str(toml_file)).retry
    assert retry == {
        ("", RetryReason.THROTTLED): RetryPolicy(RetryStrategy.FIXED, 5, 5, None),
        ("sandbox", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.CANCEL),
        ("", RetryReason.NO_ANSWER): RetryPolicy(
            RetryStrategy.EXPONENTIAL, 2, 300, 12, backoff_coefficient=3
        ),
        ("sandbox", RetryReason.SERVER_ERROR): RetryPolicy(
            RetryStrategy.INCREMENTAL, 1, 60, None, increment_seconds=10
        ),
    }
    incremental = retry["sandbox", RetryReason.SERVER_ERROR]
    assert [incremental.delay_seconds(attempt, "x") for attempt in (1, 2, 3, 8)] == [1, 11, 21, 60]
    exponential = retry["", RetryReason.NO_ANSWER]
    for attempt, interval in ((1, 2), (2, 6), (3, 18), (11, 300)):
        delay = exponential.delay_seconds(attempt, "x")
        assert delay is not None
        assert interval / 2 <= delay <= interval


def test_an_invalid_retry_policy_names_its_fields(toml_file: Path) -> None:
    """Each wrong field of a policy has a line, with its path in the file."""
    toml_file.write_text("""
        [retry.throttled]
        strategy = "fixed"
        increment = 5
        max_tries = 1.5
        [retry.not_sent]
        strategy = "never"
        [retry]
        no_answer = 5
    """)
    lines = load_error({}, toml_file)
    assert [line.removeprefix(f"{toml_file}: retry.") for line in lines[1:]] == [
        "throttled.increment must not be set; a policy with strategy fixed takes strategy, "
        "initial_interval, max_tries.",
        "throttled.initial_interval must be set for strategy fixed.",
        "throttled.max_tries must be a whole number from 0 to 604,800.",
        "not_sent.strategy must be one of immediate, fixed, incremental, exponential, cancel.",
        "no_answer must be a table, or cancel, immediate:MAX_TRIES, "
        "fixed:INTERVAL:MAX_TRIES, incremental:INITIAL_INTERVAL:MAX_INTERVAL:MAX_TRIES or "
        "exponential:INITIAL_INTERVAL:MAX_INTERVAL:MAX_TRIES.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        'database = "postgresql://us:secret@host/db"',
        "database.url = ['secret']",
        'database.service_urls = {secret = "x"}',
        'callers = "shop:team:secret"',
        'callers = [{name = "secret!", roles = ["team"], tokens = []}]',
        'callers = [{name = "shop", roles = ["secret"], tokens = []}]',
        'callers = [{name = "shop", roles = ["team"], tokens = ["secret"]}]',
        'callers = [{name = "shop", roles = ["team"], token = "secret"}]',
        'tracing.otlp_endpoint = "secret"',
        "service_token = ['secret']",
    ],
)
def test_an_error_in_the_file_shows_no_secret(toml_file: Path, text: str) -> None:
    """The error for a setting that may hold a password or a token shows no part of its value."""
    toml_file.write_text(text)
    assert "secret" not in "".join(load_error({}, toml_file))
