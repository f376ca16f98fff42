"""Errors as the SDK raises them, for tests that call the generated stubs or read batch results."""

from __future__ import annotations

from tallystick._errors import from_rpc, from_status

__all__ = ["from_rpc", "from_status"]
