"""Errors that calls raise, as the SDK shows them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tallystick import TallystickError
from tallystick._errors import from_rpc, from_status

__all__ = ["error_reason", "expect_error_reason", "from_rpc", "from_status"]


def error_reason(error: pytest.ExceptionInfo[TallystickError]) -> str:
    return str(error.value.reason)


def expect_error_reason(call: Callable[..., object], *arguments: object) -> str:
    """The reason of the error that a call must raise."""
    with pytest.raises(TallystickError) as error:
        call(*arguments)
    return error_reason(error)
