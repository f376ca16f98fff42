"""Reflection of every symbol of the contract, including methods and fields, which protobuf's own
pool does not find.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool


class SymbolDescriptorPool:
    """A descriptor pool that finds a file by any symbol it defines."""

    def __init__(self) -> None:
        self._pool: Any = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802 - protobuf's name
        """Returns the file that defines a symbol. Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            parent, _, name = symbol.rpartition(".")
            if name not in self._find_members(parent):
                raise
            return self._pool.FindFileContainingSymbol(parent)

    def _find_members(self, parent: str) -> Any:
        """Returns the members of a service or a message by name. Raises KeyError."""
        try:
            return self._pool.FindServiceByName(parent).methods_by_name
        except KeyError:
            message = self._pool.FindMessageTypeByName(parent)
            return {**message.fields_by_name, **message.oneofs_by_name}
