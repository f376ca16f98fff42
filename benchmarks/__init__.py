"""Benchmarks: every rate beside a ceiling that was measured in the same run, on the same machine,
by the same client.
"""
