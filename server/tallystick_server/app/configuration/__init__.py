"""The settings: definitions, sources and error messages."""

from tallystick_server.app.configuration.settings import (
    DEFAULT_DESTINATION_COOLDOWN,
    Settings,
)
from tallystick_server.app.configuration.sources import (
    SettingDescription,
    describe_settings,
    load,
)

__all__ = [
    "DEFAULT_DESTINATION_COOLDOWN",
    "SettingDescription",
    "Settings",
    "describe_settings",
    "load",
]
