"""Instances of an older configuration that go on serving until their successors do.

An edit of a model that is in use does not make its clients wait for a load, and one that cannot be
loaded takes nothing away: the old process serves until the new one is ready, if there is memory for
both. Streams that run on it then end there.
"""

import math
from collections.abc import Mapping

from kvsup.lifecycle import State
from kvsup.runtime.instance import Instance
from kvsup.runtime.roster import Roster

RECENT_S = 60.0
"""A model that was used so lately is in use: its next request would find it loaded."""


class Succession:
    """At most one old instance for each model, by its name."""

    def __init__(self, roster: Roster, resident: Mapping[str, Instance]) -> None:
        self._roster = roster
        self._resident = resident
        self._old: dict[str, Instance] = {}

    def may_begin(self, old: Instance, *, is_waited_for: bool, now_s: float) -> bool:
        """Say whether ``old``, which serves no name any more, is worth a successor before it goes.

        It is if it serves, and is in use.
        """
        name = old.plan.name
        successor = self._roster.instance(name)
        is_in_use = (
            old.leases > 0
            or is_waited_for
            or math.isinf(old.keep_alive_s)
            or now_s - old.last_used_s < RECENT_S
        )
        return (
            is_in_use
            and old.state is State.READY
            and not old.is_leaving
            and old.key != successor.key
            and name not in self._old
            and not successor.plan.refusal
        )

    def begin(self, old: Instance) -> None:
        """Let ``old`` serve until its successor does."""
        self._old[old.plan.name] = old

    def serving(self) -> list[Instance]:
        """Return the old instances that still serve."""
        return [old for old in self._old.values() if self._serves(old)]

    def unloaded(self) -> list[str]:
        """Return the names whose successor has yet to be loaded: it is another since an edit."""
        successors = [self._roster.instance(name) for name in self._old]
        return [i.plan.name for i in successors if self._resident.get(i.key) is not i]

    def settle(self) -> None:
        """Stop each old one whose successor serves or has lost its name; forget what is gone."""
        if not self._old:
            return
        names = {plan.name for plan in self._roster.plans()}
        for name, old in list(self._old.items()):
            if self._serves(old):
                successor = self._roster.instance(name) if name in names else None
                if successor is not None and successor.state is not State.READY:
                    continue
                if successor is not old:
                    old.stop("its configuration changed" if successor else "it was removed")
            del self._old[name]

    def stand_in(self, instance: Instance) -> Instance:
        """Return who serves for ``instance`` now: the one before it, while it has one."""
        old = self._old.get(instance.plan.name)
        if old is None or not self._serves(old):
            return instance
        return old if self._roster.instance(instance.plan.name) is instance else instance

    def is_succeeded(self, old: Instance, *, by: Instance) -> bool:
        """Say whether ``old`` goes once ``by`` serves."""
        return old is not by and self.stand_in(by) is old

    def _serves(self, old: Instance) -> bool:
        return self._resident.get(old.key) is old and not old.is_leaving
