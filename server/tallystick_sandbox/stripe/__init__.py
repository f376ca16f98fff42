"""The sandbox as a Stripe look-alike: the paths, shapes, errors and idempotency keys of Stripe's
API that the platform uses.
"""
