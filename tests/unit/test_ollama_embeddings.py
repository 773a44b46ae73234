"""Answers with vectors."""

import json

import pytest

from kvsup.errors import RequestError, UpstreamError
from kvsup.ollama.embeddings import embed_done, embed_reply, embeddings_reply

BODY = (
    b'{"model":"m","object":"list","usage":{"prompt_tokens":7,"total_tokens":7},"data":['
    b'{"embedding":[0.0,0.6,0.8],"index":1,"object":"embedding"},'
    b'{"embedding":[0.6,0.8,0.0],"index":0,"object":"embedding"}]}'
)


def test_embed_reply_gives_vectors_in_order_of_input() -> None:
    """Vectors follow the inputs; zero times vanish."""
    reply = embed_reply(BODY, model="M:x", dimensions=0, total_ns=9, load_ns=0)

    assert reply == (
        b'{"model":"M:x","embeddings":[[0.6,0.8,0.0],[0.0,0.6,0.8]],'
        b'"total_duration":9,"prompt_eval_count":7}'
    )


@pytest.mark.parametrize(("dimensions", "lengths"), [(1, 1), (2, 2), (3, 3), (9, 3), (-1, 3)])
def test_embed_reply_cut_vectors_have_length_one_again(dimensions: int, lengths: int) -> None:
    """A cut vector is normalised again; more dimensions than there are change nothing."""
    reply = json.loads(embed_reply(BODY, model="m", dimensions=dimensions, total_ns=1, load_ns=1))

    first, second = reply["embeddings"]
    assert (len(first), len(second)) == (lengths, lengths)
    assert sum(number**2 for number in first) == pytest.approx(1)
    assert second[0] == 0


def test_embeddings_reply_is_one_vector_alone() -> None:
    """The older route answers nothing else."""
    body = b'{"data":[{"embedding":[0.5],"index":0}]}'

    assert embeddings_reply(body) == b'{"embedding":[0.5]}'


def test_embed_reply_not_a_number_raises() -> None:
    """llama-server writes NaN as null."""
    with pytest.raises(RequestError, match="embedding contains NaN or Inf values"):
        embeddings_reply(b'{"data":[{"embedding":[null,1.0]}]}')


@pytest.mark.parametrize("body", [b"", b"{}", b'{"data":[]}', b'{"data":3}'])
def test_embed_reply_other_body_raises(body: bytes) -> None:
    """An answer without vectors is no answer."""
    with pytest.raises(UpstreamError, match="llama-server sent"):
        embed_reply(body, model="m", dimensions=0, total_ns=1, load_ns=1)


def test_embed_done_has_no_vectors() -> None:
    """No input: the model is loaded, nothing more."""
    assert embed_done("m") == {"model": "m", "embeddings": []}
