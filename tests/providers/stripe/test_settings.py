"""The settings of Stripe: what is valid, and errors that name the field and no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick_core.provider.outcome import FinalNotFound
from tallystick_server.app.configuration import Settings, load
from tallystick_server.app.errors import StartupError
from tallystick_server.providers.stripe.settings import StripeSettings

KEY = "sk_test_51Habcdefgh"


def load_section(tmp_path: Path, text: str, **environment: str) -> Settings:
    path = tmp_path / "tallystick.toml"
    path.write_text(
        f'[providers]\npayment = "stripe"\npayout = "stripe"\n[providers.stripe]\n{text}'
    )
    return load(environment, str(path))


def test_a_section_configures_an_account(tmp_path: Path) -> None:
    """A key is enough; the rest has defaults that suit Stripe."""
    settings = load_section(tmp_path, f'api_key = "{KEY}"')
    section = settings.providers.configured["stripe"]
    assert isinstance(section, StripeSettings)
    assert (section.api_key, section.url) == (KEY, "https://api.stripe.com")
    assert section.files_base == "https://files.stripe.com"
    assert section.webhook_tolerance == 300
    assert settings.providers.terms("stripe").final_not_found == FinalNotFound(7200.0, 2)


def test_a_key_is_honored_for_a_day_with_any_shared_setting(tmp_path: Path) -> None:
    """Stripe forgets a key after 24 hours; sent again after that, it would charge twice."""
    path = tmp_path / "tallystick.toml"
    shared = '[providers]\npayment = "stripe"\npayout = "stripe"\nkey_window = 2592000\n'
    for line, seconds in (("", 86_400), ("key_window = 43200\n", 43_200)):
        path.write_text(f'{shared}[providers.stripe]\napi_key = "{KEY}"\n{line}')
        assert load({}, str(path)).providers.terms("stripe").key_window_seconds == seconds


def test_secrets_may_come_from_the_environment(tmp_path: Path) -> None:
    """Several secrets while they are replaced, in a list or separated by commas; none is shown."""
    first, second = "whsec_first_secret", "whsec_second_secret"
    settings = load_section(
        tmp_path,
        f'connect_webhook_secrets = ["{first}"]\nurl = "http://127.0.0.1:12111"',
        TALLYSTICK_PROVIDERS__STRIPE__API_KEY=KEY,
        TALLYSTICK_PROVIDERS__STRIPE__WEBHOOK_SECRETS=f"{first},{second}",
    )
    section = settings.providers.configured["stripe"]
    assert isinstance(section, StripeSettings)
    assert section.webhook_secrets == (first, second)
    assert section.connect_webhook_secrets == (first,)
    assert section.files_base == "http://127.0.0.1:12111"
    for secret in (KEY, first, second):
        assert secret not in repr(settings)


@pytest.mark.parametrize(
    ("text", "field", "what"),
    [
        ("", "api_key", ""),
        ('api_key = "pk_test_51Habcdefgh"', "api_key", "a secret or restricted key of Stripe"),
        ('api_key = "sk_test_123"', "api_key", "then 8 to 240 letters, digits or _"),
        ('api_key = "sk_prod_51Habcdefgh"', "api_key", "a secret or restricted key of Stripe"),
        ('webhook_secrets = ["secret"]', "webhook_secrets", "begin with whsec_"),
        ('webhook_secrets = "whsec_12345678,secret"', "webhook_secrets", "begin with whsec_"),
        ("webhook_secrets = 7", "webhook_secrets", "a list of at most 8 texts"),
        ("webhook_tolerance = 0", "webhook_tolerance", "from 1 to 3,600"),
        ("not_found_after = 60", "not_found_after", "from 7,200"),
        ("key_window = 86401", "key_window", "to 86,400"),
        ('statement_descriptor_suffix = "a*b"', "statement_descriptor_suffix", "at most 22"),
        ('statement_descriptor_suffix = "2026"', "statement_descriptor_suffix", "a letter"),
        ('payout_report = "no report"', "payout_report", "a report type"),
        ('secret = "x"', "secret", "is not a setting"),
    ],
)
def test_an_invalid_setting_is_named_without_its_value(
    tmp_path: Path, text: str, field: str, what: str
) -> None:
    """The error says what would be right, and shows no value that may be a secret."""
    needed = "" if text.startswith("api_key") or not text else f'api_key = "{KEY}"\n'
    with pytest.raises(StartupError) as failure:
        load_section(tmp_path, needed + text)
    message = str(failure.value)
    assert f"providers.stripe.{field}" in message
    assert what in message
    for value in (KEY, "pk_test", "sk_prod", "12345678"):
        assert value not in message


@pytest.mark.parametrize("suffix", ["", "SHOP", "A" * 22, "Shop 24.de"])
def test_a_statement_suffix_is_what_banks_print(suffix: str) -> None:
    """At most 22 characters, one of them a letter."""
    settings = StripeSettings(api_key=KEY, statement_descriptor_suffix=suffix)
    assert settings.statement_descriptor_suffix == suffix
