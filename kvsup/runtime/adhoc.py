"""The plan of a GGUF file that no configuration names, for a look at it."""

from collections.abc import Mapping
from pathlib import Path

from kvsup.config import ModelConfig
from kvsup.errors import ConfigError, KvsupError
from kvsup.plan import Plan, make_plan
from kvsup.runtime import paths
from kvsup.runtime.binaries import default_binary, probe
from kvsup.runtime.knowledge import machine_of
from kvsup.runtime.learning import learnt_types
from kvsup.runtime.modelfile import read_model_file
from kvsup.runtime.remembered import Remembered


def plan_of_file(path: Path, environ: Mapping[str, str]) -> Plan:
    """Return the plan of a model with nothing but its file, by the llama-server that is there.

    Raises:
        ConfigError: the file cannot be read.
        KvsupError: there is no llama-server.
    """
    model = ModelConfig(name=path.stem, model=str(path.absolute()))
    file, findings = read_model_file(model)
    if file is None:
        raise ConfigError("; ".join(message for _, message in findings))
    server = default_binary(paths.cache_dir())
    if server is None:
        raise KvsupError("no llama-server was found; run kvsup setup")
    state = paths.state_dir(None)
    try:
        binary = probe(server, state=state, inherited=environ)
    except ValueError as error:
        raise KvsupError(str(error)) from error
    store = Remembered(state)
    return make_plan(
        model,
        binary,
        file,
        inherited=environ,
        run_dir=str(paths.run_dir(state)),
        learnt=learnt_types(store, binary),
        machine=machine_of(store, binary, file, model),
    )
