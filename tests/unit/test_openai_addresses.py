"""Media that a request names by an address."""

import json

import pytest

from kvsup.openai.addresses import names_an_address

URL = "http://127.0.0.1/secret"
DATA = "data:image/png;base64,AAAA"


def _content(*parts: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": list(parts)}]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        _content({"type": "image_url", "image_url": {"url": URL}}),
        _content({"type": "image_url", "image_url": " HTTPS://x"}),
        _content(
            {"type": "text", "text": "a"}, {"type": "input_audio", "input_audio": {"data": URL}}
        ),
        _content({"type": "image", "source": {"type": "url", "url": URL}}),
        _content({"type": "tool_result", "content": [{"type": "image", "source": {"url": URL}}]}),
        json.dumps({"input": [{"content": [{"type": "input_image", "image_url": URL}]}]}).encode(),
        b'{"messages":[{"content":[{"type":"image_url","image_url":{"url":"\\u0068ttp://x"}}]}]}',
    ],
)
def test_medium_by_address_is_found(body: bytes) -> None:
    """In whichever API's form."""
    assert names_an_address(body)


@pytest.mark.parametrize(
    "body",
    [
        _content({"type": "image_url", "image_url": {"url": DATA}}),
        _content({"type": "text", "text": URL}),
        json.dumps({"messages": [{"role": "user", "content": URL}]}).encode(),
        json.dumps({"tools": [{"type": "image", "url": URL}], "messages": []}).encode(),
        json.dumps({"input": URL}).encode(),
        b"{}",
    ],
)
def test_text_that_is_an_address_is_text(body: bytes) -> None:
    """People write of pages; tools describe them."""
    assert not names_an_address(body)
