"""What the machine has: the only place that asks the operating system about memory."""

import psutil


def memory_available_bytes() -> int:
    """Return the RAM that can be had without swapping, page cache included."""
    return int(psutil.virtual_memory().available)


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process, 0 if it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
