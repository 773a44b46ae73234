"""How the end of a process is told from its exit code, its log and the kernel's count."""

import signal

import pytest

from kvsup.llama.logscan import LoadFailure
from kvsup.restart import Exit, ExitCause
from kvsup.runtime.ending import explained


def end(returncode: int, *, ready_for_s: float = 5.0) -> Exit:
    """Return an end that nobody asked for."""
    return Exit(ExitCause.ENDED, returncode, 10.0, ready_for_s)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])
def test_a_signal_that_others_send_is_from_outside(name: str) -> None:
    """In a load and in service."""
    code = -signal.Signals[name]

    assert explained(end(code), None, ()).cause is ExitCause.KILLED
    assert explained(end(code, ready_for_s=0), None, ()).cause is ExitCause.KILLED


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"])
def test_a_signal_that_a_process_brings_on_itself_is_a_crash(name: str) -> None:
    """Whatever the kernel has killed meanwhile."""
    code = -signal.Signals[name]

    assert explained(end(code), None, (), oom_kill="oom_kill rose").cause is ExitCause.CRASHED


def test_sigkill_while_the_kernel_killed_for_memory_is_named_so() -> None:
    """No other signal is the kernel's."""
    kill, term = -signal.SIGKILL, -signal.SIGTERM

    assert explained(end(kill), None, (), oom_kill="oom_kill rose").cause is ExitCause.KERNEL_OOM
    assert explained(end(term), None, (), oom_kill="oom_kill rose").cause is ExitCause.KILLED


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT", "SIGSEGV", "SIGABRT"])
@pytest.mark.parametrize("oom_kill", ["", "oom_kill rose"])
def test_shell_around_it_tells_the_signal_by_its_exit_code(name: str, oom_kill: str) -> None:
    """A wrapper script that does not ``exec`` hides no kill: no request is to blame for it."""
    number = signal.Signals[name]

    told = explained(end(128 + number), None, ("Killed",), oom_kill=oom_kill)

    assert told == explained(end(-number), None, ("Killed",), oom_kill=oom_kill)


def test_exit_code_0_in_service_is_what_sigterm_makes() -> None:
    """In a load it is a fault."""
    assert explained(end(0), None, ()).cause is ExitCause.KILLED
    assert explained(end(0, ready_for_s=0), None, ("bye",)).cause is ExitCause.ENDED


def test_who_is_told_to_end_twice_exits_with_1_and_is_still_ended_from_outside() -> None:
    """No request is to blame for an impatient operator."""
    tail = ("srv  operator(): cleaning up", "Received second interrupt, terminating immediately.")

    assert explained(end(1), None, tail).cause is ExitCause.KILLED
    assert explained(end(1), None, tail[:1]).cause is ExitCause.ENDED


def test_what_the_log_told_of_a_load_says_more_than_its_exit_code() -> None:
    """Once it served, the log of its load says nothing."""
    failure = LoadFailure(ExitCause.NOT_A_MODEL, "bad magic")

    assert explained(end(1, ready_for_s=0), failure, ()).cause is ExitCause.NOT_A_MODEL
    assert explained(end(1), failure, ("last words",)).detail == "last words"
