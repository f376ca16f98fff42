"""Retry policies: their waits, their text form, and which of them applies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.provider.outcome import RetryReason
from tallystick_server.operations.retry_policy import (
    DEFAULT_POLICIES,
    RetryPolicies,
    RetryPolicy,
    RetryStrategy,
    parse_policy,
)

BOUNDED_STRATEGIES = [
    strategy for strategy in RetryStrategy if strategy is not RetryStrategy.CANCEL
]


@given(
    st.sampled_from(BOUNDED_STRATEGIES),
    st.floats(0.01, 100),
    st.floats(0.01, 1000),
    st.integers(1, 50),
    st.integers(1, 60),
    st.text(max_size=20),
)
def test_waits_are_bounded_and_repeatable(
    strategy: RetryStrategy,
    first: float,
    max_interval: float,
    max_tries: int,
    tries: int,
    seed: str,
) -> None:
    """E3: the number of tries and each wait stay within the policy's limits; the same seed gives
    the same waits.
    """
    policy = RetryPolicy(strategy, first, max_interval, max_tries)
    delay = policy.delay_seconds(tries, seed)
    assert (delay is None) == (tries >= max_tries)
    if delay is not None:
        assert 0 <= delay <= max(first, max_interval)
        assert delay == policy.delay_seconds(tries, seed)


def test_each_strategy_has_its_waits() -> None:
    """Immediate waits zero, fixed always the same, incremental one step more, exponential twice as
    long minus random jitter, cancel does not retry.
    """
    assert [
        RetryPolicy(RetryStrategy.IMMEDIATE, max_tries=9).delay_seconds(n, "") for n in (1, 2, 3)
    ] == [
        0,
        0,
        0,
    ]
    assert [
        RetryPolicy(RetryStrategy.FIXED, 5, max_tries=9).delay_seconds(n, "") for n in (1, 2, 3)
    ] == [
        5,
        5,
        5,
    ]
    assert [
        RetryPolicy(RetryStrategy.INCREMENTAL, 5, 12, 9).delay_seconds(n, "") for n in (1, 2, 3)
    ] == [
        5,
        10,
        12,
    ]
    doubled = [
        RetryPolicy(RetryStrategy.EXPONENTIAL, 4, 30, 9).delay_seconds(n, "s") or 0
        for n in (1, 2, 3, 4, 5)
    ]
    assert all(
        full / 2 <= delay <= full for delay, full in zip(doubled, (4, 8, 16, 30, 30), strict=True)
    )
    assert (
        len(
            {
                RetryPolicy(RetryStrategy.EXPONENTIAL, 4, 30, 9).delay_seconds(2, seed)
                for seed in map(str, range(20))
            }
        )
        == 20
    )
    assert RetryPolicy(RetryStrategy.CANCEL).delay_seconds(1, "") is None


@pytest.mark.parametrize("tries", [1_024, 1_025, 10**9])
def test_unlimited_policies_never_overflow(tries: int) -> None:
    """After any number of tries the next wait is a number of seconds, at most the policy's
    maximum.
    """
    for policy in (
        *(RetryPolicy(strategy, 2, 300, None) for strategy in RetryStrategy),
        *DEFAULT_POLICIES.values(),
        RetryPolicy(RetryStrategy.EXPONENTIAL, 604_800, 604_800, None),
    ):
        delay = policy.delay_seconds(tries, "s")
        assert delay is None or 0 <= delay <= max(
            policy.max_interval_seconds, policy.initial_interval_seconds
        )


def test_a_providers_policy_has_precedence() -> None:
    """The provider's own policy has precedence over the policy for all providers, and that over the
    built-in one.
    """
    own_policy, general = (
        RetryPolicy(RetryStrategy.IMMEDIATE, max_tries=2),
        RetryPolicy(RetryStrategy.FIXED, 1, 1, 3),
    )
    policies = RetryPolicies(
        {("bank", RetryReason.THROTTLED): own_policy, ("", RetryReason.THROTTLED): general}
    )
    assert policies.policy_for("bank", RetryReason.THROTTLED) is own_policy
    assert policies.policy_for("sandbox", RetryReason.THROTTLED) is general
    assert (
        policies.policy_for("bank", RetryReason.NOT_SENT) is DEFAULT_POLICIES[RetryReason.NOT_SENT]
    )


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("cancel", RetryPolicy(RetryStrategy.CANCEL)),
        ("immediate:3", RetryPolicy(RetryStrategy.IMMEDIATE, max_tries=3)),
        ("fixed:0.5:3", RetryPolicy(RetryStrategy.FIXED, 0.5, 0.5, 3)),
        ("incremental:1:10:0", RetryPolicy(RetryStrategy.INCREMENTAL, 1, 10, None)),
        ("exponential:2:300:12", RetryPolicy(RetryStrategy.EXPONENTIAL, 2, 300, 12)),
    ],
)
def test_a_policy_is_parsed(text: str, policy: RetryPolicy) -> None:
    """Each form gives its strategy, seconds and tries; 0 tries means unlimited."""
    parsed = parse_policy(text)
    assert [parsed.delay_seconds(n, "x") for n in range(1, 15)] == [
        policy.delay_seconds(n, "x") for n in range(1, 15)
    ]
    assert parsed.strategy is policy.strategy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "never",
        "fixed",
        "fixed:1",
        "fixed:x:1",
        "fixed:-1:1",
        "fixed:1:1.5",
        "fixed:nan:1",
        "immediate:1:2",
        "cancel:1",
        "fixed:1e9:1",
    ],
)
def test_an_invalid_policy_is_rejected(text: str) -> None:
    """Invalid policies are rejected."""
    with pytest.raises(ValueError):  # noqa: PT011 - any
        parse_policy(text)
