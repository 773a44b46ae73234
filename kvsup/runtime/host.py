"""What the machine has: the only place that asks the operating system about memory."""

import psutil


def memory_available_bytes() -> int:
    """Return the RAM that can be had without swapping, page cache included."""
    return int(psutil.virtual_memory().available)
