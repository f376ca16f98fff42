"""A payment provider with configurable faults, for the demo, the tests, the simulation and the
benchmarks.
"""
