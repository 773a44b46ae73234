"""Which instance serves a name: that of the catalogue, or one that a request derived from it.

A derived instance has other KV cache types, or more context, than its model's file says. It is
kept while it is loaded or waited for, and for a while when it has failed, so that what cannot run
is not tried at each request. Policy is in ``kvsup/fitting.py``; nothing here awaits.
"""

import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from kvsup.config import ModelConfig
from kvsup.errors import ModelNotFound
from kvsup.fitting import NOTHING, Asked, fit, with_pair
from kvsup.lifecycle import State
from kvsup.ollama.names import lookup_keys
from kvsup.plan import Plan
from kvsup.runtime.host import n_processors
from kvsup.runtime.instance import Instance

_MAX_FAILED = 16
"""Failed derived instances that are remembered; a client may ask for another one each time."""

_FAILED_S = 60.0
"""How long one that failed is not tried again: memory that was short may be free by then."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a new configuration changed, by name."""

    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    retired: tuple[Instance, ...]
    """Those that serve no name any more."""
    replaced: tuple[Instance, ...]
    """Of these, the ones that a file described and still describes, otherwise than before."""


class Roster:
    """Every instance that a request could be given."""

    def __init__(self, plans: Iterable[Plan], *, make: Callable[..., Instance]) -> None:
        """Make instances by ``make(plan, is_trial=…)``: a derived one is on trial."""
        self._make = make
        self._catalogue: dict[str, Instance] = {}
        self._names: dict[str, str] = {}
        self._derived: dict[str, Instance] = {}
        self._fill(plans)

    def plans(self) -> list[Plan]:
        """Return the plan of every model, in the order of the configuration."""
        return [instance.plan for instance in self._catalogue.values()]

    def instances(self) -> list[Instance]:
        """Return the catalogue's instances and the derived ones."""
        return [*self._catalogue.values(), *self._derived.values()]

    def instance(self, name: str) -> Instance:
        """Return the catalogue's instance of ``name``, an alias of it, or it in another case.

        Raises:
            ModelNotFound: nothing has this name.
        """
        key = self._names.get(_spelling(name))
        if key is None:
            raise ModelNotFound(name)
        return self._catalogue[key]

    def siblings(self, name: str) -> list[Instance]:
        """Return every instance of the model ``name``; raises as ``instance``."""
        model = self.instance(name).plan.name
        return [instance for instance in self.instances() if instance.plan.name == model]

    def choose(self, name: str, asked: Asked, *, resident: Mapping[str, Instance]) -> Instance:
        """Return the instance that is to serve a request, deriving it if need be.

        What serves already, and has what is asked for, comes first; else the last one started
        grows, or what the file says is loaded.

        Args:
            name: as the client wrote it.
            asked: the load-time options of the request.
            resident: what is loaded, in the order of starting, by key.

        Raises:
            ModelNotFound: nothing has this name.
            RequestError: what it asks for cannot be had.
        """
        base = self.instance(name)
        if asked == NOTHING and not self._derived:
            return base
        plan = base.plan
        model = with_pair(
            plan.configured, asked, kv_types=plan.binary.kv_types, shape=plan.file.shape
        )
        alive = [
            i
            for i in resident.values()
            if is_of(i, plan.name, model) and not (i.is_leaving or i.is_retired)
        ]
        for instance in sorted(alive, key=lambda i: i.state is State.READY, reverse=True):
            if _grown(instance.plan, asked, is_running=True) is instance.plan.configured:
                return instance
        if alive:
            return self._derive(base, _grown(alive[-1].plan, asked, is_running=True))
        started = plan.on_step(0) if model is plan.configured else plan.configured_as(model)
        return self._derive(base, _grown(started, asked, is_running=False))

    def forget(self, *, unless: Container[str]) -> None:
        """Drop derived instances whose keys are not in ``unless``, and all but the last failed."""
        failed = [key for key, instance in self._derived.items() if _has_just_failed(instance)]
        kept = failed[-_MAX_FAILED:]
        self._derived = {
            key: instance for key, instance in self._derived.items() if key in unless or key in kept
        }

    def drop(self, instance: Instance) -> None:
        """Drop a derived instance that cannot be loaded."""
        self._derived.pop(instance.key, None)

    def replace(self, plans: Iterable[Plan], *, spare: Iterable[Instance] = ()) -> Changes:
        """Take up a new configuration and return what it changed; what is the same is kept.

        ``spare`` are retired ones that still run: an edit that is taken back has one of them again.
        """
        before = {i.plan.name: (i, i.plan.digest) for i in self._catalogue.values()}
        self._fill(plans, spare)
        after = {i.plan.name: i for i in self._catalogue.values()}
        changed = tuple(
            name
            for name, (old, digest) in before.items()
            if name in after and (after[name] is not old or after[name].plan.digest != digest)
        )
        retired = [old for name, (old, _) in before.items() if after.get(name) is not old]
        replaced = tuple(old for old in retired if old.plan.name in after)
        stale = {*changed, *(old.plan.name for old in retired)}
        for key, instance in list(self._derived.items()):
            if instance.plan.name in stale:
                retired.append(self._derived.pop(key))
        return Changes(
            changed,
            added=tuple(name for name in after if name not in before),
            removed=tuple(name for name in before if name not in after),
            retired=tuple(retired),
            replaced=replaced,
        )

    def _derive(self, base: Instance, model: ModelConfig) -> Instance:
        """Return the instance of ``model``; another pair than the file's is never pinned."""
        is_other_pair = model.kv_cache_type != base.plan.configured.kv_cache_type
        model = msgspec.structs.replace(model, pin=model.pin and not is_other_pair)
        plan = base.plan.configured_as(model)
        if plan.key == base.key:
            return base
        known = self._derived.get(plan.key)
        if known is not None and (known.failure is None or _has_just_failed(known)):
            return known
        self._derived[plan.key] = self._make(plan, is_trial=True)
        return self._derived[plan.key]

    def _fill(self, plans: Iterable[Plan], spare: Iterable[Instance] = ()) -> None:
        old = [*self._catalogue.values(), *spare]
        self._catalogue, self._names = {}, {}
        for plan in plans:
            instance = next((i for i in old if _serves(i, plan)), None)
            if instance is None:
                instance = self._make(plan, is_trial=False)
            else:
                if plan.model.keep_alive_s != instance.plan.model.keep_alive_s:
                    instance.keep_alive_s = plan.model.keep_alive_s
                loaded_tokens = instance.plan.model.num_ctx
                is_auto = plan.configured.num_ctx_is_auto
                cache_bytes = instance.plan.model.prompt_cache_bytes
                running = plan.with_num_ctx(loaded_tokens) if is_auto else plan
                running = running.on_step(instance.plan.step)
                instance.plan = running.with_prompt_cache(cache_bytes)
                instance.is_retired = False
            self._catalogue[instance.key] = instance
            for name in (plan.name, *plan.model.aliases):
                self._names[_spelling(name)] = instance.key


def supersedes(new: Instance, old: Instance) -> bool:
    """Say whether ``new`` is the larger one of the same model and pair, as requests made it."""
    return new is not old and is_of(old, new.plan.name, new.plan.model)


def is_of(instance: Instance, name: str, model: ModelConfig) -> bool:
    """Say whether ``instance`` is of the model ``name`` with the KV cache types of ``model``.

    One that stepped down to others is of these and of those that it is to have.
    """
    plan = instance.plan
    pairs = (plan.model.kv_cache_type, plan.configured.kv_cache_type)
    return plan.name == name and model.kv_cache_type in pairs


def _has_just_failed(instance: Instance) -> bool:
    return instance.failure is not None and time.monotonic() - instance.since_s < _FAILED_S


def _grown(plan: Plan, asked: Asked, *, is_running: bool) -> ModelConfig:
    return fit(
        plan.configured,
        asked,
        decided=plan.model,
        is_running=is_running,
        trained_tokens=plan.trained_tokens,
        n_processors=n_processors(),
        has_stepped_down=plan.step > 0,
    )


def _serves(instance: Instance, plan: Plan) -> bool:
    """Say whether ``instance`` can go on under ``plan``: what it runs is the same.

    One that has given up goes on as it is unless its file was edited, wherever in it; one that has
    stepped down unless its fallback was.
    """
    same = instance.plan.name == plan.name and instance.plan.identity == plan.identity
    if instance.plan.step:
        same = same and instance.plan.configured.fallback == plan.configured.fallback
    if instance.failure is not None:
        same = same and instance.plan.digest == plan.digest
    return same


def _spelling(name: str) -> str:
    """Return the one spelling under which a name is kept: lower case, with its tag."""
    return next(iter(lookup_keys(name)), "")
