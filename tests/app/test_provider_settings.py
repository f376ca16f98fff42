"""The settings of providers: several at once, their own values, and errors that help."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick_core.provider.outcome import FinalNotFound, RetryReason
from tallystick_server.app.configuration import Settings, load
from tallystick_server.app.errors import StartupError
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.providers.provider_type import CallLimits, ProviderType
from tallystick_server.providers.registry import PROVIDER_TYPES, schemas_of
from tallystick_server.providers.sandbox import charges, payouts
from tallystick_server.providers.sandbox.settings import SandboxSettings

TWO_SANDBOXES = """
[providers]
payment = "sandbox"
payout = "sandbox_b"
timeout = 20
not_found_after = 30

[providers.sandbox]
latency = 0.5

[providers.sandbox_b]
type = "sandbox"
url = "http://127.0.0.1:7090"
timeout = 5
max_calls = 7
key_window = 7200
not_found_after = 90
not_found_min_count = 3

[retry]
"sandbox_b.no_answer" = "fixed:5:0"
"""


@pytest.fixture
def toml_file(tmp_path: Path) -> Path:
    return tmp_path / "tallystick.toml"


def load_text(toml_file: Path, text: str, **environment: str) -> Settings:
    toml_file.write_text(text)
    return load(environment, str(toml_file))


def error_lines(toml_file: Path, text: str, **environment: str) -> list[str]:
    """The lines of the error, without the heading and the path of the file."""
    with pytest.raises(StartupError) as failure:
        load_text(toml_file, text, **environment)
    lines = str(failure.value).replace(f"{toml_file}: ", "").splitlines()
    return lines if len(lines) == 1 else lines[1:]


def test_each_provider_has_its_own_values(toml_file: Path) -> None:
    """A provider has the values of its section, and the shared ones where it has none."""
    settings = load_text(toml_file, TWO_SANDBOXES)
    section = settings.providers
    assert list(section.configured) == ["sandbox", "sandbox_b"]
    first, second = section.terms("sandbox"), section.terms("sandbox_b")
    assert (first.limits, first.key_window_seconds) == (CallLimits(20, 2000), 86_400)
    assert first.final_not_found == FinalNotFound(30, 2)
    assert (second.limits, second.key_window_seconds) == (CallLimits(5, 7), 7200)
    assert second.final_not_found == FinalNotFound(90, 3)
    assert settings.retry == {
        ("sandbox_b", RetryReason.NO_ANSWER): RetryPolicy(RetryStrategy.FIXED, 5, 5, None)
    }
    assert schemas_of(section.configured) == {"sandbox"}
    changed = settings.replace(providers__sandbox_b__timeout=6, providers__timeout=7)
    assert changed.providers.terms("sandbox_b").limits.timeout_seconds == 6
    assert changed.providers.terms("sandbox").limits.timeout_seconds == 7
    assert section.terms("sandbox_b").limits.timeout_seconds == 5


def test_providers_in_the_environment(toml_file: Path) -> None:
    """A variable adds a provider, or overrides one setting of a provider of the file."""
    settings = load_text(
        toml_file,
        TWO_SANDBOXES,
        TALLYSTICK_PROVIDERS__SANDBOX_B__TIMEOUT="9",
        TALLYSTICK_PROVIDERS__THIRD__TYPE="sandbox",
        TALLYSTICK_PROVIDERS__THIRD__LATENCY="2",
        TALLYSTICK_PROVIDERS__PAYMENT="third",
    )
    assert list(settings.providers.configured) == ["sandbox", "sandbox_b", "third"]
    assert settings.providers.terms("sandbox_b").limits == CallLimits(9, 7)
    assert settings.providers.configured["third"] == SandboxSettings(type="sandbox", latency=2)
    assert settings.providers.payment == "third"


def test_without_a_section_there_is_one_sandbox() -> None:
    """An installation without a provider of its own has a sandbox in the process, and one with a
    provider of its own has no sandbox unless it configures it.
    """
    assert load({}).providers.configured == {"sandbox": SandboxSettings()}
    with pytest.raises(StartupError, match=r"providers\.payment") as failure:
        load({"TALLYSTICK_PROVIDERS__OTHER__TYPE": "sandbox"})
    assert str(failure.value).splitlines()[1:] == [
        "providers.payment (TALLYSTICK_PROVIDERS__PAYMENT) must be the name of a configured "
        "provider that charges buyers: other.",
        "providers.payout (TALLYSTICK_PROVIDERS__PAYOUT) must be the name of a configured "
        "provider that pays sellers: other.",
    ]


def test_a_provider_must_be_able_to_do_what_it_is_chosen_for(
    toml_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that only charges cannot be the payout provider, and the error names those that
    can.
    """
    monkeypatch.setitem(PROVIDER_TYPES, "cards", ProviderType(SandboxSettings, charges.build))
    monkeypatch.setitem(
        PROVIDER_TYPES, "bank", ProviderType(SandboxSettings, build_payouts=payouts.build)
    )
    text = '[providers]\npayment = "{}"\npayout = "{}"\n[providers.cards]\n[providers.bank]\n'
    assert load_text(toml_file, text.format("cards", "bank")).providers.payment == "cards"
    assert error_lines(toml_file, text.format("bank", "cards")) == [
        "providers.payment must be the name of a configured provider that charges buyers: cards.",
        "providers.payout must be the name of a configured provider that pays sellers: bank.",
    ]


WRONG_SECTIONS = [
    ("[providers.bank]", "providers.bank.type (TALLYSTICK_PROVIDERS__BANK__TYPE) must be set "
     "to one of sandbox, stripe: bank is not a type."),
    ('[providers.sandbox]\ntype = "bank"',
     "providers.sandbox.type must be one of sandbox, stripe."),
    ("[providers.sandbox]\ntype = 3", "providers.sandbox.type must be one of sandbox, stripe."),
    ("[providers.sandbox-b]", "providers.sandbox-b must have a name of at most 32 of a-z, 0-9 and "
     "single _, which begins with a letter."),
    ("[providers.Sandbox]", "providers.Sandbox must have a name of at most 32 of a-z, 0-9 and "
     "single _, which begins with a letter."),
    ("[providers.a__b]", "providers.a__b must have a name of at most 32 of a-z, 0-9 and single _, "
     "which begins with a letter."),
    (f"[providers.{'a' * 33}]", f"providers.{'a' * 33} must have a name of at most 32 of a-z, 0-9 "
     "and single _, which begins with a letter."),
    ('[providers.throttled]\ntype = "sandbox"',
     "providers.throttled must not have the name of a retry reason."),
    ("[providers.configured]", "providers.configured.type (TALLYSTICK_PROVIDERS__CONFIGURED__TYPE) "
     "must be set to one of sandbox, stripe: configured is not a type."),
    ("providers.configured = 3",
     "providers.configured is not a setting. Did you mean providers."),
    ("providers.timeot = 3", "providers.timeot is not a setting. Did you mean providers.timeout?"),
    ("[providers.timeout]", "providers.timeout must be a number of seconds from 0.1 to 600."),
    ("[providers.sandbox]\nlatncy = 1",
     "providers.sandbox.latncy is not a setting. Did you mean providers.sandbox.latency?"),
    ("[providers.sandbox]\nlatency = 61",
     "providers.sandbox.latency must be a number of seconds from 0 to 60."),
    ('[providers.sandbox]\n[providers.b]\ntype = "sandbox"\nmax_calls = 0',
     "providers.b.max_calls must be a whole number from 1 to 100,000."),
    ('[providers.sandbox]\n[providers.b]\ntype = "sandbox"\nurl = "b"',
     "providers.b.url must be a URL that begins with http:// or https://, without a query; in a "
     "password write @ : / ? # as %40 and so on."),
    ("[providers.sandbox]\ntimeout = 58", "worker.lease_duration (TALLYSTICK_WORKER__LEASE_DURATION"
     ") must be more than 2 seconds longer than providers.sandbox.timeout."),
    ("[providers.sandbox]\nkey_window = 60",
     "providers.sandbox.key_window must be longer than worker.lease_duration."),
    ("[retry.stripe]\nthrottled = 'cancel'",
     "retry.stripe.throttled must be a policy of a configured provider: sandbox."),
    ("[retry.sandbox]\nthrotled = 'cancel'", "retry.sandbox.throtled must be the policy of a known "
     "retry reason: "),
    ("providers = 3", "providers must be a table."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), WRONG_SECTIONS, ids=[t for t, _ in WRONG_SECTIONS])
def test_a_wrong_section_of_a_provider_is_named(toml_file: Path, text: str, expected: str) -> None:
    """A wrong name, type, setting or value of a provider has one line, which says what is right."""
    (line,) = error_lines(toml_file, text)
    assert line.startswith(expected)


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (
            "TALLYSTICK_PROVIDERS__SANDBOX__URLL",
            "TALLYSTICK_PROVIDERS__SANDBOX__URLL is not a setting. Did you mean "
            "TALLYSTICK_PROVIDERS__SANDBOX__URL?",
        ),
        (
            "TALLYSTICK_PROVIDERS__SANDBAX__URL",
            "providers.sandbax.type (TALLYSTICK_PROVIDERS__SANDBAX__TYPE) must be set to one of "
            "sandbox, stripe: sandbax is not a type.",
        ),
        (
            "TALLYSTICK_PROVIDERS__SANDBAX__TYPE",
            "TALLYSTICK_PROVIDERS__SANDBAX__TYPE must be one of sandbox, stripe.",
        ),
        (
            "TALLYSTICK_PROVIDERS__sandbox__url",
            "TALLYSTICK_PROVIDERS__sandbox__url is not a setting. Did you mean "
            "TALLYSTICK_PROVIDERS__SANDBOX__URL?",
        ),
        (
            "TALLYSTICK_PROVIDERS__TIMEOUT__SANDBOX",
            "TALLYSTICK_PROVIDERS__TIMEOUT__SANDBOX is not a setting. Did you mean "
            "TALLYSTICK_PROVIDERS__TIMEOUT?",
        ),
        (
            "TALLYSTICK_PROVIDERS__SANDBOX",
            "TALLYSTICK_PROVIDERS__SANDBOX is not a setting. Did you mean ",
        ),
    ],
)
def test_a_wrong_variable_of_a_provider_is_named(variable: str, expected: str) -> None:
    """A misspelt variable of a provider has one line, without its value, which may be a secret."""
    with pytest.raises(StartupError) as failure:
        load({variable: "secret"})
    assert str(failure.value).startswith(expected)
    assert "secret" not in str(failure.value)
    assert "\n" not in str(failure.value)
