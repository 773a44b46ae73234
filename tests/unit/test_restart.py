"""What follows a death: when to try again, and when not to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.config import RestartConfig
from kvsup.restart import (
    Exit,
    ExitCause,
    GiveUp,
    Retry,
    Tally,
    decide,
    describe_returncode,
    draw_jitter,
)

PERMANENT = {
    ExitCause.BAD_ARGUMENT,
    ExitCause.NO_SUCH_FILE,
    ExitCause.NOT_A_MODEL,
    ExitCause.PAIR_REFUSED,
    ExitCause.CANNOT_START,
    ExitCause.DOES_NOT_FIT,
}
OUTSIDE = {ExitCause.KILLED, ExitCause.FROZEN, ExitCause.BUSY_HOST}
MANY = RestartConfig(max_deaths=1000)


def death(at_s: float, *, cause: ExitCause = ExitCause.CRASHED, ready_for_s: float = 0.0) -> Exit:
    """Return a death at a time."""
    return Exit(cause, -11, at_s, ready_for_s)


@pytest.mark.parametrize("cause", ExitCause)
def test_decide_on_the_first_death_gives_up_exactly_on_permanent_causes(cause: ExitCause) -> None:
    """What the next start would meet again is final; everything else is tried again."""
    verdict = decide(RestartConfig(), [death(10.0, cause=cause)], now_s=10.0, jitter=1.0)

    assert isinstance(verdict, GiveUp) == (cause in PERMANENT)
    assert cause.is_permanent == (cause in PERMANENT)


def test_decide_with_policy_never_gives_up_and_says_so() -> None:
    """The operator chose that; the reason names the key."""
    verdict = decide(RestartConfig(policy="never"), [death(0.0)], now_s=0.0, jitter=1.0)

    assert verdict == GiveUp("died of a signal; signal SIGSEGV; restart.policy is never")


@pytest.mark.parametrize(
    ("n_deaths", "delay_s"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (40, 60)]
)
def test_decide_on_quick_deaths_doubles_the_wait_up_to_its_cap(n_deaths: int, delay_s: int) -> None:
    """From ``min_delay`` 1 s to ``max_delay`` 60 s."""
    deaths = [death(float(n)) for n in range(n_deaths)]

    verdict = decide(MANY, deaths, now_s=100.0, jitter=1.0)

    assert verdict == Retry(100.0 + delay_s)


def test_decide_after_a_long_service_starts_small_again() -> None:
    """One that had been ready for ``min_uptime`` ends the row of quick deaths."""
    deaths = [*map(death, (1.0, 2.0, 3.0)), death(50.0, ready_for_s=30.0)]

    assert decide(MANY, deaths, now_s=50.0, jitter=1.0) == Retry(50.0)
    assert decide(MANY, [*deaths, death(51.0)], now_s=51.0, jitter=1.0) == Retry(52.0)


@pytest.mark.parametrize(("first_s", "verdict"), [(0.0, GiveUp), (-0.1, Retry)])
def test_decide_counts_deaths_within_the_window_only(
    first_s: float, verdict: type[GiveUp] | type[Retry]
) -> None:
    """``max_deaths`` in ``window`` seconds, both ends included."""
    config = RestartConfig(max_deaths=3, window_s=100.0)
    deaths = [death(first_s), death(50.0), death(100.0)]

    assert type(decide(config, deaths, now_s=100.0, jitter=0.0)) is verdict


def test_decide_at_the_tally_counts_deaths_after_a_long_service_too() -> None:
    """A process that crashes every minute of service is no good either."""
    config = RestartConfig(max_deaths=2)
    deaths = [death(100.0, ready_for_s=60.0), death(200.0, ready_for_s=60.0)]

    verdict = decide(config, deaths, now_s=200.0, jitter=0.0)

    assert verdict == GiveUp("died 2 times in 600 s, last: died of a signal; signal SIGSEGV")


@given(st.integers(1, 60), st.floats(0, 1))
def test_decide_waits_between_half_of_the_wait_and_all_of_it(n_deaths: int, jitter: float) -> None:
    """Jitter spreads over the upper half, so restarts of many models part."""
    deaths = [death(0.0)] * n_deaths
    full = decide(MANY, deaths, now_s=0.0, jitter=1.0)
    spread = decide(MANY, deaths, now_s=0.0, jitter=jitter)

    assert isinstance(full, Retry)
    assert isinstance(spread, Retry)
    assert full.at_s / 2 <= spread.at_s <= full.at_s <= MANY.max_delay_s


@given(st.integers(1, 60))
def test_decide_never_waits_less_after_one_more_quick_death(n_deaths: int) -> None:
    """Backoff is monotone."""
    one = decide(MANY, [death(0.0)] * n_deaths, now_s=0.0, jitter=0.5)
    more = decide(MANY, [death(0.0)] * (n_deaths + 1), now_s=0.0, jitter=0.5)

    assert isinstance(one, Retry)
    assert isinstance(more, Retry)
    assert one.at_s <= more.at_s


@given(st.integers(7, 2000))
def test_decide_on_any_number_of_deaths_gives_a_verdict(n_deaths: int) -> None:
    """Thousands of deaths overflow nothing."""
    config = RestartConfig(max_deaths=10_000)

    assert decide(config, [death(0.0)] * n_deaths, now_s=0.0, jitter=1.0) == Retry(60.0)


def test_draw_jitter_is_within_its_range() -> None:
    """It is a fraction."""
    assert all(0.0 <= draw_jitter() <= 1.0 for _ in range(100))


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (None, ""),
        (0, "exit code 0"),
        (127, "exit code 127"),
        (-9, "signal SIGKILL"),
        (-11, "signal SIGSEGV"),
        (-250, "signal 250"),
    ],
)
def test_describe_returncode_names_code_or_signal(returncode: int | None, words: str) -> None:
    """As a person would look it up."""
    assert describe_returncode(returncode) == words


def test_exit_in_the_warm_up_says_the_mend() -> None:
    """A known cause comes with what to do."""
    text = Exit(ExitCause.CRASH_IN_WARMUP, -11, 0.0, 0.0).describe()

    assert text.startswith("died of a signal in its warm-up; signal SIGSEGV; ")
    assert 'env = { LLAMA_ARG_NO_REPACK = "1" }' in text


def test_exit_without_a_process_names_the_cause_and_the_detail_alone() -> None:
    """A spawn that failed has no exit code."""
    text = Exit(ExitCause.BAD_ARGUMENT, None, 0.0, 0.0, "no such program").describe()

    assert text == "llama-server does not take an argument; no such program"


@pytest.mark.parametrize("cause", ExitCause)
def test_decide_gives_no_model_up_for_what_came_from_outside(cause: ExitCause) -> None:
    """Whoever kills it all day must not end its service."""
    deaths = [death(float(n), cause=cause, ready_for_s=1.0) for n in range(100)]

    verdict = decide(RestartConfig(), deaths, now_s=100.0, jitter=1.0)

    assert isinstance(verdict, Retry) == (cause in OUTSIDE)
    assert cause.is_from_outside == (cause in OUTSIDE)


def test_decide_starts_at_once_what_served_when_it_was_killed() -> None:
    """It did nothing wrong; one killed in its load waits, since the host may be short of memory."""
    served = death(5.0, cause=ExitCause.KILLED, ready_for_s=0.1)
    loading = [death(float(n), cause=ExitCause.KILLED) for n in range(6)]

    assert decide(MANY, [*loading, served], now_s=5.0, jitter=1.0) == Retry(5.0)
    assert decide(MANY, loading, now_s=5.0, jitter=1.0) == Retry(37.0)


def test_decide_does_not_count_kills_between_crashes() -> None:
    """Neither for giving up nor for the wait."""
    config = RestartConfig(max_deaths=3)
    kills = [death(float(n), cause=ExitCause.KILLED, ready_for_s=1.0) for n in range(20)]
    deaths = [death(0.0), *kills, death(20.0)]

    assert decide(config, deaths, now_s=20.0, jitter=1.0) == Retry(22.0)


def test_decide_forgets_kills_in_loads_once_it_has_served() -> None:
    """Someone who kills at any moment hits some loads; that says nothing against the next one."""
    now_and_then = [
        death(float(n), cause=ExitCause.KILLED, ready_for_s=float(n % 2)) for n in range(1, 21)
    ]

    assert decide(MANY, now_and_then, now_s=20.0, jitter=1.0) == Retry(21.0)


def test_a_request_is_never_blamed_for_what_came_from_outside() -> None:
    """Nor for what lies in the load."""
    blamed = {cause for cause in ExitCause if cause.may_be_a_requests}

    assert not blamed & (OUTSIDE | PERMANENT)
    assert ExitCause.CRASHED in blamed


def test_tally_keeps_no_more_than_its_window_but_counts_all() -> None:
    """A model that dies once an hour for years takes no more memory for it."""
    tally = Tally()
    for at_s in range(0, 100_000, 100):
        tally.add(death(float(at_s)), window_s=600.0)

    assert [each.at_s for each in tally.recent] == [99_300.0 + 100.0 * n for n in range(7)]
    assert tally.n_deaths == 1000


def test_tally_counts_no_death_that_is_forgiven() -> None:
    """It was a request's own."""
    tally = Tally()
    first, second = death(1.0), death(2.0)
    tally.add(first, window_s=600.0)
    tally.add(second, window_s=600.0)
    tally.forgive([first])

    assert (tally.recent, tally.n_deaths) == ([second], 1)
