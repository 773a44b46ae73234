"""How far an instance has come down the fallback of its plan, and what it took on each step."""

import math
import time
from collections.abc import Callable, Sequence

from kvsup import events
from kvsup.ladder import first_step, steps_down
from kvsup.measures import SizesMeasured
from kvsup.plan import Plan
from kvsup.restart import Exit


class Descent:
    """The steps of one instance; which of them comes next is ``kvsup/ladder.py``'s to say."""

    def __init__(self, plan: Plan, remembered: SizesMeasured | None) -> None:
        self._known = {plan.step: remembered}
        self._failed_at_s = -math.inf

    def known(self, plan: Plan) -> SizesMeasured | None:
        """Return what the last load on the step of ``plan`` took."""
        return self._known.get(plan.step)

    def keep(self, plan: Plan, sizes: SizesMeasured) -> None:
        """Keep what a load of ``plan`` took."""
        self._known[plan.step] = sizes

    def first_step(self, plan: Plan) -> int:
        """Return the step at which a fresh load begins after one of ``plan``."""
        return first_step(
            plan.step,
            failed_at_s=self._failed_at_s,
            window_s=plan.model.restart.window_s,
            now_s=time.monotonic(),
        )

    def tell(self, plan: Plan, emit: Callable[[events.Event], None]) -> None:
        """Tell of a fresh load of ``plan`` if it does not begin at the top."""
        if self.first_step(plan):
            emit(stepped_down(plan, "more did not fit a while ago"))
        elif plan.step:
            emit(stepped_down(plan, "more does not fit in the memory that may be had"))

    def here(self, deaths: Sequence[Exit]) -> list[Exit]:
        """Return the deaths on the present step."""
        return [death for death in deaths if death.at_s > self._failed_at_s]

    def after(self, end: Exit, plan: Plan, deaths: Sequence[Exit]) -> Plan | None:
        """Return what is loaded after ``end`` if that is less than ``plan``; else None."""
        if not steps_down(end, self.here(deaths), window_s=plan.model.restart.window_s):
            return None
        if (lower := plan.lower()) is not None:
            self._failed_at_s = end.at_s
        return lower

    def reset(self) -> None:
        """Let the next fresh load begin at the top."""
        self._failed_at_s = -math.inf


def stepped_down(plan: Plan, why: str) -> events.SteppedDown:
    """Return the event that ``plan`` is loaded on its step of the fallback, for what reason."""
    n_steps = len(plan.configured.fallback)
    return events.SteppedDown(plan.name, plan.step, n_steps, plan.given_up, why)
