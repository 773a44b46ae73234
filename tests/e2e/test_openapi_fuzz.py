"""What ``/openapi.json`` says is true of every answer, whatever is sent."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import load_all_checks
from schemathesis.core.result import Ok
from schemathesis.generation.modes import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

from kvsup import __version__
from kvsup.api.openapi import document
from tests.running import RunningKvsup

SMOLLM2 = """
model = "{path}"
num_ctx = 256
threads = 1
embedding = "on"
on_bigger_request = "clamp"
allow_request_kv = false
[options]
num_predict = 2
"""

LEFT_OUT = re.compile(
    r"(GET /models/sse|DELETE /api/delete|POST /models/unload|POST /kvsup/\w+|\w+ /upstream/.*)$"
)
"""What has no end, and what would end the model that all others are asked of."""

ANY_BYTES = "PUT /kvsup/kv/archive"
"""What takes every body there is: none can be of a wrong type."""

FOR_WRONG_TYPES = ('option "', "invalid format: ")
"""How the texts begin for which Ollama says 500; its oldest route says it for everything."""

Operation = APIOperation[Any, Any, Any, Any]

SCHEMA = schemathesis.openapi.from_dict(document(__version__))
OPERATIONS = {
    operation.label: operation
    for operation in (
        result.ok() for result in SCHEMA.get_all_operations() if isinstance(result, Ok)
    )
    if not LEFT_OUT.match(operation.label)
}

bounded = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file, whose log must stay free of tracebacks."""
    folder = tmp_path_factory.mktemp("fuzz") / "kvsup"
    models = {"smollm2": SMOLLM2.format(path=smollm2)}
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        yield running
    assert "Traceback" not in running.log()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Return one HTTP client, closed at the end."""
    with requests.Session() as session:
        yield session


def _check(case: Any, kvsup: RunningKvsup, session: requests.Session) -> None:
    """Send a request and compare the answer with the document."""
    response = case.call(base_url=kvsup.url, session=session)

    told = [checks.status_code_conformance, checks.content_type_conformance]
    case.validate_response(response, checks=[*told, checks.response_schema_conformance])
    if response.status_code == 500 and case.path != "/api/embeddings":
        assert str(response.json()["error"]).startswith(FOR_WRONG_TYPES)


def _steer(case: Any) -> None:
    """Ask a model that is there for a short answer."""
    if "model" in case.path_parameters:
        case.path_parameters["model"] = "smollm2"
    if isinstance(case.body, dict):
        case.body["model"] = "smollm2"
        case.body["max_tokens"] = case.body["n_predict"] = 2
        case.body.pop("keep_alive", None)
        if isinstance(case.body.get("options"), dict):
            case.body["options"]["num_predict"] = 2


def test_document_that_is_served_is_the_one_of_this_version(kvsup: RunningKvsup) -> None:
    """It needs no model and no key."""
    answer = kvsup.client.get("/openapi.json")

    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json() == document(__version__)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@given(data=st.data())
@bounded
def test_request_that_fits_the_document_is_answered_as_it_says(
    kvsup: RunningKvsup, session: requests.Session, operation: Operation, data: st.DataObject
) -> None:
    """Statuses, content types and schemas are those that are documented; no 500."""
    case = data.draw(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
    if data.draw(st.booleans()):
        _steer(case)

    _check(case, kvsup, session)


@pytest.mark.parametrize(
    "operation",
    [each for label, each in OPERATIONS.items() if each.body and label != ANY_BYTES],
    ids=[label for label, each in OPERATIONS.items() if each.body and label != ANY_BYTES],
)
@given(data=st.data())
@bounded
def test_request_that_does_not_fit_the_document_is_answered_as_it_says(
    kvsup: RunningKvsup, session: requests.Session, operation: Operation, data: st.DataObject
) -> None:
    """Wrong types, missing fields and other content types are the client's error at most."""
    case = data.draw(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))

    _check(case, kvsup, session)


load_all_checks()
