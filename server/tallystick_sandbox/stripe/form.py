"""Parses form-encoded bodies with nested brackets, as Stripe's clients send them."""

from __future__ import annotations

import re
from typing import TypeAlias
from urllib.parse import parse_qsl

from tallystick_sandbox.stripe.errors import invalid

MAX_BODY_BYTES = 256 * 1024
_MAX_FIELDS = 1000
_MAX_DEPTH = 5
_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")

FormValue: TypeAlias = "str | list[FormValue] | dict[str, FormValue]"
Form: TypeAlias = dict[str, FormValue]


def parse_form(text: str) -> Form:
    """The fields of a body or a query: "a[b]=1&c[]=2&c[]=3" is {"a": {"b": "1"}, "c": ["2", "3"]}.
    Raises StripeFailure.
    """
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError:
        raise invalid(
            f"The body must be form-encoded UTF-8 with at most {_MAX_FIELDS} fields."
        ) from None
    form: Form = {}
    for name, value in pairs:
        _insert(form, name, value)
    return {name: _as_lists(value) for name, value in form.items()}


def _insert(form: Form, name: str, value: str) -> None:
    match = _NAME.fullmatch(name)
    if match is None:
        raise invalid(f"Invalid parameter name: {name[:100]}")
    keys = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])]
    if len(keys) > _MAX_DEPTH:
        raise invalid(f"{match[1][:100]} has more than {_MAX_DEPTH} levels of brackets.")
    node = form
    for key in keys[:-1]:
        child = node.setdefault(_key_in(node, key), {})
        if not isinstance(child, dict):
            raise invalid(f"Invalid parameter name: {name[:100]}")
        node = child
    last_key = _key_in(node, keys[-1])
    if last_key in node:
        raise invalid(f"{name[:100]} is sent twice.")
    node[last_key] = value


def _key_in(node: Form, key: str) -> str:
    """The key itself; for "[]" the next index of a list."""
    return key or str(len(node))


def _as_lists(value: FormValue) -> FormValue:
    """Dicts whose keys are 0, 1, 2, … become lists."""
    if not isinstance(value, dict):
        return value
    values = {key: _as_lists(child) for key, child in value.items()}
    if values and list(values) == [str(index) for index in range(len(values))]:
        return list(values.values())
    return values
