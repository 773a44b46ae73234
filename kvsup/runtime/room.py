"""How much the instances of this machine may hold, what each holds, and what is free now."""

from collections.abc import Iterable

from kvsup.config import HostConfig
from kvsup.placement import DEVICE_HEADROOM_BYTES
from kvsup.plan import Plan
from kvsup.residency import RAM, Budget, Resident
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


def resident_of(instance: Instance, *, serving_since_s: float) -> Resident:
    """Return what the scheduler needs to know of an instance that is loaded, or is being loaded."""
    model = instance.plan.model
    return Resident(
        key=instance.key,
        sizes=instance.size_by_device,
        leases=instance.leases,
        last_used_s=instance.last_used_s,
        idle_until_s=instance.idle_until_s,
        is_pinned=model.pin and not instance.is_retired,
        is_leaving=instance.is_leaving,
        serving_since_s=serving_since_s,
        load_s=instance.remembered.load_s if instance.remembered else 0.0,
        weight=model.weight,
        busy_slots=instance.busy_slots,
        n_slots=model.num_parallel,
    )
