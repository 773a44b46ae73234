"""docs/compatibility.md held to the code: routes, fields, options, headers, clients and tests."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import tomli
from starlette.applications import Starlette
from starlette.routing import Match, Route

from kvsup.anthropic.chat import Request as MessagesRequest
from kvsup.api.app import Store, _routes
from kvsup.api.bodies import BodyRoom
from kvsup.api.openapi import document
from kvsup.hostconfig import HostConfig
from kvsup.ollama import requests, storerequests
from kvsup.ollama.options import OPTIONS
from kvsup.openai import requests as openai_requests
from kvsup.runtime.chronicle import Chronicle
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.historyfiles import HistoryFiles
from kvsup.runtime.kvfiles import KVFiles
from kvsup.runtime.making import make_instance
from kvsup.runtime.remembered import Remembered
from kvsup.runtime.warming import Store as KVStore
from kvsup.runtime.weightsums import WeightSums
from kvsup.runtime.works import Works
from tests import contract
from tests.doclinks import Link, links_in, table_rows
from tests.modelworks import changes_of, works_of

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "compatibility.md"
DOCUMENTED: dict[str, Any] = document("1.2.3")
"""The OpenAPI document."""
FUZZ = ROOT / "tests" / "e2e" / "test_openapi_fuzz.py"
"""Tests that try every operation of the OpenAPI document, by what that says."""
MAX_LINES = 370

PASSED = "/v1/{path:path}"
"""The route that takes whatever llama-server may have; some of its paths have rows of their own."""

Struct = type[msgspec.Struct]
Typed = tuple[str, str, Struct]
"""Routes, what stands before each field, and the type that has the fields."""

REQUESTS: tuple[Typed, ...] = (
    ("chat", "", requests.ChatRequest),
    ("chat", "messages[].", requests.Message),
    ("chat", "messages[].tool_calls[].", requests.ToolCall),
    ("chat", "messages[].tool_calls[].function.", requests.FunctionCall),
    ("generate", "", requests.GenerateRequest),
    ("embed", "", requests.EmbedRequest),
    ("embeddings", "", requests.EmbeddingsRequest),
    ("show", "", requests.ShowRequest),
    ("delete", "", storerequests.NamedRequest),
    ("pull, push", "", storerequests.TransferRequest),
    ("create", "", storerequests.CreateRequest),
    ("create", "messages[].", storerequests.Turn),
    ("copy", "", storerequests.CopyRequest),
)
ANSWERS: tuple[Typed, ...] = (
    ("chat", "", contract.ChatEnd),
    ("chat", "message.", contract.Message),
    ("chat", "message.tool_calls[].", contract.ToolCall),
    ("chat", "message.tool_calls[].function.", contract.Function),
    ("generate", "", contract.GenerateEnd),
    ("embed", "", contract.Embed),
    ("embeddings", "", contract.OldEmbedding),
    ("tags", "", contract.Tags),
    ("tags", "", contract.Tag),
    ("tags", "details.", contract.TagDetails),
    ("ps", "", contract.Ps),
    ("ps", "", contract.Running),
    ("ps, show", "details.", contract.Details),
    ("show", "", contract.Show),
    ("show", "tensors[].", contract.Tensor),
)
OTHER_REQUESTS: tuple[Typed, ...] = (
    ("chat", "", openai_requests._Chat),
    ("completions", "", openai_requests._Completion),
    ("embeddings", "", openai_requests._Embedding),
    ("responses", "", openai_requests._Response),
    ("messages", "", MessagesRequest),
)
ON_THE_WIRE = {
    "keep_alive_s": "keep_alive",
    "debug_render_only": "_debug_render_only",
    "base": "from",
    "licenses": "license",
}
"""Fields that the wire names otherwise than the types do."""


def _sections() -> Mapping[str, str]:
    """Return the text below each heading of the second level."""
    first, *others = re.split(r"^## ", DOCUMENT.read_text("utf-8"), flags=re.MULTILINE)
    return {"": first, **dict(other.split("\n", 1) for other in others)}


def _rows(section: str) -> list[dict[str, str]]:
    return list(table_rows(_sections()[section]))


def _all_rows() -> list[dict[str, str]]:
    return list(table_rows(DOCUMENT.read_text("utf-8")))


def _names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def _links(text: str) -> list[Link]:
    return links_in(text, folder=DOCUMENT.parent)


def _fields(types: tuple[Typed, ...]) -> list[tuple[str, str]]:
    """Return each pair of a route and a field that the types have, in order and once."""
    pairs = {
        (route, before + ON_THE_WIRE.get(field, field))
        for routes, before, kind in types
        for route in routes.split(", ")
        for field in kind.__struct_encode_fields__
    }
    return sorted(pairs)


def _told(rows: list[dict[str, str]], column: str) -> list[tuple[str, str]]:
    """Return each pair of a route and a field that the rows tell of, in order."""
    return sorted(
        (route, name)
        for row in rows
        for route in row["Route"].split(", ")
        for name in _names(row[column])
    )


def _app_routes(folder: Path) -> list[Route]:
    """Return the routes of a kvsup without models that keeps everything in ``folder``."""
    host = HostConfig()

    async def reload() -> None:
        """Change nothing."""

    changes = changes_of(folder, folder, lambda _name: None)
    store = Store(
        changes,
        works_of(changes, Works()),
        reload=reload,
        refusal=lambda: None,
        kept=KVStore(
            KVFiles(folder, max_bytes=0, emit=lambda _event: None),
            WeightSums(Remembered(folder)),
            Remembered(folder),
        ),
    )
    routes = _routes(
        Fleet([], host, make=make_instance, emit=lambda _event: None),
        store,
        Chronicle(HistoryFiles(folder), version="1", emit=lambda _event: None),
        room=BodyRoom(max_body_bytes=1024, max_bodies_bytes=4096, patience_s=60.0, folder=folder),
        fetch=None,
    )
    return [route for route in routes if isinstance(route, Route)]


def _taken_by(method: str, path: str, routes: list[Route]) -> str:
    """Return the path of the first route that takes the request."""
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    return next(route.path for route in routes if route.matches(scope)[0] is Match.FULL)


def test_endpoints_are_the_routes_of_the_app(tmp_path: Path) -> None:
    """Each route has one row with its methods; further rows are paths that one route passes on."""
    routes = _app_routes(tmp_path)
    served = {
        (re.sub(r":path}", "}", route.path), *sorted(route.methods or ())) for route in routes
    }

    words = [_names(row["Endpoint"])[0].split() for row in _rows("Endpoints")]
    told = [(path, *sorted(methods)) for *methods, path in words]

    assert len(told) == len(set(told))
    assert served <= set(told)
    for path, *methods in set(told) - served:
        assert methods == ["POST"]
        assert _taken_by("POST", path, routes) == PASSED


async def _statuses(row: dict[str, str], folder: Path) -> set[int]:
    """Return what a kvsup without models answers to each method of an endpoint."""
    *methods, path = _names(row["Endpoint"])[0].split()
    path = path.replace("{digest}", "sha256:" + 64 * "0").replace("{key}", "k")
    transport = httpx.ASGITransport(app=Starlette(routes=_app_routes(folder)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answers = [await client.request(method, path, json={"model": "m"}) for method in methods]
    return {answer.status_code for answer in answers}


async def test_endpoints_that_are_not_served_answer_with_the_status_of_their_row(
    tmp_path: Path,
) -> None:
    """Whoever looks it up finds what a client is told."""
    for row in _rows("Endpoints"):
        told = {int(status) for status in re.findall(r"\b[45]\d\d\b", row["What to know"])}
        if row["Served"] == "no":
            assert await _statuses(row, tmp_path) == told, row


async def test_endpoints_of_ollama_that_are_served_refuse_nobody(tmp_path: Path) -> None:
    """A kvsup without models may find none, but does not say that it cannot."""
    for row in _rows("Endpoints"):
        if row["Served"] == "yes" and "/api/" in row["Endpoint"]:
            assert not await _statuses(row, tmp_path) & {401, 403, 405, 501}, row


def test_endpoints_of_the_openapi_document_each_have_a_row() -> None:
    """What is documented for programs is documented for people."""
    paths = {path for path in DOCUMENTED["paths"] if "{" not in path}

    told = {_names(row["Endpoint"])[0].split()[-1] for row in _rows("Endpoints")}

    assert paths <= told


def test_request_fields_are_those_that_are_decoded() -> None:
    """Each field of each type has one row, and no row tells of another."""
    types = {kind for _, _, kind in REQUESTS}
    structs = {
        kind
        for kind in (vars(requests) | vars(storerequests)).values()
        if isinstance(kind, type(msgspec.Struct)) and kind is not msgspec.Struct
    }

    told = _told(_rows("Request fields of Ollama's API"), "Field")

    assert types == structs
    assert told == _fields(REQUESTS)


def test_options_are_those_of_the_code_with_their_defaults() -> None:
    """Each option has one row with its default, and where it goes."""
    told = {
        _names(row["Option"])[0]: (row["Default"], _names(row["Goes to"])[0])
        for row in _rows("Ollama's options")
    }

    assert told == {
        name: (
            "none" if option.default is None else str(option.default),
            option.field or option.key,
        )
        for name, option in OPTIONS.items()
    }


def test_answer_fields_are_those_of_the_contract() -> None:
    """What is told as served is what the types allow that answers are held to."""
    rows = _rows("Answer fields of Ollama's API")
    served = [row for row in rows if row["Served"] == "yes"]
    missing = [row for row in rows if row["Served"] == "no"]

    assert _told(served, "Fields") == _fields(ANSWERS)
    assert not set(_told(missing, "Fields")) & set(_fields(ANSWERS))


def test_fields_of_the_other_apis_are_those_that_are_read() -> None:
    """Each member that kvsup checks or mends has one row for each route."""
    rows = [row for row in _rows("OpenAI's and Anthropic's fields") if "Route" in row]

    assert _told(rows, "Fields") == _fields(OTHER_REQUESTS)


def test_headers_of_the_code_each_have_a_row() -> None:
    """Each header whose name begins with kvsup's own prefix is told, and no other is."""
    code = "".join(path.read_text("utf-8") for path in (ROOT / "kvsup" / "api").glob("*.py"))
    header = re.compile(r'"(x-kvsup-[\w-]+)"')
    cells = [row.get("Member or header", "") for row in _rows("OpenAI's and Anthropic's fields")]

    told = {name for cell in cells for name in _names(cell) if name.startswith("x-")}

    assert told == set(header.findall(code))


@pytest.mark.parametrize("language", ["Python", "JavaScript"])
def test_clients_are_those_that_are_pinned(language: str) -> None:
    """Each package has one row with the version that the tests install."""
    text = _sections()["Clients"].split(f"### {language}\n")[1].partition("\n### ")[0]

    told = [(_names(row["Package"])[0], row["Version"]) for row in table_rows(text)]

    assert sorted(told) == sorted(_pinned(language).items())


@pytest.mark.parametrize("row", _rows("Clients"), ids=lambda row: row["Package"])
def test_tests_of_a_client_use_it(row: dict[str, str]) -> None:
    """Each file imports the package, or names what it runs."""
    name = re.escape(_names(row["Package"])[0].removesuffix("-slim")).replace(r"\-", "[-_.]")
    used = re.compile(rf"\b{name}\b|'{name}['/]")

    unused = [link for link in _links(row["Tests"]) if not used.search(link.path.read_text())]

    assert unused == []


def _pinned(language: str) -> dict[str, str]:
    if language == "JavaScript":
        package = json.loads((ROOT / "tests/clients/node/package.json").read_text("utf-8"))
        return dict(package["dependencies"])
    project = tomli.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    pins = [pin.split("==") for pin in project["dependency-groups"]["clients"]]
    return {re.sub(r"\[.*]", "", name): version for name, version in pins}


def test_links_to_tests_lead_to_tests() -> None:
    """The words of a link are the name of a test in that file, or of the file itself."""
    links = _links(DOCUMENT.read_text("utf-8"))

    assert links
    assert [link for link in links if not link.is_right()] == []


def test_rows_each_have_their_test() -> None:
    """A table with a column for tests has no empty place there; whole files are for clients."""
    rows = [row for row in _all_rows() if {"Test", "Tests"} & row.keys()]

    untested = [row for row in rows if not _links(row.get("Test", row.get("Tests", "")))]
    vague = [
        row for row in rows for link in _links(row.get("Test", "")) if link.words == link.path.stem
    ]

    assert rows
    assert untested == []
    assert vague == []


def test_tests_of_a_field_or_an_option_speak_of_it() -> None:
    """A link to a file that never names the field would prove nothing."""
    for row in _all_rows():
        names = _names(row.get("Field", row.get("Option", "")))
        text = "".join(link.path.read_text("utf-8") for link in _links(row.get("Test", "")))
        for name in names:
            assert re.search(rf"\b{re.escape(name.rpartition('.')[2])}\b", text), row


def test_tests_of_an_endpoint_speak_of_it() -> None:
    """A link to a file that never names the path would prove nothing; one tries all documented."""
    for row in _rows("Endpoints"):
        path = _names(row["Endpoint"])[0].split()[-1]
        paths = [link.path for link in _links(row["Test"])]
        if path in DOCUMENTED["paths"] and FUZZ in paths:
            continue
        text = "".join(path.read_text("utf-8") for path in paths)
        assert re.search(_spoken(path), text), row


def _spoken(path: str) -> str:
    """Return the pattern of a path in a test: where a part may be a placeholder, but the first."""
    first, *others = path.partition("/{")[0].split("/")[1:]
    return f'"/{first}' + "".join(rf"/(?:{re.escape(part)}|{{\w+}})" for part in others)


def test_what_is_not_served_has_its_reason() -> None:
    """A row says yes, or it says since when not: because of what."""
    rows = [row for row in _all_rows() if "Served" in row]

    verdicts = {row["Served"] for row in rows}
    unreasoned = [
        row
        for row in rows
        if row["Served"] != "yes" and "since" not in " ".join(row.values()).split()
    ]

    assert verdicts == {"yes", "partly", "no"}
    assert unreasoned == []


def test_differences_each_have_their_reason() -> None:
    """Each row says what is otherwise, and why or what to do."""
    rows = _rows("Differences that are left")

    assert rows
    assert [row for row in rows if not all(row.values())] == []


def test_document_is_short_enough_to_read() -> None:
    """A reference that is as long as a book is read by nobody."""
    assert len(DOCUMENT.read_text("utf-8").splitlines()) < MAX_LINES
