"""The HTTP rules of the contract: which method and path each call has (`google.api.http`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from google.api import annotations_pb2
from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from google.protobuf.descriptor_pb2 import MethodOptions

from tallystick_server.http.field_types import DURATION, TIMESTAMP

_METHODS = ("get", "put", "post", "patch", "delete")


@dataclass(frozen=True, slots=True)
class HttpRule:
    """How a call is made over HTTP. The fields that are not in the path are in the body, if it
    `has_body`, and else in the query.
    """

    method: MethodDescriptor
    http_method: str
    path: str
    has_body: bool

    @property
    def path_fields(self) -> tuple[str, ...]:
        """The fields of the variables, in the order of the path."""
        return tuple(part.partition("}")[0] for part in self.path.split("{")[1:])

    @property
    def query_fields(self) -> Mapping[str, FieldDescriptor]:
        """The fields that a query may have, by path, such as filter.cause."""
        if self.has_body:
            return {}
        fields = _leaves(self.method.input_type, "")
        return {name: field for name, field in fields if name not in self.path_fields}

    @property
    def is_read(self) -> bool:
        """Whether the call changes nothing."""
        level = self.method.GetOptions().idempotency_level
        return bool(level == MethodOptions.NO_SIDE_EFFECTS)

    @property
    def key_field(self) -> str:
        """The field that an Idempotency-Key must equal or fills: `request_id`, or the id of the
        resource; "": there is none.
        """
        fields = self.method.input_type.fields_by_name
        if self.is_read:
            return ""
        if "request_id" in fields:
            return "request_id"
        candidates = self.path_fields[-1:] or tuple(fields)[:1]
        return next((name for name in candidates if name.endswith("_id")), "")

    @property
    def cursor(self) -> tuple[str, str, str] | None:
        """Of a stream: the field that resumes it, and the field of its messages and the field
        therein that has the cursor. None: it cannot be resumed.
        """
        for name in self.method.input_type.fields_by_name:
            for part in self.method.output_type.fields:
                cursor = name.removeprefix("after_")
                fields = part.message_type.fields_by_name if part.message_type else {}
                if cursor != name and cursor in fields:
                    return name, part.name, cursor
        return None


def http_rules(services: Iterable[ServiceDescriptor]) -> list[HttpRule]:
    """The rules of all calls that have one. Raises TypeError for a rule that uses what the HTTP
    server does not have.
    """
    return [
        _parse_rule(method)
        for service in services
        for method in service.methods
        if method.GetOptions().HasExtension(annotations_pb2.http)
    ]


def _parse_rule(method: MethodDescriptor) -> HttpRule:
    options = method.GetOptions().Extensions[annotations_pb2.http]
    http_method = options.WhichOneof("pattern")
    if (
        http_method not in _METHODS
        or options.body not in ("", "*")
        or options.additional_bindings
        or options.response_body
    ):
        raise TypeError(f"{method.full_name} has an HTTP rule that the HTTP server does not have")
    rule = HttpRule(
        method, http_method.upper(), getattr(options, http_method), has_body=options.body == "*"
    )
    for name in rule.path_fields:
        field = method.input_type.fields_by_name.get(name)
        if field is None or field.type != FieldDescriptor.TYPE_STRING or field.is_repeated:
            raise TypeError(f"{method.full_name} has {{{name}}} in its path, which is no text")
    return rule


def _leaves(descriptor: Descriptor, prefix: str) -> Iterator[tuple[str, FieldDescriptor]]:
    for field in descriptor.fields:
        message = field.message_type
        if message is None or message.full_name in (TIMESTAMP, DURATION):
            yield prefix + field.name, field
        elif field.is_repeated:
            raise TypeError(f"{field.full_name} has no place in a query")
        else:
            yield from _leaves(message, f"{prefix}{field.name}.")
