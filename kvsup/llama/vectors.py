"""Vectors with fewer numbers, which llama-server does not give (b10434, b11434)."""

import math


def shortened(vector: list[float], dimensions: int) -> list[float]:
    """Return the first ``dimensions`` numbers of ``vector``, at least 1, made length 1 again.

    A vector that has no more numbers stays as it is; one of zeros has no length to be given.
    """
    if len(vector) <= dimensions:
        return vector
    kept = vector[:dimensions]
    length = math.hypot(*kept) or 1.0
    return [number / length for number in kept]
