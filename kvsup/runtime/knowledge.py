"""What earlier runs told of a model on this machine, for what is decided before the next one."""

from collections.abc import Mapping

from kvsup.config import ModelConfig
from kvsup.kvchoice import Machine
from kvsup.llama.binary import Binary
from kvsup.measures import Probes, SpeedProbe, Tuned
from kvsup.modelfile import ModelFile
from kvsup.plan import Plan
from kvsup.runtime.learning import fa_quants
from kvsup.runtime.remembered import Remembered, key_of

_PROBES = "probes"
_TUNED = "tuned"


def machine_of(store: Remembered, binary: Binary, file: ModelFile, model: ModelConfig) -> Machine:
    """Return what is known of running ``file`` by ``binary`` here, as ``model`` says."""
    probes = store.read(_PROBES, _probes_key(binary, file, model), Probes) or Probes()
    return Machine(
        kv_types=binary.kv_types,
        device_names=tuple(device.name for device in binary.devices),
        build=None if binary.kv_layer_flags else binary.build,  # ik_llama.cpp counts its own
        fa_quants=fa_quants(store, binary),
        probes=probes.by_pair,
        tuned=store.read(_TUNED, _tuned_key(binary, file, model), Tuned),
    )


def is_probed(store: Remembered, plan: Plan) -> bool:
    """Say whether the pair of ``plan`` has been measured."""
    return str(plan.model.kv_cache_type) in probes_of(store, plan)


def keep_probe(store: Remembered, plan: Plan, probe: SpeedProbe) -> None:
    """Keep a probe beside those of other pairs."""
    probes = {**probes_of(store, plan), probe.pair: probe}
    store.write(_PROBES, _probes_key(plan.binary, plan.file, plan.model), Probes(by_pair=probes))


def keep_tuned(store: Remembered, plan: Plan, tuned: Tuned) -> None:
    """Keep what a study found, for ``kv_cache_type = "auto"``."""
    store.write(_TUNED, _tuned_key(plan.binary, plan.file, plan.model), tuned)


def probes_of(store: Remembered, plan: Plan) -> Mapping[str, SpeedProbe]:
    """Return what was probed of models like that of the plan, by pair."""
    known = store.read(_PROBES, _probes_key(plan.binary, plan.file, plan.model), Probes) or Probes()
    return known.by_pair


def _tuned_key(binary: Binary, file: ModelFile, model: ModelConfig) -> str:
    return key_of(file.stamp, *_how(binary, model))


def _probes_key(binary: Binary, file: ModelFile, model: ModelConfig) -> str:
    """Return the key of one binary, its devices, and all models of one shape run alike.

    The same architecture is slow in other proportions where its layers are wider, so that counts.
    """
    shape = file.shape
    layers = (shape.architecture, shape.n_embd, shape.n_ff, shape.n_head, shape.layers)
    return key_of(*layers, *_how(binary, model))


def _how(binary: Binary, model: ModelConfig) -> tuple[object, ...]:
    """Return what decides how fast, and by which kernels, a model runs."""
    devices = [(device.name, device.description) for device in binary.devices]
    flags = (model.threads, model.gpu_layers, model.main_gpu, model.flash_attention)
    return (binary.path, binary.stamp, devices, *flags)
