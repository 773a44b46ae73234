"""What will be run for a model, decided in full."""

from dataclasses import replace

import msgspec
import pytest

from kvsup.config import FallbackStep, MessageConfig, ModelConfig
from kvsup.gguf import Metadata, Value
from kvsup.kvtypes import parse_kv_pair
from kvsup.llama.argv import NOT_ARGUMENTS, build_argv
from kvsup.llama.binary import Binary
from kvsup.modelfile import ModelFile
from kvsup.modelshape import shape_of
from kvsup.plan import ALLOWANCE_BYTES, Plan, make_plan, why_replaced

RUN_DIR = "/run/kvsup/0123456789ab"
BINARY = Binary("/bin/llama-server", "0.6.0", 11434, ("f16",), frozenset(), ())
MODEL = ModelConfig(name="m", model="/m.gguf")
KEYS: dict[str, Value] = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.vocab_size": 49152,
}


def file_of(**more: Value) -> ModelFile:
    """Return a model's file whose header says ``more``."""
    metadata = Metadata(3, {**KEYS, **{f"llama.{key}": value for key, value in more.items()}}, ())
    return ModelFile(metadata, shape_of(metadata), 135_000_000, 90 << 20, 1, "stamp")


FILE = file_of()


def plan_of(model: ModelConfig = MODEL, file: ModelFile = FILE) -> Plan:
    """Return the plan of a model."""
    return make_plan(model, BINARY, file, inherited={"PATH": "/bin"}, run_dir=RUN_DIR)


def test_plan_argv_is_that_of_its_model_on_its_socket() -> None:
    """What is printed is what is spawned."""
    plan = plan_of()

    assert plan.argv == build_argv(BINARY, plan.model, socket=plan.socket, pooling=None)
    assert plan.environment["XDG_CONFIG_HOME"].startswith(RUN_DIR)


def test_plan_socket_lies_in_the_run_dir_and_is_short() -> None:
    """A UNIX socket's path has 107 bytes at most, whatever the model's name."""
    plan = plan_of(msgspec.structs.replace(MODEL, name="x" * 200))

    assert plan.socket.startswith(f"{RUN_DIR}/")
    assert len(plan.socket) < 60


@pytest.mark.parametrize(("trained", "num_ctx"), [(2048, 2048), (4096, 4096), (8192, 4096)])
def test_plan_clips_num_ctx_to_what_the_model_was_trained_for(trained: int, num_ctx: int) -> None:
    """More would be allocated in full although each slot is capped (b11434)."""
    plan = plan_of(msgspec.structs.replace(MODEL, num_ctx=4096), file_of(context_length=trained))

    assert plan.model.num_ctx == num_ctx
    assert str(num_ctx) in plan.argv


def test_plan_of_an_embedding_model_takes_a_whole_input_as_one_batch() -> None:
    """``--embedding`` demands that an input is one physical batch."""
    plan = plan_of(msgspec.structs.replace(MODEL, num_ctx=2000), file_of(pooling_type=1))

    assert plan.pooling == 1
    assert (plan.model.batch_size, plan.model.ubatch_size) == (2000, 2000)
    assert "--embedding" in plan.argv


def test_plan_estimate_grows_with_the_pair_and_the_slots() -> None:
    """K and V bytes by their own types, over all slots: 30 layers of 192 elements a cell."""
    model = msgspec.structs.replace(
        MODEL, num_ctx=256, num_parallel=2, kv_cache_type=parse_kv_pair("q8_0:q4_0")
    )

    plan = plan_of(model)

    elements = 30 * 512 * 192
    assert plan.estimate.kv_bytes == elements * 34 // 32 + elements * 18 // 32
    assert plan.size_bytes == plan.estimate.total_bytes + ALLOWANCE_BYTES


OTHER: dict[str, object] = {
    "allow_request_kv": False,
    "on_bigger_request": "clamp",
    "kv_goal": "small",
    "kv_slow": "refuse",
    "warm_swap": False,
    "checkpoint_after_tokens": 1,
    "kv_is_auto": True,
    "aliases": ("b",),
    "keep_alive_s": 1.0,
    "system": "Be short.",
    "messages": (MessageConfig(role="user", content="Hi"),),
    "options": {"seed": 1},
    "llama_server": "/other",
    "preload": True,
    "pin": True,
    "priority": 1,
    "weight": 2.0,
    "load_timeout_s": 1.0,
    "stop_timeout_s": 1.0,
    "restart_wait_s": 1.0,
    "resume": "off",
    "watchdog": msgspec.structs.replace(MODEL.watchdog, dry_run=True),
    "restart": msgspec.structs.replace(MODEL.restart, max_deaths=1),
    "fallback": (FallbackStep(num_ctx=128),),
    "source": "other.toml",
}


@pytest.mark.parametrize("field", sorted(NOT_ARGUMENTS - {"env", "num_ctx_is_auto"}))
def test_plan_identity_ignores_what_the_process_does_not_see(field: str) -> None:
    """An edit of these keeps the process: its identity, its socket, and its loaded weights."""
    changed = plan_of(msgspec.structs.replace(MODEL, **{field: OTHER[field]}))

    assert changed.identity == plan_of().identity
    assert changed.socket == plan_of().socket
    assert changed.digest != plan_of().digest


@pytest.mark.parametrize(
    ("model", "file"),
    [
        (msgspec.structs.replace(MODEL, kv_cache_type=parse_kv_pair("q8_0:q5_1")), FILE),
        (msgspec.structs.replace(MODEL, num_ctx=512), FILE),
        (msgspec.structs.replace(MODEL, num_ctx_is_auto=True), FILE),
        (msgspec.structs.replace(MODEL, name="other"), FILE),
        (msgspec.structs.replace(MODEL, env={"A": "b"}), FILE),
        (msgspec.structs.replace(MODEL, extra_args=("--rope-scale", "2")), FILE),
        (MODEL, replace(FILE, stamp="written anew")),
    ],
)
def test_plan_identity_changes_with_what_the_process_sees(
    model: ModelConfig, file: ModelFile
) -> None:
    """Another command line, environment or weights need another process."""
    changed = plan_of(model, file)

    assert changed.identity != plan_of().identity
    assert changed.socket != plan_of().socket


def test_plan_of_another_program_is_another_and_the_same_model() -> None:
    """A build behind the same path: another process, but nothing that a client could tell."""
    other = msgspec.structs.replace(BINARY, stamp="another", build=11500)

    changed = make_plan(MODEL, other, FILE, inherited={"PATH": "/bin"}, run_dir=RUN_DIR)

    assert changed.identity != plan_of().identity
    assert changed.digest == plan_of().digest
    assert why_replaced(plan_of(), changed) == (
        "another llama-server is there (b11500, it has b11434)"
    )


def test_why_replaced_names_what_is_another() -> None:
    """Weights before keys: what is written of a model follows from them."""
    old = plan_of()
    edited = msgspec.structs.replace(MODEL, num_ctx=512)

    assert why_replaced(old, None) == "it was removed"
    assert why_replaced(old, plan_of(edited)) == "its configuration changed"
    assert why_replaced(old, plan_of(edited, replace(FILE, stamp="new"))) == "its weights changed"


def test_plan_is_the_same_each_time() -> None:
    """A reload without an edit finds the same identity and digest."""
    assert plan_of() == plan_of()


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        msgspec.structs.replace(MODEL, num_ctx=100_000),
        msgspec.structs.replace(MODEL, batch_size=7, threads=2),
    ],
)
def test_plan_keeps_what_was_configured_beside_what_was_decided(model: ModelConfig) -> None:
    """What a file leaves open can still be chosen by a request."""
    plan = plan_of(model)

    assert plan.configured == model
    assert plan.model.num_ctx == min(model.num_ctx, 8192)
    assert plan.model.batch_size is not None


def test_plan_configured_as_itself_is_the_same_plan() -> None:
    """Nothing that decides a plan is lost on the way."""
    plan = plan_of(msgspec.structs.replace(MODEL, env={"A": "b"}))

    assert plan.configured_as(plan.configured) == plan


def test_plan_configured_as_another_is_what_such_a_file_would_give() -> None:
    """All but the digest: it is that of the catalogue's entry, by which clients know the model."""
    other = msgspec.structs.replace(
        MODEL, num_ctx=256, threads=2, kv_cache_type=parse_kv_pair("q8_0:q4_0")
    )

    derived = plan_of().configured_as(other)

    assert derived == replace(plan_of(other), digest=plan_of().digest)
    assert derived.identity != plan_of().identity
    assert derived.estimate.kv_bytes < plan_of().estimate.kv_bytes


def test_plan_configured_as_one_beyond_training_is_clipped_as_a_file_is() -> None:
    """The rule holds whoever asks."""
    derived = plan_of().configured_as(msgspec.structs.replace(MODEL, num_ctx=10_000))

    assert derived.model.num_ctx == 8192
    assert derived.notes


def test_plan_trained_tokens_are_those_of_the_header() -> None:
    """A header without them bounds nothing."""
    keys = {key: value for key, value in KEYS.items() if key != "llama.context_length"}
    silent = replace(FILE, metadata=Metadata(3, keys, ()))

    assert plan_of().trained_tokens == 8192
    assert plan_of(file=file_of(context_length=2048)).trained_tokens == 2048
    assert plan_of(file=silent).trained_tokens is None


@pytest.mark.parametrize(("room_mib", "given"), [(5000, 1024), (100, 100), (-3, 0)])
def test_plan_with_a_prompt_cache_gets_what_there_is_room_for(room_mib: int, given: int) -> None:
    """At most what is configured; the same process could serve, whatever it remembers."""
    plan = plan_of(MODEL)

    loaded = plan.with_prompt_cache(room_mib << 20)

    assert loaded.argv[loaded.argv.index("--cache-ram") + 1] == str(given)
    assert loaded.prompt_cache_bytes == given << 20
    assert (loaded.identity, loaded.digest) == (plan.identity, plan.digest)
    assert loaded.with_prompt_cache(1 << 40).argv == plan.argv


def test_plan_of_an_embedding_model_has_no_prompt_cache() -> None:
    """llama-server keeps prompts of completions only."""
    assert plan_of(MODEL, file_of(pooling_type=1)).prompt_cache_bytes == 0


LADDER = msgspec.structs.replace(
    MODEL,
    num_ctx=8192,
    fallback=(FallbackStep(num_ctx=2048), FallbackStep(kv_cache_type=parse_kv_pair("q8_0:q4_0"))),
)


def test_plan_on_a_step_is_smaller_and_stays_the_same_instance() -> None:
    """Key, identity, socket and digest are those of the file; argv and bytes follow the step."""
    top = plan_of(LADDER)
    second = top.on_step(2)

    assert second.key == top.key
    assert (second.digest, second.socket, second.notes) == (top.digest, top.socket, top.notes)
    assert second.configured == top.configured
    assert second.size_bytes < top.on_step(1).size_bytes < top.size_bytes
    assert sum(second.sizes.values()) == second.size_bytes
    assert "2048" in second.argv
    assert "q4_0" in second.argv
    assert second.on_step(1).on_step(0) == top


def test_plan_lower_is_the_next_step_that_takes_no_more() -> None:
    """A context that a request asked for makes a step of more be passed over."""
    top = plan_of(LADDER)
    small = top.configured_as(msgspec.structs.replace(LADDER, num_ctx=1024))

    first = top.lower()
    assert first is not None
    assert first.step == 1
    assert top.on_step(2).lower() is None
    passed = small.lower()
    assert passed is not None
    assert passed.step == 2
    assert plan_of().lower() is None


def test_plan_with_an_open_context_keeps_it_on_a_step_that_leaves_it_open() -> None:
    """A step with a context of its own ends that, and leaves it to no room."""
    pair = FallbackStep(kv_cache_type=parse_kv_pair("q8_0:q4_0"))
    steps = (pair, FallbackStep(num_ctx=512))
    auto = msgspec.structs.replace(MODEL, num_ctx_is_auto=True, fallback=steps)
    loaded = plan_of(auto).with_num_ctx(6144)

    assert loaded.on_step(1).model.num_ctx == 6144
    assert loaded.on_step(2).model.num_ctx == 512
    assert loaded.on_step(2).with_room(1 << 40).model.num_ctx == 512
    assert loaded.on_step(1).with_room(1 << 40).model.num_ctx == 8192
