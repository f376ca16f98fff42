"""Checks the form of the history of metrics. No money depends on its values."""

from __future__ import annotations

from tallystick_server.verify.report import Check, QueryRunner, sum_counts


def check_bucket_counts(read: QueryRunner) -> Check:
    """Each sample of a histogram has a number for each bucket, and no other sample has one."""
    check = Check(
        "samples of histograms fit their buckets", "", sum_counts(read("monitoring.count"))
    )
    check.fail_each(read("monitoring.bucket_counts"))
    return check


CHECKS = (check_bucket_counts,)
