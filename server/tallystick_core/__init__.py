"""The business rules: values, state tables and decisions. They use only the standard library, and
no I/O, clock or randomness.
"""
