"""Operation worker, leases, batching, rescheduling, retry policies, dead letters and alerts."""
