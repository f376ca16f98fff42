"""Counts the items of a message on its bytes, before an object is built for any of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tallystick_core.refusal import Reason, Refused

MOST_ITEMS = 1000
"""The most items of one repeated field, in a call and in a stage."""
_MOST_NESTED = 50_000
"""The most items of a message in all its repeated fields, however deep."""
_MOST_FIELDS = 250_000
"""The most fields that are looked at; a message of BATCH_BYTES that is no attack has fewer."""
_MESSAGE = FieldDescriptor.TYPE_MESSAGE
_UNPACKED = frozenset({_MESSAGE, FieldDescriptor.TYPE_GROUP, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES})
"""The types of which each item is a field of its own; those of any other may stand packed in one."""
_WIDTHS = {
    **dict.fromkeys((FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64), 8),
    **dict.fromkeys((FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_SFIXED32), 4),
}
_MORE = bytes(range(0x80, 0x100))  # a varint ends with any other byte
_VARINT, _BYTES = 0, 2
_LENGTH = {_VARINT: 0, 1: 8, 3: 0, 4: 0, 5: 4}  # of each wire type; groups begin and end without one


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    """Which fields of a message are counted and which are looked into, by their number."""

    name: str
    repeated: dict[int, str]
    packed: dict[int, int]
    """The bytes of an item of each that may be packed; 0: it is a varint."""
    inside: dict[int, tuple[str, _Shape]]
    no_items: bytes
    """The bytes that begin no item, however deep."""


@cache
def _shape(descriptor: Descriptor) -> _Shape | None:
    """None for a message that can hold no items. Messages of the contract are not recursive."""
    repeated = {field.number: field.name for field in descriptor.fields if field.is_repeated}
    packed = {field.number: _WIDTHS.get(field.type, 0) for field in descriptor.fields if field.is_repeated and field.type not in _UNPACKED}
    nested = {field.number: (field.name, _shape(field.message_type)) for field in descriptor.fields if field.type == _MESSAGE}
    inside = {number: (name, shape) for number, (name, shape) in nested.items() if shape is not None}
    if not repeated and not inside:
        return None
    begins = set(range(0x100)) if packed else {_first_byte(field) | more for field in descriptor.fields if field.is_repeated for more in (0, 0x80)}
    no_items = (set(range(0x100)) - begins).intersection(*(shape.no_items for _, shape in inside.values()))
    return _Shape(descriptor.full_name, repeated, packed, inside, bytes(sorted(no_items)))


def _first_byte(field: FieldDescriptor) -> int:
    """The seven bits that a field's tag begins with. The eighth says that the tag goes on, which a sender may set for a tag of one byte too."""
    return (field.number << 3 | (_BYTES if field.type in _UNPACKED else _VARINT)) & 0x7F


def holds_items(descriptor: Descriptor) -> bool:
    """Whether a message has repeated fields, however deep."""
    return _shape(descriptor) is not None


class _Count:
    """What has been seen of one message, at all its depths."""

    __slots__ = ("fields", "items", "small")

    def __init__(self, small: int) -> None:
        self.small = small
        """The bytes of a message inside that is not looked into."""
        self.fields = 0
        self.items = 0


def check_items(raw: bytes, descriptor: Descriptor) -> None:
    """Refuses a message with more items than a call may have, at a bounded cost. Raises TOO_MANY_ITEMS, MESSAGE_MALFORMED."""
    shape = _shape(descriptor)
    if shape is None:
        return
    possible = len(raw.translate(None, shape.no_items))
    if possible <= MOST_ITEMS and len(raw) <= _MOST_FIELDS:
        return
    small = MOST_ITEMS if possible <= _MOST_NESTED else 0  # so many bytes have no room for more items
    try:
        _check(raw, 0, len(raw), shape, _Count(small))
    except IndexError:
        raise Refused(Reason.MESSAGE_MALFORMED, f"The bytes are no {descriptor.full_name}.") from None


def _check(raw: bytes, at: int, end: int, shape: _Shape, count: _Count) -> None:
    """One message, from `at` to `end`. Raises IndexError for bytes that end too early."""
    repeated, inside = shape.repeated, shape.inside
    seen: dict[int, int] = {}
    while at < end:
        tag, at = (raw[at], at + 1) if raw[at] < 0x80 else _varint(raw, at)
        number, kind = tag >> 3, tag & 7
        length = _LENGTH.get(kind, end)
        if kind == _BYTES:
            length, at = (raw[at], at + 1) if raw[at] < 0x80 else _varint(raw, at)
        elif kind == _VARINT:
            _, at = _varint(raw, at)
        following = at + length
        if following > end:
            raise IndexError
        count.fields += 1
        if number in repeated:
            items = _packed(raw[at:following], shape.packed[number]) if kind == _BYTES and number in shape.packed else 1
            count.items += items
            seen[number] = seen.get(number, 0) + items
            if seen[number] > MOST_ITEMS:
                name = repeated[number]
                raise Refused(Reason.TOO_MANY_ITEMS, f"{name} must have at most {MOST_ITEMS} items.", field=name)
        if count.items > _MOST_NESTED or count.fields > _MOST_FIELDS:
            raise Refused(Reason.TOO_MANY_ITEMS, "The message has more items and fields than one call may have; send several.")
        if kind == _BYTES and length > count.small and number in inside:
            name, within = inside[number]
            try:
                _check(raw, at, following, within, count)
            except Refused as refused:
                raise (refused.below(f"{name}[{seen[number] - 1}]" if number in repeated else name) if refused.field else refused) from None
        at = following


def _packed(raw: bytes, width: int) -> int:
    """How many numbers stand in one field."""
    return len(raw) // width if width else len(raw.translate(None, _MORE))


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A varint and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError
