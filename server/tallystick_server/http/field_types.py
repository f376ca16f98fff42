"""The field types of the contract that have a JSON form here."""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

TIMESTAMP, DURATION = "google.protobuf.Timestamp", "google.protobuf.Duration"
ANY = "google.protobuf.Any"
STATUS = "google.rpc.Status"
INTEGER_RANGES = {
    **dict.fromkeys(
        (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SFIXED32),
        (-(2**31), 2**31 - 1),
    ),
    **dict.fromkeys((FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_FIXED32), (0, 2**32 - 1)),
    **dict.fromkeys(
        (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_SINT64, FieldDescriptor.TYPE_SFIXED64),
        (-(2**63), 2**63 - 1),
    ),
    **dict.fromkeys((FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64), (0, 2**64 - 1)),
}
"""The smallest and the largest number by field type."""
WIDE_TYPES = frozenset(kind for kind, (_, high) in INTEGER_RANGES.items() if high > 2**32)
"""Integers that are text in JSON."""


def message_type_of(field: FieldDescriptor) -> Descriptor:
    """The type of a message field. Raises TypeError for another field."""
    if field.message_type is None:
        raise TypeError(f"{field.full_name} is no message")
    return field.message_type


def enum_type_of(field: FieldDescriptor) -> EnumDescriptor:
    """The type of an enum field. Raises TypeError for another field."""
    if field.enum_type is None:
        raise TypeError(f"{field.full_name} is no enum")
    return field.enum_type


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def no_json_error(field: FieldDescriptor) -> TypeError:
    """The error for a type of field that the contract did not have so far."""
    return TypeError(f"{field.full_name} has a type that has no JSON form here")
