"""Adapters to payment providers. Each implements the interface in core and maps every result to one
of five outcomes.
"""
