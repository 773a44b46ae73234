"""The schemas that editors read, held to the types."""

import json
from pathlib import Path

import msgspec
import pytest

from kvsup.config import ModelConfig, RestartConfig, WatchdogConfig
from kvsup.decode import Source, decode_host, decode_models
from kvsup.hostconfig import HostConfig
from kvsup.schema import host_schema, model_schema

ROOT = Path(__file__).parents[2]
NOTHING = Source("environment", {})


def _keys(kind: type[msgspec.Struct]) -> set[str]:
    return {f.encode_name for f in msgspec.structs.fields(kind)} - {
        "source",
        "kv_is_auto",
        "num_ctx_is_auto",
    }


def _problems_as_model(source: Source) -> list[str]:
    _, problems = decode_models(source, {}, stem="m")
    return [str(problem) for problem in problems]


def _problems_as_host(source: Source) -> list[str]:
    _, problems = decode_host(source, NOTHING)
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(("kind", "make"), [("model", model_schema), ("host", host_schema)])
def test_checked_in_schema_is_the_one_of_the_types(kind: str, make: object) -> None:
    """``kvsup schema KIND > schemas/KIND.schema.json`` was run after the last change of a key."""
    assert callable(make)

    text = (ROOT / "schemas" / f"{kind}.schema.json").read_text("utf-8")

    assert text == json.dumps(make(), indent=2, ensure_ascii=False) + "\n"


def test_schema_of_a_model_has_every_key_and_variants_have_all_but_the_name() -> None:
    """An editor knows what kvsup knows."""
    properties = model_schema()["properties"]

    assert set(properties) == _keys(ModelConfig) | {"variants"}
    assert set(properties["restart"]["properties"]) == _keys(RestartConfig)
    assert set(properties["watchdog"]["properties"]) == _keys(WatchdogConfig)
    variant = properties["variants"]["additionalProperties"]
    assert set(variant["properties"]) == _keys(ModelConfig) - {"name"}
    assert not variant["additionalProperties"]
    assert model_schema()["required"] == ["model"]


def test_schema_of_the_host_has_every_key() -> None:
    """As above, and nothing is required."""
    schema = host_schema()

    assert set(schema["properties"]) == _keys(HostConfig)
    assert "required" not in schema


@pytest.mark.parametrize("kind", [ModelConfig, HostConfig])
def test_schema_default_is_a_value_that_decodes_to_the_default(kind: type[msgspec.Struct]) -> None:
    """What an editor shows as the default can be written down and changes nothing."""
    schema = model_schema() if kind is ModelConfig else host_schema()
    shown = {
        key: shape["default"] for key, shape in schema["properties"].items() if "default" in shape
    }

    if kind is ModelConfig:
        models, problems = decode_models(
            Source("m", {**shown, "model": "x", "name": "m"}), {}, stem="m"
        )
        assert models == [ModelConfig(name="m", model="x", source="m")]
    else:
        host, problems = decode_host(Source("h", shown), NOTHING)
        assert host == HostConfig()
    assert problems == []


@pytest.mark.parametrize("kind", ["model", "host"])
def test_schema_example_is_a_value_that_decodes(kind: str) -> None:
    """What an editor offers, kvsup takes."""
    schema = model_schema() if kind == "model" else host_schema()
    wrong = []

    for key, value in (
        (key, example)
        for key, shape in schema["properties"].items()
        for example in shape.get("examples", ())
    ):
        source = Source("s", {"model": "x", key: value} if kind == "model" else {key: value})
        wrong += _problems_as_model(source) if kind == "model" else _problems_as_host(source)

    assert wrong == []
