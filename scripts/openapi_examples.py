"""The examples in the OpenAPI document: a value for each field of a request, by its name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tallystick_server.http.field_types import DURATION, INTEGER_RANGES, TIMESTAMP, WIDE_TYPES

_TEXT_EXAMPLES = {
    "amount": "24.90",
    "currency": "EUR",
    "buyer_country": "GB",
    "credit_card_info": "tok_visa",
    "bank_account_token": "ba_1",
    "cut_off": "18:00",
    "time_zone": "Europe/Berlin",
    "minimum_amount": "10.00",
    "fee": "0.25",
    "reserve": "0.00",
    "platform_fee": "0.50",
    "reason": "asked by the buyer",
    "transaction_id": "main-1",
    "book": "main",
    "account": "sellers/seller-books/available",
    "account_prefix": "sellers/",
    "prefix": "sellers/",
    "page_token": "",
    "provider": "sandbox",
    "aggregate_id": "payments/checkout-1",
}
_TIME_EXAMPLE, _SECONDS_EXAMPLE = "2030-01-31T12:00:00Z", "3600s"


def request_example(descriptor: Descriptor, left_out: Iterable[str] = ()) -> dict[str, Any]:
    """A request with a value for each field; of those that exclude each other only the first."""
    taken: set[str] = set()
    example = {}
    for field in descriptor.fields:
        oneof = field.containing_oneof
        if field.name in left_out or (oneof is not None and oneof.full_name in taken):
            continue
        if oneof is not None:
            taken.add(oneof.full_name)
        example[field.name] = field_example(field)
    return example


def field_example(field: FieldDescriptor) -> Any:
    """A value of a field of a request."""
    value = _value_example(field)
    return [value] if field.is_repeated else value


def _value_example(field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values[1].name
    if field.message_type is not None:
        by_name = {TIMESTAMP: _TIME_EXAMPLE, DURATION: _SECONDS_EXAMPLE}
        name = field.message_type.full_name
        return by_name[name] if name in by_name else request_example(field.message_type)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return False
    if field.type in WIDE_TYPES:
        return "1"
    if field.type in INTEGER_RANGES:
        return 1
    return _TEXT_EXAMPLES.get(field.name, f"{field.name.removesuffix('_id').replace('_', '-')}-1")
