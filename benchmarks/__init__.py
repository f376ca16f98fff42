"""Benchmarks. Each rate is reported with an upper bound that the same run measured, on the same
machine, by the same client.
"""
