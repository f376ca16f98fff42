"""Adapters to payment providers, each behind the port in core: whatever happens out there is one of
five outcomes.
"""
