"""The settings: definitions, sources and error messages."""

from tallystick_server.app.configuration.settings import (
    DEFAULT_DESTINATION_COOLDOWN,
    SERVICES,
    Settings,
)
from tallystick_server.app.configuration.sources import (
    SettingDescription,
    describe_settings,
    load,
)

__all__ = [
    "DEFAULT_DESTINATION_COOLDOWN",
    "SERVICES",
    "SettingDescription",
    "Settings",
    "describe_settings",
    "load",
]
