"""The default retry policies at another speed: operations must complete under them without an
operator.
"""

from __future__ import annotations

from collections.abc import Mapping

from tallystick_core.provider.outcome import RetryReason
from tallystick_server.operations.retry_policy import DEFAULT_POLICIES, RetryPolicy, RetryStrategy


def scaled_defaults(factor: float) -> dict[RetryReason, RetryPolicy]:
    """The default policies with each wait multiplied by `factor` and the same number of tries."""
    return {
        reason: RetryPolicy(
            policy.strategy,
            policy.initial_interval_seconds * factor,
            policy.max_interval_seconds * factor,
            policy.max_tries,
        )
        for reason, policy in DEFAULT_POLICIES.items()
    }


def format_setting(policies: Mapping[RetryReason, RetryPolicy]) -> str:
    """Policies in the format of the setting `retry` in the environment."""
    return ",".join(
        f"{reason.lower()}={_format_policy(policy)}" for reason, policy in policies.items()
    )


def _format_policy(policy: RetryPolicy) -> str:
    tries = policy.max_tries or 0
    match policy.strategy:
        case RetryStrategy.CANCEL:
            return "cancel"
        case RetryStrategy.IMMEDIATE:
            return f"immediate:{tries}"
        case RetryStrategy.FIXED:
            return f"fixed:{policy.initial_interval_seconds:g}:{tries}"
        case _:
            intervals = (policy.initial_interval_seconds, policy.max_interval_seconds)
            return f"{policy.strategy}:{intervals[0]:g}:{intervals[1]:g}:{tries}"
