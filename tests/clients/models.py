"""The models that the clients of the matrix are tested with, as files of a configuration folder."""

from pathlib import Path

from scripts.make_tiny_gguf import chat_template
from tests.tiny import TinyModels

_SMOLLM2 = """
model = "{path}"
num_ctx = 2048
num_parallel = 2
threads = 1
options = {{ temperature = 0.0, seed = 1 }}
"""

_ENDLESS = """
model = "{path}"
num_ctx = 2048
threads = 1
extra_args = ["--ignore-eos"]
"""

_EMBEDDER = """
model = "{path}"
num_ctx = 512
threads = 1
embedding = "on"
"""

_TINY = """
model = "{path}"
num_ctx = 2048
num_parallel = 2
threads = 1
options = {{ temperature = 0.0 }}
"""

_CITY_JSON = ('{"name": ', '"Paris", ', '"population": ', "2100000}")


def client_models(tiny: TinyModels, smollm2: Path) -> dict[str, str]:
    """Return the TOML of each model by its name; what each is for stands in ``asking.py``."""
    vision, audio = tiny.vision(), tiny.audio()
    return {
        "smollm2": _SMOLLM2.format(path=smollm2),
        "embedder": _EMBEDDER.format(path=smollm2),
        "endless": _ENDLESS.format(path=smollm2),
        "caller": _TINY.format(path=tiny.one_call()),
        "two-calls": _TINY.format(path=tiny.two_calls()),
        "city": _TINY.format(path=_calling_with_a_city(tiny, "City")),
        "final-result": _TINY.format(path=_calling_with_a_city(tiny, "final_result")),
        "city-json": _TINY.format(path=tiny.scripted("city_json", _CITY_JSON)),
        "thinker": _TINY.format(path=tiny.thinking()),
        "fill-in": _TINY.format(path=tiny.fill_in()),
        "seeing": _TINY.format(path=vision.model) + f'mmproj = "{vision.mmproj}"\n',
        "hearing": _TINY.format(path=audio.model) + f'mmproj = "{audio.mmproj}"\n',
    }


def _calling_with_a_city(tiny: TinyModels, tool: str) -> Path:
    call = (
        "<tool_call>",
        f'\n{{"name": "{tool}", ',
        '"arguments": {"name": "Paris", ',
        '"population": 2100000}}',
        "\n</tool_call>",
    )
    return tiny.scripted(tool, call, template=chat_template(tools=True))
