"""The setting `routing`: rules in the file and in the environment, and errors that help."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick_core.payment.checkout import MethodType
from tallystick_core.payment.routing import MAX_RULES, RoutingRule
from tallystick_server.app.configuration import Settings, load
from tallystick_server.app.errors import StartupError

_PROVIDERS = """
[providers]
payment = "c"
payout = "c"

[providers.a]
type = "sandbox"

[providers.b]
type = "sandbox"

[providers.c]
type = "sandbox"
"""
_RULES = """
[[routing]]
name = "large-eur"
currencies = ["EUR"]
countries = ["DE", "FR"]
payment_method_types = ["CARD", "APPLE_PAY"]
min_amount = "1000.00"
max_amount = "5000.00"
sellers = ["seller-1"]
callers = ["shop"]
share = 30
provider = "a"
fallback = "b"

[[routing]]
name = "rest"
provider = "b"
"""
_LARGE_EUR = RoutingRule(
    name="large-eur",
    provider="a",
    fallback="b",
    currencies=frozenset({"EUR"}),
    countries=frozenset({"DE", "FR"}),
    payment_method_types=frozenset({MethodType.CARD, MethodType.APPLE_PAY}),
    min_amount=100_000,
    max_amount=500_000,
    sellers=frozenset({"seller-1"}),
    callers=frozenset({"shop"}),
    share=30,
)


def load_text(folder: Path, text: str, **environment: str) -> Settings:
    file = folder / "tallystick.toml"
    file.write_text(text)
    return load(environment, str(file))


def error_lines(folder: Path, text: str, **environment: str) -> list[str]:
    """The lines of the error, without the heading and the path of the file."""
    with pytest.raises(StartupError) as failure:
        load_text(folder, text, **environment)
    lines = str(failure.value).replace(f"{folder / 'tallystick.toml'}: ", "").splitlines()
    return lines if len(lines) == 1 else lines[1:]


def test_rules_are_read_in_their_order(tmp_path: Path) -> None:
    """A rule in the file and the same rule in the environment are equal; the environment replaces
    all rules of the file. Without rules there are none.
    """
    rest = RoutingRule(name="rest", provider="b")
    assert load_text(tmp_path, _PROVIDERS + _RULES).routing == (_LARGE_EUR, rest)
    variable = (
        "name=large-eur;currencies=EUR;countries=DE+FR;payment_method_types=CARD+APPLE_PAY;"
        "min_amount=1000.00;max_amount=5000.00;sellers=seller-1;callers=shop;share=30;provider=a;"
        "fallback=b,name=last;provider=c"
    )
    settings = load_text(tmp_path, _PROVIDERS + _RULES, TALLYSTICK_ROUTING=variable)
    assert settings.routing == (_LARGE_EUR, RoutingRule(name="last", provider="c"))
    assert Settings().routing == load_text(tmp_path, _PROVIDERS).routing == ()


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (
            'provider = "x"',
            "[1].provider must be the name of a configured provider that charges buyers: a, b, c.",
        ),
        (
            'provider = "a"\nfallback = "x"',
            "[1].fallback must be the name of a configured provider that charges buyers: a, b, c.",
        ),
        (
            'provider = "a"\nfallback = "a"',
            "[1].fallback must be another provider than that of the rule.",
        ),
        ("", "[1].provider must be set."),
        ("provider = 1", "[1].provider must be text."),
        (
            'provider = "a"\ncurrencies = ["XXQ"]',
            "[1].currencies must have only valid values: currency must be an ISO 4217 code in "
            "capitals, BTC or USDC.",
        ),
        (
            'provider = "a"\ncountries = ["de"]',
            "[1].countries must have only ISO 3166-1 alpha-2 codes in capitals.",
        ),
        (
            'provider = "a"\npayment_method_types = ["card"]',
            "[1].payment_method_types must have only values among CARD, APPLE_PAY, GOOGLE_PAY, "
            "BANK_TRANSFER, CASH.",
        ),
        *(
            (
                f'provider = "a"\n{condition}',
                f"[1].{condition.partition(' ')[0]} must not be empty: leave it out to match "
                "everything.",
            )
            for condition in ("sellers = []", 'share = ""', 'min_amount = ""', 'max_amount = ""')
        ),
        ('provider = "a"\nshare = 0', "[1].share must be a whole number from 1 to 100."),
        ('provider = "a"\nshare = 101', "[1].share must be a whole number from 1 to 100."),
        ('provider = "a"\nshare = 1.5', "[1].share must be a whole number from 1 to 100."),
        (
            'provider = "a"\nmin_amount = "5"',
            "[1].min_amount must be set only in a rule with exactly one currency.",
        ),
        (
            'provider = "a"\ncurrencies = ["EUR"]\nmax_amount = "5.001"',
            "[1].max_amount must be an amount of the rule's currency: max_amount must have at "
            "most 2 decimals in EUR.",
        ),
        (
            'provider = "a"\ncurrencies = ["EUR"]\nmin_amount = "6"\nmax_amount = "5"',
            "[1].max_amount must be at least min_amount.",
        ),
        (
            'provider = "a"\nregion = "EU"',
            "[1].region is not a field of a rule: name, currencies, countries, "
            "payment_method_types, sellers, callers, min_amount, max_amount, share, provider, "
            "fallback.",
        ),
        (
            'provider = "a"\n[[routing]]\nname = "one"\nprovider = "b"\ncurrencies = ["EUR"]',
            "[2].name must be unique: rule 1 has the same name.",
        ),
        (
            'provider = "a"\n[[routing]]\nname = "two"\nprovider = "b"\ncurrencies = ["EUR"]',
            "[2] can never match, because the earlier rule one takes all its charges; move it "
            "before that rule, or remove it.",
        ),
    ],
)
def test_each_error_names_the_rule_and_its_field(tmp_path: Path, rule: str, line: str) -> None:
    """A wrong rule is an error at the start, with the position of the rule, its field and what
    would be right.
    """
    text = f'{_PROVIDERS}\n[[routing]]\nname = "one"\n{rule}\n'
    assert f"routing{line}" in error_lines(tmp_path, text)


def test_a_rule_needs_a_name(tmp_path: Path) -> None:
    """A rule without a name, or with a name that is no id, is an error."""
    text = f'{_PROVIDERS}\n[[routing]]\nprovider = "a"\n[[routing]]\nname = "a b"\nprovider = "b"'
    assert error_lines(tmp_path, text) == [
        "routing[1].name must be set.",
        "routing[2].name must be 1 to 64 of A-Z a-z 0-9 _ -.",
    ]


def test_errors_of_the_variable_name_it(tmp_path: Path) -> None:
    """A wrong value of the variable is reported under its name, with the form that it needs."""
    for value, line in (
        (
            "name",
            " must look like name=…;provider=…;fallback=…, with + between the values of a list",
        ),
        ("name=a;name=b", " must look like name=…;provider=…;fallback=…"),
        (
            "name=a;currencies=EUR;provider=b; currencies=CHF",
            " must look like name=…;provider=…;fallback=…",
        ),
        ("name=a;provider=b;currencies= ", ": [1].currencies must not be empty: leave it out"),
    ):
        (error,) = error_lines(tmp_path, _PROVIDERS, TALLYSTICK_ROUTING=value)
        assert error.startswith(f"TALLYSTICK_ROUTING{line}")
    (error,) = error_lines(tmp_path, _PROVIDERS, TALLYSTICK_ROUTING="name=one;provider=x")
    assert error.startswith("TALLYSTICK_ROUTING: [1].provider must be the name of a configured")
    many = ",".join(f"name=n{number};provider=a;share=1" for number in range(MAX_RULES + 1))
    (error,) = error_lines(tmp_path, _PROVIDERS, TALLYSTICK_ROUTING=many)
    assert error == f"TALLYSTICK_ROUTING must have at most {MAX_RULES} rules."
    assert error_lines(tmp_path, _PROVIDERS.replace("[providers]", 'routing = "x=1"\n[providers]'))
