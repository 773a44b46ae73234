"""What the machine has: the only place that asks the operating system about it."""

import os

import psutil


def memory_available_bytes() -> int:
    """Return the RAM that can be had without swapping, page cache included."""
    return int(psutil.virtual_memory().available)


def n_processors() -> int | None:
    """Return how many processors there are; None where the system does not tell."""
    return os.cpu_count()
