"""What an instance takes of memory: as in its last load, or, before one, as planned."""

from kvsup.measures import SizesMeasured
from kvsup.plan import ALLOWANCE_BYTES, Plan
from kvsup.residency import RAM
from kvsup.runtime.measured import Measured


def size_by_device(plan: Plan, known: SizesMeasured | None) -> dict[str, int]:
    """Return the bytes that ``plan`` takes of RAM and of each device.

    Args:
        plan: what runs, or is to.
        known: what its last load took.
    """
    if known is None or known.num_ctx != plan.model.num_ctx:
        return plan.sizes
    sizes = known.bytes_by_device
    return {**sizes, RAM: sizes.get(RAM, 0) + ALLOWANCE_BYTES}


def size_bytes(plan: Plan, known: SizesMeasured | None) -> int:
    """Return its buffers in all memories; before a load, what is set aside."""
    if known is None or known.num_ctx != plan.model.num_ctx:
        return plan.size_bytes
    return sum(known.bytes_by_device.values())


def private_bytes(measured: Measured) -> int:
    """Return the part in RAM that the operating system does not count as available.

    No mapped file is in it.
    """
    return max(0, measured.bytes_by_device.get(RAM, 0) - measured.mapped_bytes)
