"""Makes instances that know what was measured of them before, and keep what will be."""

from collections.abc import Callable

from kvsup import events
from kvsup.plan import Plan
from kvsup.runtime.instance import Instance
from kvsup.runtime.learning import learn, remembered_sizes
from kvsup.runtime.remembered import Remembered
from kvsup.runtime.warming import Store


def make_instance(
    plan: Plan,
    *,
    store: Remembered,
    emit: Callable[[events.Event], None],
    on_change: Callable[[], None],
    is_trial: bool,
    kv: Store | None = None,
    note: Callable[[Instance, events.Event], None] = lambda *_: None,
) -> Instance:
    """Return the instance of a plan, which knows what was measured of it and keeps what will be.

    ``kv`` is where its conversations are kept. ``note`` is told what happens with the instance that
    it happens to, before ``emit`` is.
    """

    def tell(event: events.Event) -> None:
        note(instance, event)
        emit(event)

    instance = Instance(
        plan,
        emit=tell,
        on_change=on_change,
        on_ready=lambda instance: learn(store, instance.plan, instance.measured),
        is_trial=is_trial,
        remembered=remembered_sizes(store, plan),
        store=kv,
    )
    return instance
