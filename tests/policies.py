"""The default retry policies at another speed: what holds with them must hold without a person's help."""

from __future__ import annotations

from collections.abc import Mapping

from tallystick_core.provider import Trouble
from tallystick_server.runtime.retry import DEFAULTS, Policy, Strategy


def scaled_defaults(factor: float) -> dict[Trouble, Policy]:
    """The policies that are in force where nobody sets any, each wait times `factor`; as many tries."""
    return {trouble: Policy(policy.strategy, policy.first * factor, policy.longest * factor, policy.tries) for trouble, policy in DEFAULTS.items()}


def as_setting(policies: Mapping[Trouble, Policy]) -> str:
    """Policies as the setting `retry` takes them from the environment."""
    return ",".join(f"{trouble.lower()}={_as_text(policy)}" for trouble, policy in policies.items())


def _as_text(policy: Policy) -> str:
    tries = policy.tries or 0
    match policy.strategy:
        case Strategy.CANCEL:
            return "cancel"
        case Strategy.IMMEDIATE:
            return f"immediate:{tries}"
        case Strategy.FIXED:
            return f"fixed:{policy.first:g}:{tries}"
        case _:
            return f"{policy.strategy}:{policy.first:g}:{policy.longest:g}:{tries}"
