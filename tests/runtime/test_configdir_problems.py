"""Configuration folders on disk, with a real binary: what is refused, and in which words."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import pytest

from kvsup.environment import Environment, read_environment
from kvsup.errors import ConfigError
from kvsup.hostconfig import HostConfig
from kvsup.llama.argv import _OWNED
from kvsup.runtime.configdir import read_configuration, read_host
from tests.runtime.folders import ConfigFolder

NO_TYPE = (
    "'q9_0' is no KV cache type of this llama-server; did you mean 'q8_0'? "
    "it takes f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1"
)
NO_SCHEME = "origin 'example.com' has no scheme; write e.g. 'https://example.com'"
NO_NAME = "no model name; letters, digits, . _ - and one :tag are"
WOULD_CHANGE = "would change what kvsup promises; use the model's keys instead"
WRITE_LEVEL = "write debug, info, warning or error"

EVERYTHING_WRONG = """\
configs/broken.toml:2: is no TOML: Invalid value (at line 2, column 11)
configs/gone.toml:1: model: no such file: {parent}/gone.gguf; write the path of a GGUF file
configs/heads.toml:3: kv_cache_type: K as q8_0 is stored in blocks of 32, \
which do not divide this model's heads of 40; use f16:f16
configs/kvsup.toml:3: prot: unknown key; did you mean port?
configs/kvsup.toml:4: max_queue: expected int, got str
configs/latin.toml: cannot be read: 'utf-8' codec can't decode byte 0xe4 in position 9: \
invalid continuation byte
configs/nofa.toml:1: kv_cache_type: quantized V (q8_0) needs flash attention, which is off; \
set flash_attention = "auto", or use f16:f16
configs/other.toml:1: name: 'Gone' is the name of a model in configs/gone.toml, too
configs/typo.toml:3: variants.agent.kv_cache_type: 'q5_2' is no KV cache type of this \
llama-server; did you mean 'q5_1'? it takes f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1
configs/unknown.toml:2: keep_alve: unknown key; did you mean keep_alive?
configs/unknown.toml:3: num_ctx: expected int, got str; write a number or "auto"
configs/wild.toml:2: extra_args: --host is kvsup's own; drop it
configs/wild.toml:2: extra_args: --cache_type_k=f32 is kvsup's own; use kv_cache_type
configs/wild.toml:3: env.LLAMA_ARG_CTX_SIZE: would change what kvsup promises; \
use the model's keys instead
configs/wild.toml:5: options.temprature: no such option; did you mean temperature?
configs/wild.toml:6: options.num_ctx: acts at load time; use the key num_ctx of the model instead
configs/wild.toml:7: options.stop: option "stop" must be of type array
"""


@pytest.fixture
def folder(
    tmp_path: Path,
    llama_server: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> ConfigFolder:
    """Return an empty configuration folder; what a binary told is kept from test to test."""
    monkeypatch.chdir(tmp_path)
    return ConfigFolder(llama_server=llama_server, state=tmp_path_factory.getbasetemp() / "state")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Return a GGUF without tensors whose heads have 40 elements, which blocks of 32 do not fit."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(160)
    writer.add_block_count(2)
    writer.add_feed_forward_length(320)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_read_of_many_wrong_files_reports_every_problem_in_one_go(
    folder: ConfigFolder, smollm2: Path, tiny: Path
) -> None:
    """Each problem has file, line and key, says what is wrong, and what to write instead."""
    (folder.path / "broken.toml").write_text('model = "x"\nnum_ctx = = 1\n')
    (folder.path / "latin.toml").write_bytes(b'model = "\xe4"\n')

    problems = folder.problems(
        host='prot = 1\nmax_queue = "many"\n',
        gone='model = "../gone.gguf"\n',
        heads=f'model = "{tiny}"\n\nkv_cache_type = "q8_0:f16"\n',
        nofa=f'kv_cache_type = "f16:q8_0"\nflash_attention = "off"\nmodel = "{smollm2}"\n',
        other=f'name = "Gone"\nmodel = "{smollm2}"\n',
        typo=f'model = "{smollm2}"\n[variants.agent]\nkv_cache_type = "q8_0:q5_2"\n',
        unknown=f'model = "{smollm2}"\nkeep_alve = 1\nnum_ctx = "8k"\n',
        wild=f"""\
        model = "{smollm2}"
        extra_args = ["--threads-http", "4", "--host", "0.0.0.0", "--cache_type_k=f32"]
        env = {{ LLAMA_ARG_CTX_SIZE = "1", FOO = "1" }}
        [options]
        temprature = 0.5
        num_ctx = 4096
        stop = "x"
        """,
    )

    assert problems == EVERYTHING_WRONG.format(parent=folder.path.parent.absolute()).splitlines()


@pytest.mark.parametrize("flag", sorted(_OWNED))
@pytest.mark.parametrize("form", ["{}", "{}=1"])
def test_owned_flag_among_extra_args_is_refused(
    folder: ConfigFolder, smollm2: Path, flag: str, form: str
) -> None:
    """What a key of kvsup says, no other place may say."""
    argument = form.format(flag)

    problems = folder.problems(m=f'model = "{smollm2}"\nextra_args = ["{argument}"]\n')

    assert len(problems) == 1
    assert problems[0].startswith(f"configs/m.toml:2: extra_args: {argument} is kvsup's own; ")


@pytest.mark.parametrize(
    "name",
    [
        "LLAMA_API_KEY", "LLAMA_ARG_API_KEY", "LLAMA_ARG_HOST", "LLAMA_ARG_PORT",
        "LLAMA_ARG_CACHE_TYPE_K", "LLAMA_ARG_CACHE_TYPE_V", "LLAMA_ARG_CTX_SIZE",
        "LLAMA_ARG_N_PARALLEL", "LLAMA_ARG_KV_UNIFIED", "LLAMA_SERVER_ROUTER_PORT", "AIP_HTTP_PORT",
        "XDG_CONFIG_HOME",
    ],
)  # fmt: skip
def test_owned_variable_in_env_is_refused(folder: ConfigFolder, smollm2: Path, name: str) -> None:
    """llama-server reads variables, too."""
    problems = folder.problems(m=f'model = "{smollm2}"\n[env]\n{name} = "1"\n')

    assert problems == [f"configs/m.toml:3: env.{name}: {WOULD_CHANGE}"]


@pytest.mark.parametrize(
    ("host", "environ", "problem"),
    [
        (
            "num_ctx = 1\n",
            {},
            'configs/kvsup.toml:3: num_ctx: expected int >= 4; write a number or "auto"',
        ),
        ("num_parallel = 0\n", {}, "configs/kvsup.toml:3: num_parallel: expected int >= 1"),
        (
            'kv_cache_type = "q8_0:q9_0"\n',
            {},
            f"configs/kvsup.toml:3: kv_cache_type: {NO_TYPE}",
        ),
        (
            "",
            {"OLLAMA_KV_CACHE_TYPE": "q8_0:q9_0"},
            f"environment: OLLAMA_KV_CACHE_TYPE: {NO_TYPE}",
        ),
        (
            'origins = ["example.com"]\n',
            {},
            f"configs/kvsup.toml:3: origins: {NO_SCHEME}",
        ),
    ],
)
def test_wrong_default_for_every_model_is_told_where_it_stands(
    folder: ConfigFolder, smollm2: Path, host: str, environ: dict[str, str], problem: str
) -> None:
    """Whoever wrote a wrong default looks for it in kvsup.toml or in the environment."""
    problems = folder.problems(host=host, environ=environ, m=f'model = "{smollm2}"\n')

    assert problems == [problem]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (
            {"a": 'name = "x"\nmodel = "{m}"', "b": 'name = "X:latest"\nmodel = "{m}"'},
            "configs/b.toml:1: name: 'X:latest' is the name of a model in configs/a.toml, too",
        ),
        (
            {"a": 'model = "{m}"', "b": 'model = "{m}"\naliases = ["c", "A"]'},
            "configs/b.toml:2: aliases: 'A' is the name of a model in configs/a.toml, too",
        ),
        (
            {"a": 'model = "{m}"\n[variants.v]', "b": 'name = "a:v"\nmodel = "{m}"'},
            "configs/b.toml:1: name: 'a:v' is the name of a model in configs/a.toml, too",
        ),
        (
            {"a": 'model = "{m}"\nname = "a b"'},
            f"configs/a.toml:2: name: 'a b' is {NO_NAME}",
        ),
    ],
)
def test_name_that_cannot_be_served_is_refused(
    folder: ConfigFolder, smollm2: Path, files: dict[str, str], problem: str
) -> None:
    """Two models cannot answer to one name, whatever its case, alias or default tag."""
    for stem, text in files.items():
        folder.write(stem, text.format(m=smollm2))

    assert folder.problems() == [problem]


def test_weights_that_are_no_gguf_are_refused(folder: ConfigFolder) -> None:
    """The header is read before any process is spawned."""
    (folder.path / "text.gguf").write_text(
        "not a model, only a text that is long enough to be read"
    )

    problems = folder.problems(m='model = "text.gguf"\n')

    assert len(problems) == 1
    assert problems[0].startswith(f"configs/m.toml:1: model: {folder.path.absolute()}/text.gguf: ")


@pytest.mark.parametrize("key", ["mmproj", "template"])
def test_named_file_that_is_missing_is_refused(
    folder: ConfigFolder, smollm2: Path, key: str
) -> None:
    """Files beside the weights are looked for, too."""
    problems = folder.problems(m=f'model = "{smollm2}"\n{key} = "gone"\n')

    assert problems == [f"configs/m.toml:2: {key}: no such file: {folder.path.absolute()}/gone"]


def test_binary_that_is_missing_is_refused_for_the_model_that_names_it(
    folder: ConfigFolder, smollm2: Path
) -> None:
    """Another llama-server for one model is asked like the common one."""
    problems = folder.problems(
        a=f'model = "{smollm2}"\n', m=f'model = "{smollm2}"\nllama_server = "./gone"\n'
    )

    assert len(problems) == 1
    assert problems[0].startswith("configs/m.toml:2: llama_server: ")
    assert f"{folder.path.absolute()}/gone" in problems[0]


def test_empty_folder_is_right(folder: ConfigFolder) -> None:
    """A model can be pulled into a kvsup that serves none yet."""
    assert folder.read().plans == ()


def test_missing_folder_is_told_by_its_name(tmp_path: Path) -> None:
    """A wrong path is no empty configuration."""
    with pytest.raises(ConfigError, match="gone: no such folder; make it and write one TOML file"):
        read_configuration(tmp_path / "gone", {})


def test_folder_that_is_replaced_while_it_is_read_is_not_an_empty_one(
    folder: ConfigFolder, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``mv configs old; mv new configs``: a reload between the two took every model away."""
    in_force = folder.read(m=f'model = "{smollm2}"')

    def moved_away(environ: Mapping[str, str]) -> Environment:
        folder.path.rename("old")
        return read_environment(environ)

    monkeypatch.setattr("kvsup.runtime.configdir.read_environment", moved_away)
    with pytest.raises(ConfigError, match=r"m\.toml: cannot be read: "):
        read_configuration(folder.path, {}, in_force=in_force)


def test_folder_that_cannot_be_listed_is_a_problem(tmp_path: Path) -> None:
    """Not an empty one, also for the command line that only looks for the host's address."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)

    with pytest.raises(ConfigError, match="loop: cannot be listed: "):
        read_configuration(loop, {})
    host, error = read_host(loop, {})

    assert host == HostConfig()
    assert "loop: cannot be listed: " in str(error)


def test_host_file_that_is_wrong_is_told_although_its_models_are_right(
    folder: ConfigFolder, smollm2: Path
) -> None:
    """A problem of the host's file is told although every model is right."""
    problems = folder.problems(host='log_level = "loud"\n', m=f'model = "{smollm2}"\n')

    assert problems == [
        f"configs/kvsup.toml:3: log_level: invalid enum value 'loud'; {WRITE_LEVEL}"
    ]


def test_problem_of_a_model_whose_name_ends_like_its_variant_points_at_the_model(
    folder: ConfigFolder, smollm2: Path
) -> None:
    """``my-agent`` is no variant, although it has one called ``agent``."""
    problems = folder.problems(
        m=f"""\
        name = "my-agent"
        model = "{smollm2}"
        kv_cache_type = "q9_0"
        [variants.agent]
        kv_cache_type = "f16"
        """
    )

    assert problems == [f"configs/m.toml:3: kv_cache_type: {NO_TYPE}"]


def test_problem_of_an_argument_that_the_binary_lacks_names_the_nearest(
    folder: ConfigFolder, smollm2: Path
) -> None:
    """A misspelt flag is told before a process is started; values and known flags are not."""
    problems = folder.problems(
        m=f"""\
        model = "{smollm2}"
        extra_args = ["--contxt-shift", "--keep", "-1", "-ot", "x=CPU", "--top_k", "--top-q"]
        """
    )

    says = "is no argument of this llama-server; did you mean"
    assert problems == [
        f"configs/m.toml:2: extra_args: --contxt-shift {says} --context-shift?",
        f"configs/m.toml:2: extra_args: --top-q {says} --top-p?",
    ]
