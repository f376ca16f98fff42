"""The setting `routing`: the rules that choose the provider of a charge, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import PlainValidator

from tallystick_core.errors import ApiError
from tallystick_core.money import format_amount, parse_amount, parse_currency
from tallystick_core.payment.checkout import MethodType
from tallystick_core.payment.routing import MAX_RULES, RoutingRule, covering_rule
from tallystick_core.validation import parse_country, parse_id
from tallystick_server.setting_types import InvalidSetting, Kind, invalid, number, parse_text

_FORM = "name=…;provider=…;fallback=…, with + between the values of a list"
_LISTS = ("currencies", "countries", "payment_method_types", "sellers", "callers")
_AMOUNTS = ("min_amount", "max_amount")
_FIELDS = ("name", *_LISTS, *_AMOUNTS, "share", "provider", "fallback")
_CONDITIONS = (*_LISTS, *_AMOUNTS, "share")
_parse_share = number(1, 100, int)


def _parse_rules(value: Any) -> tuple[RoutingRule, ...]:
    entries = _entries_from_text(value) if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise invalid("must be a list of tables")
    if len(entries) > MAX_RULES:
        raise invalid(f"must have at most {MAX_RULES} rules")
    rules: list[RoutingRule] = []
    problems: list[tuple[str, str]] = []
    for position, entry in enumerate(entries, 1):
        try:
            rules.append(_parse_rule(entry))
        except InvalidSetting as error:
            problems += [(f"[{position}].{path}", text) for path, text in error.problems]
    if not problems:
        problems += _order_problems(rules)
    if problems:
        raise InvalidSetting(*problems)
    return tuple(rules)


def _entries_from_text(text: str) -> list[dict[str, Any]]:
    """The rules of a variable: separated by commas, their fields by semicolons."""
    entries = []
    for rule in filter(None, text.split(",")):
        fields: dict[str, Any] = {}
        for pair in filter(None, rule.split(";")):
            name, separator, field = (part.strip() for part in pair.partition("="))
            if not name or not separator or name in fields:
                raise invalid(f"must look like {_FORM}; rules are separated by commas")
            fields[name] = field.split("+") if field and name in _LISTS else field
        entries.append(fields)
    return entries


def _parse_rule(entry: Mapping[str, Any]) -> RoutingRule:
    problems = [
        (str(name), f"is not a field of a rule: {', '.join(_FIELDS)}")
        for name in entry
        if name not in _FIELDS
    ]
    problems += [(name, "must be set") for name in ("name", "provider") if not entry.get(name)]
    problems += [
        (name, "must not be empty: leave it out to match everything")
        for name in _CONDITIONS
        if name in entry and entry[name] in ("", [])
    ]
    fields: dict[str, Any] = {}
    for name, parse in _PARSERS.items():
        if entry.get(name, "") not in ("", []):
            try:
                fields[name] = parse(entry[name])
            except InvalidSetting as error:
                problems += [(name, text) for _, text in error.problems]
    problems += _parse_amounts(entry, fields)
    if fields.get("fallback") and fields["fallback"] == fields.get("provider"):
        problems.append(("fallback", "must be another provider than that of the rule"))
    if problems:
        raise InvalidSetting(*problems)
    return RoutingRule(**fields)


def _parse_amounts(entry: Mapping[str, Any], fields: dict[str, Any]) -> list[tuple[str, str]]:
    """Adds the amounts to the fields, in minor units of the rule's one currency. Returns the
    problems with them.
    """
    bounds = [name for name in _AMOUNTS if entry.get(name, "") != ""]
    if "currencies" in entry and "currencies" not in fields:
        return []  # reported already
    currencies = fields.get("currencies", frozenset())
    if bounds and len(currencies) != 1:
        return [(name, "must be set only in a rule with exactly one currency") for name in bounds]
    problems = []
    for name in bounds:
        try:
            fields[name] = parse_amount(parse_text(entry[name]), next(iter(currencies)), name)
        except InvalidSetting as error:
            problems += [(name, text) for _, text in error.problems]
        except ApiError as error:
            text = f"must be an amount of the rule's currency: {error.message.rstrip('.')}"
            problems.append((name, text))
    if len(bounds) == 2 and not problems and fields["min_amount"] > fields["max_amount"]:
        problems.append(("max_amount", "must be at least min_amount"))
    return problems


def _list_of(parse_item: Callable[[str], str]) -> Callable[[Any], frozenset[str]]:
    """A parser of a list."""

    def parse(value: Any) -> frozenset[str]:
        if not isinstance(value, list):
            raise invalid("must be a list of texts")
        try:
            return frozenset(parse_item(parse_text(item)) for item in value)
        except ApiError as error:
            raise invalid(f"must have only valid values: {error.message.rstrip('.')}") from None

    return parse


def _parse_method(text: str) -> MethodType:
    if text not in list(MethodType):
        raise invalid(f"must have only values among {', '.join(MethodType)}")
    return MethodType(text)


def _parse_name(value: Any) -> str:
    try:
        return parse_id(parse_text(value), "name")
    except ApiError:
        raise invalid("must be 1 to 64 of A-Z a-z 0-9 _ -") from None


def _parse_required_country(text: str) -> str:
    try:
        country = parse_country(text, "each")
    except ApiError:
        country = ""
    if not country:
        raise invalid("must have only ISO 3166-1 alpha-2 codes in capitals")
    return country


_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "name": _parse_name,
    "provider": parse_text,
    "fallback": parse_text,
    "currencies": _list_of(parse_currency),
    "countries": _list_of(_parse_required_country),
    "payment_method_types": _list_of(_parse_method),
    "sellers": _list_of(lambda text: parse_id(text, "each")),
    "callers": _list_of(lambda text: parse_id(text, "each")),
    "share": _parse_share,
}


def _order_problems(rules: list[RoutingRule]) -> Iterator[tuple[str, str]]:
    """The problems of each rule with earlier ones."""
    positions: dict[str, int] = {}
    for index, rule in enumerate(rules):
        position = index + 1
        if rule.name in positions:
            text = f"must be unique: rule {positions[rule.name]} has the same name"
            yield f"[{position}].name", text
        positions.setdefault(rule.name, position)
        covering = covering_rule(rules, index)
        if covering is not None:
            text = (
                f"can never match, because the earlier rule {covering.name} takes all its charges"
            )
            yield f"[{position}]", f"{text}; move it before that rule, or remove it"


def _write_rules(rules: tuple[RoutingRule, ...]) -> str:
    return ", ".join(map(_write_rule, rules))


def _write_rule(rule: RoutingRule) -> str:
    """The rule as in a variable."""
    fields: dict[str, str] = {}
    for name in _FIELDS:
        value = getattr(rule, name)
        if name in _LISTS:
            fields[name] = "+".join(sorted(value))
        elif name in _AMOUNTS and value is not None:
            fields[name] = format_amount(value, next(iter(rule.currencies)))
        elif value is not None:
            fields[name] = str(value)
    return ";".join(f"{name}={text}" for name, text in fields.items() if text)


RoutingRules: TypeAlias = Annotated[
    tuple[RoutingRule, ...],
    PlainValidator(_parse_rules),
    Kind("list of tables", write=_write_rules),
]
"""Whether their providers are configured is checked later."""
