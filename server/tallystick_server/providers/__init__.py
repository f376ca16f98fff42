"""Calls to payment providers, and one adapter for each provider. An adapter implements the
interfaces in `tallystick_core.provider` and maps every answer to an outcome.
"""
