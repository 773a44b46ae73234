"""What a load taught, kept for later ones: sizes, KV types of unknown size, compiled pairs.

Kept by what it depends on: sizes by the exact launch, the rest by the binary.
"""

from collections.abc import Mapping

from kvsup.kvtypes import KVType
from kvsup.llama.binary import Binary
from kvsup.measures import BinaryFacts, SizesMeasured, TypeSize, TypeSizes
from kvsup.plan import Plan
from kvsup.runtime.measured import Measured
from kvsup.runtime.remembered import Remembered, key_of

_SIZES = "sizes"
_TYPES = "kv_types"
_FACTS = "binary_facts"


def learn(store: Remembered, plan: Plan, measured: Measured) -> None:
    """Keep what ``measured`` told of a load of ``plan`` that became ready."""
    if measured.total_bytes:
        store.write(_SIZES, _sizes_key(plan), sizes_of(plan, measured))
    if new := type_sizes(plan, measured):
        key = _binary_key(plan.binary)
        known = (store.read(_TYPES, key, TypeSizes) or TypeSizes()).by_type
        better = {
            name: size
            for name, size in new.items()
            if name not in known or size.seen_bytes > known[name].seen_bytes
        }
        if better:
            store.write(_TYPES, key, TypeSizes(by_type={**known, **better}))
    if measured.compiled_pairs is not None:
        facts = BinaryFacts(fa_quants=measured.compiled_pairs)
        store.write(_FACTS, _binary_key(plan.binary), facts)


def remembered_sizes(store: Remembered, plan: Plan) -> SizesMeasured | None:
    """Return what the last load of ``plan`` took, or None if it was never loaded."""
    return store.read(_SIZES, _sizes_key(plan), SizesMeasured)


def learnt_types(store: Remembered, binary: Binary) -> Mapping[str, float]:
    """Return the bytes an element of the KV types that loads of ``binary`` have told."""
    known = store.read(_TYPES, _binary_key(binary), TypeSizes) or TypeSizes()
    return {name: size.bytes_per_element for name, size in known.by_type.items()}


def fa_quants(store: Remembered, binary: Binary) -> tuple[str, ...] | None:
    """Return the pairs ``k-v`` that ``binary`` has CUDA kernels for; None if it never told."""
    facts = store.read(_FACTS, _binary_key(binary), BinaryFacts)
    return facts.fa_quants if facts else None


def sizes_of(plan: Plan, measured: Measured) -> SizesMeasured:
    """Return what a load took in a form that can be kept."""
    k_bytes, v_bytes = measured.kv_bytes_of(plan.estimate) or (0, 0)
    return SizesMeasured(
        num_ctx=plan.model.num_ctx,
        bytes_by_device=measured.bytes_by_device,
        mapped_bytes=measured.mapped_bytes,
        k_bytes=k_bytes,
        v_bytes=v_bytes,
        graph_splits=measured.splits.generation if measured.splits else None,
        load_s=measured.load_s,
    )


def type_sizes(plan: Plan, measured: Measured) -> dict[str, TypeSize]:
    """Return the size of each type of the model's caches that kvsup does not know, by name.

    An element's bytes are those of a half over its cells, streams and elements a token; of several
    caches the largest half tells it. Empty where the caches are not those of the model's shape.
    """
    shapes = plan.file.shape.caches
    caches = measured.caches[: len(shapes)]  # those of a draft model follow
    if [cache.layers for cache in caches] != [len(shape.k_rows) for shape in shapes]:
        return {}
    found: dict[str, TypeSize] = {}
    for cache, shape in zip(caches, shapes, strict=True):
        v_row, n_v_rows = measured.v_row_elements, len(shape.v_rows)
        halves = (
            (cache.type_k, cache.k_bytes, sum(shape.k_rows)),
            (cache.type_v, cache.v_bytes, v_row * n_v_rows if v_row else sum(shape.v_rows)),
        )
        for name, size_bytes, elements in halves:
            n_elements = elements * cache.cells * cache.streams
            if KVType(name).block_elements is not None or not size_bytes or not n_elements:
                continue
            size = TypeSize(bytes_per_element=size_bytes / n_elements, seen_bytes=size_bytes)
            if name not in found or size_bytes > found[name].seen_bytes:
                found[name] = size
    return found


def _sizes_key(plan: Plan) -> str:
    """Return the key of one launch; what is decided at loads is not in the identity."""
    decided = (plan.model.num_ctx, *plan.given_up)
    return key_of(plan.identity, *decided, plan.binary.path, plan.binary.stamp)


def _binary_key(binary: Binary) -> str:
    return key_of(binary.path, binary.stamp)
