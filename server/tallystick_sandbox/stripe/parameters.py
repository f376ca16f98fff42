"""Reads the parameters of a request: types, required ones, unknown ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tallystick_sandbox.stripe.errors import invalid
from tallystick_sandbox.stripe.form import Form, FormValue

_MAX_TEXT = 5000
_MAX_METADATA_KEYS, _MAX_METADATA_NAME, _MAX_METADATA_VALUE = 50, 40, 500
_MAX_INTEGER_DIGITS = 18
_MAX_EXPANSIONS = 20
MAX_PAGE_SIZE, _DEFAULT_PAGE_SIZE = 100, 10


class Parameters:
    """The parameters of one request, or of one of its objects. `prefix`: the object's name.

    Each method reads one parameter and raises StripeFailure if it is invalid. After the last one
    `reject_unknown` rejects the others.
    """

    def __init__(self, form: Form, prefix: str = "") -> None:
        self._form = form
        self._prefix = prefix
        self._names: set[str] = set()

    def _name(self, name: str) -> str:
        return f"{self._prefix}[{name}]" if self._prefix else name

    def _read(self, name: str) -> FormValue | None:
        self._names.add(name)
        return self._form.get(name)

    def reject_unknown(self) -> None:
        """Rejects parameters that were not read."""
        unknown = sorted(self._form.keys() - self._names - {"expand"})
        if unknown:
            name = self._name(unknown[0])[:100]
            raise invalid(f"Received unknown parameter: {name}", name, "parameter_unknown")

    def text(
        self,
        name: str,
        default: str = "",
        *,
        required: bool = False,
        max_length: int = _MAX_TEXT,
    ) -> str:
        value = self._read(name)
        if value is None or (required and value == ""):
            if required:
                raise self._missing(name)
            return default
        if not isinstance(value, str):
            raise invalid(f"Invalid string: {self._name(name)}", self._name(name))
        if len(value) > max_length or "\0" in value:
            raise invalid(
                f"{self._name(name)} must have at most {max_length} characters, and no NUL.",
                self._name(name),
            )
        return value

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        value = self.text(name, default)
        if value not in (*choices, default):
            raise invalid(
                f"Invalid {self._name(name)}: must be one of {', '.join(choices)}",
                self._name(name),
            )
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self.text(name, str(default).lower())
        if value not in ("true", "false"):
            raise invalid(f"Invalid boolean: {value[:50]}", self._name(name))
        return value == "true"

    def integer(self, name: str) -> int | None:
        value = self._read(name)
        if value is None:
            return None
        digits = value.removeprefix("-") if isinstance(value, str) else ""
        if not (digits.isascii() and digits.isdecimal()) or len(digits) > _MAX_INTEGER_DIGITS:
            raise invalid(
                f"Invalid integer: {str(value)[:50]}", self._name(name), "parameter_invalid_integer"
            )
        return int(str(value))

    def required_integer(self, name: str) -> int:
        value = self.integer(name)
        if value is None:
            raise self._missing(name)
        return value

    def bounded_integer(self, name: str, minimum: int, maximum: int) -> int:
        value = self.required_integer(name)
        if not minimum <= value <= maximum:
            raise invalid(
                f"{self._name(name)} must be from {minimum} to {maximum}.",
                self._name(name),
                "parameter_invalid_integer",
            )
        return value

    def texts(self, name: str, max_count: int = 100) -> list[str]:
        """A list of texts."""
        value = self._read(name)
        if value is None or value == "":
            return []
        if not isinstance(value, list) or len(value) > max_count:
            raise invalid(f"Invalid array: {self._name(name)}", self._name(name))
        texts = [item for item in value if isinstance(item, str)]
        if len(texts) < len(value):
            raise invalid(f"Invalid array: {self._name(name)}", self._name(name))
        return texts

    def required_object(self, name: str) -> Parameters:
        value = self.object(name)
        if value is None:
            raise self._missing(name)
        return value

    def object(self, name: str) -> Parameters | None:
        """An object, or None. Its own unknown parameters are rejected by `reject_unknown` of it."""
        value = self._read(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise invalid(f"Invalid object: {self._name(name)}", self._name(name))
        return Parameters(value, self._name(name))

    def objects(self, name: str, max_count: int = 100) -> list[Parameters]:
        """A list of objects, at least one."""
        value = self._read(name)
        if value is None or value == "":
            raise self._missing(name)
        if not isinstance(value, list) or len(value) > max_count:
            raise invalid(f"Invalid array: {self._name(name)}", self._name(name))
        objects = [
            Parameters(item, f"{self._name(name)}[{index}]")
            for index, item in enumerate(value)
            if isinstance(item, dict)
        ]
        if len(objects) < len(value):
            raise invalid(f"Invalid array: {self._name(name)}", self._name(name))
        return objects

    def metadata(self) -> dict[str, str]:
        """Up to 50 texts, by name."""
        value = self._read("metadata")
        if value is None or value == "":
            return {}
        is_valid = isinstance(value, dict) and len(value) <= _MAX_METADATA_KEYS
        metadata: dict[str, str] = {}
        for key, text in value.items() if isinstance(value, dict) else ():
            if (
                isinstance(text, str)
                and len(key) <= _MAX_METADATA_NAME
                and len(text) <= _MAX_METADATA_VALUE
                and "\0" not in key + text
            ):
                metadata[key] = text
            else:
                is_valid = False
        if not is_valid:
            raise invalid(
                f"metadata must have at most {_MAX_METADATA_KEYS} keys of at most "
                f"{_MAX_METADATA_NAME} characters, with texts of at most {_MAX_METADATA_VALUE} "
                "characters.",
                self._name("metadata"),
            )
        return metadata

    def expansions(self) -> list[str]:
        """The paths of the parameter `expand`."""
        return self.texts("expand", _MAX_EXPANSIONS)

    def page(self) -> tuple[int, str, str]:
        """The parameters of a list: limit, starting_after, ending_before."""
        limit = self.integer("limit")
        if limit is not None and not 1 <= limit <= MAX_PAGE_SIZE:
            raise invalid(f"limit must be from 1 to {MAX_PAGE_SIZE}.", "limit")
        return limit or _DEFAULT_PAGE_SIZE, self.text("starting_after"), self.text("ending_before")

    def created_range(self) -> dict[str, int]:
        """The parameter `created`: a time, or an object with gt, gte, lt, lte. Unix seconds."""
        value = self._form.get("created")
        if not isinstance(value, dict):
            time = self.integer("created")
            return {} if time is None else {"gte": time, "lte": time}
        bounds = self.object("created")
        found = {}
        for name in ("gt", "gte", "lt", "lte"):
            bound = bounds.integer(name) if bounds else None
            if bound is not None:
                found[name] = bound
        if bounds:
            bounds.reject_unknown()
        return found

    def _missing(self, name: str) -> Exception:
        return invalid(
            f"Missing required param: {self._name(name)}.", self._name(name), "parameter_missing"
        )


def without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with None instead of empty texts, as Stripe shows what was not set."""
    return {name: None if value == "" else value for name, value in values.items()}
