"""From plans and instances to the entries that listings render."""

import math
from collections.abc import Iterable, Mapping

from kvsup.gguf import Array, WholeValue
from kvsup.ggufnames import UNKNOWN, parameter_size
from kvsup.lifecycle import State
from kvsup.ollama import catalog
from kvsup.ollama.catalog import CatalogEntry, RunningEntry
from kvsup.ollama.names import display_name
from kvsup.ollama.show import GGUFView, ShownModel
from kvsup.plan import Plan
from kvsup.runtime.instance import Instance
from kvsup.runtime.warming import Store

OLLAMA_VERSION = "0.23.2"
"""What ``/api/version`` says: clients compare it with the release that brought a feature."""

_NS_PER_S = 1_000_000_000


def catalog_entry(plan: Plan) -> CatalogEntry:
    """Return the listing entry of a model."""
    metadata = plan.file.metadata
    architecture = metadata.architecture
    return CatalogEntry(
        name=display_name(plan.name),
        modified_at_ns=plan.file.modified_ns,
        size_bytes=plan.file.size_bytes,
        digest=plan.file.digest or plan.digest,
        families=_families(plan),
        parameter_size=parameter_size(plan.file.n_params),
        quantization_level=metadata.file_type,
        kv_cache_type=str(plan.model.kv_cache_type),
        num_ctx=plan.model.num_ctx,
        context_length=metadata.integer(f"{architecture}.context_length") or 0,
        embedding_length=metadata.integer(f"{architecture}.embedding_length") or 0,
        capabilities=capabilities(plan),
    )


def running_entries(
    instances: Iterable[Instance], kept: Store, *, now_s: float, now_ns: int
) -> list[RunningEntry]:
    """Return the entries of those that serve, with what was measured of them.

    ``now_s`` is monotonic, ``now_ns`` the wall clock: one turns the other's deadlines into times.
    """
    entries = []
    for instance in instances:
        if instance.state not in {State.READY, State.DRAINING}:
            continue
        plan, snapshot = instance.plan, instance.snapshot()
        forever = instance.keep_alive_s == math.inf and instance.state is State.READY
        estimate = plan.estimate
        k_bytes, v_bytes = snapshot.kv_bytes or (estimate.k_bytes, estimate.v_bytes)
        tally, files = kept.tallies.of(plan.name), kept.files.entries(plan.name)
        entries.append(
            RunningEntry(
                name=display_name(plan.name),
                digest=plan.file.digest or plan.digest,
                families=_families(plan),
                parameter_size=parameter_size(plan.file.n_params),
                quantization_level=plan.file.metadata.file_type,
                size_bytes=snapshot.size_bytes,
                size_vram_bytes=snapshot.vram_bytes,
                expires_at_ns=None if forever else now_ns + _left_ns(instance, now_s),
                context_length=plan.model.num_ctx,
                kv_cache_type=str(plan.model.kv_cache_type),
                kv_bytes={"k": k_bytes, "v": v_bytes},
                kv_warnings=snapshot.kv_warnings,
                given_up=snapshot.given_up,
                kept={
                    "conversations": len(files),
                    "bytes": sum(entry.sidecar.size_bytes for entry in files),
                    "restored_tokens": tally.n_restored_tokens,
                }
                if files or tally.n_restored_tokens
                else None,
                cache_hit_rate=tally.hit_rate,
            )
        )
    return entries


def _left_ns(instance: Instance, now_s: float) -> int:
    """Return the time until an instance that does not stay for ever is unloaded."""
    if instance.state is not State.READY:
        return 0
    left_s = instance.keep_alive_s if instance.leases else instance.idle_until_s - now_s
    return int(left_s * _NS_PER_S)


def shown_model(
    plan: Plan,
    *,
    whole: Mapping[str, WholeValue] | None = None,
    whole_projector: Mapping[str, WholeValue] | None = None,
    licenses: Iterable[str] = (),
) -> ShownModel:
    """Return what ``/api/show`` tells of a model.

    ``whole`` and ``whole_projector`` are every key of the two files with its arrays, where they
    are to be shown; ``licenses`` the texts that a store has.
    """
    file = plan.file
    return ShownModel(
        entry=catalog_entry(plan),
        path=plan.model.model,
        model=GGUFView(
            values=_shown_values(whole or file.metadata.values),
            n_params=file.n_params,
            tensors=[(t.name, t.type_name or UNKNOWN, t.shape) for t in file.tensors],
        ),
        projector_path=plan.model.mmproj,
        projector=None
        if (projector := plan.projector) is None
        else GGUFView(
            values=_shown_values(whole_projector or projector.values),
            n_params=projector.n_params,
        ),
        template=file.template,
        system=plan.model.system,
        options=plan.model.options,
        draft_path=plan.model.draft_model,
        adapters=plan.model.adapters,
        messages=[(one.role, one.content) for one in plan.model.messages],
        license_text="\n".join(licenses) or file.metadata.text("general.license"),
    )


def _shown_values(values: Mapping[str, WholeValue]) -> dict[str, object]:
    """Return values without the arrays that were stepped over, except that empty ones are empty."""
    return {
        key: (None if value.length else ()) if isinstance(value, Array) else value
        for key, value in values.items()
    }


def _families(plan: Plan) -> tuple[str, ...]:
    projector = (plan.projector.architecture,) if plan.projector else ()
    return (plan.file.metadata.architecture, *projector)


def capabilities(plan: Plan) -> tuple[str, ...]:
    """Return what the model can do, in Ollama's words."""
    projector = plan.projector
    hears = bool(projector and projector.values.get("clip.has_audio_encoder"))
    return catalog.capabilities(
        plan.file.metadata.architecture,
        pooling=plan.pooling is not None,
        embeds=plan.model.embedding == "on",
        chat_template=plan.file.template,
        sees=bool(projector and projector.values.get("clip.has_vision_encoder", not hears)),
        hears=hears,
        fills_in=plan.file.has_fim_tokens,
    )
