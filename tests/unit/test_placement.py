"""In which memories a model will lie."""

import pytest

from kvsup.memory import Estimate
from kvsup.placement import DEVICE_HEADROOM_BYTES, place
from kvsup.residency import RAM

GIB = 1 << 30
MODEL = Estimate(
    weights_bytes=10 * GIB, caches=(), recurrent_bytes=0, compute_bytes=1 * GIB, is_exact=True
)
"""Of 9 layers, and the output."""


@pytest.mark.parametrize(
    ("devices", "gpu_layers", "main_gpu", "expected"),
    [
        ([], None, None, {RAM: 11}),
        ([("CUDA0", 24)], 0, None, {RAM: 11}),
        ([("CUDA0", 24)], None, None, {RAM: 0, "CUDA0": 11}),
        ([("CUDA0", 24)], 5, None, {RAM: 5, "CUDA0": 6}),
        ([("CUDA0", 24)], 99, None, {RAM: 0, "CUDA0": 11}),
        ([("CUDA0", 24), ("CUDA1", 8)], None, 1, {RAM: 4, "CUDA1": 7}),
        ([("CUDA0", 23), ("CUDA1", 1)], None, None, {RAM: 0, "CUDA0": 11, "CUDA1": 0}),
        ([("Vulkan0", 0.5)], None, None, {RAM: 11, "Vulkan0": 0}),
        ([("Vulkan0", 0.5)], 99, None, {RAM: 0, "Vulkan0": 11}),
        ([("CUDA0", 22), ("CUDA1", 22)], None, None, {RAM: 0, "CUDA0": 5.5, "CUDA1": 5.5}),
        ([("CUDA0", 6)], None, None, {RAM: 6, "CUDA0": 5}),
        ([("CUDA0", 6)], 99, None, {RAM: 0, "CUDA0": 11}),
    ],
)
def test_model_lies_on_devices_as_llama_server_would_put_it(
    devices: list[tuple[str, float]],
    gpu_layers: int | None,
    main_gpu: int | None,
    expected: dict[str, float],
) -> None:
    """All layers where it may choose and they fit, else as many; the rest stays in RAM."""
    sized = [(name, int(n * GIB)) for name, n in devices]

    placed = place(MODEL, sized, n_layers=9, gpu_layers=gpu_layers, main_gpu=main_gpu)

    assert placed == {memory: pytest.approx(n * GIB) for memory, n in expected.items()}
    assert sum(placed.values()) == MODEL.total_bytes
    assert DEVICE_HEADROOM_BYTES == GIB
