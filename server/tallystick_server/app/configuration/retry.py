"""The setting `retry`: a policy for each retry reason, for all providers or for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import PlainValidator

from tallystick_core.provider.outcome import RetryReason
from tallystick_server.operations.retry_policy import (
    DEFAULT_POLICIES,
    MAX_INTERVAL_SECONDS,
    MAX_TRIES,
    POLICY_FORMAT,
    UNLIMITED_REASONS,
    RetryPolicy,
    RetryStrategy,
    parse_policy,
)
from tallystick_server.setting_types import InvalidSetting, Kind, invalid, number, split_pairs

_REASONS = ", ".join(DEFAULT_POLICIES).lower()
_parse_interval = number(0, MAX_INTERVAL_SECONDS, float, "seconds")
_FIELD_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "initial_interval": _parse_interval,
    "backoff_coefficient": number(1, 10),
    "increment": _parse_interval,
    "max_interval": _parse_interval,
    "max_tries": number(0, MAX_TRIES, int),
}
_LIMITS = ("max_interval", "max_tries")
_FIELDS: Mapping[RetryStrategy, tuple[tuple[str, ...], tuple[str, ...]]] = {
    RetryStrategy.IMMEDIATE: (("max_tries",), ()),
    RetryStrategy.FIXED: (("initial_interval", "max_tries"), ()),
    RetryStrategy.INCREMENTAL: (("initial_interval", *_LIMITS), ("increment",)),
    RetryStrategy.EXPONENTIAL: (("initial_interval", *_LIMITS), ("backoff_coefficient",)),
    RetryStrategy.CANCEL: ((), ()),
}
"""The required and the optional fields of each strategy's table."""


def _parse_policies(value: Any) -> dict[tuple[str, RetryReason], RetryPolicy]:
    policies: dict[tuple[str, RetryReason], RetryPolicy] = {}
    problems: list[tuple[str, str]] = []
    for path, provider, reason_name, item in _entries(split_pairs(value)):
        try:
            reason = _parse_reason(reason_name)
            policy = _parse_policy_item(item)
            if reason in UNLIMITED_REASONS and policy.max_tries is not None:
                raise invalid(
                    "must have max_tries 0, which is unlimited: the platform always books what "
                    "it owes to its own wallet and ledger"
                )
            policies[provider, reason] = policy
        except InvalidSetting as error:
            problems += [
                (f"{path}.{field}" if field else path, text) for field, text in error.problems
            ]
    if problems:
        raise InvalidSetting(*problems)
    return policies


def _entries(table: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """Path, provider, reason and policy. A provider's policies are a table of their own, or their
    keys are "provider.reason".
    """
    for key, item in table.items():
        is_reason = key.upper() in DEFAULT_POLICIES or "." in key
        if isinstance(item, dict) and not is_reason and "strategy" not in item:
            for reason, policy in item.items():
                yield f"{key}.{reason}", key, reason, policy
        else:
            provider, _, reason = key.rpartition(".")
            yield key, provider, reason, item


def _parse_reason(reason: str) -> RetryReason:
    if reason.upper() not in DEFAULT_POLICIES:
        raise invalid(f"must be the policy of a known retry reason: {_REASONS}")
    return RetryReason(reason.upper())


def _parse_policy_item(item: Any) -> RetryPolicy:
    if isinstance(item, str):
        try:
            return parse_policy(item)
        except ValueError:
            raise invalid(f"must be {POLICY_FORMAT}") from None
    if not isinstance(item, dict):
        raise invalid(f"must be a table, or {POLICY_FORMAT}")
    if item.get("strategy") not in list(RetryStrategy):
        raise invalid(f"must be one of {', '.join(RetryStrategy)}", "strategy")
    return _policy_from_table(RetryStrategy(item["strategy"]), item)


def _policy_from_table(strategy: RetryStrategy, table: Mapping[str, Any]) -> RetryPolicy:
    required, optional = _FIELDS[strategy]
    allowed = ("strategy", *required, *optional)
    fields: dict[str, Any] = {}
    problems = [
        (name, f"must not be set; a policy with strategy {strategy} takes {', '.join(allowed)}")
        for name in table
        if name not in allowed
    ]
    problems += [
        (name, f"must be set for strategy {strategy}") for name in required if name not in table
    ]
    for name in (*required, *optional):
        if name in table:
            try:
                fields[name] = _FIELD_PARSERS[name](table[name])
            except InvalidSetting as error:
                problems += [(name, text) for _, text in error.problems]
    if problems:
        raise InvalidSetting(*problems)
    initial_interval = fields.get("initial_interval", 0.0)
    return RetryPolicy(
        strategy,
        initial_interval,
        fields.get("max_interval", initial_interval),
        fields.get("max_tries", 1) or None,
        backoff_coefficient=fields.get("backoff_coefficient", 2.0),
        increment_seconds=fields.get("increment"),
    )


def _write_policies(policies: Mapping[tuple[str, RetryReason], RetryPolicy]) -> str:
    return "; ".join(
        f"{f'{provider}.' if provider else ''}{reason.lower()} = {_write_policy(policy)}"
        for (provider, reason), policy in policies.items()
    )


def _write_policy(policy: RetryPolicy) -> str:
    """The strategy with its fields, as in a table."""
    values = {
        "initial_interval": policy.initial_interval_seconds,
        "max_interval": policy.max_interval_seconds,
        "max_tries": policy.max_tries or 0,
        "backoff_coefficient": policy.backoff_coefficient,
        "increment": policy.increment_seconds,
    }
    required, optional = _FIELDS[policy.strategy]
    fields = [
        f"{name} {value:.10g}"
        for name in (*required, *optional)
        if (value := values[name]) is not None
    ]
    return ", ".join((policy.strategy, *fields))


PolicyByReason: TypeAlias = Annotated[
    Mapping[tuple[str, RetryReason], RetryPolicy],
    PlainValidator(_parse_policies),
    Kind("table: retry reason to policy", write=_write_policies),
]
"""The provider is "" for all providers. Whether it is configured is checked later."""
