"""Helpers for tests of approvals."""

from __future__ import annotations

import pytest

from tallystick import TallystickError
from tests.support.payouts import (
    error_reason,
)


def expect_error_reason(call: object, *arguments: object) -> str:
    with pytest.raises(TallystickError) as error:
        call(*arguments)  # type: ignore[operator]
    return error_reason(error)
