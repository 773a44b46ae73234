"""Which settings serve a request that asks for load-time options."""

from itertools import permutations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.config import ModelConfig
from kvsup.errors import RequestError
from kvsup.fitting import NOTHING, Asked, fit, unmet, with_pair
from kvsup.gguf import Metadata, Value
from kvsup.kvtypes import STOCK_TYPES, parse_kv_pair
from kvsup.modelshape import ModelShape, shape_of

MODEL = ModelConfig(name="m", model="/m.gguf", num_ctx=1024)
TRAINED_TOKENS = 8192
KEYS: dict[str, Value] = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.context_length": TRAINED_TOKENS,
    "llama.embedding_length": 576,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
}
ORDERED = {
    "num_ctx": "num_ctx",
    "num_batch": "batch_size",
    "num_gpu": "gpu_layers",
    "num_thread": "threads",
}

models = st.builds(
    ModelConfig,
    name=st.just("m"),
    model=st.just("/m.gguf"),
    num_ctx=st.integers(4, 10_000),
    batch_size=st.none() | st.integers(1, 1000),
    gpu_layers=st.none() | st.integers(0, 50),
    threads=st.none() | st.integers(1, 8),
    main_gpu=st.none() | st.integers(0, 3),
    use_mmap=st.none() | st.booleans(),
    on_bigger_request=st.sampled_from(["reload", "clamp"]),
)
wishes = st.builds(
    Asked,
    num_ctx=st.none() | st.integers(-2, 20_000),
    num_batch=st.none() | st.integers(-2, 2000),
    num_gpu=st.none() | st.integers(-2, 99),
    num_thread=st.none() | st.integers(-2, 16),
    main_gpu=st.none() | st.integers(0, 3),
    use_mmap=st.none() | st.booleans(),
)
trained = st.none() | st.integers(4, 16_000)


def shape(**more: Value) -> ModelShape:
    """Return the shape of a small model whose header says ``more``."""
    return shape_of(Metadata(3, {**KEYS, **{f"llama.{k}": v for k, v in more.items()}}, ()))


def asking(option: str, value: int) -> Asked:
    """Return a request that asks for one thing."""
    return msgspec.structs.replace(NOTHING, **{option: value})


def grown(running: ModelConfig, asked: Asked, trained_tokens: int | None = None) -> ModelConfig:
    """Return what serves ``asked`` where ``running`` runs."""
    return fit(running, asked, decided=running, is_running=True, trained_tokens=trained_tokens)


def paired(model: ModelConfig, pair: str, of: ModelShape | None = None) -> ModelConfig:
    """Return ``model`` with the pair that a request asks for."""
    return with_pair(model, Asked(kv_cache_type=pair), kv_types=STOCK_TYPES, shape=of or shape())


@given(models, st.lists(wishes, min_size=2, max_size=4), trained)
def test_fit_once_everyone_was_served_needs_no_further_load(
    model: ModelConfig, asked: list[Asked], trained_tokens: int | None
) -> None:
    """Clients that differ, in whatever way, never make each other reload."""
    for order in permutations(asked):
        running = fit(
            model, order[0], decided=model, is_running=False, trained_tokens=trained_tokens
        )
        for each in order[1:]:
            running = grown(running, each, trained_tokens)

        assert all(grown(running, each, trained_tokens) is running for each in asked)


@given(models, wishes, trained)
def test_fit_never_takes_away_what_runs(
    model: ModelConfig, asked: Asked, trained_tokens: int | None
) -> None:
    """A model that is loaded only grows; what llama-server has decided stays decided."""
    larger = grown(model, asked, trained_tokens)

    for key in ORDERED.values():
        before, after = getattr(model, key), getattr(larger, key)
        assert after is None if before is None else after >= before
    assert (larger.main_gpu, larger.use_mmap) == (model.main_gpu, model.use_mmap)


@given(models, wishes, trained)
def test_fit_changes_only_what_load_time_options_set(
    model: ModelConfig, asked: Asked, trained_tokens: int | None
) -> None:
    """Nothing else of the file is touched by a request."""
    own = {*ORDERED.values(), "main_gpu", "use_mmap"}

    served = fit(model, asked, decided=model, is_running=False, trained_tokens=trained_tokens)

    for field in msgspec.structs.fields(ModelConfig):
        if field.name not in own:
            assert getattr(served, field.name) == getattr(model, field.name)


@given(models, wishes, trained)
def test_unmet_is_empty_where_a_reload_gave_what_was_asked(
    model: ModelConfig, asked: Asked, trained_tokens: int | None
) -> None:
    """Quantities are granted by growing, so none is told, beside what training bounds."""
    model = msgspec.structs.replace(model, on_bigger_request="reload")
    asked = msgspec.structs.replace(asked, main_gpu=None, use_mmap=None)
    is_beyond = bool(asked.num_ctx and trained_tokens and asked.num_ctx > trained_tokens)

    served = fit(model, asked, decided=model, is_running=False, trained_tokens=trained_tokens)

    assert bool(list(unmet(served, asked, trained_tokens=trained_tokens))) == is_beyond


@pytest.mark.parametrize(
    ("asked", "num_ctx"),
    [(512, 1024), (1024, 1024), (1025, 1025), (8192, 8192), (8193, 8192), (10**30, 8192)],
)
def test_fit_num_ctx_grows_to_what_is_asked_and_trained_for(asked: int, num_ctx: int) -> None:
    """Less or the same is served by what is there; training is the end of it."""
    served = grown(MODEL, Asked(num_ctx=asked), TRAINED_TOKENS)

    assert served.num_ctx == num_ctx
    assert (served is MODEL) == (asked <= MODEL.num_ctx)


@pytest.mark.parametrize("option", sorted(ORDERED))
@pytest.mark.parametrize("value", [-1, -(10**9)])
def test_fit_of_a_negative_quantity_asks_for_nothing(option: str, value: int) -> None:
    """Ollama's clients write -1 for a choice that they leave to the server."""
    for is_running in (True, False):
        served = fit(
            MODEL, asking(option, value), decided=MODEL, is_running=is_running, trained_tokens=None
        )

        assert served is MODEL


@pytest.mark.parametrize("option", sorted(ORDERED.keys() - {"num_gpu"}))
def test_fit_of_zero_asks_for_nothing(option: str) -> None:
    """0 threads, 0 tokens and an empty batch are no wish; 0 layers on the GPU are one."""
    served = fit(MODEL, asking(option, 0), decided=MODEL, is_running=False, trained_tokens=None)

    assert served is MODEL
    cold = fit(MODEL, Asked(num_gpu=0), decided=MODEL, is_running=False, trained_tokens=None)
    assert cold.gpu_layers == 0


def test_fit_of_a_tiny_context_is_ollamas_least() -> None:
    """Below 4 tokens Ollama takes 4 (llm/llama_server.go)."""
    model = msgspec.structs.replace(MODEL, num_ctx=4)

    assert grown(model, Asked(num_ctx=1)) is model


def test_fit_of_several_options_grows_each_that_is_too_small() -> None:
    """The others stay as they are."""
    model = msgspec.structs.replace(MODEL, threads=4, batch_size=64, gpu_layers=10)
    asked = Asked(num_ctx=2048, num_thread=2, num_batch=128, num_gpu=9)

    served = grown(model, asked)

    assert served == msgspec.structs.replace(model, num_ctx=2048, batch_size=128)


def test_fit_of_what_is_not_loaded_takes_up_what_the_file_leaves_open() -> None:
    """A choice is free until the load; a file that has chosen keeps its choice."""
    asked = Asked(main_gpu=1, use_mmap=False, num_thread=3)
    chosen = msgspec.structs.replace(MODEL, main_gpu=0, use_mmap=True, threads=8)

    cold = fit(MODEL, asked, decided=MODEL, is_running=False, trained_tokens=None)

    assert (cold.main_gpu, cold.use_mmap, cold.threads) == (1, False, 3)
    assert fit(chosen, asked, decided=chosen, is_running=False, trained_tokens=None) is chosen
    assert grown(MODEL, asked) is MODEL


@pytest.mark.parametrize(("option", "key"), sorted(ORDERED.items()))
def test_fit_of_more_by_policy_is_given_kept_or_refused(option: str, key: str) -> None:
    """``reload`` gives it, ``clamp`` serves with what is there, ``refuse`` says both numbers."""
    model = msgspec.structs.replace(MODEL, **{key: 8})
    asked = asking(option, 9)
    clamping = msgspec.structs.replace(model, on_bigger_request="clamp")
    refusing = msgspec.structs.replace(model, on_bigger_request="refuse")

    assert getattr(grown(model, asked), key) == 9
    assert grown(clamping, asked) is clamping
    with pytest.raises(RequestError, match=f"{option} 9 is more than the 8 of m"):
        grown(refusing, asked)
    assert grown(refusing, asking(option, 8)) is refusing


@pytest.mark.parametrize("policy", ["reload", "clamp", "refuse"])
def test_fit_of_nothing_is_what_is_there(policy: str) -> None:
    """A request without load-time options is served by whatever runs, or would be loaded."""
    model = msgspec.structs.replace(MODEL, on_bigger_request=policy)

    assert grown(model, NOTHING) is model
    assert fit(model, NOTHING, decided=model, is_running=False, trained_tokens=2) is model


def test_fit_refusing_measures_against_what_training_bounds() -> None:
    """A file may say more than the weights can; to ask for as much is not to ask for more."""
    model = msgspec.structs.replace(MODEL, num_ctx=4096, on_bigger_request="refuse")

    assert grown(model, Asked(num_ctx=100_000), trained_tokens=4096) is model


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (Asked(num_ctx=2048), "num_ctx 2048 was asked, 1024 is there"),
        (Asked(num_thread=9), "num_thread 9 was asked, 2 is there"),
        (Asked(num_gpu=99), "num_gpu 99 was asked, 0 is there"),
        (Asked(main_gpu=1), "main_gpu is decided at the load, this one was loaded otherwise"),
        (Asked(draft_num_predict=4), "draft_num_predict is not taken from a request"),
    ],
)
def test_unmet_says_in_words_what_is_not_as_asked(asked: Asked, text: str) -> None:
    """Nothing that a request asks for is dropped without a word."""
    model = msgspec.structs.replace(MODEL, threads=2, gpu_layers=0, main_gpu=0)

    (note,) = unmet(model, asked, trained_tokens=TRAINED_TOKENS)

    assert note.startswith(text)


def test_unmet_of_a_context_beyond_training_names_what_it_was_trained_for() -> None:
    """The grant is clipped to it, and the client is told."""
    model = msgspec.structs.replace(MODEL, num_ctx=TRAINED_TOKENS)

    assert list(unmet(model, Asked(num_ctx=9000), trained_tokens=TRAINED_TOKENS)) == [
        "num_ctx 9000 was asked, the model was trained for 8192"
    ]


@pytest.mark.parametrize(
    "asked",
    [
        NOTHING,
        Asked(num_ctx=1024),
        Asked(num_ctx=10, num_thread=1, num_batch=1),
        Asked(num_ctx=-1, num_thread=0, num_gpu=-1),
        Asked(num_batch=4096, num_gpu=99),
        Asked(draft_num_predict=0),
    ],
)
def test_unmet_of_what_is_granted_is_empty(asked: Asked) -> None:
    """More than asked is granted, and so is what llama-server decides."""
    model = msgspec.structs.replace(MODEL, threads=2)

    assert list(unmet(model, asked, trained_tokens=TRAINED_TOKENS)) == []


def test_unmet_of_mapping_where_the_load_was_left_to_llama_server_is_empty() -> None:
    """Left alone it maps the file (``--load-mode auto``, b11434), which is what was asked."""
    assert list(unmet(MODEL, Asked(use_mmap=True), trained_tokens=None)) == []


def test_pair_of_nothing_asked_is_that_of_the_file() -> None:
    """Types are of the file unless a request names some."""
    assert with_pair(MODEL, NOTHING, kv_types=(), shape=shape()) is MODEL


@pytest.mark.parametrize(
    ("text", "pair"),
    [("q8_0:q5_1", "q8_0:q5_1"), ("q8_0", "q8_0:q8_0"), ("f32:f16", "f32:f16")],
)
def test_pair_that_is_asked_for_replaces_the_files(text: str, pair: str) -> None:
    """The grammar is that of the TOML key; nothing else changes."""
    served = paired(MODEL, text)

    assert served == msgspec.structs.replace(MODEL, kv_cache_type=parse_kv_pair(pair))


@pytest.mark.parametrize("text", ["q9_9", "", ":", "q8_0:", "q8_0:q4_0:q4_0", "Q8_0 ; rm"])
def test_pair_of_unknown_types_is_the_clients_mistake(text: str) -> None:
    """The message names the option."""
    with pytest.raises(RequestError, match=r"^kv_cache_type: "):
        paired(MODEL, text)


def test_pair_that_this_binary_does_not_list_is_refused() -> None:
    """A known name is not enough: an older build or another backend may not have it."""
    with pytest.raises(RequestError, match=r"^kv_cache_type: "):
        with_pair(MODEL, Asked(kv_cache_type="q8_0"), kv_types=("f16",), shape=shape())


def test_pair_that_the_model_cannot_run_with_is_refused() -> None:
    """A quantized V cache needs flash attention; a load would only fail later."""
    model = msgspec.structs.replace(MODEL, flash_attention="off")

    with pytest.raises(RequestError, match=r"^kv_cache_type: "):
        paired(model, "f16:q4_0")


def test_pair_where_requests_may_not_choose_is_refused_unless_it_is_the_files() -> None:
    """``allow_request_kv = false`` says what runs and what to do instead."""
    model = msgspec.structs.replace(MODEL, allow_request_kv=False)

    assert paired(model, "f16") is model
    with pytest.raises(RequestError, match=r"runs with kv_cache_type f16:f16 .*allow_request_kv"):
        paired(model, "q8_0")
