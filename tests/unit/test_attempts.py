"""What the attempts at an answer have shown when it breaks off."""

import pytest

from kvsup.errors import Diverged, NotResumed, UpstreamError
from kvsup.llama.attempts import Attempts
from kvsup.llama.resume import Continue, Facts, Replay
from kvsup.llama.transcript import CHAT, Transcript

BODY = {"messages": [{"role": "user", "content": "Say hello."}]}
BROKE = UpstreamError("it broke")


def _known(attempts: Attempts) -> Facts:
    """Return what is known of a text that could be replayed and continued."""
    transcript = Transcript(CHAT)
    transcript.add(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
    return attempts.facts(CHAT, BODY, transcript)


@pytest.mark.parametrize(
    ("how", "error", "can_replay", "can_continue"),
    [
        (None, BROKE, True, True),
        (Replay(), BROKE, True, True),
        (Continue(), BROKE, True, True),
        (Replay(), Diverged("another text"), False, True),
        (Replay(), NotResumed("too long"), False, True),
        (Continue(), NotResumed("no prefill"), True, False),
    ],
)
def test_way_that_another_process_does_not_go_is_closed_for_good(
    how: Replay | Continue | None, error: UpstreamError, *, can_replay: bool, can_continue: bool
) -> None:
    """The other one stays open; a connection that breaks says nothing of either."""
    attempts = Attempts()

    for each in (error, BROKE):
        attempts.broke_off(how, each, 1)

        known = _known(attempts)
        assert (known.can_replay, known.can_continue) == (can_replay, can_continue)


def test_attempts_that_gave_nothing_new_are_counted_until_one_does() -> None:
    """In a row, of whatever kind."""
    attempts = Attempts()
    for n in (1, 2):
        attempts.broke_off(Replay(), BROKE, 0)
        assert _known(attempts).n_fruitless == n

    attempts.go_on(1, 5.0)
    assert attempts.goes_on
    attempts.broke_off(Replay(), BROKE, 1)

    assert not attempts.goes_on
    assert _known(attempts).n_fruitless == 0


def test_speed_is_of_the_tokens_between_the_first_new_one_and_the_last() -> None:
    """Neither the prompt before them counts, nor what a client takes its time for, nor a hang."""
    attempts = Attempts()
    attempts.came_s = 60.0  # the progress of the prompt
    attempts.go_on(10, 100.0)
    for now_s in (100.0, 101.0, 109.0):
        attempts.came_s = now_s
        attempts.paused(0.5 if now_s < 101.0 else 6.0)
    attempts.broke_off(None, BROKE, 14)

    assert _known(attempts).tokens_per_s == 4 / (9.0 - 0.5 - 6.0)


def test_speed_of_an_attempt_that_gave_one_token_is_that_of_the_one_before() -> None:
    """One token has no time of its own."""
    attempts = Attempts()
    attempts.go_on(1, 0.0)
    attempts.broke_off(None, BROKE, 1)
    assert _known(attempts).tokens_per_s is None

    attempts.go_on(2, 10.0)
    attempts.came_s = 12.0
    attempts.broke_off(Replay(), BROKE, 3)
    attempts.go_on(4, 90.0)
    attempts.came_s = 90.0
    attempts.broke_off(Replay(), BROKE, 4)

    assert _known(attempts).tokens_per_s == 0.5
