"""The settings of the process that serves the console."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from tallystick_server.http.console.visit import Answer, Page, Visit


@dataclass(frozen=True, slots=True)
class ShownSetting:
    """`name`: its path in the file of settings. `text`: its value; of a secret, whether it is set.
    `is_default`: the value is the default.
    """

    name: str
    text: str
    is_default: bool

    @property
    def section(self) -> str:
        """The first part of the name; "": the setting is in no section."""
        return self.name.partition(".")[0] if "." in self.name else ""


class SettingsPage:
    """Shows the settings to operators. `address`: where this process serves the console."""

    def __init__(self, address: str, settings: Sequence[ShownSetting]) -> None:
        self._address = address
        ordered = sorted(settings, key=lambda setting: setting.section)
        self._sections = [
            (section, list(group))
            for section, group in groupby(ordered, lambda setting: setting.section)
        ]

    async def show(self, visit: Visit) -> Answer:
        """GET /console/settings. Raises CallFailed for a person who is no operator now."""
        await visit.require_operator("The settings")
        values = {"address": self._address, "sections": self._sections}
        return Page("settings.html", "Settings", values)
