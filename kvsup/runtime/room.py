"""How much the instances of this machine may hold, what each holds, and what is free now."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kvsup.hostconfig import HostConfig
from kvsup.ladder import first_fitting
from kvsup.lifecycle import State
from kvsup.placement import DEVICE_HEADROOM_BYTES
from kvsup.plan import Plan
from kvsup.residency import RAM, Budget, Go, Refuse, Resident, Sizes, admit, room_bytes
from kvsup.runtime.footprint import size_by_device
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


class Residents:
    """What is loaded as the scheduler sees it, and what of the room is left beside it."""

    def __init__(self, loaded: Mapping[str, Instance]) -> None:
        self._loaded = loaded
        self._turn_since_s: dict[str, float] = {}
        self._have_served: set[str] = set()

    def now(self) -> list[Resident]:
        """Return everything that holds memory, or will in a moment."""
        for key, instance in self._loaded.items():
            self._note_turn(key, instance)
        return [
            _resident(instance, self._turn_since_s.get(key, math.inf))
            for key, instance in self._loaded.items()
        ]

    def _note_turn(self, key: str, instance: Instance) -> None:
        """Begin its turn once it serves, and for the time being if it dies before it ever did.

        A crash does not begin a new one. Without an end to its turn one that dies in each load
        would keep its place for ever, as long as someone asks for it.
        """
        if instance.state is State.READY and key not in self._have_served:
            self._have_served.add(key)
            self._turn_since_s[key] = instance.since_s
        elif instance.state is State.BACKOFF:
            self._turn_since_s.setdefault(key, instance.since_s)

    def forget(self, key: str) -> None:
        """Forget one that is gone: its next load begins a new turn."""
        self._turn_since_s.pop(key, None)
        self._have_served.discard(key)

    def leave_room(self, sizes: Sizes, budget: Budget) -> bool:
        """Say whether there is memory for ``sizes`` beside everything."""
        return admit("", sizes, self.now(), budget, now_s=time.monotonic()) == Go()

    def sizes_of(self, instance: Instance, budget: Budget) -> Sizes:
        """Return what ``instance`` is about to take.

        A context that is open becomes what there is room for. A step of its fallback is passed over
        if it does not fit even when all make room that may be evicted; not the last one.
        """
        residents = [resident for resident in self.now() if resident.key != instance.key]
        steps = range(
            instance.descent.first_step(instance.plan), len(instance.plan.configured.fallback) + 1
        )
        plans = (_opened(instance.plan.on_step(step), residents, budget) for step in steps)
        strictly = replace(budget, is_estimated=False)

        def fits(plan: Plan) -> bool:
            sizes = size_by_device(plan, instance.descent.known(plan))
            verdict = admit(instance.key, sizes, residents, strictly, now_s=time.monotonic())
            return not isinstance(verdict, Refuse)

        instance.plan = first_fitting(plans, fits)
        return instance.size_by_device

    def give_prompt_cache(self, instance: Instance, budget: Budget) -> None:
        """Decide how large the prompt cache of what is about to be loaded may become."""
        own = Resident(instance.key, instance.size_by_device, 0, 0.0)
        room = room_bytes([RAM], [*self.now(), own], budget)
        instance.plan = instance.plan.with_prompt_cache(room // PROMPT_CACHE_SHARE)


def _opened(plan: Plan, residents: Sequence[Resident], budget: Budget) -> Plan:
    """Return ``plan`` with as much context as there is room for, if that is open."""
    if not plan.configured.num_ctx_is_auto:
        return plan
    return plan.with_room(room_bytes(_filled_memories(plan), residents, budget))


def _filled_memories(plan: Plan) -> list[str]:
    """Return the memories that its context fills: the devices that it uses, else RAM."""
    sizes = plan.sizes
    return [memory for memory in sizes if memory != RAM and sizes[memory]] or [RAM]


def _resident(instance: Instance, turn_since_s: float) -> Resident:
    model, sizes = instance.plan.model, instance.size_by_device
    known = instance.descent.known(instance.plan)
    return Resident(
        key=instance.key,
        sizes={**sizes, RAM: sizes.get(RAM, 0) + instance.plan.prompt_cache_bytes},
        leases=instance.leases,
        last_used_s=instance.last_used_s,
        idle_until_s=instance.idle_until_s,
        is_pinned=model.pin and not instance.is_retired,
        is_leaving=instance.is_leaving,
        turn_since_s=turn_since_s,
        load_s=known.load_s if known else 0.0,
        weight=model.weight,
        busy_slots=instance.busy_slots,
        n_slots=model.num_parallel,
    )
