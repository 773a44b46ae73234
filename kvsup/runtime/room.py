"""How much the instances of this machine may hold, what each holds, and what is free now."""

from collections.abc import Iterable

from kvsup.config import HostConfig
from kvsup.placement import DEVICE_HEADROOM_BYTES
from kvsup.plan import Plan
from kvsup.residency import RAM, Budget, Resident, Sizes, room_bytes
from kvsup.runtime.host import memory_available_bytes, private_bytes
from kvsup.runtime.instance import Instance

PROMPT_CACHE_SHARE = 8
"""A prompt cache gets one part in so many of the RAM that is left, at most what is configured.

It is never a reason to refuse or evict a model, so it must not take what the next one needs.
"""


def budget_now(host: HostConfig, plans: Iterable[Plan], loaded: Iterable[Instance]) -> Budget:
    """Return the limits: as configured, or what is free now and what ``loaded`` holds already."""
    limits = {
        device.name: max(0, device.total_bytes - DEVICE_HEADROOM_BYTES)
        for plan in plans
        for device in plan.binary.devices
    }
    if host.memory_bytes is None:
        held_bytes = sum(map(_held_bytes, loaded))
        limits[RAM] = memory_available_bytes() + held_bytes - host.memory_headroom_bytes
    return Budget(host.memory_bytes, host.max_loaded_models, limits, is_estimated=True)


def _held_bytes(instance: Instance) -> int:
    """Return what of RAM it keeps from being free: as loaded, and its prompt cache as it is now."""
    loaded_bytes = instance.private_bytes
    pid = instance.snapshot().pid
    most_bytes = loaded_bytes + instance.plan.prompt_cache_bytes
    return max(loaded_bytes, min(most_bytes, private_bytes(pid) if pid and loaded_bytes else 0))


def prompt_cache_room_bytes(
    plan: Plan, sizes: Sizes, residents: Iterable[Resident], budget: Budget
) -> int:
    """Return what the prompt cache of ``plan`` may take of the room that it leaves in RAM."""
    own = Resident(plan.key, sizes, 0, 0.0)
    return room_bytes([RAM], [*residents, own], budget) // PROMPT_CACHE_SHARE


def filled_memories(plan: Plan) -> list[str]:
    """Return the memories that its context fills: the devices that it uses, else RAM."""
    sizes = plan.sizes
    return [memory for memory in sizes if memory != RAM and sizes[memory]] or [RAM]


def resident_of(instance: Instance, *, serving_since_s: float) -> Resident:
    """Return what the scheduler needs to know of an instance that is loaded, or is being loaded."""
    model, sizes = instance.plan.model, instance.size_by_device
    return Resident(
        key=instance.key,
        sizes={**sizes, RAM: sizes.get(RAM, 0) + instance.plan.prompt_cache_bytes},
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
