"""The OpenAPI document is sound, and says what the routes and the request types say."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import validate
from starlette.routing import Match, Route

from kvsup.api.app import Store, create_app
from kvsup.api.openapi import document
from kvsup.hostconfig import HostConfig
from kvsup.ollama import requests
from kvsup.ollama.options import OPTIONS
from kvsup.runtime.chronicle import Chronicle
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.historyfiles import HistoryFiles
from kvsup.runtime.kvfiles import KVFiles
from kvsup.runtime.making import make_instance
from kvsup.runtime.remembered import Remembered
from kvsup.runtime.warming import Store as KVStore
from kvsup.runtime.weightsums import WeightSums
from kvsup.runtime.works import Works
from tests.modelworks import changes_of, works_of

DOCUMENT: dict[str, Any] = document("1.2.3")
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = [(m, p) for p, item in DOCUMENT["paths"].items() for m in item if m != "parameters"]


async def _reload() -> None:
    """Change nothing."""


def _routes() -> list[Route]:
    """Return the routes of a kvsup without models, from below the layers around them."""
    host, nowhere = HostConfig(), Path("nowhere")
    fleet = Fleet([], host, make=make_instance, emit=lambda _event: None)
    changes = changes_of(nowhere, nowhere, lambda _name: None)
    store = Store(
        changes,
        works_of(changes, Works()),
        reload=_reload,
        refusal=lambda: None,
        kept=KVStore(
            KVFiles(nowhere, max_bytes=0, emit=lambda _event: None),
            WeightSums(Remembered(nowhere)),
            Remembered(nowhere),
        ),
    )
    chronicle = Chronicle(HistoryFiles(nowhere), version="1", emit=lambda _event: None)
    app: Any = create_app(
        fleet, host, store=store, chronicle=chronicle, keys=lambda: None, state_dir=nowhere
    )
    while not hasattr(app, "routes"):
        app = app._app
    return [route for route in app.routes if isinstance(route, Route)]


def _request_fields() -> Iterator[tuple[str, str]]:
    for name, kind in vars(requests).items():
        if name.endswith("Request") and isinstance(kind, type(msgspec.Struct)):
            yield from ((name, field) for field in kind.__struct_encode_fields__)


def _example(path: str) -> str:
    return re.sub(r"{\w+}", "x", path)


def _content(method: str, path: str, status: str) -> dict[str, Any]:
    """Return the schema of each content type of an answer."""
    answer = DOCUMENT["paths"][path][method]["responses"][status]
    if "$ref" in answer:
        answer = DOCUMENT["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    content: dict[str, Any] = answer["content"]
    return content


def _schema(content: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of what is JSON in ``content``."""
    name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    schema: dict[str, Any] = SCHEMAS[name]
    return schema


def test_document_is_valid_openapi_of_this_version() -> None:
    """Other programs read it: it fits the meta-schema, its references resolve, it is JSON."""
    copied = msgspec.json.decode(msgspec.json.encode(DOCUMENT))

    validate(copied)

    assert copied == DOCUMENT
    assert copied["openapi"].startswith("3.1")
    assert copied["info"]["version"] == "1.2.3"


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_documented_operation_is_a_route(method: str, path: str) -> None:
    """Nothing is promised that is not there."""
    scope = {"type": "http", "method": method.upper(), "path": _example(path), "headers": []}

    assert any(route.matches(scope)[0] is Match.FULL for route in _routes())


@pytest.mark.parametrize("route", _routes(), ids=lambda route: route.path)
def test_route_is_documented_with_each_of_its_methods(route: Route) -> None:
    """Nothing is served that is not said; a route for many paths has one of them at least."""
    documented = {m.upper() for m, p in OPERATIONS if route.path_regex.match(_example(p))}

    assert set(route.methods or ()) <= documented


@pytest.mark.parametrize(("kind", "field"), list(_request_fields()))
def test_field_of_a_request_is_in_its_schema(kind: str, field: str) -> None:
    """What kvsup reads is documented, under the wire's name, and may be null."""
    shape = SCHEMAS[kind]["properties"][field.removesuffix("_s")]

    assert {"type": "null"} in shape["anyOf"]


def test_options_are_those_that_are_known() -> None:
    """Each option has a type."""
    shape = SCHEMAS["ChatRequest"]["properties"]["options"]["anyOf"][0]

    assert shape["properties"].keys() == OPTIONS.keys()
    assert all(option["type"] for option in shape["properties"].values())


@pytest.mark.parametrize(
    ("path", "types"),
    [
        ("/api/chat", {"application/json", "application/x-ndjson"}),
        ("/api/pull", {"application/json", "application/x-ndjson"}),
        ("/api/embed", {"application/json"}),
        ("/api/copy", set()),
        ("/v1/chat/completions", {"application/json", "text/event-stream"}),
        ("/v1/audio/transcriptions", {"application/json", "text/plain"}),
        ("/v1/messages", {"application/json", "text/event-stream"}),
    ],
)
def test_answer_has_the_content_types_of_its_route(path: str, types: set[str]) -> None:
    """A stream is told apart from the whole."""
    assert _content("post", path, "200").keys() == types


@pytest.mark.parametrize(
    ("path", "required"),
    [
        ("/api/chat", ["error"]),
        ("/kvsup/stop", ["error"]),
        ("/v1/embeddings", ["error"]),
        ("/v1/messages", ["type", "error"]),
        ("/completion", ["error"]),
    ],
)
def test_error_has_the_shape_of_its_api(path: str, required: list[str]) -> None:
    """A text for Ollama's clients, an object for all others."""
    schema = _schema(_content("post", path, "404"))
    is_text = path.startswith(("/api", "/kvsup"))

    assert schema["required"] == required
    assert schema["properties"]["error"]["type"] == ("string" if is_text else "object")


@pytest.mark.parametrize("path", ["/api/chat", "/v1/responses", "/completion", "/models/load"])
def test_work_that_a_model_does_may_be_refused_in_every_way(path: str) -> None:
    """Wrong, unknown, too much, impossible, failed."""
    statuses = DOCUMENT["paths"][path]["post"]["responses"].keys()

    assert statuses >= {"200", "400", "404", "500", "501", "503"}


def test_request_of_v1_names_what_is_read_and_allows_the_rest() -> None:
    """Whatever else a client sends goes on to llama-server."""
    schema = SCHEMAS["ChatCompletionRequest"]

    assert schema["required"] == ["model", "messages"]
    assert schema["additionalProperties"] is True
