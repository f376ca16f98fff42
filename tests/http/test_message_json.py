"""Messages as JSON, compared with protobuf's own JSON."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from tallystick.payment.v1 import payment_service_pb2
from tallystick_core.errors import ApiError
from tallystick_server.app.services import SERVICES
from tallystick_server.http.http_rules import http_rules
from tallystick_server.http.json_reader import read_object
from tallystick_server.http.message_decoder import decode_message
from tallystick_server.http.message_encoder import encoder

RULES = http_rules(spec.descriptor for spec in SERVICES)
REQUESTS = sorted(
    {rule.method.input_type.full_name: rule.method.input_type for rule in RULES}.items()
)
RESPONSES = sorted(
    {rule.method.output_type.full_name: rule.method.output_type for rule in RULES}.items()
)
_TEXTS = ["", "a", "ünïcode ☃ 𝄞", '"\\\n\t\0', "1.50"]


def make_message(descriptor: Descriptor, numbers: random.Random, depth: int = 0) -> Any:
    """A message with random fields."""
    message: Any = GetMessageClass(descriptor)()
    if descriptor.full_name == "google.protobuf.Timestamp":
        message.FromNanoseconds(numbers.randrange(0, 4 * 10**18))
    elif descriptor.full_name == "google.protobuf.Duration":
        message.FromNanoseconds(numbers.randrange(0, 10**15))
    elif descriptor.full_name == "google.rpc.Status":
        message.CopyFrom(status_pb2.Status(code=3, message="x"))
        message.details.add().Pack(error_details_pb2.ErrorInfo(reason="R", metadata={"a": "b"}))
    else:
        for field in descriptor.fields:
            if depth < 5 and numbers.random() < 0.7:
                _set_field(message, field, numbers, depth)
    return message


def _set_field(message: Any, field: FieldDescriptor, numbers: random.Random, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(message, field.name)["key"] = "value"
    elif field.is_repeated:
        for _ in range(numbers.randrange(3)):
            if field.message_type is not None:
                item = make_message(field.message_type, numbers, depth + 1)
                getattr(message, field.name).add().CopyFrom(item)
            else:
                getattr(message, field.name).append(_value(field, numbers))
    elif field.message_type is not None:
        item = make_message(field.message_type, numbers, depth + 1)
        getattr(message, field.name).CopyFrom(item)
    else:
        setattr(message, field.name, _value(field, numbers))


def _value(field: FieldDescriptor, numbers: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return numbers.choice(_TEXTS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return numbers.randbytes(numbers.randrange(9))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return numbers.random() < 0.5
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return numbers.choice([0.0, -1.5, 1e-9, 1e300])
    if field.enum_type is not None:
        return numbers.choice([value.number for value in field.enum_type.values])
    return numbers.choice([0, 1, -1, 2**31 - 1, -(2**31)])


@pytest.mark.parametrize(("name", "descriptor"), [*REQUESTS, *RESPONSES])
def test_encoding_is_that_of_protobuf(name: str, descriptor: Descriptor) -> None:
    """A message has the JSON that json_format makes with names of the proto and fields without
    presence.
    """
    numbers = random.Random(name)
    for _ in range(30):
        message = make_message(descriptor, numbers)
        assert encoder(descriptor)(message) == MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )


@pytest.mark.parametrize(("name", "descriptor"), REQUESTS)
def test_decoding_is_that_of_protobuf(name: str, descriptor: Descriptor) -> None:
    """A request read from the JSON of a message, in both spellings, equals the message."""
    numbers = random.Random(name)
    for index in range(30):
        message = make_message(descriptor, numbers)
        value = MessageToDict(message, preserving_proto_field_name=bool(index % 2))
        decoded: Any = GetMessageClass(descriptor)()
        decode_message(decoded, value)
        assert decoded == message
        assert decoded == ParseDict(value, GetMessageClass(descriptor)())


_WRONG = [None, True, 1, -1, 2**70, 1.5, "", "x", "1", [], [None], [1], {}, {"a": 1}, "2026-01-01"]


@pytest.mark.parametrize(("name", "descriptor"), REQUESTS)
def test_what_protobuf_rejects_is_rejected(name: str, descriptor: Descriptor) -> None:
    """A wrong value that json_format rejects is rejected with the path of its field, and its value
    is in no error.
    """
    for field in descriptor.fields:
        for wrong in _WRONG:
            value = {field.name: wrong}
            target: Any = GetMessageClass(descriptor)()
            try:
                expected = ParseDict(value, GetMessageClass(descriptor)())
            except ParseError:
                with pytest.raises(ApiError) as error:
                    decode_message(target, value)
                assert error.value.field.startswith(field.name), name
                continue
            try:
                decode_message(target, value)
            except ApiError:  # this one is stricter
                continue
            assert target == expected


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b"1", b"null", b'{"a":NaN}', b'{"a":Infinity}', b'{"a":1,"a":1}',
        b'{"x":{"a":1,"a":1}}', b'{"a":\xff}', b"{}x", b"{'a':1}", b'{"a":' * 20_000,
        b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}", b'{"a":"\x01"}', b"\xef\xbb\xbf{}",
    ],
)  # fmt: skip
def test_malformed_json_is_rejected_without_an_echo(body: bytes) -> None:
    """What is no JSON object is rejected by a short text that has nothing of it."""
    with pytest.raises(ApiError) as error:
        read_object(body)
    assert error.value.reason in ("MESSAGE_MALFORMED", "TOO_MANY_ITEMS")
    assert len(error.value.message) < 120
    assert "999" not in error.value.message


def test_lists_are_limited() -> None:
    """A list has at most 1,000 items, and a body at most 50,000 values."""
    request = payment_service_pb2.CreatePaymentRequest()
    with pytest.raises(ApiError) as error:
        decode_message(request, {"payment_orders": [{}] * 1001})
    assert (error.value.reason, error.value.field) == ("TOO_MANY_ITEMS", "payment_orders")
    with pytest.raises(ApiError) as error:
        read_object(b'{"a":[' + b"{}," * 50_000 + b"{}]}")
    assert error.value.reason == "TOO_MANY_ITEMS"


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"nope": 1}, "nope"),
        ({"payment_orders": [{}, {"amount": "1", "nope": 1}]}, "payment_orders[1].nope"),
        ({"payment_orders": [{}, {"amount": 1}]}, "payment_orders[1].amount"),
        ({"payment_orders": [{}, 5]}, "payment_orders[1]"),
        ({"payment_orders": [{"4111111111111111": 1}]}, "payment_orders[0]"),
        ({"4111111111111111": 1}, ""),
        ({"checkout_id": "a", "checkoutId": "b"}, "checkout_id"),
        ({"checkout_id": "\ud800"}, "checkout_id"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(value: dict[str, object], field: str) -> None:
    """The error has the path of the field. A name that may be a card number is not shown."""
    with pytest.raises(ApiError) as error:
        decode_message(payment_service_pb2.CreatePaymentRequest(), value)
    assert error.value.field == field
    assert "4111" not in error.value.message
