"""A payment provider that can be broken at will: for the demo, the tests, the simulation and the
benchmarks.
"""
