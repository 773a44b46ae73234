"""The OpenAPI 3.1 document that kvsup serves at ``GET /openapi.json``.

Schemas of Ollama's requests come from the types that decode them. Of ``/v1/*`` and of
llama-server's own routes only what kvsup reads is named: the rest goes on as it came.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import msgspec
from msgspec import Struct

from kvsup.ollama import requests, storerequests
from kvsup.ollama.options import OPTIONS

_Schema = dict[str, Any]

_JSON, _NDJSON, _SSE = "application/json", "application/x-ndjson", "text/event-stream"
_TEXT, _BYTES, _TAR = "text/plain", "application/octet-stream", "application/x-tar"

_STR: _Schema = {"type": "string"}
_INT: _Schema = {"type": "integer"}
_BOOL: _Schema = {"type": "boolean"}
_MAP: _Schema = {"type": "object"}
_MAPS: _Schema = {"type": "array", "items": _MAP}
_NUMBER: _Schema = {"type": "number"}
_VECTOR: _Schema = {"type": "array", "items": _NUMBER}
_STRINGS: _Schema = {"type": "array", "items": _STR}
_FILE: _Schema = {"contentMediaType": _BYTES}
_PARTS: _Schema = {"anyOf": [_STR, _MAPS]}
_PROMPT: _Schema = {"anyOf": [_STR, _STRINGS, {"type": "array", "items": _INT}]}
_ANY: _Schema = {"description": "Any JSON value."}


def _object(required: str = "", /, **properties: _Schema) -> _Schema:
    """Return the schema of an object; ``required`` are names parted by blanks."""
    schema: _Schema = {"type": "object", "properties": properties, "additionalProperties": True}
    return {**schema, "required": required.split()} if required else schema


_RENAMED = {"keep_alive_s": "keep_alive", "base": "from", "licenses": "license"}
"""Fields that the wire names otherwise than the types do."""

_KINDS = {"integer": _INT, "float32": _NUMBER, "boolean": _BOOL, "array": _STRINGS}

_WIRE: Mapping[str, _Schema] = {
    "keep_alive": {
        "description": "Seconds, or a text such as 5m; negative: for ever; 0: unload.",
        "anyOf": [_NUMBER, _STR],
    },
    "format": {"anyOf": [{"enum": ["json", ""]}, _MAP]},
    "think": {"anyOf": [_BOOL, {"enum": ["low", "medium", "high", "max"]}]},
    "input": {"description": "One text or several.", "anyOf": [_STR, _STRINGS]},
    "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
    "license": {"description": "One text or several.", "anyOf": [_STR, _STRINGS]},
    "options": _object(**{name: _KINDS.get(o.kind, _STR) for name, o in OPTIONS.items()}),
}
"""Fields of requests whose types say less than is true of the wire."""

_REPLY: Mapping[str, _Schema] = {"model": _STR, "created_at": _STR, "done": _BOOL}
_CAUSE = _object("message type", message=_STR, type=_STR)
_TURNS: _Schema = {"type": "array", "items": _object("role content", role=_STR, content=_PARTS)}
_CHAT: Mapping[str, _Schema] = {"model": _STR, "messages": _TURNS, "stream": _BOOL}

_WRITTEN: Mapping[str, _Schema] = {
    "Object": _MAP,
    "Bytes": _FILE,
    "OllamaError": _object("error", error=_STR, signin_url=_STR),
    "OpenAIError": _object("error", error=_CAUSE),
    "AnthropicError": _object("type error", type={"const": "error"}, error=_CAUSE),
    "Version": _object("version", version=_STR),
    "Models": _object("models", models=_MAPS),
    "Model": _object("details model_info", details=_MAP, model_info=_MAP),
    "ChatReply": _object("model created_at message done", **_REPLY, message=_MAP),
    "GenerateReply": _object("model created_at response done", **_REPLY, response=_STR),
    "EmbedReply": _object("model embeddings", model=_STR, embeddings={"items": _VECTOR}),
    "EmbeddingsReply": _object("embedding", embedding=_VECTOR),
    "Progress": _object(status=_STR),
    "Results": {"anyOf": [_MAP, _MAPS]},
    "List": _object("object data", object={"const": "list"}, data=_MAPS),
    "ModelRequest": _object("model", model=_STR),
    "ChatCompletionRequest": _object("model messages", **_CHAT),
    "CompletionRequest": _object("model prompt", model=_STR, prompt=_PROMPT, stream=_BOOL),
    "VectorsRequest": _object("model input", model=_STR, input=_PROMPT, dimensions=_INT),
    "ResponseRequest": _object("model input", model=_STR, input=_PARTS, stream=_BOOL),
    "MessagesRequest": _object("model messages", **_CHAT, max_tokens=_INT),
    "RerankRequest": _object("model query documents", model=_STR, query=_STR, documents=_STRINGS),
    "TranscriptionForm": _object("model file", model=_STR, file=_FILE),
}
"""Schemas that no type of kvsup has."""

_CONTENT_TYPES = {"Bytes": _BYTES, "TranscriptionForm": "multipart/form-data"}
"""Of requests that are no JSON."""

_ERRORS: Mapping[int, str] = {
    400: "The request is wrong.",
    401: "An API key, or an account, is needed.",
    403: "Not allowed; without a body where the Host or the Origin is refused.",
    404: "There is no such model.",
    413: "The body is too large.",
    500: "A llama-server failed, or an option or format has the wrong type.",
    501: "The model cannot do this.",
    503: "The server is busy, or the model does not fit into memory.",
}


@dataclass(frozen=True, slots=True)
class _Route:
    """What goes in and out on the same paths; paths and methods are parted by blanks."""

    methods: str
    paths: str
    summary: str
    request: str = ""
    """Schema of the body; none without."""
    answer: str = "Object"
    """Schema of a whole answer; none where it has no body, or is no JSON."""
    stream: str = ""
    """Content type of an answer that is no JSON object."""
    runs: bool = False
    """Whether it is work that may have to wait, or be more than the model can."""


def _run(
    paths: str, summary: str, request: str, answer: str = "Object", stream: str = ""
) -> _Route:
    """Return a route that does a longer work."""
    return _Route("post", paths, summary, request, answer=answer, stream=stream, runs=True)


_SPEECH, _CLOUD = "/audio/transcriptions", "/api/experimental"

_OLLAMA = (
    _Route("get head", "/", "Say that it runs.", answer="", stream=_TEXT),
    _Route("get head", "/api/version", "Ollama's version and kvsup's.", answer="Version"),
    _Route("get", "/api/status", "Whether cloud models are there."),
    _Route("get head", "/api/tags", "Every model.", answer="Models"),
    _Route("get", "/api/ps", "Models in memory.", answer="Models"),
    _Route("post", "/api/show", "One model in full.", "ShowRequest", answer="Model"),
    _run("/api/chat", "The next message of a chat.", "ChatRequest", "ChatReply", _NDJSON),
    _run("/api/generate", "Text after a prompt.", "GenerateRequest", "GenerateReply", _NDJSON),
    _run("/api/embed", "A vector for each text.", "EmbedRequest", "EmbedReply"),
    _run("/api/embeddings", "The vector of one text.", "EmbeddingsRequest", "EmbeddingsReply"),
    _Route("post", "/api/copy", "Another name for a model.", "CopyRequest", answer=""),
    _Route("delete", "/api/delete", "Remove a name.", "NamedRequest", answer=""),
    _run("/api/pull", "Fetch a model.", "TransferRequest", "Progress", _NDJSON),
    _run("/api/push", "Send a model.", "TransferRequest", "Progress", _NDJSON),
    _run("/api/create", "Make a model.", "CreateRequest", "Progress", _NDJSON),
    _Route("head", "/api/blobs/{digest}", "Whether a file is there.", answer=""),
    _Route("post", "/api/blobs/{digest}", "Store a file.", "Bytes", answer=""),
    _Route("post", "/api/me /api/signout", "The account: there is none."),
    _Route("delete", "/api/user/keys/{key}", "A key of the account: there is none."),
    _Route("post", f"{_CLOUD}/web_search {_CLOUD}/web_fetch", "Of the cloud: refused.", "Object"),
    _Route("get", f"{_CLOUD}/model-recommendations", "Of the cloud: none."),
)
_OPENAI = (
    _Route("get head", "/v1/models", "Every model.", answer="List"),
    _Route("get", "/v1/models/{model}", "One model."),
    _run("/v1/chat/completions /chat/completions", "A chat.", "ChatCompletionRequest", stream=_SSE),
    _run("/v1/completions", "Text after a prompt.", "CompletionRequest", stream=_SSE),
    _run("/v1/embeddings", "Vectors.", "VectorsRequest"),
    _run("/v1/responses /responses", "A response.", "ResponseRequest", stream=_SSE),
    _run("/v1/rerank", "Documents by relevance.", "RerankRequest"),
    _run(f"/v1{_SPEECH} {_SPEECH}", "Speech as text.", "TranscriptionForm", stream=_TEXT),
)
_ANTHROPIC = (
    _run("/v1/messages", "A message.", "MessagesRequest", stream=_SSE),
    _run("/v1/messages/count_tokens", "The tokens of a message.", "MessagesRequest"),
)
_LLAMA_SERVER = (
    _run("/completion /completions", "Text after a prompt.", "CompletionRequest", "Results", _SSE),
    _run("/infill", "Text in a gap.", "ModelRequest", stream=_SSE),
    _run("/embedding /embeddings", "Vectors.", "ModelRequest", "Results"),
    _run("/tokenize", "Tokens of a text.", "ModelRequest"),
    _run("/detokenize", "Text of tokens.", "ModelRequest"),
    _run("/apply-template", "A chat as a prompt.", "ChatCompletionRequest"),
    _run("/rerank /reranking", "Documents by relevance.", "RerankRequest"),
    _Route("get", "/models", "Every model with its status.", answer="List"),
    _Route("post", "/models/load", "Load a model.", "ModelRequest", runs=True),
    _Route("post", "/models/unload", "Unload a model.", "ModelRequest"),
    _Route("get", "/models/sse", "What becomes of the models.", answer="", stream=_SSE),
)
_KVSUP = (
    _Route("get", "/openapi.json", "This document."),
    _Route("get head", "/health /v1/health", "Say that it runs."),
    _Route("get", "/kvsup/models", "Every model with its state.", answer="Models"),
    _Route("get", "/kvsup/why", "Why each model is as it is.", answer="Models"),
    _Route("get", "/kvsup/why/{model}", "Why a model is as it is, and its history."),
    _Route("get", "/kvsup/logs/{model}", "A llama-server's log.", answer="", stream=_TEXT),
    _Route("get", "/kvsup/kv", "Conversations that are kept in files."),
    _Route("delete", "/kvsup/kv", "Remove what is kept of conversations."),
    _Route("get", "/kvsup/kv/archive", "Kept conversations as a tar.", answer="", stream=_TAR),
    _Route("put", "/kvsup/kv/archive", "Take conversations of such a tar.", "Bytes"),
    _Route("post", "/kvsup/stop", "Unload a model once it is idle.", "ModelRequest"),
    _Route("post", "/kvsup/reset", "Let a failed model be tried again.", "ModelRequest"),
    _Route("post", "/kvsup/reload", "Read the configuration again."),
    _Route("get post delete", "/upstream/{model}/{path}", "A llama-server's own.", runs=True),
)

_APIS: Mapping[str, tuple[str, tuple[_Route, ...]]] = {
    "ollama": ("OllamaError", _OLLAMA),
    "openai": ("OpenAIError", _OPENAI),
    "anthropic": ("AnthropicError", _ANTHROPIC),
    "llama-server": ("OpenAIError", _LLAMA_SERVER),
    "kvsup": ("OllamaError", _KVSUP),
}
"""The shape of errors and the routes of each API."""


def document(version: str) -> dict[str, object]:
    """Return the document, ready to be written as JSON; ``version`` is kvsup's own."""
    paths: dict[str, _Schema] = {}
    for api, (error, routes) in _APIS.items():
        for route in routes:
            for path, method in product(route.paths.split(), route.methods.split()):
                name = "_".join([method, *re.findall(r"\w+", path)])
                operation = {"operationId": name, "tags": [api], **_operation(route, error)}
                paths.setdefault(path, _path_item(path))[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "kvsup", "version": version},
        "paths": paths,
        "components": {
            "schemas": {**_WRITTEN, **_decoded()},
            "responses": _errors(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _path_item(path: str) -> _Schema:
    shape = {"type": "string", "pattern": "^[!-~]+$"}
    names = re.findall(r"{(\w+)}", path)
    parameters = [{"name": n, "in": "path", "required": True, "schema": shape} for n in names]
    return {"parameters": parameters} if parameters else {}


def _operation(route: _Route, error: str) -> _Schema:
    operation: _Schema = {"summary": route.summary, "responses": _responses(route, error)}
    if route.request:
        content_type = _CONTENT_TYPES.get(route.request, _JSON)
        content = {content_type: {"schema": _ref(route.request)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _responses(route: _Route, error: str) -> _Schema:
    """Return the answers by status."""
    content: _Schema = {_JSON: {"schema": _ref(route.answer)}} if route.answer else {}
    if route.stream:
        content[route.stream] = {} if route.stream == _SSE else {"schema": _STR}
    responses: _Schema = {"200": {"description": "Done.", "content": content}}
    if route.request == "Bytes":
        responses["201"] = {"description": "Stored."}
    statuses = [400, 401, 403, 500]
    statuses += [404, 413] if route.request or "{" in route.paths else []
    statuses += [501, 503] if route.runs else []
    for status in sorted(statuses):
        responses[str(status)] = {"$ref": f"#/components/responses/{error}{status}"}
    return responses


def _errors() -> dict[str, _Schema]:
    """Return each error in the shape of each API."""
    return {
        f"{shape}{status}": {"description": text, "content": {_JSON: {"schema": _ref(shape)}}}
        for shape, _ in _APIS.values()
        for status, text in _ERRORS.items()
    }


def _decoded() -> dict[str, _Schema]:
    """Return the schemas of Ollama's requests and their parts, as the wire has them."""
    kinds = [k for one in (requests, storerequests) for k in vars(one).values() if _is_request(k)]
    _, components = msgspec.json.schema_components(
        kinds, schema_hook=lambda _kind: _ANY, ref_template="#/components/schemas/{name}"
    )
    wire = {name: _as_on_the_wire(schema) for name, schema in components.items()}
    for kind in ("ShowRequest", "NamedRequest", "TransferRequest", "CreateRequest"):
        wire[kind]["properties"]["name"] = _STR
    wire["CreateRequest"]["properties"]["quantization"] = _STR
    return msgspec.json.decode(msgspec.json.encode(wire), type=dict[str, _Schema])  # no tuples


def _is_request(kind: object) -> bool:
    return isinstance(kind, type(Struct)) and kind.__name__.endswith("Request")


def _as_on_the_wire(schema: _Schema) -> _Schema:
    """Rename and refine the fields of a request, and allow null, which counts as absent."""
    properties = {}
    for field, shape in schema["properties"].items():
        name = _RENAMED.get(field, field)
        properties[name] = {"anyOf": [_WIRE.get(name, shape), {"type": "null"}]}
    return {**schema, "properties": properties}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}
