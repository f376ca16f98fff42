"""The settings of a sandbox."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from tallystick_server.providers.provider_type import ProviderSettings
from tallystick_server.setting_types import FeeRate, Seconds, Url


class SandboxSettings(ProviderSettings):
    """A sandbox, in this process or on a server of its own."""

    url: Url = Field(default="", repr=False)
    """URL of a sandbox server; empty: the sandbox runs inside the process."""
    latency: Seconds = Field(default=0.0, ge=0, le=60)
    """How long the sandbox waits before it answers. A sandbox server has its own setting."""
    fee_rate: FeeRate = 0
    """The share of each charge that the sandbox reports as its fee; 0: it reports none. A sandbox
    server has its own setting.
    """

    @property
    def schemas(self) -> Sequence[str]:
        return () if self.url else ("sandbox",)
