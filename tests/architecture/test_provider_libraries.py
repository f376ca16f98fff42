"""Providers are used through their interfaces: only an adapter imports its provider's library."""

from __future__ import annotations

import re

import pytest

from tests.architecture.test_structure import source_files
from tests.support.platform import ROOT

PROVIDER_LIBRARIES = {"stripe": "server/tallystick_server/providers/stripe"}
"""The library of a provider, and the only folder that may import it."""


@pytest.mark.parametrize(("library", "folder"), PROVIDER_LIBRARIES.items())
def test_only_its_adapter_imports_the_library_of_a_provider(library: str, folder: str) -> None:
    """No service, and no other part of the repository but tests, imports it."""
    pattern = re.compile(rf"^\s*(?:import|from) {library}\b", re.MULTILINE)
    importing = {
        path.relative_to(ROOT)
        for path in source_files("server", "storage", "clients", "benchmarks", "scripts")
        if pattern.search(path.read_text())
    }
    assert importing
    assert all(path.is_relative_to(folder) for path in importing), importing
