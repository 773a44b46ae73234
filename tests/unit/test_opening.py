"""By what a conversation is known again, and what is none."""

import json

import pytest

from kvsup.llama.opening import opening

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "Hello."}
ANSWER = {"role": "assistant", "content": "Hi."}
SECOND = {"role": "user", "content": "Why?"}


def body(*messages: object, **members: object) -> bytes:
    """Return a request of these messages."""
    return json.dumps({"messages": messages, **members}).encode()


def test_later_turns_open_as_the_first_did() -> None:
    """Whatever was answered, and whatever else is asked."""
    first = opening(body(SYSTEM, FIRST))

    assert first is not None
    assert opening(body(SYSTEM, FIRST, ANSWER, SECOND, temperature=0, n=1)) == first


@pytest.mark.parametrize("other", [(SYSTEM, SECOND), (FIRST,), ({**SYSTEM, "content": "x"}, FIRST)])
def test_another_conversation_opens_otherwise(other: tuple[object, ...]) -> None:
    """With the same system prompt, with none, with another one."""
    assert opening(body(*other)) not in {None, opening(body(SYSTEM, FIRST))}


def test_messages_of_the_model_open_every_conversation() -> None:
    """Told apart it is by what its own user says first."""
    shots = (SYSTEM, FIRST, ANSWER, SECOND, ANSWER)
    third, fourth = ({"role": "user", "content": text} for text in ("Three", "Four"))

    known = opening(body(*shots, third), n_before=2)

    assert opening(body(*shots, third, ANSWER, fourth), n_before=2) == known
    assert opening(body(*shots, fourth), n_before=2) not in {None, known}
    assert opening(body(*shots), n_before=2) is None


@pytest.mark.parametrize(
    "none",
    [
        body(SYSTEM),
        body(),
        body(SYSTEM, FIRST, n=2),
        body(SYSTEM, FIRST, n_cmpl=2),
        body(SYSTEM, FIRST, id_slot=0),
        body(SYSTEM, FIRST, cache_prompt=False),
        b'{"prompt": "Hello."}',
        b'{"messages": [1]}',
        b'{"messages": "x"}',
        b"[]",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_request_that_is_no_turn_or_has_its_own_way_is_none(none: bytes) -> None:
    """llama-server chooses its slot, or says what is wrong with it."""
    assert opening(none) is None
