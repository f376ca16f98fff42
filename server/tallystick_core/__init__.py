"""The rules: values, state tables and decisions. No I/O, no clock, no randomness, nothing but the
standard library.
"""
