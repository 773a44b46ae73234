"""Which requests are steered, and how their bodies change."""

import json
from typing import Any

import pytest

from kvsup.llama.fold import ChatFold, CompletionFold, ResponseFold
from kvsup.llama.progress import ProgressFilter
from kvsup.llama.steering import steer

CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"

USER = {"role": "user", "content": "a } b"}


def _make(path: str, **request: Any) -> object:
    steered = steer(path, json.dumps(request).encode())
    return None if steered is None else steered.make_answer()


def test_steer_streamed_body_is_kept_and_asks_for_progress() -> None:
    """The client's bytes go on as they are, with a member more before the last brace."""
    body = b'{"stream": true,\n "messages": [{"role": "user", "content": "}"}]\n}\n'

    steered = steer(CHAT, body)

    assert steered is not None
    assert steered.body == body.rstrip()[:-2] + b',"return_progress":true}'
    assert isinstance(steered.make_answer(), ProgressFilter)


def test_steer_whole_answer_is_streamed_and_folded() -> None:
    """The appended members win over the client's own."""
    body = b'{"stream":false,"stream_options":null,"messages":[]}'

    steered = steer(CHAT, body)

    assert steered is not None
    assert json.loads(steered.body) == {
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [],
        "return_progress": True,
    }
    assert steered.make_answer().content_type == b"application/json; charset=utf-8"


def test_steer_empty_object_gets_no_comma() -> None:
    """The body stays JSON, so that llama-server's error is about what is missing."""
    steered = steer(RESPONSE, b" { } ")

    assert steered is not None
    assert json.loads(steered.body)["stream"] is True


@pytest.mark.parametrize(
    ("path", "request_fields", "fold"),
    [
        (CHAT, {"messages": [USER], "n": 2}, ChatFold),
        (CHAT, {"messages": [USER], "stream": None, "logprobs": False}, ChatFold),
        (COMPLETION, {"prompt": "a", "logprobs": 2, "stop": []}, CompletionFold),
        (COMPLETION, {"prompt": "a", "stop": ["b"]}, CompletionFold),
        (COMPLETION, {"prompt": [1, 2, 3]}, CompletionFold),
        (COMPLETION, {"prompt": ["a"]}, CompletionFold),
        (RESPONSE, {"input": [{"role": "assistant", "content": "a"}]}, ResponseFold),
    ],
)
def test_steer_whole_answer_has_the_fold_of_its_path(
    path: str, request_fields: dict[str, Any], fold: type
) -> None:
    """Each kind of object has its own fold; each attempt a new one."""
    assert isinstance(_make(path, **request_fields), fold)


@pytest.mark.parametrize(
    ("path", "request_fields"),
    [
        (CHAT, {"messages": [USER], "logprobs": True}),
        (CHAT, {"messages": [USER], "n_probs": 2}),
        (CHAT, {"messages": [USER], "verbose": True}),
        (CHAT, {"messages": [USER, {"role": "assistant", "content": "a"}]}),
        (CHAT, {"messages": [USER], "continue_final_message": "content"}),
        (COMPLETION, {"prompt": ["a", "b"]}),
        (COMPLETION, {"prompt": [[1], [2]]}),
        (COMPLETION, {"prompt": {"prompt_string": "a"}}),
        (COMPLETION, {"prompt": "a", "logprobs": 2, "stop": "b"}),
        (COMPLETION, {"prompt": "a", "verbose": True}),
        (RESPONSE, {"input": "a", "logprobs": True}),
        (RESPONSE, {"input": "a", "n": 2}),
        (RESPONSE, {"input": "a", "n": 2, "stream": True}),
    ],
)
def test_steer_answer_that_cannot_be_mended_goes_as_it_came(
    path: str, request_fields: dict[str, Any]
) -> None:
    """What a stream does not tell, or tells otherwise, is not asked for as a stream."""
    assert _make(path, **request_fields) is None


@pytest.mark.parametrize("path", [CHAT, COMPLETION, RESPONSE])
def test_steer_stream_with_wanted_progress_goes_as_it_came(path: str) -> None:
    """Who asks for the progress gets it."""
    assert _make(path, stream=True, return_progress=True) is None


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/embeddings", "/v1/chat/completions/x", ""])
def test_steer_other_path_goes_as_it_came(path: str) -> None:
    """Only paths that take ``return_progress`` are steered."""
    assert _make(path, messages=[USER]) is None


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"stream":1}', b'{"messages":[1]}', b'{"a":1}}', b"\xef\xbb\xbf{}"]
)
def test_steer_body_that_is_none_goes_as_it_came(body: bytes) -> None:
    """llama-server says itself what is wrong with a request."""
    assert steer(CHAT, body) is None


@pytest.mark.parametrize(
    ("path", "request_fields"),
    [(CHAT, {"n": 2}), (CHAT, {"n": 1, "n_cmpl": 2}), (COMPLETION, {"prompt": ["a", "b"]})],
)
def test_steer_stream_of_several_answers_is_filtered_to_its_end(
    path: str, request_fields: dict[str, Any]
) -> None:
    """Progress after the first token of another answer is not passed either."""
    answer = _make(path, stream=True, **request_fields)
    token, progress = b"data: {}\n\n", b'data: {"prompt_progress":{}}\n\n'

    assert isinstance(answer, ProgressFilter)
    assert answer.feed(progress + token + progress + token) == token + token
