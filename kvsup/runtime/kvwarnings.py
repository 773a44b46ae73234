"""What of a load its owner should know: short sentences that say what is wrong and what to do."""

from collections.abc import Callable, Iterator

from kvsup import events
from kvsup.kvchoice import SLOW_RATIO
from kvsup.kvtypes import KVType
from kvsup.llama.logscan import ROUNDING_BYTES, Rotation
from kvsup.measures import SpeedProbe
from kvsup.plan import Plan
from kvsup.runtime.learning import type_sizes
from kvsup.runtime.measured import AttentionPath, Measured

_SIZE_TOLERANCE = 0.02
_SLOW_REQUESTS = 3
"""So many in a row are slow before it is said: one may have had a busy machine."""

_ROTATED_ELEMENTS = 64


class Findings:
    """What one load was found to be like; each of it is told once."""

    def __init__(
        self,
        plan: Plan,
        measured: Measured,
        *,
        emit: Callable[[events.Event], None],
    ) -> None:
        self.plan = plan
        self._measured = measured
        self._emit = emit
        self._told: set[events.Event] = set()

    @property
    def kv_bytes(self) -> tuple[int, int] | None:
        """Bytes of K and of V as the log told, to the byte where that agrees with the estimate."""
        measured, estimate = self._measured.kv_bytes_of(self.plan.estimate), self.plan.estimate
        if measured is None:
            return None
        estimated = (estimate.k_bytes, estimate.v_bytes)
        rounding_bytes = len(self._measured.caches) * ROUNDING_BYTES
        agree = all(abs(m - e) <= rounding_bytes for m, e in zip(measured, estimated, strict=True))
        return estimated if agree else measured

    @property
    def sentences(self) -> tuple[str, ...]:
        """Return all that its owner should know of it, as it is now."""
        return tuple(
            event.sentence
            for event in self._news()
            if isinstance(event, (events.SizeDiffers, events.KVWarning))
        )

    def tell(self) -> None:
        """Emit what has not been told yet, as events."""
        for event in self._news():
            if event not in self._told:
                self._told.add(event)
                self._emit(event)

    def _news(self) -> Iterator[events.Event]:
        plan, measured = self.plan, self._measured
        if gap := size_gap(measured, plan):
            yield events.SizeDiffers(plan.name, *gap)
        for kv_type, size in type_sizes(plan, measured).items():
            if kv_type not in plan.learnt:
                yield events.TypeLearnt(plan.name, kv_type, 8 * size.bytes_per_element)
        for sentence in kv_warnings(measured, plan):
            yield events.KVWarning(plan.name, sentence)


def kv_warnings(measured: Measured, plan: Plan) -> tuple[str, ...]:
    """Return a sentence for each slow, lossy or unwanted thing that ``measured`` tells of ``plan``.

    Args:
        measured: of a load that became ready.
        plan: what was loaded.
    """
    probe = plan.machine.probes.get(str(plan.model.kv_cache_type))
    return (*_lossy(measured), *_slow(measured, plan, probe), *_changed(measured, plan))


def attention_path(
    measured: Measured, plan: Plan, probe: SpeedProbe | None = None
) -> AttentionPath:
    """Return where the attention of ``plan`` runs; more splits than f16:f16 has are not fast."""
    shape, architecture = plan.file.shape, plan.file.metadata.architecture
    path = measured.attention_path(
        sum(not layer.is_recurrent for layer in shape.layers),
        has_experts=bool(plan.file.metadata.integer(f"{architecture}.expert_count")),
    )
    if path == "fast" and measured.splits and probe and probe.baseline_splits:
        return "fast" if measured.splits.generation <= probe.baseline_splits else "cpu"
    return path


def size_gap(measured: Measured, plan: Plan) -> tuple[int, int] | None:
    """Return estimated and measured bytes of the caches that differ by more than 2 %, or None.

    Types whose size kvsup does not know are never a gap: they are learnt.
    """
    types = {name for c in measured.caches for name in (c.type_k, c.type_v)}
    if any(KVType(t).block_elements is None and t not in plan.learnt for t in types):
        return None
    draft = plan.estimate.draft
    caches = (*plan.estimate.caches, *(draft.caches if draft else ()))
    estimated = [cache.k_bytes + cache.v_bytes for cache in caches]
    logged = [cache.k_bytes + cache.v_bytes for cache in measured.caches]
    if not logged or (len(logged) < len(estimated) and measured.slot_tokens is None):
        return None  # it tells no caches, or is not read to the end
    if len(logged) != len(estimated):
        estimated, logged = [sum(estimated)], [sum(logged)]
    differing = [
        (expected, told)
        for expected, told in zip(estimated, logged, strict=True)
        if abs(told - expected) > max(_SIZE_TOLERANCE * told, 2 * ROUNDING_BYTES)
    ]
    if not differing:
        return None
    return sum(expected for expected, _ in differing), sum(told for _, told in differing)


def _lossy(measured: Measured) -> Iterator[str]:
    if not measured.unrotated or not measured.caches:
        return
    cache = measured.caches[0]
    types = {"k": f"K ({cache.type_k})", "v": f"V ({cache.type_v})"}
    halves = [types[half] for half in sorted(measured.unrotated)]
    what = f"{' and '.join(halves)} {'is' if len(halves) == 1 else 'are'} not rotated"
    if measured.is_rotation_disabled:
        yield f"{what}, so more is lost: unset LLAMA_ATTN_ROT_DISABLE"
        return
    why = _why_unrotated(next(iter(measured.unrotated.values())))
    yield f"{what}, so more is lost: {why}; kvsup tune measures how much"


def _why_unrotated(rotation: Rotation) -> str:
    if rotation.head_elements <= 0:
        return "the heads of its layers differ"
    if rotation.head_elements % _ROTATED_ELEMENTS:
        return f"heads of {rotation.head_elements} elements are no multiple of {_ROTATED_ELEMENTS}"
    return "this llama-server does not rotate it"


def _slow(measured: Measured, plan: Plan, probe: SpeedProbe | None) -> Iterator[str]:
    path = attention_path(measured, plan, probe)
    on = " and ".join(measured.offload_devices)
    if converted := measured.converted:
        pair = f"{converted.type_k}:{converted.type_v}"
        yield (
            f"{pair} is converted to f16 on each step, which is slow: this llama-server has no "
            f"kernel for it; {_compiled(measured)}build it with {converted.type_k}-"
            f"{converted.type_v} in GGML_CUDA_FA_QUANTS"
        )
    elif path == "cpu" and measured.splits is not None:
        yield (
            f"attention runs on the CPU while the layers are on {on} "
            f"({measured.splits.generation} graph splits), which is slow; kvsup check names the "
            "nearest pair that is fast there"
        )
    elif plan.slow_kv:
        yield plan.slow_kv
    if measured.flash_attention == "unsupported":
        where = measured.moved.device if measured.moved else on
        yield (
            f"flash attention is off: {where} cannot do it with {plan.model.kv_cache_type}, so "
            "more memory is needed and long contexts are slow; kvsup check names a pair that works"
        )
    if probe is not None and _is_slower_than(probe, measured, plan):
        yield (
            f"it generates less than half of the {probe.speed.generation_tokens_per_s:.1f} tokens/s"
            f" that were measured at {probe.speed.depth_tokens} tokens"
        )


def _compiled(measured: Measured) -> str:
    pairs = ", ".join(pair.replace("-", ":") for pair in measured.compiled_pairs or ())
    return f"use one of {pairs}, or " if pairs else ""


def _is_slower_than(probe: SpeedProbe, measured: Measured, plan: Plan) -> bool:
    """Say whether even the best of the last speeds is slow for so few tokens.

    Slots that generate at the same time share the speed, so it is told only of what is slow even if
    all did.
    """
    last = measured.speeds[-_SLOW_REQUESTS:]
    if len(last) < _SLOW_REQUESTS or any(
        speed.depth_tokens > probe.speed.depth_tokens for speed in last
    ):
        return False
    best = max(speed.generation_tokens_per_s for speed in last)
    return best < SLOW_RATIO * probe.speed.generation_tokens_per_s / plan.model.num_parallel


def _changed(measured: Measured, plan: Plan) -> Iterator[str]:
    """Yield what llama-server's ``--fit`` did differently from what was asked, without an error."""
    wanted, got = plan.model.num_ctx, measured.slot_tokens
    if reduced := measured.reduced:
        yield (
            f"llama-server reduced the context from {reduced.from_tokens} to "
            f"{reduced.to_tokens} tokens so that it fits; lower num_ctx or use a smaller pair"
        )
    elif got is not None and got < wanted:
        yield f"a request has {got} tokens, not the {wanted} of num_ctx"
    offloaded = measured.offloaded
    if measured.fitted and offloaded and offloaded.layers < offloaded.all_layers:
        yield (
            f"only {offloaded.layers} of {offloaded.all_layers} layers fit on the device, the rest "
            "runs on the CPU; lower num_ctx or use a smaller pair"
        )
    elif n_overflowing := sum(fitted.overflowing for fitted in measured.fitted):
        yield (
            f"parts of {n_overflowing} layers did not fit on the device and run on the CPU; lower "
            "num_ctx or use a smaller pair"
        )
    if measured.fit_failed is not None:
        yield f"llama-server found no way to fit it into free memory: {measured.fit_failed.reason}"
