"""Enum values of messages and their names in the domain layer."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import EnumDescriptor

from tallystick_core.errors import ApiError, ErrorReason


class EnumNames:
    """The values and names of one enum, without the prefix of its proto names."""

    def __init__(self, descriptor: EnumDescriptor) -> None:
        prefix = (
            "".join(f"_{c}" if c.isupper() else c.upper() for c in descriptor.name).lstrip("_")
            + "_"
        )
        self._name_by_number = {
            value.number: value.name.removeprefix(prefix) for value in descriptor.values
        }
        self._number_by_name = {name: number for number, name in self._name_by_number.items()}
        self._allowed_names = ", ".join(
            name for name, number in self._number_by_name.items() if number
        )

    def parse(self, number: int, field: str, default: str | None = None) -> str:
        """The name of a value. Unset: the default, or FIELD_REQUIRED. Unknown: FIELD_INVALID."""
        if number == 0:
            if default is None:
                raise ApiError(
                    ErrorReason.FIELD_REQUIRED,
                    f"{field} is required: one of {self._allowed_names}.",
                    field=field,
                )
            return default
        name = self._name_by_number.get(number)
        if name is None:
            raise ApiError(
                ErrorReason.FIELD_INVALID,
                f"{field} must be one of {self._allowed_names}.",
                field=field,
            )
        return name

    def number(self, name: str | None) -> Any:
        """The generated value of a name; "" or None is the unset value. Raises KeyError for an
        unknown name.
        """
        return self._number_by_name[name] if name else 0
