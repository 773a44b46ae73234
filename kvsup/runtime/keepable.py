"""Which models keep their conversations, and for which llama-server a kept one is good."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from kvsup.llama.slotfile import has_adapters, identity, is_certain, named_files
from kvsup.plan import Plan
from kvsup.runtime.host import is_on_network
from kvsup.runtime.remembered import Remembered, key_of
from kvsup.runtime.weightsums import WeightSums

_KIND = "kv_use"


class _Use(msgspec.Struct):
    """Whether a build has used what it restored of an architecture; once it has, it can."""

    is_used: bool


def why_not_kept(plan: Plan, store: Remembered) -> str:
    """Return why nothing is kept of a model's conversations; empty where something is."""
    if not plan.model.warm_swap:
        return "warm_swap = false"
    if plan.warmth.reuse == "never":
        return plan.warmth.why
    if has_adapters(plan.argv):
        return "a LoRA, or a control vector, may be another in each request"
    if is_useless(plan, store):
        return (
            f"{plan.binary.label} did not use what it had restored of {_architecture(plan)}; "
            "another build is tried again"
        )
    return why_not_there(plan)


def why_not_there(plan: Plan) -> str:
    """Return why the folder of a model's conversations is none to use; empty where it is."""
    folder = plan.slot_dir
    if folder and plan.model.warm_swap == "auto" and is_on_network(Path(folder)):
        return "its folder lies on another machine; warm_swap = true keeps them there"
    return ""


async def identity_of(plan: Plan, sums: WeightSums) -> str | None:
    """Return the identity of what a model's slots hold; None where that is not certain.

    It takes some seconds for weights that are new here.

    Raises:
        OSError: the weights cannot be read.
    """
    parts = [path for path, _ in plan.file.parts]
    found = await sums.of(parts, also=named_files(plan.argv))
    if not is_certain(plan.argv, found):
        return None
    return identity(
        build=_build(plan),
        argv=plan.argv,
        variables=plan.model.env,
        sums=found,
        weights=parts,
        template=plan.file.template,
    ).digest


async def models_by_identity(plans: Iterable[Plan], sums: WeightSums) -> dict[str, list[str]]:
    """Return the names of the models that keep conversations, by the identity of their slots.

    Of one whose context is decided at each load it is that of the plan as it is now.
    """
    found: dict[str, list[str]] = {}
    for plan in plans:
        if plan.slot_dir is None:
            continue
        with suppress(OSError):
            if own := await identity_of(plan, sums):
                found.setdefault(own, []).append(plan.name)
    return found


def is_useless(plan: Plan, store: Remembered) -> bool:
    """Say whether this build restored slots of the architecture and read all of them again."""
    found = store.read(_KIND, _key(plan), _Use)
    return found is not None and not found.is_used


def note_use(plan: Plan, store: Remembered, *, is_used: bool) -> None:
    """Remember whether what was restored was used; that it was stands against all later."""
    found = store.read(_KIND, _key(plan), _Use)
    if found is None or (is_used and not found.is_used):
        store.write(_KIND, _key(plan), _Use(is_used))


def _key(plan: Plan) -> str:
    return key_of(_architecture(plan), _build(plan))


def _architecture(plan: Plan) -> str:
    return plan.file.metadata.architecture


def _build(plan: Plan) -> str:
    return f"{plan.binary.version} {plan.binary.build or plan.binary.stamp}"
