"""In which memories a model will lie: the host's, and those of devices, before it has been loaded.

llama-server puts whole layers on devices, spread by their sizes, with their part of the KV cache
beside them; what does not fit stays in RAM where it may choose (``--fit``, ``common_fit_params``
of common/fit.cpp, b11434). The log of a load tells the truth; this is what is set aside before.
"""

from collections.abc import Sequence

from kvsup.memory import Estimate
from kvsup.residency import RAM

Device = tuple[str, int]
"""Name, and bytes in all."""

DEVICE_HEADROOM_BYTES = 1 << 30
"""Left free on each device, as llama-server does (``--fit-target``, 1024 MiB, b11434)."""


def place(
    estimate: Estimate,
    devices: Sequence[Device],
    *,
    n_layers: int,
    gpu_layers: int | None,
    main_gpu: int | None,
) -> dict[str, int]:
    """Return the bytes of ``estimate`` in each memory.

    Args:
        estimate: of all of it.
        devices: those that this llama-server can offload to.
        n_layers: of the model; the output counts as one more.
        gpu_layers: on devices; None: as many as fit.
        main_gpu: place in ``devices`` of the only one to use; None: all of them.
    """
    used = [d for i, d in enumerate(devices) if main_gpu is None or i == main_gpu]
    n_wanted = n_layers + 1 if gpu_layers is None else min(gpu_layers, n_layers + 1)
    if not used or not n_wanted:
        return {RAM: estimate.total_bytes}
    graph_bytes = estimate.compute_bytes + estimate.scratch_bytes
    layers_bytes = estimate.total_bytes - graph_bytes
    wanted_bytes = layers_bytes * n_wanted // (n_layers + 1) + graph_bytes
    rooms = {name: max(0, size - DEVICE_HEADROOM_BYTES) for name, size in used}
    room_bytes = sum(rooms.values())
    if gpu_layers is None:
        wanted_bytes = min(wanted_bytes, room_bytes)
    if not room_bytes:  # it is to lie there all the same
        rooms, room_bytes = dict(used), sum(size for _, size in used) or 1
    placed = {name: wanted_bytes * room // room_bytes for name, room in rooms.items()}
    return {RAM: estimate.total_bytes - sum(placed.values()), **placed}
