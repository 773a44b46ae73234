"""TOML tables to configuration: every problem with its line, and which layer wins."""

import textwrap

import msgspec
import pytest
import tomli

from kvsup.config import FallbackStep, MessageConfig, ModelConfig
from kvsup.decode import Source, decode_host, decode_models
from kvsup.environment import read_environment
from kvsup.hostconfig import SHARED_KEYS, HostConfig
from kvsup.kvtypes import parse_kv_pair
from kvsup.units import FOREVER_S

WRITE_PAIR = 'write "type_k:type_v", e.g. "q8_0:q5_1"'
WRITE_DURATION = 'write e.g. "5m" or a number of seconds'
WRITE_SIZE = 'write e.g. "8GiB" or a number of bytes'


def _source(text: str, name: str = "m.toml") -> Source:
    text = textwrap.dedent(text)
    return Source(name, tomli.loads(text), text)


def _environment(**variables: str) -> Source:
    environment = read_environment(variables)
    return Source("environment", environment.table, spelling=environment.spelling)


def _models(text: str, host: dict[str, object] | None = None) -> dict[str, ModelConfig]:
    models, problems = decode_models(_source(text), host or {}, stem="m")
    assert problems == []
    return {model.name: model for model in models}


def _problems(text: str) -> list[str]:
    _, problems = decode_models(_source(text), {}, stem="m")
    return [str(problem) for problem in problems]


def test_decode_of_a_model_with_one_key_has_every_default() -> None:
    """Only the weights must be named; the file's stem is the model's name."""
    assert _models('model = "m.gguf"') == {
        "m": ModelConfig(name="m", model="m.gguf", source="m.toml")
    }


def test_decode_of_texts_with_units_gives_numbers() -> None:
    """Durations, sizes and pairs are written as texts and kept as values."""
    model = _models(
        """
        model = "m.gguf"
        kv_cache_type = " Q8_0 : q5_1 "
        keep_alive = -1
        load_timeout = "1m30s"
        prompt_cache = "512MiB"
        restart = { max_delay = "2m", window = 60 }
        """
    )["m"]

    assert str(model.kv_cache_type) == "q8_0:q5_1"
    assert model.keep_alive_s == FOREVER_S
    assert model.load_timeout_s == 90
    assert model.prompt_cache_bytes == 512 << 20
    assert (model.restart.max_delay_s, model.restart.window_s) == (120, 60)


def test_decode_of_a_wrong_file_reports_every_problem_with_its_line() -> None:
    """Nobody has to mend a file one error at a time."""
    text = """\
        kv_cache_typ = "q8_0"
        num_ctx = "many"
        num_parallel = 0
        kv_cache_type = "q8:0:1"
        keep_alive = "soon"
        flash_attention = "maybe"
        aliases = "one"
        preload = 1
        frobnicate = 1

        [restart]
        policy = "always"
        max_deahts = 3

        [variants.agent]
        num_ctx = 1
        kv_cache_type = 8
        name = "other"
        """

    assert _problems(text) == [
        "m.toml:1: kv_cache_typ: unknown key; did you mean kv_cache_type?",
        'm.toml:2: num_ctx: expected int, got str; write a number or "auto"',
        "m.toml:3: num_parallel: expected int >= 1",
        f"m.toml:4: kv_cache_type: 'q8:0:1' is no pair of types; {WRITE_PAIR}",
        f'm.toml:5: keep_alive: time: invalid duration "soon"; {WRITE_DURATION}',
        "m.toml:6: flash_attention: invalid enum value 'maybe'; write auto, on or off",
        "m.toml:7: aliases: expected array, got str",
        "m.toml:8: preload: expected bool, got int",
        "m.toml:9: frobnicate: unknown key; known keys: " + ", ".join(sorted(_names(ModelConfig))),
        "m.toml:12: restart.policy: invalid enum value 'always'; write on-failure or never",
        "m.toml:13: restart.max_deahts: unknown key; did you mean max_deaths?",
        "m.toml: model: missing; write model = …",
        "m.toml:18: variants.agent.name: a variant is named by its table; drop it",
        'm.toml:16: variants.agent.num_ctx: expected int >= 4; write a number or "auto"',
        'm.toml:17: variants.agent.kv_cache_type: is no text; write e.g. "q8_0:q5_1"',
    ]


def _names(kind: type[msgspec.Struct]) -> list[str]:
    hidden = {"source", "kv_is_auto", "num_ctx_is_auto"}
    return [f.encode_name for f in msgspec.structs.fields(kind) if f.encode_name not in hidden]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('model = "m"\nvariants = 1', "m.toml:2: variants: is no table; write [variants.NAME]"),
        (
            'model = "m"\n[variants]\nagent = 1',
            "m.toml:3: variants.agent: is no table of keys",
        ),
        ('model = "m"\nrestart = 1', "m.toml:2: restart: is no table; write [restart]"),
        (
            'model = "m"\nsource = "x"',
            "m.toml:2: source: unknown key; known keys: " + ", ".join(sorted(_names(ModelConfig))),
        ),
        (
            'model = "m"\nprompt_cache = "much"',
            f"m.toml:2: prompt_cache: 'much' is no size; {WRITE_SIZE}",
        ),
    ],
)
def test_decode_of_a_wrong_value_says_what_to_write(text: str, problem: str) -> None:
    """Each problem has its line, its key, and the mend."""
    assert _problems(text) == [problem]


def test_variant_has_the_keys_of_its_model_with_its_own_on_top() -> None:
    """The same weights for another purpose; tables are merged key by key."""
    models = _models(
        """
        model = "m.gguf"
        kv_cache_type = "q8_0:q5_1"
        num_ctx = 2048
        system = "Be kind."
        [options]
        temperature = 0.5
        top_k = 3
        [restart]
        max_deaths = 9

        [variants.agent]
        kv_cache_type = "f16"
        [variants.agent.options]
        temperature = 0
        [variants.agent.restart]
        policy = "never"
        """
    )
    agent = models["m:agent"]

    assert list(models) == ["m", "m:agent"]
    assert (agent.model, agent.num_ctx, agent.system) == ("m.gguf", 2048, "Be kind.")
    assert str(agent.kv_cache_type) == "f16:f16"
    assert agent.options == {"temperature": 0, "top_k": 3}
    assert (agent.restart.policy, agent.restart.max_deaths) == ("never", 9)
    assert str(models["m"].kv_cache_type) == "q8_0:q5_1"


def test_variant_inherits_neither_names_nor_residency() -> None:
    """Aliases would clash, and whoever pins a model has not asked for two."""
    models = _models(
        """
        model = "m.gguf"
        aliases = ["n"]
        preload = true
        pin = true
        [variants.a]
        [variants.b]
        aliases = ["o"]
        pin = true
        """
    )

    assert models["m:a"] == ModelConfig(name="m:a", model="m.gguf", source="m.toml")
    assert models["m:b"].aliases == ("o",)
    assert models["m:b"].pin


@pytest.mark.parametrize(
    ("name", "served"), [("qwen3", "qwen3:agent"), ("a:1", "a:1-agent"), ("x/y", "x/y:agent")]
)
def test_variant_is_named_by_a_tag_or_by_the_end_of_one(name: str, served: str) -> None:
    """A name has one tag; where it has one already the variant is appended to it."""
    models = _models(f'name = "{name}"\nmodel = "m.gguf"\n[variants.agent]\n')

    assert list(models) == [name, served]


def test_variant_may_name_other_weights() -> None:
    """A variant takes any key of a model."""
    models = _models('model = "m.gguf"\n[variants.small]\nmodel = "s.gguf"\n')

    assert models["m:small"].model == "s.gguf"


def test_shared_keys_of_the_nearest_layer_win() -> None:
    """Environment < kvsup.toml < model < variant."""
    environment = _environment(
        OLLAMA_NUM_PARALLEL="2", OLLAMA_CONTEXT_LENGTH="100", OLLAMA_KV_CACHE_TYPE="q4_0",
        OLLAMA_KEEP_ALIVE="1s",
    )  # fmt: skip
    own = _source('num_ctx = 200\nkv_cache_type = "q5_0"\nkeep_alive = "2s"\n', "kvsup.toml")
    host = {**environment.table, **own.table}

    models = _models(
        'model = "m"\nkv_cache_type = "q8_0"\nkeep_alive = "3s"\n[variants.v]\nkeep_alive = "4s"\n',
        host,
    )

    seen = [
        (model.num_parallel, model.num_ctx, str(model.kv_cache_type), model.keep_alive_s)
        for model in models.values()
    ]
    assert seen == [(2, 200, "q8_0:q8_0", 3), (2, 200, "q8_0:q8_0", 4)]


def test_shared_keys_are_keys_of_both_kinds_of_file() -> None:
    """A default for every model is a key of a model."""
    assert set(SHARED_KEYS) <= set(_names(ModelConfig)) & set(_names(HostConfig))


def test_decode_host_of_nothing_has_every_default() -> None:
    """Without a file and without variables kvsup listens where Ollama does."""
    host, problems = decode_host(None, _environment())

    assert problems == []
    assert host == HostConfig()
    assert (host.host, host.port) == ("127.0.0.1", 11434)


def test_decode_host_of_a_file_wins_over_the_environment() -> None:
    """Variables are defaults; what a file says is meant for this kvsup."""
    file = _source('port = 1\nmemory = "auto"\nmax_queue = 3\n', "kvsup.toml")
    environment = _environment(OLLAMA_HOST="1.2.3.4:5", OLLAMA_MAX_QUEUE="9")

    host, problems = decode_host(file, environment)

    assert problems == []
    assert (host.host, host.port, host.max_queue, host.memory_bytes) == ("1.2.3.4", 1, 3, None)


def test_decode_host_of_wrong_values_names_file_lines_and_variables() -> None:
    """A problem of the environment is told under the variable's name."""
    file = _source('\nprot = 1\nport = 70000\nmemory = "lots"\n', "kvsup.toml")
    environment = _environment(OLLAMA_MAX_QUEUE="many", OLLAMA_KEEP_ALIVE="1d")

    _, problems = decode_host(file, environment)

    assert [str(problem) for problem in problems] == [
        'environment: OLLAMA_KEEP_ALIVE: time: unknown unit "d" in duration "1d"; '
        + WRITE_DURATION,
        "environment: OLLAMA_MAX_QUEUE: expected int, got str",
        "kvsup.toml:2: prot: unknown key; did you mean port?",
        "kvsup.toml:3: port: expected int <= 65535",
        f"kvsup.toml:4: memory: 'lots' is no size; {WRITE_SIZE}",
    ]


@pytest.mark.parametrize("key", ["client_timeout", "idle_timeout", "slow_reader_timeout"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("0", '0 is no time at all; write e.g. "1m", or "-1" for ever'),
        ('"0s"', '0 is no time at all; write e.g. "1m", or "-1" for ever'),
        ("nan", f'time: invalid duration "nan"; {WRITE_DURATION}'),
    ],
)
def test_decode_of_no_time_for_a_client_says_what_to_write(key: str, value: str, says: str) -> None:
    """Elsewhere 0 means no limit, or at once: here it would close every connection."""
    _, problems = decode_host(_source(f"{key} = {value}", "kvsup.toml"), _environment())

    assert [str(problem) for problem in problems] == [f"kvsup.toml:1: {key}: {says}"]


def test_decode_of_a_fallback_gives_its_steps_and_a_variant_has_its_own() -> None:
    """A list in a variant replaces that of the model; without one it is inherited."""
    models = _models(
        """
        model = "m.gguf"
        fallback = [{ num_ctx = 2048 }, { kv_cache_type = "q8_0:q4_0", prompt_cache = "64MiB" }]
        [variants.same]
        [variants.other]
        fallback = [{ mmproj = "off", draft_model = "off" }]
        """
    )

    second = FallbackStep(kv_cache_type=parse_kv_pair("q8_0:q4_0"), prompt_cache_bytes=64 << 20)
    assert models["m"].fallback == (FallbackStep(num_ctx=2048), second)
    assert models["m:same"].fallback == models["m"].fallback
    assert models["m:other"].fallback == (FallbackStep(mmproj="off", draft_model="off"),)


def test_decode_of_a_wrong_fallback_names_each_key_with_the_line_of_its_step() -> None:
    """Steps are counted from 1."""
    problems = _problems(
        """\
        model = "m.gguf"
        fallback = [
          { num_ctx = 2 },
          { mmproj = "none" },
          {},
          { num_ctxx = 512 },
        ]
        """
    )

    assert sorted(problems) == [
        "m.toml:3: fallback.1.num_ctx: expected int >= 4",
        "m.toml:4: fallback.2.mmproj: invalid enum value 'none'; write off",
        "m.toml:5: fallback.3: is empty; write e.g. num_ctx = 4096",
        "m.toml:6: fallback.4.num_ctxx: unknown key; did you mean num_ctx?",
    ]


@pytest.mark.parametrize("value", ["{ num_ctx = 512 }", '"small"', "[512]"])
def test_decode_of_a_fallback_that_is_no_list_of_tables_says_what_to_write(value: str) -> None:
    """The commonest slip is one table without brackets."""
    [problem] = _problems(f'model = "m.gguf"\nfallback = {value}\n')

    assert "is no list of tables; write e.g. fallback = [{ num_ctx = 4096 }]" in problem


def test_decode_of_messages_gives_them_and_a_variant_has_its_own() -> None:
    """In either spelling of a list of tables; a variant inherits them or replaces them."""
    models = _models("""\
        model = "m.gguf"

        [[messages]]
        role = "user"
        content = "2+2?"

        [[messages]]
        role = "assistant"
        content = "4"

        [variants.same]
        num_ctx = 1024

        [variants.bare]
        messages = []
        """)

    asked = MessageConfig(role="user", content="2+2?")
    assert models["m"].messages == (asked, MessageConfig(role="assistant", content="4"))
    assert models["m:same"].messages == models["m"].messages
    assert models["m:bare"].messages == ()


def test_decode_of_wrong_messages_names_each_key_with_the_line_of_its_table() -> None:
    """Both keys must be there; one that is wrong is none of the model's."""
    text = """\
        model = "m.gguf"
        messages = [
            { role = "user" },
            { role = "tool", content = 1 },
            {},
            { rol = "user", content = "x" },
        ]
        """

    assert _problems(text) == [
        "m.toml:3: messages.1.content: missing; write content = …",
        "m.toml:4: messages.2.role: invalid enum value 'tool'; write system, user or assistant",
        "m.toml:4: messages.2.content: expected str, got int",
        'm.toml:5: messages.3: is empty; write e.g. role = "user", content = "Hi"',
        "m.toml:6: messages.4.rol: unknown key; did you mean role?",
        "m.toml:6: messages.4.role: missing; write role = …",
    ]
