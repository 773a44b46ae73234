"""The estimate against what the real llama-server allocates."""

import re
import subprocess
from pathlib import Path

import pytest

from kvsup.gguf import read_metadata_of
from kvsup.ggufnames import parameter_size
from kvsup.kvtypes import parse_kv_pair
from kvsup.memory import Launch, estimate
from kvsup.modelshape import shape_of

_SIZE_LINE = re.compile(
    r"llama_kv_cache: size = .*\( *(?P<cells>\d+) cells, *(?P<layers>\d+) layers, "
    r".*/ *(?P<streams>\d+) seqs\), "
    r"K \((?P<type_k>\w+)\): *(?P<k_mib>[\d.]+) MiB, V \((?P<type_v>\w+)\): *(?P<v_mib>[\d.]+) MiB"
)
_CONTEXT_MADE = "sched_reserve:"
"""The first words of the log after the last cache was allocated."""


def _logged_caches(llama_server: Path, arguments: list[str]) -> list[re.Match[str]]:
    """Start llama-server, return its lines on caches, and stop it."""
    command = [str(llama_server), *arguments, "-lv", "4", "-t", "1", "--no-warmup", "-fit", "off"]
    with subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            caches = []
            for line in process.stderr or ():
                if match := _SIZE_LINE.search(line):
                    caches.append(match)
                if caches and _CONTEXT_MADE in line:
                    break
        finally:
            process.kill()
    return caches


@pytest.mark.parametrize(
    ("pair", "launch"),
    [
        ("f16:f16", Launch(4096)),
        ("q8_0:q4_0", Launch(4096)),
        ("q8_0:q4_0", Launch(1000, 1)),
        ("q5_1:iq4_nl", Launch(2048, 3, unified=False)),
        ("bf16:q5_0", Launch(4096, 2, unified=False)),
        ("q4_1:q8_0", Launch(300, 2, unified=False)),
        ("f32:f16", Launch(512, 2, flash_attention="off")),
        ("q4_0:bf16", Launch(0, 1, flash_attention="off")),
    ],
    ids=str,
)
def test_estimate_of_smollm2_equals_what_llama_server_allocates(
    llama_server: Path, smollm2: Path, pair: str, launch: Launch
) -> None:
    """Cells, layers, streams, types, and MiB of K and V to the two decimals of the log."""
    kv_pair = parse_kv_pair(pair)
    shape = shape_of(read_metadata_of(smollm2))
    arguments = ["-m", str(smollm2), "-ctk", str(kv_pair.k), "-ctv", str(kv_pair.v)]
    arguments += ["-c", str(launch.n_ctx_tokens), "-np", str(launch.n_parallel)]
    arguments += ["-fa", launch.flash_attention]
    arguments += ["--kv-unified" if launch.unified else "--no-kv-unified"]

    (logged,) = _logged_caches(llama_server, arguments)

    result = estimate(shape, kv_pair, launch, weights_bytes=0)
    (cache,) = result.caches
    assert result.is_exact
    assert logged.groupdict() == {
        "cells": str(cache.cells),
        "layers": str(cache.layers),
        "streams": str(cache.streams),
        "type_k": str(cache.type_k),
        "type_v": str(cache.type_v),
        "k_mib": f"{cache.k_bytes / 2**20:.2f}",
        "v_mib": f"{cache.v_bytes / 2**20:.2f}",
    }


def test_read_metadata_of_smollm2_knows_its_facts(smollm2: Path) -> None:
    """The real header: counts, type and template of the demo model."""
    metadata = read_metadata_of(smollm2)

    assert (metadata.architecture, metadata.file_type) == ("llama", "Q4_1")
    assert (metadata.n_tensors, parameter_size(metadata.n_params)) == (272, "134.52M")
    assert 0 < (metadata.tensor_bytes or 0) < smollm2.stat().st_size
    assert "<|im_start|>" in (metadata.text("tokenizer.chat_template") or "")
    assert shape_of(metadata).n_vocab == 49152
