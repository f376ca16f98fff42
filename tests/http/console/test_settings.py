"""The page of settings: what the process was started with, and never a secret."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx
from pydantic import BaseModel

from tallystick_server.app.configuration import Settings, load
from tallystick_server.app.configuration.secrets import secrets_of
from tallystick_server.app.settings_display import show_settings
from tallystick_server.providers.stripe.settings import StripeSettings
from tests.support.callers import token_of
from tests.support.console import SETTINGS, Person, Work
from tests.support.platform import ServedPlatform

SignIn = Callable[[str], Person]


def row_of(page: str, name: str) -> str:
    """The row of a setting."""
    found = re.search(rf"<tr><th scope=\"row\"><code>{name}</code>.*?</tr>", page, re.DOTALL)
    assert found is not None, name
    return found[0]


def test_an_operator_sees_the_settings_of_the_process(
    platform: ServedPlatform, alice: Person
) -> None:
    """Each with its value, and what differs from the default; of a secret, that it is set."""
    page = alice.get("/console/settings").text
    assert f"at {platform.settings.http.listen}" in page
    assert ">true<" in row_of(page, "console.enabled")
    assert "changed" in row_of(page, "console.enabled")
    assert ">28800<" in row_of(page, "console.session_lifetime")
    assert "changed" not in row_of(page, "console.session_lifetime")
    assert ">EUR = 50.00<" in row_of(page, "payout.approval_threshold")
    assert ">set<" in row_of(page, "callers")
    assert ">set<" in row_of(page, "console.session_key")
    assert ">not set<" in row_of(page, "http.key_file")
    assert not [secret for secret in secrets_of(SETTINGS) - {""} if secret in page]


def test_only_an_operator_sees_the_settings(sign_in: SignIn) -> None:
    """The platform says who the person is, now; the page says which role it needs."""
    for name in ("auditor", "shop"):
        response = sign_in(name).get("/console/settings")
        assert response.status_code == 403
        assert "The settings are for callers with the role operator." in response.text
        assert "console.enabled" not in response.text
    assert sign_in("payer").get("/console/settings").status_code == 200


def test_no_field_for_a_secret_is_shown() -> None:
    """Whatever such a field contains, its row says only that it is set. Providers have rows too."""
    secret = "sk_test_" + "never-shown-1234567890"
    stripe = StripeSettings.model_construct(
        api_key=secret,
        webhook_secrets=(secret,),
        connect_webhook_secrets=(),
        url=f"https://{secret}",
    )
    settings = Settings()
    settings = settings.replace(
        providers__configured={**settings.providers.configured, "stripe-eu": stripe},
        callers={secret: None},
        service_token=secret,
        database__url=f"postgresql://u:{secret}@h/d",
        console__session_key=secret,
    )
    displayed = {setting.name: setting.text for setting in show_settings(settings)}
    assert secret not in "".join(displayed.values())
    for name in ("callers", "database.url", "providers.stripe-eu.api_key"):
        assert displayed[name] == "set"
    assert displayed["providers.stripe-eu.connect_webhook_secrets"] == "not set"
    assert set(displayed) >= set(_names(Settings()))


def test_values_are_written_as_they_are_set() -> None:
    """Amounts and rates as decimals, retry policies and routing rules by their fields."""
    environment = {
        "TALLYSTICK_PAYOUT__APPROVAL_THRESHOLD": "EUR=50.00,JPY=7000",
        "TALLYSTICK_PAYMENT__FEE_RATE": "0.025",
        "TALLYSTICK_PAYMENT__SELLER_FEE_RATES": "seller-1=0,seller-2=0.1",
        "TALLYSTICK_RETRY": "pending=fixed:2.5:0,sandbox.rejected=cancel",
        "TALLYSTICK_ROUTING": "name=eu;currencies=EUR;min_amount=1.50;provider=sandbox",
    }
    texts = {setting.name: setting.text for setting in show_settings(load(environment))}
    assert texts["payout.approval_threshold"] == "EUR = 50.00, JPY = 7000"
    assert texts["payment.fee_rate"] == "0.025"
    assert texts["payment.seller_fee_rates"] == "seller-1 = 0, seller-2 = 0.1"
    assert texts["retry"] == (
        "pending = fixed, initial_interval 2.5, max_tries 0; sandbox.rejected = cancel"
    )
    assert texts["routing"] == ("name=eu;currencies=EUR;min_amount=1.50;share=100;provider=sandbox")


def _names(model: BaseModel, prefix: str = "") -> list[str]:
    """Every field of the settings that is not a section itself."""
    names = []
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            names += _names(value, f"{prefix}{name}.")
        elif name != "configured":
            names.append(f"{prefix}{name}")
    return names


def test_a_person_sees_who_they_are(sign_in: SignIn, platform: ServedPlatform) -> None:
    """On every page: the name of the caller, which the audit gets, and its roles."""
    assert "payer" in sign_in("payer").get("/console/search").text
    assert "(payouts, operator)" in sign_in("payer").get("/console/search").text
    assert "(auditor)" in sign_in("auditor").get("/console/breaks").text
    response = httpx.get(
        f"{platform.url}/v1/caller", headers={"Authorization": f"Bearer {token_of('payer')}"}
    )
    assert response.json() == {
        "name": "payer",
        "owner": "market",
        "roles": ["CALLER_ROLE_PAYOUTS", "CALLER_ROLE_OPERATOR"],
    }


def test_a_person_sees_no_forms_of_other_roles(work: Work, sign_in: SignIn, alice: Person) -> None:
    """An auditor reads the same pages as an operator, without what only operators may do."""
    assert work.breaks[0] in (page := alice.get("/console/breaks").text)
    assert "Match the selected" in page
    auditor = sign_in("auditor")
    page = auditor.get("/console/breaks").text
    assert work.breaks[0] in page
    assert "Match the selected" not in page
    for path in (f"/console/breaks/{work.breaks[0]}", "/console/statement-files"):
        assert 'class="act"' in alice.get(path).text
        response = auditor.get(path)
        assert response.status_code == 200
        assert 'class="act"' not in response.text
