"""Configuration folders on disk, with a real binary: what a folder says will be run."""

from pathlib import Path

import pytest

from kvsup.plan import Plan
from kvsup.runtime.configdir import Configuration
from kvsup.runtime.paths import cache_dir
from tests.runtime.folders import ConfigFolder


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


def _plans(configuration: Configuration) -> dict[str, Plan]:
    return {plan.name: plan for plan in configuration.plans}


def test_read_of_a_good_folder_plans_each_model_and_variant(
    folder: ConfigFolder, smollm2: Path
) -> None:
    """A plan says what will be spawned, and what it will take."""
    configuration = folder.read(
        host="keep_alive = 60\n",
        smol=f"""\
        model = "{smollm2}"
        aliases = ["tiny"]
        kv_cache_type = "q8_0:q5_1"
        num_ctx = 1024
        num_parallel = 2
        [variants.agent]
        kv_cache_type = "f16"
        """,
        zeta=f'name = "org/zeta:1"\nmodel = "{smollm2}"\n[variants.agent]\nnum_ctx = 99999\n',
    )
    plans = _plans(configuration)

    assert list(plans) == ["smol", "smol:agent", "org/zeta:1", "org/zeta:1-agent"]
    assert plans["smol"].model.aliases == ("tiny",)
    assert plans["smol:agent"].model.aliases == ()
    assert {plan.model.keep_alive_s for plan in plans.values()} == {60}
    assert plans["smol"].model.source == "configs/smol.toml"
    words = plans["smol"].argv
    assert words[words.index("--ctx-size") + 1] == "2048"
    assert words[words.index("--cache-type-k") + 1] == "q8_0"
    assert words[words.index("--cache-type-v") + 1] == "q5_1"
    trained = plans["smol"].file.metadata.integer("llama.context_length")
    assert plans["org/zeta:1-agent"].model.num_ctx == trained
    elements = 30 * 2048 * 192
    assert plans["smol"].estimate.k_bytes == elements * 34 // 32
    assert plans["smol"].estimate.v_bytes == elements * 24 // 32


def test_plans_of_one_folder_share_no_name_socket_or_digest(
    folder: ConfigFolder, smollm2: Path
) -> None:
    """Clients tell models apart by digests, processes by sockets."""
    configuration = folder.read(
        smol=f'model = "{smollm2}"\n[variants.a]\n[variants.b]\nsystem = "x"\n',
    )

    for attribute in ("name", "socket", "digest", "identity"):
        assert len({getattr(plan, attribute) for plan in configuration.plans}) == 3
    for plan in configuration.plans:
        assert Path(plan.socket).parent == configuration.run_dir
        assert len(plan.socket) < 108


def test_model_path_of_each_form_is_found(
    folder: ConfigFolder, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative to the file, below the home, absolute, or what ``kvsup setup`` fetched."""
    home = folder.path.absolute().parent / "home"
    home.mkdir()
    (home / "home.gguf").symlink_to(smollm2)
    (folder.path / "here.gguf").symlink_to(smollm2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_dir().parent))
    monkeypatch.setenv("HOME", str(home))

    plans = _plans(
        folder.read(
            relative='model = "here.gguf"',
            dotted='model = "../configs/./here.gguf"',
            home='model = "~/home.gguf"',
            absolute=f'model = "{smollm2}"',
            fetched=f'model = "kvsup:{smollm2.name}"',
        )
    )

    assert {name: plan.model.model for name, plan in plans.items()} == {
        "relative": f"{folder.path.absolute()}/here.gguf",
        "dotted": f"{folder.path.absolute()}/here.gguf",
        "home": f"{home}/home.gguf",
        "absolute": str(smollm2),
        "fetched": str(smollm2),
    }


@pytest.mark.parametrize(
    "change",
    [
        'system = "x"', "keep_alive = 1", "preload = true", "pin = true", "load_timeout = 1",
        "stop_timeout = 1", 'aliases = ["n"]', "[options]\ntemperature = 0",
        "[restart]\nwindow = 1",
    ],
)  # fmt: skip
def test_identity_after_a_change_above_the_process_is_the_same(
    folder: ConfigFolder, smollm2: Path, change: str
) -> None:
    """What the process does not see is taken up without a new process."""
    before = folder.read(m=f'model = "{smollm2}"\n').plans[0]

    after = folder.read(m=f'model = "{smollm2}"\n{change}\n').plans[0]

    assert after.identity == before.identity
    assert after.argv == before.argv
    assert after.model != before.model


@pytest.mark.parametrize(
    "change",
    [
        'kv_cache_type = "q8_0"', "num_ctx = 99", "num_parallel = 2", "threads = 1",
        "kv_unified = true", "swa_full = true", 'flash_attention = "on"', "gpu_layers = 1",
        "batch_size = 128", "ubatch_size = 32", "prompt_cache = 0", 'reasoning = "off"',
        'embedding = "on"', 'extra_args = ["--numa", "distribute"]', 'env = { FOO = "1" }',
    ],
)  # fmt: skip
def test_identity_after_a_change_of_the_process_differs(
    folder: ConfigFolder, smollm2: Path, change: str
) -> None:
    """Every key that reaches the command line or the environment asks for a new process."""
    before = folder.read(m=f'model = "{smollm2}"\n').plans[0]

    after = folder.read(m=f'model = "{smollm2}"\n{change}\n').plans[0]

    assert after.identity != before.identity
    assert after.socket != before.socket


def test_identity_after_the_weights_were_replaced_differs(
    folder: ConfigFolder, smollm2: Path
) -> None:
    """The same path with another file behind it is another model."""
    weights = folder.path / "m.gguf"
    weights.write_bytes(smollm2.read_bytes())
    before = folder.read(m='model = "m.gguf"').plans[0]
    copy = folder.path / "copy.gguf"
    copy.write_bytes(smollm2.read_bytes())
    copy.replace(weights)

    after = folder.read(m='model = "m.gguf"').plans[0]

    assert after.argv != before.argv
    assert after.identity != before.identity


def test_child_environment_inherits_a_short_list_and_never_llama_arg(
    folder: ConfigFolder, smollm2: Path
) -> None:
    """What the user's shell holds for other llama-servers does not reach ours."""
    environ = {
        "PATH": "/bin", "LLAMA_ARG_CTX_SIZE": "1", "AIP_HTTP_PORT": "1", "SECRET_TOKEN": "x",
        "CUDA_VISIBLE_DEVICES": "0", "XDG_CONFIG_HOME": "/home/me/.config",
    }  # fmt: skip

    plan = folder.read(environ=environ, m=f'model = "{smollm2}"\nenv = {{ FOO = "1" }}\n').plans[0]

    assert plan.environment["PATH"] == "/bin"
    assert plan.environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert plan.environment["FOO"] == "1"
    assert plan.environment["XDG_CONFIG_HOME"] != "/home/me/.config"
    assert not {"LLAMA_ARG_CTX_SIZE", "AIP_HTTP_PORT", "SECRET_TOKEN"} & set(plan.environment)


def test_shared_keys_come_from_variable_then_host_file_then_model(
    folder: ConfigFolder, smollm2: Path
) -> None:
    """Environment < kvsup.toml < model < variant, on a real folder."""
    plans = _plans(
        folder.read(
            environ={"OLLAMA_KV_CACHE_TYPE": "q8_0:q4_0", "OLLAMA_CONTEXT_LENGTH": "256"},
            host="num_ctx = 512\n",
            a=f'model = "{smollm2}"\n',
            b=f'model = "{smollm2}"\nnum_ctx = 1024\n[variants.v]\nkv_cache_type = "f16"\n',
        )
    )

    seen = {
        name: (str(plan.model.kv_cache_type), plan.model.num_ctx) for name, plan in plans.items()
    }
    assert seen == {
        "a": ("q8_0:q4_0", 512), "b": ("q8_0:q4_0", 1024), "b:v": ("f16:f16", 1024),
    }  # fmt: skip
