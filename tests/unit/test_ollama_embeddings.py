"""Answers with vectors."""

import json

import pytest

from kvsup.errors import RequestError, UpstreamError
from kvsup.ollama.embeddings import (
    cut_tokens,
    embed_body,
    embed_done,
    embed_reply,
    embeddings_reply,
    is_raw,
    not_found_text,
    read_vectors,
    room_tokens,
)

BODY = (
    b'{"model":"m","object":"list","usage":{"prompt_tokens":7,"total_tokens":7},"data":['
    b'{"embedding":[0.0,0.6,0.8],"index":1,"object":"embedding"},'
    b'{"embedding":[0.6,0.8,0.0],"index":0,"object":"embedding"}]}'
)


def test_read_vectors_gives_them_in_order_of_input_as_they_came() -> None:
    """Vectors follow the inputs; their text is not touched."""
    assert read_vectors(BODY) == ([b"[0.6,0.8,0.0]", b"[0.0,0.6,0.8]"], 7)


@pytest.mark.parametrize(("dimensions", "length"), [(1, 1), (2, 2), (3, 3), (9, 3), (-1, 3)])
def test_read_vectors_cut_ones_have_length_one_again(dimensions: int, length: int) -> None:
    """A cut vector is normalised again; more dimensions than there are change nothing."""
    vectors, _ = read_vectors(BODY, dimensions=dimensions)

    first, second = (json.loads(vector) for vector in vectors)
    assert (len(first), len(second)) == (length, length)
    assert sum(number**2 for number in first) == pytest.approx(1)
    assert second[0] == 0


def test_read_vectors_not_a_number_raises() -> None:
    """llama-server writes NaN as null."""
    with pytest.raises(RequestError, match="embedding contains NaN or Inf values"):
        read_vectors(b'{"data":[{"embedding":[null,1.0]}]}')


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"data":[]}', b'{"data":3}', b'{"data":[{"embedding":[[1.0]]}]}']
)
def test_read_vectors_of_another_body_raises(body: bytes) -> None:
    """An answer without vectors is no answer."""
    with pytest.raises(UpstreamError, match="llama-server sent"):
        read_vectors(body, dimensions=1)


def test_embed_reply_of_two_vectors_leaves_out_what_is_zero() -> None:
    """The model is echoed, escaped as Go does; zero times vanish."""
    reply = embed_reply([b"[1.0]", b"[2.0]"], model="M<x>", n_tokens=7, total_ns=9, load_ns=0)

    assert reply == (
        b'{"model":"M\\u003cx\\u003e","embeddings":[[1.0],[2.0]],'
        b'"total_duration":9,"prompt_eval_count":7}'
    )


def test_embed_done_has_no_vectors() -> None:
    """No input: the model is loaded, nothing more."""
    assert embed_done("m") == b'{"model":"m","embeddings":[]}'


def test_embeddings_reply_is_one_vector_alone() -> None:
    """The older route answers nothing else."""
    assert embeddings_reply(b"[0.5]") == b'{"embedding":[0.5]}'


@pytest.mark.parametrize(("raw", "normalize"), [(False, 2), (True, -1)])
def test_embed_body_always_says_how_long_vectors_are(raw: bool, normalize: int) -> None:  # noqa: FBT001
    """What an operator's arguments say of it does not count."""
    body = json.loads(embed_body(["a", [1, 2]], model="m", raw=raw))

    assert body == {
        "model": "m",
        "input": ["a", [1, 2]],
        "encoding_format": "float",
        "embd_normalize": normalize,
    }


@pytest.mark.parametrize(
    ("architecture", "said", "raw"),
    [
        ("nomic-bert", {}, True),
        ("nomic-bert", {"nomic-bert.normalize_embeddings": True}, False),
        ("nomic-bert-moe", {}, True),
        ("bert", {}, False),
        ("bert", {"bert.normalize_embeddings": False}, True),
        ("qwen3", {"qwen3.normalize_embeddings": False}, False),
    ],
)
def test_is_raw_follows_the_architecture_and_its_key(
    architecture: str, said: dict[str, object], *, raw: bool
) -> None:
    """Only the older kinds of embedding models are raw on the older route."""
    assert is_raw(architecture, said) is raw


BATCH_ERROR = (
    b'{"error":{"code":500,"message":"input (301 tokens) is too large to process. increase the '
    b'physical batch size (current batch size: 64)","type":"server_error"}}'
)
CONTEXT_ERROR = (
    b'{"error":{"code":400,"message":"request (301 tokens) exceeds the available context size '
    b'(256 tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":301,'
    b'"n_ctx":256}}'
)


@pytest.mark.parametrize(
    ("body", "room"),
    [
        (BATCH_ERROR, 64),
        (CONTEXT_ERROR, 255),
        (b'{"error":{"code":500,"message":"the backend failed","type":"server_error"}}', None),
        (b'{"error":"text"}', None),
        (b"", None),
    ],
)
def test_room_tokens_of_an_error_is_what_fits(body: bytes, room: int | None) -> None:
    """Both ways in which b10434 and b11434 say that an input is too long; nothing else counts."""
    assert room_tokens(body) == room


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        ([101, 1, 2, 3, 4, 5, 102], [101, 1, 2, 102]),
        ([101, 1, 2, 3, 4, 5], [101, 1, 2, 3]),
        ([1, 2, 3, 4, 5, 102], [1, 2, 3, 102]),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4]),
    ],
)
def test_cut_tokens_keeps_what_llama_server_adds(whole: list[int], expected: list[int]) -> None:
    """The tokens that begin and end every input count, but the text between them is cut."""
    assert cut_tokens([1, 2, 3, 4, 5], whole, room=4) == expected


def test_not_found_text_quotes_the_name_as_sent() -> None:
    """Clients match it."""
    assert not_found_text("M") == 'model "M" not found, try pulling it first'
