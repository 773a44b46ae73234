"""The estimate against what the real llama-server allocates."""

from pathlib import Path

import pytest

from kvsup.gguf import read_metadata_of
from kvsup.ggufnames import parameter_size
from kvsup.kvrules import violation
from kvsup.kvtypes import parse_kv_pair
from kvsup.memory import Draft, Launch, estimate
from kvsup.modelshape import shape_of
from scripts.kv_table import PAIRS, in_words_of_the_log, load
from tests.architectures import NAMES, write

MIB = 1 << 20
LAUNCHES = (
    Launch(2048, 4),
    Launch(1000, 3, unified=False, n_ubatch=64),
    Launch(777, 2, swa_full=True),
    Launch(4096, 1, flash_attention="off"),
    Launch(0, 1),
    Launch(300, 2, unified=False, n_batch=100),
)


def _assert_as_logged(llama_server: Path, model: Path, pair_text: str, launch: Launch) -> None:
    """Compare cells, layers, streams, types and bytes, as far as the log tells them."""
    pair = parse_kv_pair(pair_text)
    shape = shape_of(read_metadata_of(model))

    loaded = load(llama_server, model, pair, launch)

    if violation(pair, launch.flash_attention, shape) and loaded.refusal:
        return
    result = estimate(shape, pair, launch, weights_bytes=0)
    assert result.is_exact
    assert loaded.refusal == ""
    assert list(loaded.caches) == [in_words_of_the_log(cache) for cache in result.caches]
    assert loaded.state_mib == pytest.approx(result.recurrent_bytes / MIB, abs=0.006)
    assert float(loaded.output_mib) == pytest.approx(result.output_bytes / MIB, abs=0.006)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the tiny models of this module are."""
    return tmp_path_factory.mktemp("architectures")


@pytest.mark.parametrize("name", NAMES)
def test_estimate_of_an_architecture_equals_what_llama_server_allocates(
    llama_server: Path, folder: Path, name: str
) -> None:
    """All settings with f16, and each with a pair of its own: to the two decimals of the log."""
    model = write(name, folder)
    first = NAMES.index(name) * len(LAUNCHES)
    pairs = [str(PAIRS[(first + i) * 7 % len(PAIRS)]) for i in range(len(LAUNCHES))]

    for launch, pair in zip(LAUNCHES, pairs, strict=True):
        _assert_as_logged(llama_server, model, "f16:f16", launch)
        _assert_as_logged(llama_server, model, pair, launch)


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
    any_build: Path, smollm2: Path, pair: str, launch: Launch
) -> None:
    """The demo model, on both builds."""
    _assert_as_logged(any_build, smollm2, pair, launch)


@pytest.mark.parametrize(
    ("pair", "launch"),
    [
        ("q8_0:q4_0", Launch(4096)),
        ("f16:q5_1", Launch(3000, 3, unified=False)),
        ("q4_1:f32", Launch(2048, 2, swa_full=True)),
        ("bf16:f16", Launch(2048, 1, n_ubatch=128, flash_attention="off")),
    ],
    ids=str,
)
def test_estimate_of_gemma3_equals_what_llama_server_allocates(
    any_build: Path, gemma3: Path, pair: str, launch: Launch
) -> None:
    """A model with a sliding window, on both builds."""
    _assert_as_logged(any_build, gemma3, pair, launch)


def test_estimate_of_a_draft_is_a_second_whole_cache(llama_server: Path, smollm2: Path) -> None:
    """It has the context that the model's own became by rounding up, and types of its own."""
    shape, launch = shape_of(read_metadata_of(smollm2)), Launch(1000, 3, unified=False)
    pair, draft_pair = parse_kv_pair("q8_0:q4_0"), parse_kv_pair("f16:q5_1")
    arguments = ["-md", str(smollm2), "-ctkd", str(draft_pair.k), "-ctvd", str(draft_pair.v)]

    loaded = load(llama_server, smollm2, pair, launch, *arguments, until=("listening",))

    result = estimate(shape, pair, launch, weights_bytes=0, draft=Draft(shape, 0, draft_pair))
    assert result.draft is not None
    assert list(loaded.caches) == [
        in_words_of_the_log(cache) for cache in (*result.caches, *result.draft.caches)
    ]


def test_read_metadata_of_smollm2_knows_its_facts(smollm2: Path) -> None:
    """The real header: counts, type and template of the demo model."""
    metadata = read_metadata_of(smollm2)

    assert (metadata.architecture, metadata.file_type) == ("llama", "Q4_1")
    assert (metadata.n_tensors, parameter_size(metadata.n_params)) == (272, "134.52M")
    assert 0 < (metadata.tensor_bytes or 0) < smollm2.stat().st_size
    assert "<|im_start|>" in (metadata.text("tokenizer.chat_template") or "")
    assert shape_of(metadata).n_vocab == 49152
