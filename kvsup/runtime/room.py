"""How much the instances of this machine may hold, and what of it is free now."""

from collections.abc import Iterable

from kvsup.config import HostConfig
from kvsup.placement import DEVICE_HEADROOM_BYTES
from kvsup.plan import Plan
from kvsup.residency import RAM, Budget
from kvsup.runtime.host import memory_available_bytes
from kvsup.runtime.instance import Instance


def budget_now(host: HostConfig, plans: Iterable[Plan], loaded: Iterable[Instance]) -> Budget:
    """Return the limits: as configured, or what is free now and what ``loaded`` holds already."""
    limits = {
        device.name: max(0, device.total_bytes - DEVICE_HEADROOM_BYTES)
        for plan in plans
        for device in plan.binary.devices
    }
    if host.memory_bytes is None:
        held_bytes = sum(instance.private_bytes for instance in loaded)
        limits[RAM] = memory_available_bytes() + held_bytes - host.memory_headroom_bytes
    return Budget(host.memory_bytes, host.max_loaded_models, limits, is_estimated=True)


def filled_memories(plan: Plan) -> list[str]:
    """Return the memories that its context fills: the devices that it uses, else RAM."""
    sizes = plan.sizes
    return [memory for memory in sizes if memory != RAM and sizes[memory]] or [RAM]
