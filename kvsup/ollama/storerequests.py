"""Ollama's request bodies about the models of a store (api/types.go, server/create.go, v0.17.4)."""

from msgspec import Struct

from kvsup.errors import RequestError
from kvsup.ollama.names import valid_name
from kvsup.ollama.requests import converted, fields_of, named_fields


class NamedRequest(Struct, frozen=True, kw_only=True):
    """The body of delete; ``name`` is accepted for ``model``, here as below."""

    model: str = ""


class CopyRequest(Struct, frozen=True, kw_only=True):
    """The body of ``POST /api/copy``."""

    source: str = ""
    destination: str = ""


class TransferRequest(Struct, frozen=True, kw_only=True):
    """The body of ``POST /api/pull`` and of ``POST /api/push``."""

    model: str = ""
    insecure: bool = False
    stream: bool = True


class Turn(Struct, frozen=True, omit_defaults=True):
    """One of the messages that stand before each conversation."""

    role: str = ""
    content: str = ""


class CreateRequest(Struct, frozen=True, kw_only=True):
    """The body of ``POST /api/create``."""

    model: str = ""
    base: str = ""
    """Name of the model that is built on; ``from`` on the wire."""
    files: dict[str, str] = {}
    """Digests of uploaded files by their paths; here as below."""
    adapters: dict[str, str] = {}
    draft_files: dict[str, str] = {}
    template: str = ""
    system: str = ""
    licenses: tuple[str, ...] = ()
    """``license`` on the wire, one text or several."""
    parameters: dict[str, object] = {}
    messages: tuple[Turn, ...] = ()
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    quantize: str = ""
    """Or ``quantization``."""
    remote_host: str = ""
    info: dict[str, object] = {}
    stream: bool = True


def decode_named(body: bytes) -> NamedRequest:
    """Return the request in ``body``; raises as ``decode_chat``."""
    return converted(named_fields(body), NamedRequest)


def decode_copy(body: bytes) -> CopyRequest:
    """Return the request in ``body``; raises as ``decode_chat``."""
    return converted(fields_of(body), CopyRequest)


def decode_transfer(body: bytes) -> TransferRequest:
    """Return the request in ``body``; raises as ``decode_chat``."""
    return converted(named_fields(body), TransferRequest)


def decode_create(body: bytes) -> CreateRequest:
    """Return the request in ``body``; raises as ``decode_chat``; names and paths are right."""
    fields = named_fields(body)
    fields["base"] = fields.pop("from", "")
    fields["quantize"] = fields.get("quantize") or fields.pop("quantization", "")
    license_ = fields.pop("license", ())
    fields["licenses"] = [license_] if isinstance(license_, str) else license_
    request = converted(fields, CreateRequest)
    for path in (*request.files, *request.adapters, *request.draft_files):
        if not _is_relative(path):
            raise RequestError("file path must be relative")
    if not valid_name(request.model):
        raise RequestError("invalid model name")
    if request.base and not valid_name(request.base):
        raise RequestError("invalid model name")
    if request.remote_host:
        raise RequestError("kvsup makes no models that run elsewhere; leave remote_host out")
    if not request.base and not request.files:
        raise RequestError("neither 'from' or 'files' was specified")
    return request


def _is_relative(path: str) -> bool:
    """Say whether a path is clean and leads nowhere else (Go's ``fs.ValidPath``)."""
    return path == "." or all(part not in {"", ".", ".."} for part in path.split("/"))
