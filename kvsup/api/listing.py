"""From plans and instances to the entries that listings render."""

from collections.abc import Iterable

from kvsup.gguf import Array, parameter_size
from kvsup.lifecycle import State
from kvsup.ollama import catalog
from kvsup.ollama.catalog import CatalogEntry, RunningEntry
from kvsup.ollama.names import display_name
from kvsup.ollama.requests import ShowRequest
from kvsup.plan import Plan
from kvsup.runtime.instance import Instance

OLLAMA_VERSION = "0.23.2"
"""What ``/api/version`` says: clients compare it with the release that brought a feature."""

_NS_PER_S = 1_000_000_000
_CHAT_TEMPLATE = "tokenizer.chat_template"


def catalog_entry(plan: Plan) -> CatalogEntry:
    """Return the listing entry of a model."""
    metadata = plan.file.metadata
    architecture = metadata.architecture
    return CatalogEntry(
        name=display_name(plan.name),
        modified_at_ns=plan.file.modified_ns,
        size_bytes=plan.file.size_bytes,
        digest=plan.digest,
        family=architecture,
        parameter_size=parameter_size(plan.file.n_params),
        quantization_level=metadata.file_type,
        kv_cache_type=str(plan.model.kv_cache_type),
        num_ctx=plan.model.num_ctx,
        context_length=metadata.integer(f"{architecture}.context_length") or 0,
        embedding_length=metadata.integer(f"{architecture}.embedding_length") or 0,
        capabilities=tuple(_capabilities(plan)),
    )


def running_entries(
    instances: Iterable[Instance], *, now_s: float, now_ns: int
) -> list[RunningEntry]:
    """Return the entries of those that serve, with what was measured of them.

    ``now_s`` is monotonic, ``now_ns`` the wall clock: one turns the other's deadlines into times.
    """
    entries = []
    for instance in instances:
        if instance.state not in {State.READY, State.DRAINING}:
            continue
        plan, snapshot = instance.plan, instance.snapshot()
        left_s = snapshot.idle_until_s - now_s
        forever = left_s == float("inf") and instance.keep_alive_s == float("inf")
        left_s = 0.0 if left_s == float("inf") else left_s
        estimate = plan.estimate
        k_bytes, v_bytes = snapshot.kv_bytes or (estimate.k_bytes, estimate.v_bytes)
        entries.append(
            RunningEntry(
                name=display_name(plan.name),
                digest=plan.digest,
                family=plan.file.metadata.architecture,
                parameter_size=parameter_size(plan.file.n_params),
                quantization_level=plan.file.metadata.file_type,
                size_bytes=snapshot.size_bytes,
                size_vram_bytes=snapshot.vram_bytes,
                expires_at_ns=None if forever else now_ns + int(left_s * _NS_PER_S),
                context_length=plan.model.num_ctx,
                kv_cache_type=str(plan.model.kv_cache_type),
                kv_bytes={"k": k_bytes, "v": v_bytes},
            )
        )
    return entries


def show(plan: Plan, request: ShowRequest) -> dict[str, object]:
    """Return the answer of ``/api/show`` for a model."""
    metadata = plan.file.metadata
    return catalog.show(
        catalog_entry(plan),
        path=plan.model.model,
        metadata={
            key: None if isinstance(value, Array) else value
            for key, value in metadata.values.items()
        },
        parameter_count=plan.file.n_params,
        template=metadata.text(_CHAT_TEMPLATE),
        system=request.system or plan.model.system,
        options={**plan.model.options, **request.options},
        license_text=metadata.text("general.license"),
        verbose=request.verbose,
    )


def _capabilities(plan: Plan) -> list[str]:
    found = catalog.capabilities(
        plan.file.metadata.architecture,
        pooling=plan.is_embedding_model,
        chat_template=plan.file.metadata.text(_CHAT_TEMPLATE),
        has_projector=plan.model.mmproj is not None,
    )
    if plan.model.embedding == "on" and "embedding" not in found:
        found.append("embedding")
    return found
