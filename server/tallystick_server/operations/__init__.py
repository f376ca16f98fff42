"""The worker and what it needs: leases, batching, rescheduling, retry policies, dead letters,
alerts.
"""
