"""stub"""


def bench(a, b, c): ...
